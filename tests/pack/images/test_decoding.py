"""The decoder: every kind of file, as an image and as transparency, in every EXIF orientation, to the last bit."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from tests.pack.conftest import REPO  # noqa: F401 - puts the pack on the path

RANDOM = np.random.default_rng(7)
H, W = 6, 5
RGB = RANDOM.integers(0, 256, (H, W, 3), np.uint8)
GREY = RANDOM.integers(0, 256, (H, W), np.uint8)
ALPHA = RANDOM.integers(0, 256, (H, W), np.uint8)
RGB16 = RANDOM.integers(0, 65536, (H, W, 3), np.uint16)
GREY16 = RANDOM.integers(0, 65536, (H, W), np.uint16)
ALPHA16 = RANDOM.integers(0, 65536, (H, W), np.uint16)
COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(values: np.ndarray, *chunks: bytes, depth: int | None = None, behind: bytes = b"") -> bytes:
    """A PNG of (H, W, C) values, written by hand: Pillow writes neither 16-bit colours nor few-bit grey."""
    values = values if values.ndim == 3 else values[..., None]
    depth = depth or values.dtype.itemsize * 8
    if depth < 8:
        bits = np.unpackbits(values[..., 0][..., None], axis=-1)[..., -depth:].reshape(len(values), -1)
        rows = [np.packbits(row).tobytes() for row in bits]
    else:
        rows = [row.astype(f">u{depth // 8}").tobytes() for row in values]
    head = struct.pack(">IIBBBBB", values.shape[1], len(values), depth, COLOUR_TYPE[values.shape[2]], 0, 0, 0)
    body = b"".join(chunks) + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + behind + chunk(b"IEND", b"")


def clear(*values: int) -> bytes:
    """A tRNS chunk: this grey or colour is transparent."""
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


def grey3(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def hole(at: tuple[int, int], dtype: type = np.uint8) -> np.ndarray:
    alpha = np.full((H, W), np.iinfo(dtype).max, dtype)
    alpha[at] = 0
    return alpha


def paletted() -> Image.Image:
    image = Image.new("P", (W, H))
    image.putdata(list(range(H * W)))
    image.putpalette(RGB.tobytes())
    return image


RGBA = np.dstack([RGB, ALPHA])
BITS = (GREY > 127).astype(np.uint8)
FEW = GREY >> 6
FEW_CLEAR = int(FEW[2, 3])
PALETTE_ALPHA = bytes(range(0, 240, 8))
Row = tuple[bytes, np.ndarray, np.ndarray | None]
UNIQUE_GREY = np.arange(H * W, dtype=np.uint8).reshape(H, W) * 8

LOSSLESS: dict[str, Row] = {
    "1 bit": (saved(Image.fromarray(BITS.astype(bool))), grey3(BITS * 255), None),
    "1 bit, white transparent": (png(BITS, clear(1), depth=1), grey3(BITS * 255), 255 - BITS * 255),
    "2 bits": (png(FEW, depth=2), grey3(FEW * 85), None),
    "2 bits + tRNS": (
        png(FEW, clear(FEW_CLEAR), depth=2), grey3(FEW * 85), np.where(FEW == FEW_CLEAR, 0, 255).astype(np.uint8)
    ),
    "4 bits + tRNS": (
        png(GREY >> 4, clear(int(GREY[0, 0] >> 4)), depth=4), grey3((GREY >> 4) * 17),
        np.where(GREY[0, 0] >> 4 == GREY >> 4, 0, 255).astype(np.uint8),
    ),
    "L": (saved(Image.fromarray(GREY)), grey3(GREY), None),
    "L + tRNS": (png(UNIQUE_GREY, clear(8 * (W + 2))), grey3(UNIQUE_GREY), hole((1, 2))),
    "LA": (png(np.dstack([GREY, ALPHA])), grey3(GREY), ALPHA),
    "P": (saved(paletted()), RGB, None),
    "P + tRNS": (
        saved(paletted(), transparency=PALETTE_ALPHA), RGB, np.frombuffer(PALETTE_ALPHA, np.uint8).reshape(H, W)
    ),
    "P + one transparent": (saved(paletted(), transparency=7), RGB, hole((1, 2))),
    "RGB": (saved(Image.fromarray(RGB)), RGB, None),
    "RGB + tRNS": (png(RGB, clear(*map(int, RGB[3, 1]))), RGB, hole((3, 1))),
    "RGBA": (saved(Image.fromarray(RGBA)), RGB, ALPHA),
    "16-bit grey": (saved(Image.fromarray(GREY16)), grey3(GREY16), None),
    "16-bit grey + tRNS": (png(GREY16, clear(int(GREY16[3, 1]))), grey3(GREY16), hole((3, 1), np.uint16)),
    "16-bit LA": (png(np.dstack([GREY16, ALPHA16])), grey3(GREY16), ALPHA16),
    "16-bit RGB": (png(RGB16), RGB16, None),
    "16-bit RGB + tRNS": (png(RGB16, clear(*map(int, RGB16[3, 1]))), RGB16, hole((3, 1), np.uint16)),
    "16-bit RGBA": (png(np.dstack([RGB16, ALPHA16])), RGB16, ALPHA16),
    "lossless WebP": (saved(Image.fromarray(RGB), "WEBP", lossless=True), RGB, None),
    "lossless WebP with alpha": (saved(Image.fromarray(RGBA), "WEBP", lossless=True, exact=True), RGB, ALPHA),
    "TIFF 16-bit grey": (saved(Image.fromarray(GREY16), "TIFF"), grey3(GREY16), None),
    "BMP": (saved(Image.fromarray(RGB), "BMP"), RGB, None),
}  # fmt: skip


@pytest.mark.parametrize("kind", LOSSLESS)
def test_every_value_is_that_of_the_file(kind: str) -> None:
    from neurolux.images.decoding import decoded

    data, colours, alpha = LOSSLESS[kind]
    found = decoded(data)
    assert found.colours.dtype == colours.dtype
    assert np.array_equal(found.colours, colours)
    assert np.array_equal(found.pixels(), colours.astype(np.float32) / np.iinfo(colours.dtype).max)
    if alpha is None:
        assert found.alpha is None
        assert not found.transparency().any()
        assert found.transparency().shape == (H, W)
    else:
        assert np.array_equal(found.alpha, alpha)
        assert np.array_equal(found.transparency() == 1, alpha == 0)
    assert found.warnings == ()


SMOOTH = np.stack(np.broadcast_arrays(np.arange(64)[:, None] * 4, np.arange(48) * 5, 128), axis=-1).astype(np.uint8)
BIG_ALPHA = np.where(np.hypot(*np.ogrid[-32:32, -24:24]) < 15, 255, 0).astype(np.uint8)
LOSSY: dict[str, Callable[[], bytes]] = {
    "YCbCr JPEG": lambda: saved(Image.fromarray(SMOOTH), "JPEG", quality=95),
    "RGB JPEG": lambda: saved(Image.fromarray(SMOOTH), "JPEG", quality=95, keep_rgb=True),
    "progressive JPEG": lambda: saved(Image.fromarray(SMOOTH), "JPEG", quality=95, progressive=True),
    "CMYK JPEG, Adobe's": lambda: saved(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95),
    "CMYK JPEG without a marker": lambda: unmarked(saved(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95)),
    "lossy WebP": lambda: saved(Image.fromarray(SMOOTH), "WEBP", quality=95),
    "lossy WebP with alpha": lambda: saved(Image.fromarray(np.dstack([SMOOTH, BIG_ALPHA])), "WEBP", quality=95),
    "MPO": lambda: saved(
        Image.fromarray(SMOOTH), "MPO", quality=95, save_all=True, append_images=[Image.new("RGB", (48, 64))]
    ),
}


def unmarked(jpeg: bytes) -> bytes:
    """The JPEG without Adobe's APP14."""
    at = jpeg.index(b"\xff\xee")
    return jpeg[:at] + jpeg[at + 2 + struct.unpack(">H", jpeg[at + 2 : at + 4])[0] :]


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_files_are_what_pillow_decodes_and_look_right(kind: str) -> None:
    from neurolux.images.decoding import decoded

    data = LOSSY[kind]()
    found = decoded(data)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(found.colours, np.asarray(image.convert("RGB")))
    assert np.abs(found.colours.astype(int) - SMOOTH)[BIG_ALPHA > 0].mean() < 6
    assert (found.alpha is not None) == ("alpha" in kind)
    if found.alpha is not None:
        assert np.array_equal(found.alpha, BIG_ALPHA)


