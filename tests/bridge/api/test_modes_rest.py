"""Every saved graph is an endpoint, as soon as its file is there and for as long as it can be read."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from aiohttp.test_utils import TestClient

from tests.bridge.gateway.test_images_in import IMAGE_NODES
from tests.bridge.graphs import graph
from tests.bridge.house import House, write_mode


async def schema_of(gateway: TestClient, name: str) -> dict[str, Any]:
    answer = await gateway.get(f"/v1/modes/{name}")
    assert answer.status == 200, await answer.text()
    return await answer.json()


async def test_a_mode_says_what_it_takes_and_takes_that(house: House) -> None:
    gateway, worker = await house.gateway(), await house.worker()
    schema = await schema_of(gateway, "paint")
    assert (schema["title"], schema["required"], schema["additionalProperties"]) == ("Paint a cat", ["prompt"], False)
    strength = schema["properties"]["strength"]
    assert (strength["type"], strength["default"], strength["minimum"], strength["maximum"]) == (
        *(["number", "null"], 0.5), 0.0, 1.0,
    )  # fmt: skip
    assert schema["properties"]["output_format"]["enum"] == ["png", "jpeg", "webp", None]
    assert {"job_id", "callback_url", "cancel_on_disconnect"} < set(schema["properties"])
    call = asyncio.create_task(gateway.post("/v1/modes/paint", json={"prompt": "a dog", "strength": 1, "seed": 3}))
    job = await worker.take()
    assert (job.mode, job.parameters) == (
        "paint",
        {"prompt": "a dog", "strength": 1, "seed": 3, "output_format": "png"},
    )
    await worker.start(job.job_id)
    await worker.finish(job.job_id, [b"image"])
    answer = await (await call).json()
    assert (answer["job_id"], answer["mode"], answer["prompt"], answer["seed"]) == (job.job_id, "paint", "a dog", 3)


async def test_a_caller_who_prefers_not_to_wait_gets_the_job(house: House) -> None:
    gateway = await house.gateway()
    answer = await gateway.post("/v1/modes/paint", json={"prompt": "a"}, headers={"Prefer": "wait=9, respond-async"})
    assert answer.status == 202
    assert answer.headers["Preference-Applied"] == "respond-async"
    assert (await (await gateway.get(answer.headers["Location"])).json())["mode"] == "paint"


async def test_a_mode_without_a_prompt_asks_for_none(house: House, tmp_path: Path) -> None:
    nodes = {key: node for key, node in graph().items() if key != "1"}
    path = write_mode(tmp_path / "workflows", "noise")
    (path.parent / "api" / path.name).write_text(json.dumps(nodes))
    gateway, worker = await house.gateway(), await house.worker()
    assert (await schema_of(gateway, "noise"))["required"] == []
    answer = await gateway.post("/v1/modes/noise", json={"seed": 1}, headers={"Prefer": "respond-async"})
    assert answer.status == 202, await answer.text()
    assert "prompt" not in (await worker.take()).parameters
    refused = await gateway.post("/v1/modes/noise", json={"prompt": "a cat"})
    assert "has no parameter 'prompt'" in (await refused.json())["error"]["message"]


async def test_a_file_that_comes_changes_or_breaks_is_noticed_and_breaks_nothing_else(
    house: House, tmp_path: Path
) -> None:
    gateway, worker = await house.gateway(), await house.worker()
    assert (await gateway.get("/v1/modes/new")).status == 404
    path = write_mode(tmp_path / "workflows", "new")
    api = path.parent / "api" / path.name
    assert (await schema_of(gateway, "new"))["properties"]["strength"]["default"] == 0.5
    changed = graph()
    changed["2"]["inputs"]["value"] = 0.25
    api.write_text(json.dumps(changed))
    os.utime(api, ns=(1, 1))
    assert (await schema_of(gateway, "new"))["properties"]["strength"]["default"] == 0.25
    api.write_text("{ this is no graph")
    for answer in (await gateway.get("/v1/modes/new"), await gateway.post("/v1/modes/new", json={"prompt": "a"})):
        assert answer.status == 503
        error = (await answer.json())["error"]
        assert error["code"] == "broken_mode"
        assert "mode 'new' cannot be read" in error["message"]
    listed = await (await gateway.get("/v1/modes")).json()
    details = {mode["name"]: mode for mode in listed["details"]}
    assert {"new", "paint", "text-to-image"} <= set(listed["modes"])
    assert "cannot be read" in details["new"]["error"]["message"]
    assert (details["paint"]["error"], details["paint"]["parameters"]) == (
        None,
        ["prompt", "strength", "output_format", "seed"],
    )
    answer = await gateway.post("/v1/modes/paint", json={"prompt": "a"}, headers={"Prefer": "respond-async"})
    assert answer.status == 202
    await worker.take()
    path.unlink()
    assert (await gateway.get("/v1/modes/new")).status == 404


async def test_the_description_of_the_service_holds_every_mode_that_can_be_used(house: House, tmp_path: Path) -> None:
    write_mode(tmp_path / "workflows", "repaint", IMAGE_NODES)
    broken = write_mode(tmp_path / "workflows", "broken")
    (broken.parent / "api" / broken.name).write_text("{}")
    gateway = await house.gateway()
    paths = (await (await gateway.get("/openapi.json")).json())["paths"]
    assert "/v1/modes/broken" not in paths
    content = paths["/v1/modes/repaint"]["post"]["requestBody"]["content"]
    assert content["application/json"]["schema"] == await schema_of(gateway, "repaint")
    assert content["application/json"]["schema"]["required"] == ["image", "prompt"]
    image = content["multipart/form-data"]["schema"]["properties"]["image"]
    assert (image["type"], image["contentMediaType"]) == ("string", "image/*")
    assert set(paths["/v1/modes/repaint"]["post"]["responses"]) >= {"200", "202", "404", "422", "503"}


async def test_the_schema_of_a_shared_field_is_no_wider_than_any_request_may_be(house: House) -> None:
    schema = await schema_of(await house.gateway(), "text-to-image")
    width = schema["properties"]["width"]
    # The widest that any of the models takes.
    assert (width["type"], width["minimum"], width["maximum"]) == (
        ["integer", "null"],
        256,
        2048,
    )  # what any of the models takes
    assert "default" not in width  # 0 in the graph: the model's own, which a caller says with null
    assert "default" not in schema["properties"]["seed"]  # random where it is left out
    assert "default" not in schema["properties"]["model"]  # the starter in the graph: the service's default
    assert schema["properties"]["guidance_scale"]["minimum"] == 0
    assert schema["properties"]["prompt"]["minLength"] == 1


async def test_a_mode_in_path_and_body_must_be_one(house: House) -> None:
    gateway = await house.gateway()
    answer = await gateway.post("/v1/modes/paint", json={"prompt": "a", "mode": "text-to-image"})
    assert answer.status == 422
    assert (await answer.json())["error"]["field"] == "mode"
