"""Booleans and files come in at every door; results of any kind go out with their own media type and name."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from aiohttp import FormData
from aiohttp.test_utils import TestClient

from bridge.broker.connection import subscribed
from bridge.client import paths_for
from bridge.contract import ImageGenResponse, JobState, JobStatus
from bridge.modes.files_in import kind_of
from bridge.modes.images_in import BadImage, stored
from bridge.names import Names
from bridge.worker.offers import options_of
from tests.bridge.graphs import chosen
from tests.bridge.house import HandWorker, House, submit, write_mode

NODES: dict[str, dict[str, Any]] = {
    "20": {
        "class_type": "NeuroLuxFileParameter",
        "inputs": {
            "name": "dataset",
            "file": "",
            "description": "Images to learn from.",
            "required": True,
            "accept": "zip",
        },
    },
    "21": chosen("boolean", "resume", True, description="Go on where it stopped."),
    "22": {
        "class_type": "NeuroLuxChoiceParameter",
        "inputs": {"name": "lora", "value": "a.safetensors", "choices": "", "description": ""},
    },
    "23": {"class_type": "NeuroLuxApplyLora", "inputs": {"lora": ["22", 0]}},
}


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr("a.txt", "a red cube")
    return file.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def safetensors() -> bytes:
    header = b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}'
    return struct.pack("<Q", len(header)) + header + b"\0"


@pytest.fixture
async def doors(house: House, tmp_path: Path) -> tuple[TestClient, HandWorker]:
    write_mode(tmp_path / "workflows", "train", NODES)
    return await house.gateway(max_file_bytes=5000), await house.worker()


async def test_a_schema_says_boolean_and_file(doors: tuple[TestClient, HandWorker]) -> None:
    gateway, _ = doors
    schema = await (await gateway.get("/v1/modes/train")).json()
    assert schema["properties"]["resume"] == {
        "description": "Go on where it stopped.",
        "default": True,
        "type": ["boolean", "null"],
    }
    dataset = schema["properties"]["dataset"]
    assert (dataset["type"], dataset["format"]) == ("string", "file")
    assert "Images to learn from. (zip: base64, a data URL" in dataset["description"]
    assert "dataset" in schema["required"]
    listed = await (await gateway.get("/v1/modes")).json()
    assert next(mode for mode in listed["details"] if mode["name"] == "train")["files"] == ["dataset"]
    paths = (await (await gateway.get("/openapi.json")).json())["paths"]
    form = paths["/v1/modes/train"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["dataset"]["contentMediaType"] == "application/zip"


async def test_a_file_comes_as_a_part_as_base64_and_as_a_data_url(doors: tuple[TestClient, HandWorker]) -> None:
    gateway, worker = doors
    data = archive()
    form = FormData()
    for name, value in (("prompt", "a"), ("resume", "false")):
        form.add_field(name, value)
    form.add_field("dataset", data, filename="../../set.zip", content_type="application/zip")
    bodies: list[dict[str, Any]] = [
        {"data": form},
        {"json": {"prompt": "a", "resume": False, "dataset": text(data)}},
        {"json": {"prompt": "a", "resume": False, "dataset": f"data:application/zip;base64,{text(data)}"}},
    ]
    for body in bodies:
        answer = await gateway.post("/v1/modes/train", headers={"Prefer": "respond-async"}, **body)
        assert answer.status == 202, await answer.text()
        job = await worker.take()
        assert job.parameters["resume"] is False
        reference = stored(job.parameters["dataset"], worker.queue.names.inputs)
        assert reference is not None
        assert reference.name == f"{job.job_id}/dataset.zip"
        assert await worker.queue.inputs.get(reference) == data


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "dataset is required"),
        ({"dataset": text(b"\x89PNG\r\n\x1a\n")}, "dataset is a png file; send zip"),
        ({"dataset": text(b"\0\1\2\3")}, "dataset is a file of an unknown kind; send zip"),
        ({"dataset": text(archive()[:-30])}, "dataset is a zip file that cannot be read: "),
        ({"dataset": text(archive() + bytes(5000))}, "bytes; at most 5000 are allowed"),
        ({"dataset": "set.zip"}, "'set.zip' is not a file: send it as a part"),
        ({"dataset": text(archive()), "resume": "yes"}, "resume must be true or false, not 'yes'"),
        ({"dataset": text(archive()), "resume": 1}, "resume must be true or false, not 1"),
    ],
)
async def test_what_does_not_fit_is_said(
    doors: tuple[TestClient, HandWorker], values: dict[str, Any], said: str
) -> None:
    gateway, _ = doors
    answer = await gateway.post("/v1/modes/train", json={"prompt": "a", **values})
    assert answer.status == 422
    assert said in (await answer.json())["error"]["message"]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (archive(), "zip"),
        (safetensors(), "safetensors"),
        (b'{"a": 1}', "json"),
        (b"{braces}", "txt"),
        ("größer".encode(), "txt"),
        (b"", None),
        (b"\xff\xfe", None),
    ],
)
def test_a_file_is_known_by_its_content(data: bytes, kind: str | None) -> None:
    assert kind_of(data) == kind


def test_a_damaged_zip_is_no_zip() -> None:
    with pytest.raises(BadImage, match="cannot be read"):
        kind_of(b"PK\x03\x04 and nothing behind it")


async def test_every_result_has_its_media_type_extension_and_name(
    doors: tuple[TestClient, HandWorker], tmp_path: Path
) -> None:
    gateway, worker = doors
    call = asyncio.create_task(gateway.post("/v1/modes/paint", json={"prompt": "a cat", "seed": 3}))
    job = await worker.take()
    await worker.start(job.job_id)
    files = [
        (await worker.queue.store_image(job.job_id, 0, "safetensors", b"weights"), "lora"),
        (await worker.queue.store_image(job.job_id, 1, "jpeg", b"image"), "samples"),
        (await worker.queue.store_image(job.job_id, 2, "mp4", b"film"), "film"),
    ]
    images = [stored_file.model_copy(update={"result": name}) for stored_file, name in files]
    now = time.time()
    state = await worker.move(
        job.job_id, JobStatus.DONE, images=images, image_format="jpeg", started_at=now, finished_at=now
    )
    await worker.queue.announce(state)
    body = await (await call).json()
    told = [(file["result"], file["media_type"], file["extension"], file["size"]) for file in body["files"]]
    assert told == [
        ("lora", "application/octet-stream", "safetensors", 7),
        ("samples", "image/jpeg", "jpg", 5),
        ("film", "video/mp4", "mp4", 4),
    ]
    assert [base64.b64decode(data) for data in body["images"]] == [b"weights", b"image", b"film"]
    assert (base64.b64decode(body["image_bytes_b64"]), body["image_format"]) == (b"image", "jpeg")
    listed = JobState.model_validate_json(await (await gateway.get(f"/v1/jobs/{job.job_id}")).read())
    assert [image.media_type for image in listed.images] == [media for _, media, _, _ in told]
    for index, (_, media, _, _) in enumerate(told):
        answer = await gateway.get(f"/v1/jobs/{job.job_id}/images/{index}")
        assert answer.content_type == media
    answer = ImageGenResponse.model_validate(body)
    older = answer.model_copy(update={"files": [], "image_format": "webp"})
    assert [path.suffix for path in paths_for(older, tmp_path)] == [".webp"] * 3
    names = [path.name for path in paths_for(answer, tmp_path)]
    assert names == ["a-cat-paint-lora-3.safetensors", "a-cat-paint-samples-3.jpg", "a-cat-paint-film-3.mp4"]
    assert [path.name for path in paths_for(answer, tmp_path / "x.jpeg")] == [
        "x-1.safetensors",
        "x-2.jpeg",
        "x-3.mp4",
    ]


def test_an_image_stored_before_media_types_has_one_too() -> None:
    place = {"bucket": "b", "name": "0/0.webp", "size": 1, "digest": "d"}
    assert ImageGenResponse.model_fields["image_objects"].annotation is not None
    state = JobState.model_validate(
        {"job_id": "j", "kind": "generate", "mode": "m", "status": "done", "parameters": {}, "submitted_at": 0}
        | {"images": [place]}
    )
    assert (state.images[0].media_type, state.images[0].result) == ("image/webp", "")


async def test_a_choice_offers_what_the_worker_finds_and_follows_new_files(
    doors: tuple[TestClient, HandWorker],
) -> None:
    gateway, worker = doors
    files, asked = ["a.safetensors"], []

    async def answer(msg: Any) -> None:
        asked.append(json.loads(msg.data))
        await msg.respond(json.dumps([files]).encode())

    await worker.queue.nc.subscribe(Names(worker.queue.names.prefix).options, cb=answer)
    await subscribed(worker.queue.nc)
    schema = await (await gateway.get("/v1/modes/train")).json()
    assert schema["properties"]["lora"]["enum"] == ["a.safetensors", None]
    assert asked == [[["NeuroLuxApplyLora", "lora"]]]
    body = {"prompt": "a", "mode": "train", "dataset": text(archive())}
    refused = await gateway.post("/v1/jobs", json={**body, "lora": "b.safetensors"})
    assert refused.status == 422
    assert (await refused.json())["error"]["message"] == "lora 'b.safetensors' is not one of a.safetensors"
    files.append("b.safetensors")
    await submit(gateway, **{**body, "lora": "b.safetensors"})
    assert (await worker.take()).parameters["lora"] == "b.safetensors"


def test_the_options_of_old_and_new_combos_are_read() -> None:
    node = {
        "input": {
            "required": {"v1": [["a", "b"], {}], "v3": ["COMBO", {"options": ["c"]}], "number": ["INT", {}]},
            "optional": {"last": [[], {}], "ints": [[1, 2], {}]},
        }
    }
    told = {name: options_of(node, name) for name in ("v1", "v3", "number", "last", "ints", "none")}
    assert told == {"v1": ["a", "b"], "v3": ["c"], "number": None, "last": [], "ints": None, "none": None}
