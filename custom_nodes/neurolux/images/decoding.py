"""Decodes the image files that people bring: one decoder for every ComfyUI, which keeps what a file says to the bit.

ComfyUI's own LoadImage differs between versions: 0.3.75 turns 16-bit grey into white, and since 2026 it decodes with
PyAV, which changes JPEGs and does not heed mirrored orientations. Pillow does the decoding here. Where Pillow itself
loses something (the low byte of 16-bit colours, a transparent colour in 16 bits), this module reads it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms, ImageFile

WEB_FORMATS = ("PNG", "JPEG", "WEBP")
"""What requests and training sets may contain, as Pillow names it. An MPO, as phones write it, opens as a JPEG."""
FORMATS = (*WEB_FORMATS, "GIF", "BMP", "TIFF", "AVIF")
ORIENTATION = 0x0112
TURNED = (5, 6, 7, 8)
"""The EXIF orientations that swap width and height."""
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored[::-1].swapaxes(0, 1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}
"""From the stored (H, W, ...) to the upright array, by EXIF orientation."""
LOW_BYTE = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
"""Pillow keeps one byte of a 16-bit colour: the first, or the second where it takes the file for little-endian."""
PROFILE_TOLERANCE = 1
"""A colour profile that changes no 8-bit value by more than this is sRGB, whatever it is called."""
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, struct.error, zlib.error)
"""What Pillow's decoders raise for damaged files."""


class UnreadableImage(ValueError):
    """An image that cannot be read, or whose pixels have no defined meaning. The message continues the file's name."""


@dataclass(frozen=True)
class DecodedImage:
    """An upright image in sRGB."""

    colours: np.ndarray
    """(H, W, 3), uint8 or uint16 as in the file; also the colours below transparent pixels."""
    alpha: np.ndarray | None
    """(H, W) of the same type; None if the image has no transparency. 0 is transparent."""
    warnings: tuple[str, ...] = field(default=())
    """What could not be honoured, as sentences about the image."""

    def pixels(self) -> np.ndarray:
        """The colours as float32 in [0, 1]."""
        return in_unit_range(self.colours)

    def transparency(self) -> np.ndarray:
        """(H, W) float32: 1 where the image is transparent, as ComfyUI's masks have it."""
        if self.alpha is None:
            return np.zeros(self.colours.shape[:2], np.float32)
        return 1 - in_unit_range(self.alpha)

    def on_white(self) -> Image.Image:
        """As an 8-bit image, its transparent parts white."""
        if self.alpha is None and self.colours.dtype == np.uint8:
            return Image.fromarray(self.colours)
        share = 1 - self.transparency()[..., None]
        pixels = self.pixels() * share + (1 - share)
        return Image.fromarray((pixels * 255).round().astype(np.uint8))


def in_unit_range(values: np.ndarray) -> np.ndarray:
    """Integers as float32 in [0, 1]. For 8 bits these are the values of ComfyUI's LoadImage, to the bit."""
    return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)


def is_see_through(data: bytes) -> bool:
    """Whether the image in a file is partly transparent. Raises UnreadableImage."""
    image = opened(data)
    if image.mode in ("RGB", "L", "1", "CMYK", "YCbCr") and "transparency" not in image.info:
        return False  # a photograph, whose pixels need not be read
    alpha = decoded(data).alpha
    return alpha is not None and bool((alpha < np.iinfo(alpha.dtype).max).any())


def opened(data: bytes, formats: tuple[str, ...] = FORMATS) -> ImageFile.ImageFile:
    """The image, its pixels unread. Raises UnreadableImage."""
    try:
        return Image.open(BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"has too many pixels ({error})") from error
    except Image.UnidentifiedImageError as error:
        names = [name.replace("WEBP", "WebP") for name in formats]
        raise UnreadableImage(f"is not a {', '.join(names[:-1])} or {names[-1]} image") from error
    except DAMAGE as error:
        raise UnreadableImage(f"is damaged: {error}") from error


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height, turned as the EXIF data says. Raises UnreadableImage for a damaged PNG."""
    if image.format == "PNG":  # its EXIF data may be behind its pixels
        try:
            image.load()
        except DAMAGE as error:
            raise UnreadableImage(f"is damaged: {error}") from error
    width, height = image.size
    return (height, width) if orientation_of(image)[0] in TURNED else (width, height)


def decoded(data: bytes, formats: tuple[str, ...] = FORMATS) -> DecodedImage:
    """The image in a file. Raises UnreadableImage.

    It is turned and mirrored as its EXIF data says (in every format that has it), and converted to sRGB from the colour
    profile of an RGB or CMYK image. The profile of a grey image is ignored, because grey values may be those of a mask.
    """
    image = opened(data, formats)
    raw_mode = image.tile[0].args if image.format == "PNG" and len(image.tile) == 1 else None
    try:
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # the second image of an MPO is a preview or another view
            raise UnreadableImage(f"has {frames} frames or pages; use a file with one image")
        image.load()
        orientation, warnings = orientation_of(image)
        colours, alpha = sixteen_bits(data, image, raw_mode) or eight_bits(image, raw_mode)
    except MemoryError as error:
        raise UnreadableImage(f"is too large for the memory of this machine ({image.size})") from error
    except UnreadableImage:
        raise
    except DAMAGE as error:
        raise UnreadableImage(f"is damaged: {error}") from error
    if image.mode in ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK"):
        colours, profile_warnings = in_srgb(image, colours)
        warnings = [*warnings, *profile_warnings]
    upright = UPRIGHT.get(orientation, lambda stored: stored)
    alpha = None if alpha is None else np.ascontiguousarray(upright(alpha))
    return DecodedImage(np.ascontiguousarray(upright(colours)), alpha, tuple(warnings))


def orientation_of(image: Image.Image) -> tuple[int, list[str]]:
    """The EXIF orientation, 1 to 8, and a warning if the EXIF data cannot be read."""
    if image.format == "TIFF":
        return 1, []  # Pillow turns it while it loads
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except DAMAGE as error:
        return 1, [f"its EXIF data cannot be read ({error}), so it is used as it is stored"]
    return (found if found in UPRIGHT else 1), []


def sixteen_bits(data: bytes, image: Image.Image, raw_mode: object) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Colours and alpha of an image with 16 bits per value, as uint16; None for other images."""
    clear = image.info.get("transparency")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        grey = np.asarray(image).astype(np.uint16)
        alpha = None if not isinstance(clear, int) else opaque_except(grey == clear, np.uint16)
        return np.repeat(grey[..., None], 3, axis=-1), alpha
    if raw_mode == "LA;16B":
        stored = as_raw(data, "RGBA").astype(np.uint16)
        grey, alpha = stored[..., 0] << 8 | stored[..., 1], stored[..., 2] << 8 | stored[..., 3]
        return np.repeat(grey[..., None], 3, axis=-1), alpha
    if not isinstance(raw_mode, str) or raw_mode not in LOW_BYTE:
        return None
    values = np.asarray(image).astype(np.uint16) << 8 | as_raw(data, LOW_BYTE[raw_mode])
    if values.shape[-1] == 4:
        return values[..., :3], values[..., 3]
    alpha = None if clear is None else opaque_except((values == np.asarray(clear)).all(axis=-1), np.uint16)
    return values, alpha