def oriented(kind: str, orientation: int) -> tuple[bytes, np.ndarray]:
    """A file with EXIF, and its stored pixels."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    block = exif.tobytes()
    if kind == "PNG, eXIf behind":
        return png(RGB, behind=chunk(b"eXIf", block.removeprefix(b"Exif\0\0"))), RGB
    if kind == "16-bit PNG":
        return png(RGB16, chunk(b"eXIf", block.removeprefix(b"Exif\0\0"))), RGB16
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    data = saved(Image.fromarray(RGB), kind, exif=exif, **options)
    if kind == "TIFF":
        return data, RGB
    with Image.open(io.BytesIO(data)) as image:
        return data, np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PNG, eXIf behind", "16-bit PNG", "WEBP", "TIFF"])
def test_images_are_upright(kind: str, orientation: int) -> None:
    from neurolux.images.decoding import decoded, opened, upright_size

    data, stored = oriented(kind, orientation)
    marker = Image.fromarray(np.arange(H * W, dtype=np.uint8).reshape(H, W))
    marker.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(marker)).astype(int)
    expected = stored.reshape(-1, 3)[upright]
    found = decoded(data)
    assert np.array_equal(found.colours, expected)
    if kind != "TIFF":
        assert upright_size(opened(data)) == (expected.shape[1], expected.shape[0])


def test_transparency_is_turned_with_the_image() -> None:
    from neurolux.images.decoding import decoded

    exif = Image.Exif()
    exif[0x0112] = 5
    found = decoded(saved(Image.fromarray(RGBA), exif=exif))
    assert np.array_equal(found.alpha, ALPHA.T)


def test_damaged_exif_is_told_and_the_image_used() -> None:
    from neurolux.images.decoding import decoded

    found = decoded(png(RGB, chunk(b"eXIf", b"no EXIF at all")))
    assert np.array_equal(found.colours, RGB)
    assert "EXIF" in found.warnings[0]


def profile(gamma: float) -> bytes:
    """An RGB profile with sRGB's primaries and another tone curve, made from that of sRGB."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", data[128:132])[0]
    for index in range(count):
        tag, offset, _ = struct.unpack(">4sII", data[132 + 12 * index : 144 + 12 * index])
        if tag in (b"rTRC", b"gTRC", b"bTRC"):
            data[offset : offset + 16] = b"para\0\0\0\0\0\0\0\0" + struct.pack(">i", round(gamma * 65536))
    return bytes(data)


