"""Decoding the images of requests, so that a damaged one is refused before its job is queued: few at a time, within a
budget of pixels, and with the memory given back."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import io
import struct
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from bridge.contract import ImageFormat
from bridge.modes.images_in import BadImage, ImageLimits, InputImage

FORMATS = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp"}
"""Extensions by Pillow's format names. MPO is a JPEG with a second image behind the first, as phones write them."""
OPENERS = ("PNG", "JPEG", "WEBP")
"""The Pillow readers that may open uploads."""
SAVE_OPTIONS: dict[ImageFormat, dict[str, Any]] = {
    "png": {"compress_level": 4},
    "jpeg": {"quality": 95, "subsampling": 0},
    "webp": {"quality": 95},
}
WEBP_COPIES = 4
"""How often the WebP decoder holds all pixels of an image."""
MOST_PIXELS = 2**31
THREADS = 2
M_MMAP_THRESHOLD = -3
RETURNED_BYTES = 1024 * 1024
"""A block of at least this size goes back to the system when it is freed."""
Result = TypeVar("Result")


class PixelBudget:
    """Pixels that may be decoded at once, over all requests of one gateway. A single image always fits; others wait in
    the order in which they came."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def hold(self, pixels: int) -> AsyncIterator[None]:
        """Wait until `pixels` fit, and take them for the block."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((pixels, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back(pixels)
            else:
                self._waiting.remove((pixels, turn))
                self._admit()
            raise
        try:
            yield
        finally:
            self._give_back(pixels)

    def _give_back(self, pixels: int) -> None:
        self.used -= pixels
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            pixels, turn = self._waiting[0]
            if self.used and self.used + pixels > self.limit:
                return
            self._waiting.popleft()
            self.used += pixels
            turn.set_result(None)


class Decoder:
    """Checks the images and files of one gateway's requests, on a few threads of its own."""

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits
        self._budget = PixelBudget(limits.max_decoded_pixels)
        self._threads = ThreadPoolExecutor(THREADS, "decode")
        return_large_blocks()

    async def run(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Run `work` on one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def check(self, data: bytes) -> InputImage:
        """Decode an image the way the node pack will. Raises BadImage."""
        if len(data) > self._limits.max_bytes:
            raise BadImage(f"has {len(data)} bytes; at most {self._limits.max_bytes} are allowed")
        pixels = await self.run(_pixels, data, self._limits.max_pixels)
        async with self._budget.hold(pixels):
            return await self.run(_decode, data)

    async def converted(self, data: bytes, image_format: ImageFormat) -> bytes:
        """An image of the service's own in another format. Raises BadImage."""
        pixels = await self.run(_pixels, data, MOST_PIXELS)
        async with self._budget.hold(pixels):
            return await self.run(_convert, data, image_format)


def return_large_blocks() -> None:
    """Make the C library give large blocks back to the system when they are freed. By itself glibc keeps those up to
    32 MB for later, in each thread's own heap: many images at once would leave the gateway at its largest size."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, RETURNED_BYTES)


def _pixels(data: bytes, most: int) -> int:
    """The memory of an image while it is decoded, in pixels, by its header. Raises BadImage if it has more than `most`
    pixels."""
    webp = _webp_size(data)
    width, height = webp or _size(data)
    if width * height > most:
        raise BadImage(f"is {width}x{height}, {width * height} pixels; at most {most} are allowed")
    return max(1, width * height) * (WEBP_COPIES if webp else 1)


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """The size of a WebP, which Pillow cannot open without taking memory for all pixels; None for other files."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    match data[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            width, height = struct.unpack("<HH", data[26:30])
            return width & 0x3FFF, height & 0x3FFF
        case _:
            raise BadImage("is not a PNG, JPEG or WebP image")


def _size(data: bytes) -> tuple[int, int]:
    with _opened(data) as image:
        return image.size


def _decode(data: bytes) -> InputImage:
    with _opened(data) as image:
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            raise BadImage("is an animation; send one image")
        extension = FORMATS[image.format or ""]
        image.load()
    return InputImage(data, extension)


def _convert(data: bytes, image_format: ImageFormat) -> bytes:
    written = io.BytesIO()
    with _opened(data) as image:
        kept = image.convert("RGB") if image_format == "jpeg" or image.mode not in ("RGB", "RGBA", "L") else image
        kept.save(written, image_format.upper(), **SAVE_OPTIONS[image_format])
    return written.getvalue()


@contextlib.contextmanager
def _opened(data: bytes):  # noqa: ANN202 - Pillow is imported late
    """The image, with the errors of Pillow's decoders in the block raised as BadImage."""
    # Imported late: most gateways never get an image. The plugins are named because Pillow loads only some by itself.
    from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin  # noqa: F401

    # The size in the header is checked before anything is decoded.
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(io.BytesIO(data), formats=OPENERS) as image:
            yield image
    except BadImage:
        raise
    except Image.UnidentifiedImageError:
        raise BadImage("is not a PNG, JPEG or WebP image") from None
    except (OSError, SyntaxError, ValueError, TypeError, IndexError, EOFError, struct.error, zlib.error) as error:
        # Pillow's decoders raise all of these for damaged files.
        raise BadImage(f"cannot be decoded: {error}") from error