def as_raw(data: bytes, raw_mode: str) -> np.ndarray:
    """The pixels of a PNG, read as if they were stored in ``raw_mode``, which has as many bits per pixel."""
    with opened(data) as image:
        image.tile = [image.tile[0]._replace(args=raw_mode)]
        return np.asarray(image)


def eight_bits(image: Image.Image, raw_mode: object) -> tuple[np.ndarray, np.ndarray | None]:
    """Colours and alpha, as uint8. Raises UnreadableImage for values without a defined black and white."""
    mode, clear = image.mode, image.info.get("transparency")
    if mode in ("I", "F", "LAB", "HSV"):
        what = {"I": "32-bit integers", "F": "floating point numbers"}.get(mode, f"{mode} colours")
        raise UnreadableImage(f"has {what}, which have no defined black and white; save it with 8 or 16 bits, as RGB")
    if mode in ("1", "L"):
        grey = np.asarray(image.convert("L"))
        colours = np.repeat(grey[..., None], 3, axis=-1)
        if not isinstance(clear, int):
            return colours, None
        highest = {"L;2": 3, "L;4": 15}.get(str(raw_mode), 255)
        shown = (255 if clear else 0) if mode == "1" else clear * 255 // highest
        return colours, opaque_except(grey == shown, np.uint8)
    if mode == "RGB" and isinstance(clear, tuple):
        colours = np.asarray(image)
        return colours, opaque_except((colours == np.asarray(clear)).all(axis=-1), np.uint8)
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or clear is not None:
        values = np.asarray(image.convert("RGBA"))
        return values[..., :3], values[..., 3]
    return np.asarray(image.convert("RGB")), None


def opaque_except(clear: np.ndarray, dtype: type[np.unsignedinteger]) -> np.ndarray:
    """Alpha that is 0 where ``clear``, and full elsewhere."""
    return np.where(clear, 0, np.iinfo(dtype).max).astype(dtype)


def in_srgb(image: Image.Image, colours: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """``colours`` converted from the image's colour profile to sRGB; unchanged if it has none or if that is sRGB.

    The conversion has 8 bits per value. Returns a warning if the profile cannot be used.
    """
    stored = image.info.get("icc_profile")
    if not stored:
        return colours, []
    mode = "CMYK" if image.mode == "CMYK" else "RGB"
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(stored))
        to_srgb = ImageCms.buildTransform(
            profile, ImageCms.createProfile("sRGB"), mode, "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )  # fmt: skip
        if mode == "RGB" and is_srgb(to_srgb):
            return colours, []
        source = image if mode == "CMYK" else Image.fromarray((in_unit_range(colours) * 255).round().astype(np.uint8))
        converted = ImageCms.applyTransform(source, to_srgb)
    except (ImageCms.PyCMSError, *DAMAGE) as error:
        return colours, [f"its colour profile cannot be used ({error}), so its colours are taken as sRGB"]
    assert converted is not None  # the transform is not in place
    result = np.asarray(converted)
    return (result.astype(np.uint16) * 257 if colours.dtype == np.uint16 else result), []


def is_srgb(to_srgb: ImageCms.ImageCmsTransform) -> bool:
    """Whether a transform from RGB to sRGB leaves a grid of colours as they are."""
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(9, 81, 3)
    changed = ImageCms.applyTransform(Image.fromarray(grid), to_srgb)
    assert changed is not None
    return int(np.abs(np.asarray(changed).astype(int) - grid).max()) <= PROFILE_TOLERANCE
