"""What a program gets over REST: images as asked, and for every mistake its own answer."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from typing import Any
from uuid import uuid4

import pytest
import requests
from PIL import Image

from bridge.client import ClientError, ImageGenClient
from bridge.contract import JobEvent, JobStatus
from tests.service.conftest import DEFAULT_MODEL, Service

SMALL: dict[str, Any] = {"width": 128, "height": 96, "num_inference_steps": 2}


def post(service: Service, path: str = "/v1/generate-image", **body: Any) -> requests.Response:
    return requests.post(service.url + path, json=body, timeout=120)


def make_image(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_a_prompt_becomes_a_image_of_the_size_and_seed_asked(service: Service) -> None:
    response = post(service, prompt="a cat", seed=7, **SMALL)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert {name: answer[name] for name in ("prompt", "seed", "width", "height", "num_inference_steps", "model")} == {
        "prompt": "a cat",
        "seed": 7,
        "width": 128,
        "height": 96,
        "num_inference_steps": 2,
        "model": DEFAULT_MODEL,
    }
    assert answer["images"] == [answer["image_bytes_b64"]]
    assert answer["queue_time_ms"] >= 0
    assert answer["generation_time_ms"] > 0
    image = make_image(base64.b64decode(answer["image_bytes_b64"]))
    assert (image.size, image.format) == ((128, 96), "PNG")


def test_the_image_carries_the_graph_with_the_values_that_made_it(client: ImageGenClient) -> None:
    [data] = client.images(client.generate("a green door", seed=11, **SMALL))
    info = make_image(data).info
    saved = {node["id"]: node.get("widgets_values") for node in json.loads(info["workflow"])["nodes"]}
    queued = json.loads(info["prompt"])
    for field, value in (("text", "a green door"), ("seed", 11), ("width", 128)):
        [node_id] = [key for key, node in queued.items() if node["inputs"].get(field) == value]
        assert value in saved[int(node_id)], field


def test_the_same_request_gives_the_same_bytes_and_another_seed_does_not(client: ImageGenClient) -> None:
    first, again = (client.generate("a cat", seed=3, **SMALL) for _ in range(2))
    assert first.job_id != again.job_id
    assert first.images == again.images
    other = client.generate("a cat", seed=4, **SMALL)
    assert make_image(client.images(first)[0]).tobytes() != make_image(client.images(other)[0]).tobytes()


def test_image_i_of_a_batch_is_the_single_image_with_seed_plus_i(client: ImageGenClient) -> None:
    batch = client.images(client.generate("a cat", seed=20, num_images=3, **SMALL))
    assert len(batch) == 3
    single = client.images(client.generate("a cat", seed=22, **SMALL))[0]
    assert make_image(batch[2]).tobytes() == make_image(single).tobytes()


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_images_come_in_the_format_asked(client: ImageGenClient, image_format: str) -> None:
    answer = client.generate("a cat", seed=1, output_format=image_format, **SMALL)
    assert answer.image_format == image_format
    assert make_image(client.images(answer)[0]).format == image_format.upper()


@pytest.mark.parametrize("model", ["tiny-flux-dev", "tiny-sdxl-lightning", "tiny-sdxl"])
def test_every_family_draws_with_its_own_defaults(client: ImageGenClient, model: str) -> None:
    defaults = next(m for m in client.model_info().models if m.name == model).defaults
    answer = client.generate("a cat", model=model, negative_prompt="dog")
    assert (answer.width, answer.height) == (defaults.width, defaults.height)
    assert answer.num_inference_steps == defaults.num_inference_steps
    assert answer.guidance_scale == defaults.guidance_scale
    assert answer.seed is not None
    assert bool(answer.warnings) == (model != "tiny-sdxl")
    assert client.model_info().current_model == model


def test_a_job_id_of_the_callers_choice_runs_once(client: ImageGenClient) -> None:
    job_id = str(uuid4())
    first = client.generate("a cat", job_id=job_id, **SMALL)
    again = client.generate("a cat", job_id=job_id, **SMALL)
    assert first == again
    assert first.job_id == job_id


@pytest.mark.parametrize(
    ("status", "code", "body"),
    [
        (400, "not_json", b'{"prompt": '),
        (400, "not_json", b'{"prompt": "a", "guidance_scale": NaN}'),
        (422, "invalid_request", b'["a cat"]'),
        (422, "invalid_request", b"{}"),
        (404, "unknown_model", b'{"prompt": "a", "model": "nope"}'),
        (404, "unknown_mode", b'{"prompt": "a", "mode": "nope"}'),
        (413, "body_too_large", b'{"prompt": "' + b"x" * 2_000_000 + b'"}'),
    ],
)
def test_a_bad_body_is_answered_in_the_envelope(service: Service, status: int, code: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    response = requests.post(f"{service.url}/v1/generate-image", data=body, headers=headers, timeout=30)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"code", "message", "field", "details"}
    assert error["code"] == code
    assert error["message"]


def test_a_body_of_another_type_is_refused(service: Service) -> None:
    response = requests.post(f"{service.url}/v1/generate-image", data={"prompt": "a"}, timeout=30)
    assert response.status_code == 415
    assert "application/json" in response.json()["error"]["message"]


def test_all_bad_fields_are_named_at_once(service: Service) -> None:
    response = post(service, prompt="", width=1000, seed=-1, num_images=99, strength=1)
    assert response.status_code == 422
    assert {d["field"] for d in response.json()["error"]["details"]} == {
        "prompt",
        "width",
        "seed",
        "num_images",
        "strength",
    }


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/generate-image", 405),
        ("GET", "/v1/jobs/6f158824-1320-44e6-a689-3661426a9dde", 404),
        ("GET", "/v1/jobs/not-an-id", 404),
        ("POST", "/v1/load-model?model_name=nope", 404),
        ("POST", "/v1/load-model", 422),
        ("GET", "/v1/modes/nope", 404),
    ],
)
def test_unknown_places_are_answered_in_the_envelope(service: Service, method: str, path: str, status: int) -> None:
    response = requests.request(method, service.url + path, timeout=30)
    assert response.status_code == status
    assert response.json()["error"]["message"]


def test_missing_weights_are_said_with_their_remedy(service: Service) -> None:
    response = post(service, prompt="a cat", model="flux-schnell", width=256, height=256)
    assert response.status_code == 503, response.text
    error = response.json()["error"]
    assert error["code"] in ("weights_missing", "download_failed")
    assert "flux-schnell" in error["message"] or "FLUX.1-schnell" in error["message"]


def test_model_info_tells_the_truth(client: ImageGenClient) -> None:
    loaded = client.load_model("tiny-flux-dev")
    assert loaded.model == "tiny-flux-dev"
    assert loaded.load_time_ms >= 0
    info = client.model_info()
    assert (info.current_model, info.default_model, info.device) == ("tiny-flux-dev", DEFAULT_MODEL, "cpu")
    model = info.find("tiny-flux-dev")
    assert model
    assert (model.loaded, model.status) == (True, "ready")
    schnell = info.find("flux-schnell")
    assert schnell
    assert (schnell.status, schnell.license, schnell.commercial_use) == ("missing", "Apache-2.0", True)
    assert schnell.reason


def test_progress_and_previews_reach_a_client_while_it_waits(client: ImageGenClient) -> None:
    events: list[JobEvent] = []
    client.generate(
        "a cat", on_event=events.append, width=128, height=128, num_inference_steps=6, seed=int(time.time())
    )
    steps = [event.value for event in events if event.type == "progress" and event.maximum == 6]
    assert steps[-1] == 6
    assert steps == sorted(set(steps)) or steps == sorted(steps)  # pyright: ignore
    preview = next(event for event in events if event.type == "preview")
    assert preview.image_b64
    assert make_image(base64.b64decode(preview.image_b64)).width > 0
    assert events[-1].type == "done"
    assert events[-1].state
    assert events[-1].state.status is JobStatus.DONE


def test_a_running_job_is_cancelled_and_the_next_one_runs(client: ImageGenClient, service: Service) -> None:
    job_id, caught = str(uuid4()), []

    def wait() -> None:
        with ImageGenClient(service.url) as other:
            try:
                other.generate("a cat", job_id=job_id, width=512, height=512, num_inference_steps=50)
            except ClientError as error:
                caught.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    deadline = time.monotonic() + 60
    while True:
        try:
            if client.job(job_id).status is JobStatus.RUNNING:
                break
        except ClientError:
            assert time.monotonic() < deadline
        time.sleep(0.05)
    assert client.cancel(job_id).status is JobStatus.CANCELLED
    waiter.join(timeout=30)
    assert [error.status for error in caught] == [409]
    assert client.generate("a cat", seed=1, **SMALL).images


def test_a_job_can_be_left_and_asked_for_later(client: ImageGenClient, service: Service) -> None:
    response = post(service, "/v1/jobs", prompt="a cat", seed=5, **SMALL)
    assert response.status_code == 202
    location = response.headers["Location"]
    deadline = time.monotonic() + 60
    while (state := requests.get(service.url + location, timeout=30).json())["status"] != "done":
        assert time.monotonic() < deadline, state
        time.sleep(0.1)
    image = requests.get(f"{service.url}{location}/images/0", timeout=30)
    assert image.headers["Content-Type"] == "image/png"
    assert make_image(image.content).size == (128, 96)
    assert requests.get(f"{service.url}{location}/images/1", timeout=30).status_code == 404


def test_health_readiness_and_description(service: Service) -> None:
    assert requests.get(f"{service.url}/healthz", timeout=30).json() == {"status": "ok"}
    assert requests.get(f"{service.url}/readyz", timeout=30).json()["status"] == "ready"
    document = requests.get(f"{service.url}/openapi.json", timeout=30).json()
    request = document["components"]["schemas"]["ImageGenRequest"]
    assert request["required"] == ["prompt"]
    modes = requests.get(f"{service.url}/v1/modes", timeout=30).json()["modes"]
    assert "text-to-image" in modes
    schema = requests.get(f"{service.url}/v1/modes/text-to-image", timeout=30).json()
    assert schema["required"] == ["prompt"]


def test_a_page_of_another_site_is_refused(service: Service) -> None:
    headers = {"Origin": "https://example.com"}
    response = requests.get(f"{service.url}/v1/model-info", headers=headers, timeout=30)
    assert response.status_code == 403
    own = requests.get(f"{service.url}/v1/model-info", headers={"Origin": service.url}, timeout=30)
    assert own.status_code == 200