def test_srgb_under_any_name_changes_nothing() -> None:
    from neurolux.images.decoding import decoded

    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for values in (RGB, RGBA):
        assert np.array_equal(decoded(saved(Image.fromarray(values), icc_profile=srgb)).colours, RGB)


@pytest.mark.parametrize("bits", [8, 16])
def test_another_profile_is_converted_to_srgb(bits: int) -> None:
    from neurolux.images.decoding import decoded

    grey = np.full((4, 4, 3), 128, np.uint8)
    if bits == 8:
        data = saved(Image.fromarray(grey), icc_profile=profile(1.0))
    else:
        data = png(grey.astype(np.uint16) * 257, chunk(b"iCCP", b"x\0\0" + zlib.compress(profile(1.0))))
    found = decoded(data)
    assert abs(int(found.pixels()[0, 0, 0] * 255) - 188) <= 2  # linear 0.5 is 188 in sRGB
    assert found.colours.dtype == (np.uint8 if bits == 8 else np.uint16)


def test_a_useless_profile_is_told_and_a_grey_one_ignored() -> None:
    from neurolux.images.decoding import decoded

    found = decoded(saved(Image.fromarray(RGB), icc_profile=b"not a profile"))
    assert np.array_equal(found.colours, RGB)
    assert "colour profile" in found.warnings[0]
    grey = decoded(saved(Image.fromarray(GREY), icc_profile=b"not a profile"))
    assert np.array_equal(grey.colours[..., 0], GREY)
    assert grey.warnings == ()


