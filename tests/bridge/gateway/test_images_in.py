"""Images come in as parts of a form, base64, data URLs and earlier results; what is no image is refused."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from aiohttp import FormData
from aiohttp.test_utils import TestClient
from PIL import Image

from bridge.modes.images_in import stored
from tests.bridge.graphs import chosen
from tests.bridge.house import HandWorker, House, submit, write_mode

IMAGE_NODES = {
    "20": chosen("image", "image", description="What to change.", required=True),
    "21": chosen("image", "mask", description="Where."),
}
JOB = "0d4c1d3a-3a3d-4b9f-8a51-0b2f3c4d5e6f"


def make_image(image_format: str = "PNG", size: tuple[int, int] = (5, 4), **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 30, 10)).save(file, image_format, **options)
    return file.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it is large, and whose pixels are missing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.fixture
async def doors(house: House, tmp_path: Path) -> tuple[TestClient, HandWorker]:
    """A gateway with a mode that takes images, and a worker."""
    write_mode(tmp_path / "workflows", "repaint", IMAGE_NODES)
    return await house.gateway(max_image_pixels=1_000_000), await house.worker()


async def arrived(worker: HandWorker, name: str = "image") -> bytes:
    """The image that the next job brings to its worker."""
    job = await worker.take()
    image = stored(job.parameters[name], worker.queue.names.inputs)
    assert image is not None
    return await worker.queue.inputs.get(image)


async def refusal(gateway: TestClient, **body: Any) -> dict[str, Any]:
    answer = await gateway.post("/v1/jobs", json={"prompt": "a cat", "mode": "repaint", **body})
    assert answer.status == 422, await answer.text()
    return (await answer.json())["error"]


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
async def test_base64_and_data_urls_arrive_as_they_were_sent(
    doors: tuple[TestClient, HandWorker], image_format: str
) -> None:
    gateway, worker = doors
    data = make_image(image_format)
    for sent in (text(data), f"data:image/{image_format.lower()};base64,{text(data)}"):
        await submit(gateway, mode="repaint", image=sent)
        assert await arrived(worker) == data


async def test_a_form_carries_images_as_files_and_fields_as_texts(doors: tuple[TestClient, HandWorker]) -> None:
    gateway, worker = doors
    image, mask = make_image("JPEG"), make_image("PNG", (7, 7))
    form = FormData()
    for name, value in {"prompt": "a cat", "mode": "repaint", "strength": "0.25", "seed": "7"}.items():
        form.add_field(name, value)
    form.add_field("image", image, filename="../../etc/passwd", content_type="image/jpeg")
    form.add_field("mask", mask, filename="mask.png")
    answer = await gateway.post("/v1/jobs", data=form)
    assert answer.status == 202, await answer.text()
    job = await worker.take()
    assert (job.parameters["strength"], job.parameters["seed"]) == (0.25, 7)
    for name, sent in (("image", image), ("mask", mask)):
        place = stored(job.parameters[name], worker.queue.names.inputs)
        assert place is not None
        assert place.name == f"{job.job_id}/{name}.{'jpg' if name == 'image' else 'png'}"
        assert await worker.queue.inputs.get(place) == sent


async def test_a_form_may_carry_the_request_as_json_in_one_part(doors: tuple[TestClient, HandWorker]) -> None:
    gateway, worker = doors
    form = FormData()
    form.add_field("request", json.dumps({"prompt": "a cat", "strength": 0.75}), content_type="application/json")
    form.add_field("image", make_image(), filename="a.png", content_type="image/png")
    answer = await gateway.post("/v1/modes/repaint", data=form, headers={"Prefer": "respond-async"})
    assert answer.status == 202, await answer.text()
    assert (await worker.take()).parameters["strength"] == 0.75


async def test_an_image_of_an_earlier_job_is_copied_so_that_it_outlives_it(
    doors: tuple[TestClient, HandWorker],
) -> None:
    gateway, worker = doors
    data = make_image()
    first = await submit(gateway)
    await worker.take()
    await worker.finish(first, [data])
    await submit(gateway, mode="repaint", image=f"job:{first}/0")
    assert await arrived(worker) == data


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ("example.png", "is not an image"),
        ("../../etc/passwd", "is not an image"),
        ("image.png [output]", "is not an image"),
        (f"input:{JOB}/image.png#12.{'0' * 64}", "is not an image"),
        ("", "is empty"),
        (7, "must be a string, not int"),
        (["x"], "must be a string, not list"),
        (text(b"GIF89a" + b"\0" * 40), "is not a PNG, JPEG or WebP image"),
        (text(make_image("GIF")), "is not a PNG, JPEG or WebP image"),
        (text(b"<svg/>" * 9), "is not a PNG, JPEG or WebP image"),
        (text(make_image(size=(200, 200))[:150]), "cannot be decoded"),
        (text(make_image("JPEG", size=(200, 200))[:700]), "cannot be decoded"),
        (text(bomb(60_000, 60_000)), "60000x60000, 3600000000 pixels; at most 1000000"),
        (text(bomb(900, 900)), "cannot be decoded"),
        (f"job:{JOB}/0", "no job has the id"),
    ],
)
async def test_what_is_no_image_is_refused_with_its_reason(
    doors: tuple[TestClient, HandWorker], sent: Any, said: str
) -> None:
    error = await refusal(doors[0], image=sent)
    assert error["field"] == "image"
    assert error["message"].startswith("image ")
    assert said in error["message"]


async def test_an_animation_is_refused(doors: tuple[TestClient, HandWorker]) -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in range(0, 250, 50)]
    for image_format in ("WEBP", "PNG"):
        file = io.BytesIO()
        frames[0].save(file, image_format, save_all=True, append_images=frames[1:])
        assert "animation" in (await refusal(doors[0], image=text(file.getvalue())))["message"]


async def test_all_that_is_wrong_is_said_at_once_and_nothing_is_stored(doors: tuple[TestClient, HandWorker]) -> None:
    gateway, worker = doors
    error = await refusal(gateway, image=text(make_image()), mask="nope", strength=9, size=3)
    assert {detail["field"] for detail in error["details"]} == {"mask", "strength", "size"}
    assert (await refusal(gateway))["message"] == "image is required"
    stream = await worker.queue.nc.jetstream().stream_info(f"OBJ_{worker.queue.names.inputs}")
    assert stream.state.messages == 0


async def test_an_image_over_the_bound_is_refused_whichever_way_it_comes(house: House, tmp_path: Path) -> None:
    write_mode(tmp_path / "workflows", "repaint", IMAGE_NODES)
    gateway = await house.gateway(max_image_bytes=2000)
    large = make_image(size=(40, 40)) + b"\0" * 2000
    assert "at most 2000" in (await refusal(gateway, image=text(large)))["message"]
    form = FormData()
    form.add_field("prompt", "a cat")
    form.add_field("image", large, filename="a.png", content_type="image/png")
    answer = await gateway.post("/v1/modes/repaint", data=form)
    assert answer.status == 413
    assert (await answer.json())["error"]["field"] == "image"


async def test_the_rest_of_a_body_is_bounded_as_if_there_were_no_images(house: House, tmp_path: Path) -> None:
    write_mode(tmp_path / "workflows", "repaint", IMAGE_NODES)
    gateway = await house.gateway(max_body_bytes=1000)
    answer = await gateway.post("/v1/jobs", json={"prompt": "x" * 900, "mode": "repaint", "image": text(bytes(30_000))})
    assert answer.status == 422
    answer = await gateway.post("/v1/jobs", json={"prompt": "x" * 1000, "mode": "repaint", "image": text(make_image())})
    assert answer.status == 413
    answer = await gateway.post("/v1/jobs", json={"prompt": "x" * 1000, "mode": "paint"})
    assert answer.status == 413


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", "multipart/form-data", 400),
        (b"--x\r\nnonsense", "multipart/form-data; boundary=x", 400),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\nno name\r\n--x--", "multipart/form-data; boundary=x", 400),
        (b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n\xff\r\n--x--", "multipart/form-data; boundary=x", 400),
        (
            b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\nContent-Encoding: gzip\r\n\r\n'
            b"\x1f\x8b\r\n--x--",
            "multipart/form-data; boundary=x",
            400,
        ),
        (b"prompt=a", "application/x-www-form-urlencoded", 415),
    ],
)
async def test_a_form_that_cannot_be_read_is_answered_in_the_envelope(
    house: House, body: bytes, content_type: str, status: int
) -> None:
    answer = await (await house.gateway()).post("/v1/jobs", data=body, headers={"Content-Type": content_type})
    assert answer.status == status, await answer.text()
    assert (await answer.json())["error"]["message"]


async def test_an_image_that_the_mode_does_not_take_is_named(house: House) -> None:
    form = FormData()
    form.add_field("prompt", "a cat")
    form.add_field("photo", make_image(), filename="a.png", content_type="image/png")
    answer = await (await house.gateway()).post("/v1/modes/paint", data=form)
    assert answer.status == 422
    assert (await answer.json())["error"]["message"] == "mode paint takes no image or file 'photo'; it takes none"


async def test_the_parameters_of_an_earlier_job_can_be_sent_again_as_they_are(
    doors: tuple[TestClient, HandWorker],
) -> None:
    gateway, worker = doors
    data = make_image()
    first = await submit(gateway, mode="repaint", image=text(data))
    given = (await (await gateway.get(f"/v1/jobs/{first}")).json())["parameters"]
    assert await arrived(worker) == data
    await submit(gateway, **given, mode="repaint")
    assert await arrived(worker) == data
    forged = given["image"].replace(first, JOB)
    assert "is not an image that is still kept: send it again" in (await refusal(gateway, image=forged))["message"]
