"""Zips and folders of training images: what is read of them, and what is refused by name."""

from __future__ import annotations

import io
import json
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.usefixtures("comfy_modules")


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def plain(colour: str = "red", size: tuple[int, int] = (40, 24)) -> bytes:
    return encoded(Image.new("RGB", size, colour))


def packed(path: Path, files: Mapping[str, bytes | str]) -> Path:
    """A zip of ``files``."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def captions(path: Path) -> dict[str, str | None]:
    from neurolux.training.image_set import read_training_set

    return {image.name: image.caption for image in read_training_set(path.name, path).images}


FILES = {
    "set/a.png": plain(),
    "set/a.txt": "a red\n square ",
    "set/b.jpg": encoded(Image.new("RGB", (32, 32)), "JPEG"),
    "set/c.webp": encoded(Image.new("RGB", (32, 32)), "WEBP"),
    "set/metadata.jsonl": '{"file_name": "b.jpg", "text": "black"}\n\n{"file_name": "a.png", "text": "not this"}\n',
    "__MACOSX/set/._a.png": b"junk",
    "set/.DS_Store": b"junk",
    "set/notes.pdf": b"%PDF",
}


def test_captions_come_from_text_files_then_metadata(tmp_path: Path) -> None:
    from neurolux.training.image_set import read_training_set

    expected = {"set/a.png": "a red square", "set/b.jpg": "black", "set/c.webp": None}
    path = packed(tmp_path / "set.zip", FILES)
    assert captions(path) == expected
    folder = tmp_path / "folder"
    zipfile.ZipFile(path).extractall(folder)
    assert captions(folder) == expected
    found = read_training_set("set.zip", path)
    assert found.summary() == "3 images (1 with text files, 1 with metadata.jsonl, 1 with no caption)"
    assert found.warnings() == [
        "left out, because only PNG, JPEG and WebP images and their .txt are read: set/notes.pdf"
    ]
    assert found.digest == read_training_set("folder", folder).digest


@pytest.mark.parametrize(
    ("image", "text", "used"),
    [
        ("a.png", "a.txt", True),
        ("a.png", "a.TXT", True),
        ("CAT.PNG", "cat.txt", True),
        ("set/Cat.Jpg", "set/CAT.Txt", True),
        ("a.png", "b.txt", False),
        ("a.png", "a.png.txt", False),
        ("set/a.png", "a.txt", False),
        ("a.png", "set/a.txt", False),
    ],
)
def test_a_caption_is_used_or_told_of(tmp_path: Path, image: str, text: str, used: bool) -> None:
    from neurolux.training.image_set import read_training_set

    path = packed(tmp_path / "set.zip", {image: plain(), text: "a red square"})
    (warnings, (found,)) = read_training_set("set", path).warnings(), read_training_set("set", path).images
    assert found.caption == ("a red square" if used else None)
    assert warnings == ([] if used else [f"not used, because there is no image of that name in its folder: {text}"])


def test_of_two_captions_the_one_of_the_very_name_counts_and_the_other_is_told_of(tmp_path: Path) -> None:
    from neurolux.training.image_set import read_training_set

    path = packed(tmp_path / "set.zip", {"a.png": plain(), "A.txt": "other case", "a.txt": "same case"})
    found = read_training_set("set", path)
    assert found.images[0].caption == "same case"
    assert found.warnings() == ["not used, because there is no image of that name in its folder: A.txt"]


@pytest.mark.parametrize(
    ("name", "fits"), [("a" * 100, True), ("ä" * 100, True), ("猫" * 73, True), ("猫" * 74, False)]
)
def test_a_name_whose_file_could_not_be_written_is_refused_before_the_training(
    tmp_path: Path, name: str, fits: bool
) -> None:
    from neurolux.errors import InvalidParameter
    from neurolux.training.files import ADDED_TO_NAME, check_writable

    if fits:
        check_writable(tmp_path, name)
        (tmp_path / (name + ADDED_TO_NAME)).touch()
    else:
        with pytest.raises(InvalidParameter, match=r"has 222 bytes as a file name; at most 221 fit"):
            check_writable(tmp_path, name)
    with pytest.raises(InvalidParameter, match="has 300 bytes"):
        check_writable(tmp_path, "猫" * 100)


@pytest.mark.parametrize(
    ("name", "caption", "trigger", "spoken"),
    [
        ("a.png", "a cat", "zorb", "zorb, a cat"),
        ("a.png", "a Zorb on a hill", "zorb", "a Zorb on a hill"),
        ("a.png", "zorbs on a hill", "zorb", "zorb, zorbs on a hill"),
        ("a.png", None, "zorb", "zorb"),
        ("set/old_red-barn_07.png", None, "", "old red barn"),
        ("a.png", "a cat", "", "a cat"),
    ],
)
def test_every_caption_has_the_trigger(name: str, caption: str | None, trigger: str, spoken: str) -> None:
    from neurolux.training import image_set as training_images

    image = training_images.TrainingImage(name, "", (32, 32), caption, "")
    assert training_images.spoken(image, trigger) == spoken


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"../a.png": plain()}, r"'\.\./a\.png' in the zip leads out"),
        ({"/etc/a.png": plain()}, "leads out"),
        ({"c:a.png": plain()}, "leads out"),
        ({"a.txt": "no image"}, "has no image"),
        ({"a.png": b"text"}, r"a\.png is not a PNG, JPEG or WebP"),
        ({"a.png": encoded(Image.new("RGB", (32, 32)), "GIF")}, r"a\.png is not a PNG, JPEG or WebP"),
        ({"a.png": plain(size=(40, 8))}, r"a\.png has 40x8 pixels; a side needs 16"),
        ({"a.png": plain(), "a.txt": b"\xff\xfe\xfa"}, r"a\.txt is not UTF-8"),
        ({"a.png": plain(), "a.txt": "x" * 5001}, r"caption of a\.png has 5001 characters"),
        ({"a.png": plain(), "metadata.jsonl": '{"file_name": "b.png"}'}, "line 1 .* names b.png, which is not there"),
        ({"a.png": plain(), "metadata.jsonl": "[1]"}, "line 1 of metadata.jsonl is no"),
        ({"a.png": plain(), "b.bin": b"\0" * 100_000_001}, r"b\.bin has 100000001 bytes; at most 100000000"),
        ({f"{number}.txt": "" for number in range(5001)}, "more than 5000 files"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_what_is_wrong_with_a_zip_is_said_with_the_file(
    tmp_path: Path, files: Mapping[str, bytes | str], message: str
) -> None:
    from neurolux.errors import InvalidParameter

    with pytest.raises(InvalidParameter, match=message):
        captions(packed(tmp_path / "x.zip", files))


def test_a_image_of_too_many_pixels_is_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    from neurolux.errors import InvalidParameter

    data = bytearray(plain())
    data[16:24] = struct.pack(">II", 100_000, 100_000)  # the size in the head; its checksum is not looked at before
    head = bytes(data[12:29])
    data[29:33] = struct.pack(">I", zlib.crc32(head))
    with pytest.raises(InvalidParameter, match=r"big\.png"):
        captions(packed(tmp_path / "x.zip", {"big.png": bytes(data)}))


def test_a_link_a_password_and_damage_are_refused(tmp_path: Path) -> None:
    from neurolux.errors import InvalidParameter

    path = tmp_path / "link.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("a.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(InvalidParameter, match=r"a\.png in the zip is a link"):
        captions(path)
    locked = bytearray(packed(tmp_path / "locked.zip", {"a.png": plain()}).read_bytes())
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    with pytest.raises(InvalidParameter, match=r"a\.png in the zip has a password"):
        captions(tmp_path / "locked.zip")
    broken = bytearray(packed(tmp_path / "broken.zip", {"a.png": encoded(noise(64))}).read_bytes())
    broken[200] ^= 0xFF
    (tmp_path / "broken.zip").write_bytes(broken)
    with pytest.raises(InvalidParameter, match=r"a\.png in the zip is damaged"):
        captions(tmp_path / "broken.zip")
    (tmp_path / "no.zip").write_bytes(b"PK nothing")
    with pytest.raises(InvalidParameter, match="neither a folder nor a zip"):
        captions(tmp_path / "no.zip")


def test_a_folder_does_not_lead_out_of_itself(tmp_path: Path) -> None:
    from neurolux.errors import InvalidParameter

    folder = tmp_path / "set"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(plain())
    (folder / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(InvalidParameter, match=r"a\.png links to a file elsewhere"):
        captions(folder)


def noise(side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))


def fitted_to(tmp_path: Path, name: str, data: bytes, side: int) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
    """Pixels as 8 bits, the size before, and the place of the cut."""
    from neurolux.training.image_set import fitted, read_training_set

    path = packed(tmp_path / "one.zip", {name: data})
    (image,) = read_training_set("one.zip", path).images
    found = fitted("one.zip", image, data, side)
    assert found.pixels.dtype == np.float32
    return (found.pixels * 255).round().astype(np.uint8), found.original, found.crop


def test_images_are_turned_put_on_white_scaled_and_cut_in_the_middle(tmp_path: Path) -> None:
    wide = Image.new("RGB", (96, 32), "red")
    wide.paste("blue", (32, 0, 64, 32))
    pixels, original, crop = fitted_to(tmp_path, "wide.png", encoded(wide), 32)
    assert (pixels == (0, 0, 255)).all()
    assert (original, crop) == ((96, 32), (32, 0))

    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to see it upright
    lying = Image.new("RGB", (32, 64), "red")
    lying.paste("blue", (0, 32, 32, 64))
    pixels, original, _ = fitted_to(tmp_path, "lying.png", encoded(lying, exif=exif), 32)
    assert original == (64, 32)
    assert (pixels[:, :14] == (0, 0, 255)).all()
    assert (pixels[:, 18:] == (255, 0, 0)).all()

    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    assert (fitted_to(tmp_path, "clear.png", encoded(clear), 16)[0] == 255).all()
    grey = Image.fromarray(np.full((32, 32), 257 * 100, np.uint16))
    assert (fitted_to(tmp_path, "grey.png", encoded(grey), 32)[0] == 100).all()
    assert fitted_to(tmp_path, "small.png", plain(size=(20, 30)), 64)[0].shape == (64, 64, 3)


def test_a_image_that_changed_meanwhile_is_noticed(tmp_path: Path) -> None:
    from neurolux.errors import InvalidParameter
    from neurolux.training.image_set import fitted, read_training_set

    (image,) = read_training_set("x", packed(tmp_path / "x.zip", {"a.png": plain()})).images
    with pytest.raises(InvalidParameter, match=r"a\.png was changed meanwhile"):
        fitted("x", image, plain("blue"), 32)
    half = encoded(noise(64), "JPEG")[:1500]
    (image,) = read_training_set("x", packed(tmp_path / "y.zip", {"a.jpg": half})).images
    with pytest.raises(InvalidParameter, match=r"a\.jpg is damaged"):
        fitted("x", image, half, 32)
    with pytest.raises(InvalidParameter, match=r"a\.png is damaged"):
        captions(packed(tmp_path / "z.zip", {"a.png": encoded(noise(64))[:3000]}))


def test_every_image_has_its_turn_and_a_seed_its_order() -> None:
    from neurolux.training.settings import LoraSettings

    settings = LoraSettings("x", 10, 4, 1e-4, 2, 32, 7, "")
    order = [pick for step in range(10) for pick in settings.picks(step, 5)]
    assert [sorted(order[start : start + 5]) for start in range(0, 20, 5)] == [list(range(5))] * 4
    assert order[:5] != order[5:10]
    assert settings.picks(3, 5) == LoraSettings("y", 99, 8, 1e-3, 2, 64, 7, "z").picks(3, 5)
    assert json.dumps(settings.noise_seed(3)) != json.dumps(settings.noise_seed(4))
