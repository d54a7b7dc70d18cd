"""Images without JSON around them: the image itself by `Accept`, and all files of a job as one zip."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from PIL import Image

from bridge.api.rest.archive import names_of
from bridge.contract import ImageObject, JobStatus
from tests.bridge.house import BODY, HandWorker, House, submit

UNKNOWN = "0d4c1d3a-3a3d-4b9f-8a51-0b2f3c4d5e6f"


def picture(kind: str, side: int = 40) -> bytes:
    data = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).convert("RGB").save(data, kind.upper())
    return data.getvalue()


@pytest.fixture
async def service(house: House, tmp_path: Path) -> tuple[TestClient, HandWorker]:
    return await house.gateway(), await house.worker()


async def generate(
    service: tuple[TestClient, HandWorker], accept: str | None, made: str | None = None, path: str = "", **body: Any
) -> Any:
    """The answer to a request whose job is done in the format that it asks for, or in `made`."""
    gateway, worker = service
    headers = {} if accept is None else {"Accept": accept}
    given = {"prompt": "a cat", **body} if path else {**BODY, **body}
    asked = asyncio.create_task(gateway.post(path or "/v1/generate-image", json=given, headers=headers))
    job = await worker.take()
    kind = made or str(job.parameters["output_format"])
    stored = await worker.queue.store_image(job.job_id, 0, kind, picture(kind) if kind != "mp4" else b"film")  # pyright: ignore
    await worker.move(job.job_id, JobStatus.DONE, images=[stored], image_format=kind, warnings=["größer\n☃"])
    await worker.queue.announce((await worker.queue.stored_state(job.job_id)).state)
    async with asyncio.timeout(10):
        return await asked


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        (None, "application/json"),
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("application/*", "application/json"),
        ("text/html, */*;q=0.8", "application/json"),
        ("image/png, application/json", "application/json"),
        ("image/png;q=0.5, application/json;q=0.9", "application/json"),
        ("nonsense, */*", "application/json"),
        ("nonsense", "application/json"),
        (",;q=x,", "application/json"),
        ("image/*", "image/png"),
        ("image/png", "image/png"),
        ("IMAGE/PNG", "image/png"),
        ("image/jpeg", "image/jpeg"),
        ("image/webp", "image/webp"),
        ("image/avif, image/webp, image/*;q=0.5", "image/webp"),
        ("image/png;q=0.2, image/jpeg;q=0.7", "image/jpeg"),
        ("image/png;q=0, image/*", "image/jpeg"),
        ("application/json;q=0.1, image/webp;q=0.2", "image/webp"),
        ("image/webp;q=1.000;x=y , text/html", "image/webp"),
        ("*/*;q=0.1, image/jpeg", "image/jpeg"),
    ],
)
async def test_the_answer_is_of_the_type_that_the_client_prefers(
    service: tuple[TestClient, HandWorker], accept: str | None, media: str
) -> None:
    answer = await generate(service, accept)
    data = await answer.read()
    assert (answer.status, answer.content_type) == (200, media), data
    assert answer.headers["Vary"] == "Accept"
    if media == "application/json":
        assert json.loads(data)["image_format"] == "png"
    else:
        image = Image.open(io.BytesIO(data))
        image.load()
        assert f"image/{image.format}".lower() == media


@pytest.mark.parametrize("path", ["", "/v1/modes/paint"])
async def test_what_the_json_would_say_is_in_the_headers(service: tuple[TestClient, HandWorker], path: str) -> None:
    answer = await generate(service, "image/png", path=path, seed=7)
    job = answer.headers["Imagegen-Job"]
    assert {name: answer.headers.get(name) for name in ("Imagegen-Seed", "Imagegen-Mode", "Imagegen-Images")} == {
        "Imagegen-Seed": "7",
        "Imagegen-Mode": "paint",
        "Imagegen-Images": "1",
    }
    assert json.loads(answer.headers["Imagegen-Warnings"]) == ["größer\n☃"]
    assert answer.headers["Content-Disposition"] == f'inline; filename="{job}.png"'
    assert answer.headers["Content-Location"] == f"/v1/jobs/{job}/images/0"
    again = await service[0].get(answer.headers["Content-Location"])
    assert await again.read() == await answer.read()


@pytest.mark.parametrize(("accept", "given"), [("image/webp", "png"), ("image/png", "jpeg"), ("image/jpeg", "webp")])
async def test_an_image_of_another_format_is_converted(
    service: tuple[TestClient, HandWorker], accept: str, given: str
) -> None:
    answer = await generate(service, accept, output_format=given)
    assert (answer.status, answer.content_type) == (200, accept)
    image = Image.open(io.BytesIO(await answer.read()))
    assert (image.size, f"image/{image.format}".lower()) == ((40, 40), accept)


@pytest.mark.parametrize("accept", ["image/gif", "image/avif, text/html", "image/png;q=0", "text/html", "video/*"])
@pytest.mark.parametrize("path", ["/v1/generate-image", "/v1/modes/paint"])
async def test_a_type_that_there_is_not_is_refused_before_anything_is_drawn(
    service: tuple[TestClient, HandWorker], accept: str, path: str
) -> None:
    gateway, _ = service
    answer = await gateway.post(path, json=BODY, headers={"Accept": accept})
    assert (answer.status, (await answer.json())["error"]["code"]) == (406, "not_acceptable")
    assert (await (await gateway.get("/v1/jobs")).json())["jobs"] == []


async def test_a_film_is_no_image(service: tuple[TestClient, HandWorker]) -> None:
    answer = await generate(service, "image/png", made="mp4")
    error = (await answer.json())["error"]
    assert (answer.status, error["code"]) == (406, "not_acceptable")
    assert "/images/0" in error["message"]


async def test_errors_are_json_for_everybody(service: tuple[TestClient, HandWorker]) -> None:
    answer = await service[0].post("/v1/generate-image", json={"prompt": ""}, headers={"Accept": "image/png"})
    assert (answer.status, answer.content_type) == (422, "application/json")


# -- zip -----------------------------------------------------------------------------------------------------------


async def test_all_files_of_a_job_come_as_one_zip(service: tuple[TestClient, HandWorker]) -> None:
    gateway, worker = service
    job_id = await submit(gateway)
    waiting = await gateway.get(f"/v1/jobs/{job_id}/images.zip")
    assert (waiting.status, (await waiting.json())["error"]["code"]) == (404, "unknown_job")
    await worker.take()
    contents = [picture("png"), picture("png", 700) + bytes(3_000_000), b""]
    await worker.finish(job_id, contents)
    answer = await gateway.get(f"/v1/jobs/{job_id}/images.zip")
    assert (answer.status, answer.content_type) == (200, "application/zip")
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{job_id}.zip"'
    data = await answer.read()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == dict(
            zip(("1.png", "2.png", "3.png"), contents, strict=True)
        )
    assert await (await gateway.get(f"/v1/jobs/{job_id}/images.zip")).read() == data, "the same bytes each time"
    head = await gateway.head(f"/v1/jobs/{job_id}/images.zip")
    assert (head.status, head.content_type, await head.read()) == (200, "application/zip", b"")


async def test_a_zip_of_expired_images_is_gone_and_one_that_breaks_off_is_not_whole(
    service: tuple[TestClient, HandWorker],
) -> None:
    gateway, worker = service
    job_id = await submit(gateway)
    await worker.take()
    state = await worker.finish(job_id, [b"first", b"second"])
    store = await worker.queue.nc.jetstream().object_store(state.images[0].bucket)
    await store.delete(state.images[1].name)
    broken = await gateway.get(f"/v1/jobs/{job_id}/images.zip")
    if broken.status == 200:
        with pytest.raises(Exception, match=r"[Pp]ayload|[Cc]onnection"):
            await broken.read()
    await store.delete(state.images[0].name)
    gone = await gateway.get(f"/v1/jobs/{job_id}/images.zip")
    assert (gone.status, (await gone.json())["error"]["code"]) == (410, "image_expired")
    assert (await gateway.get(f"/v1/jobs/{UNKNOWN}/images.zip")).status == 404


def test_names_in_a_zip_say_which_result_and_never_lead_out_of_a_folder() -> None:
    def image(name: str, result: str) -> ImageObject:
        return ImageObject(bucket="b", name=name, size=1, digest="d", result=result)

    files = [image("j/0.png", "../../etc"), image("j/1.mp4", "film 1"), image("j/2", "/"), image("j/3.png", "Größe")]
    assert names_of(files) == ["1-etc.png", "2-film-1.mp4", "3.bin", "4-Größe.png"]
    assert names_of([image("j/0.png", "a")] * 12)[::11] == ["01.png", "12.png"]
