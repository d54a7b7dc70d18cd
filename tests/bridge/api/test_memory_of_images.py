"""Images that are small as files and huge as pixels: the gateway decodes few at a time, and gives the memory back."""

from __future__ import annotations

import asyncio
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bridge.modes.decoding import Decoder, PixelBudget
from bridge.modes.files_in import kind_of
from bridge.modes.images_in import BadImage, ImageLimits
from tests.bridge.gateway_process import GatewayProcess, ModelsThread, running_gateway
from tests.bridge.graphs import chosen
from tests.bridge.house import write_mode

PREFIX = "test.bombs"
SIDE = 3000
MIB = 2**20
NODES: dict[str, dict[str, Any]] = {
    "20": chosen("image", "image"),
}


@pytest.fixture(scope="module")
def gateway(nats_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("bombs")
    write_mode(folder / "workflows", "paint", NODES)
    options = ("--max-pending", "1000", "--max-decoded-pixels", str(SIDE * SIDE))
    with running_gateway(nats_url, folder, *options, prefix=PREFIX) as running:
        models = ModelsThread(nats_url, running.names)
        yield running
        models.close()


def bomb(kind: str, mode: str = "RGB") -> bytes:
    data = io.BytesIO()
    Image.new(mode, (SIDE, SIDE), 7).save(data, kind)
    return data.getvalue()


def memory(gateway: GatewayProcess, name: str) -> int:
    """VmRSS (now) or VmHWM (the most since it was reset), in MiB."""
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(name)).split()[1]) // 1024


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGB"), ("PNG", "RGBA"), ("JPEG", "RGB"), ("WEBP", "RGB")])
def test_many_bombs_at_once_take_the_memory_of_one_and_give_it_back(
    gateway: GatewayProcess, kind: str, mode: str
) -> None:
    data = bomb(kind, mode)

    def send(_: int) -> int:
        form = {"prompt": (None, "a cat"), "image": ("a", data)}
        return gateway.post("/v1/modes/paint", files=form, headers={"Prefer": "respond-async"}).status_code

    send(0)  # Pillow is loaded now.
    before = memory(gateway, "VmRSS")
    Path(f"/proc/{gateway.process.pid}/clear_refs").write_text("5")  # VmHWM starts anew.
    with ThreadPoolExecutor(10) as senders:
        assert set(senders.map(send, range(10))) == {202}
    # Nine million pixels are 34 MiB, and a WebP takes that four times while it is decoded.
    assert memory(gateway, "VmHWM") - before < (180 if kind == "WEBP" else 50)
    assert memory(gateway, "VmRSS") - before < 20


def webp_header(kind: bytes, payload: bytes) -> bytes:
    body = b"WEBP" + kind + struct.pack("<I", len(payload)) + payload
    return b"RIFF" + struct.pack("<I", len(body)) + body


HUGE = 16383
BOMBS = {
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
    + struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 6, 0, 0, 0)
    + struct.pack(">I", zlib.crc32(b"IHDR" + struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 6, 0, 0, 0)))
    + b"\0\0\0\0IDAT\0\0\0\0",
    "webp extended": webp_header(b"VP8X", b"\0\0\0\0" + b"\xff\xff\xff" * 2 + bytes(40)),
    "webp lossless": webp_header(b"VP8L", b"\x2f" + (HUGE | HUGE << 14).to_bytes(4, "little") + bytes(40)),
    "webp lossy": webp_header(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", HUGE, HUGE) + bytes(40)),
}


@pytest.mark.parametrize("name", BOMBS)
async def test_a_header_that_promises_too_much_is_refused_before_anything_is_decoded(name: str) -> None:
    with pytest.raises(BadImage, match="pixels; at most 1000000 are allowed"):
        await Decoder(ImageLimits(2**20, 1_000_000)).check(BOMBS[name])


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0"}, {"quality": 1}], ids=str)
async def test_the_size_of_every_kind_of_webp_is_read(options: dict[str, Any]) -> None:
    data = io.BytesIO()
    Image.linear_gradient("L").convert("RGBA").resize((301, 77)).save(data, "WEBP", **options)
    with pytest.raises(BadImage, match="is 301x77, 23177 pixels"):
        await Decoder(ImageLimits(2**20, 1)).check(data.getvalue())
    assert (await Decoder(ImageLimits(2**20, 23177)).check(data.getvalue())).extension == "webp"


async def test_images_wait_in_order_and_one_that_gives_up_holds_up_nobody() -> None:
    budget, order = PixelBudget(10), []

    async def decode(name: str, pixels: int) -> None:
        async with budget.hold(pixels):
            order.append(name)
            assert budget.used <= 10 or name == "huge"
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(decode(*each)) for each in (("a", 6), ("b", 6), ("huge", 50), ("c", 5), ("d", 5))]
    left = asyncio.create_task(decode("left", 9))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.gather(*tasks, left, return_exceptions=True)
    assert order == ["a", "b", "huge", "c", "d"]
    assert budget.used == 0


def test_files_that_take_many_times_their_size_to_read_are_not_read() -> None:
    contents = io.BytesIO()
    with zipfile.ZipFile(contents, "w") as archive:
        for number in range(45_000):
            archive.writestr(f"{number:0100}", b"")
    with pytest.raises(BadImage, match="a list of contents of"):
        kind_of(contents.getvalue())
    assert kind_of(b"[" + b"[]," * 2_000_000 + b"[]]") == "json"
    assert kind_of(b"[" + b"[]," * 2_000_000) == "txt"