ANIMATION = [Image.fromarray(RGB), Image.fromarray(RGB[::-1])]
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "text": (lambda: b"hello", "is not a PNG"),
    "nothing": (lambda: b"", "is not a PNG"),
    "half a JPEG": (lambda: LOSSY["YCbCr JPEG"]()[:900], "is damaged"),
    "half a PNG": (lambda: saved(Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), np.uint8)))[:900], "is damaged"),
    "half a 16-bit PNG": (lambda: png(RANDOM.integers(0, 65536, (64, 64, 3), np.uint16))[:900], "is damaged"),
    "animated WebP": (lambda: saved(ANIMATION[0], "WEBP", save_all=True, append_images=ANIMATION[1:]), "2 frames"),
    "animated PNG": (lambda: saved(ANIMATION[0], save_all=True, append_images=ANIMATION[1:]), "2 frames"),
    "animated GIF": (lambda: saved(ANIMATION[0], "GIF", save_all=True, append_images=ANIMATION[1:]), "2 frames"),
    "TIFF of floats": (lambda: saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "no defined black and white"),
    "TIFF of 32-bit integers": (lambda: saved(Image.fromarray(GREY.astype(np.int32)), "TIFF"), "no defined black"),
    "TIFF in LAB": (lambda: saved(Image.fromarray(RGB, "LAB"), "TIFF"), "LAB colours"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_meant_is_refused(kind: str) -> None:
    from neurolux.images.decoding import UnreadableImage, decoded

    data, message = REFUSED[kind]
    with pytest.raises(UnreadableImage, match=message):
        decoded(data())


@pytest.mark.parametrize("kind", [*LOSSLESS, *LOSSY, *REFUSED])
def test_the_gateway_takes_and_refuses_the_same_files(kind: str) -> None:
    """Of the formats that requests may send: a file is refused when it is sent, not when its job runs."""
    from neurolux.images.decoding import WEB_FORMATS, UnreadableImage, decoded

    from bridge.modes.decoding import _decode
    from bridge.modes.images_in import BadImage

    data = LOSSLESS[kind][0] if kind in LOSSLESS else (LOSSY[kind] if kind in LOSSY else REFUSED[kind][0])()
    try:
        decoded(data, WEB_FORMATS)
    except UnreadableImage:
        with pytest.raises(BadImage):
            _decode(data)
    else:
        assert _decode(data).data == data


def test_interlaced_16_bit_colours_keep_both_bytes() -> None:
    """Adam7 by hand: seven small images."""
    from neurolux.images.decoding import decoded

    values = RANDOM.integers(0, 65536, (9, 11, 3), np.uint16)
    starts = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(
        b"\0" + row.astype(">u2").tobytes() for top, left, dy, dx in starts for row in values[top::dy, left::dx]
    )
    head = struct.pack(">IIBBBBB", 11, 9, 16, 2, 0, 0, 1)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.array_equal(decoded(data).colours, values)
