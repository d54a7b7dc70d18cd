"""A request becomes a job with nothing left open, or an error that names everything wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bridge.contract import MAX_SEED, InvalidRequest, Job, ModelInfoResponse, UnknownMode, UnknownModel
from bridge.gateway.resolve import make_job, make_load_job
from bridge.modes.library import ModeLibrary
from tests.bridge.graphs import chosen, graph, workflow, write_graph

SIDE = {"min": 256, "max": 2048, "multiple_of": 16}


def model(name: str, **limits: Any) -> dict[str, Any]:
    return {
        "name": name,
        "title": name,
        "family": "flux",
        "license": "Apache-2.0",
        "commercial_use": True,
        "status": "ready",
        "loaded": False,
        "defaults": {"width": 1024, "height": 1024, "num_inference_steps": 4, "guidance_scale": 0.0},
        "limits": {
            "width": SIDE,
            "height": SIDE,
            "num_inference_steps": {"min": 1, "max": 50},
            "guidance_scale": {"min": 0, "max": 10},
            "num_images": {"min": 1, "max": 8},
            "negative_prompt": False,
            **limits,
        },
    }


MODELS = ModelInfoResponse.model_validate(
    {
        "current_model": None,
        "default_model": "schnell",
        "device": "cpu",
        "device_name": "CPU",
        "cuda_available": False,
        "dtype": "float32",
        "offload": "none",
        "vram_total_bytes": None,
        "vram_free_bytes": None,
        "models": [
            model("schnell"),
            model("lightning", num_inference_steps={"min": 1, "max": 8, "choices": [1, 2, 4, 8]}, negative_prompt=True),
        ],
    }
)


@pytest.fixture
def modes(tmp_path: Path) -> ModeLibrary:
    full = graph()
    names = {"width": 0, "height": 0, "num_inference_steps": 0, "num_images": 1}
    for index, (name, value) in enumerate(names.items()):
        inputs = {"name": name, "value": value, "minimum": 0, "maximum": 4096, "step": 1}
        full[f"2{index}"] = {"class_type": "NeuroLuxIntegerParameter", "inputs": inputs}
    inputs = {"name": "guidance_scale", "value": -1.0, "minimum": -1.0, "maximum": 100.0, "step": 0.1}
    full["30"] = {"class_type": "NeuroLuxNumberParameter", "inputs": inputs}
    full["31"] = {"class_type": "NeuroLuxChoiceParameter", "inputs": {"name": "model", "value": "schnell"}}
    full["32"] = {"class_type": "NeuroLuxTextParameter", "inputs": {"name": "negative_prompt", "value": ""}}
    (tmp_path / "api").mkdir()
    (tmp_path / "text-to-image.json").write_text(json.dumps(workflow()))
    (tmp_path / "api" / "text-to-image.json").write_text(json.dumps(full))
    return ModeLibrary([tmp_path])


def resolve(modes: ModeLibrary, **body: Any) -> Job:
    return make_job(body, modes, MODELS, now=1.0)


def problems(modes: ModeLibrary, **body: Any) -> dict[str | None, str]:
    with pytest.raises(InvalidRequest) as caught:
        resolve(modes, **body)
    return {detail.field: detail.message for detail in caught.value.details}


def test_every_seed_that_is_left_out_is_random_whatever_its_name(modes: ModeLibrary, tmp_path: Path) -> None:
    full = json.loads((tmp_path / "api" / "text-to-image.json").read_text())
    write_graph(tmp_path / "text-to-image.json", full | {"40": chosen("seed", "noise", 7)}, workflow())
    assert len({str(resolve(modes, prompt="a cat").parameters["noise"]) for _ in range(4)}) == 4
    assert resolve(modes, prompt="a cat", noise=7).parameters["noise"] == 7


def test_a_prompt_alone_is_a_whole_request(modes: ModeLibrary) -> None:
    job = resolve(modes, prompt="a cat")
    assert job.model == "schnell"
    seed = job.parameters.pop("seed")
    assert isinstance(seed, int)
    assert 0 <= seed < 2**32
    assert job.parameters == {
        "prompt": "a cat",
        "model": "schnell",
        "width": 1024,
        "height": 1024,
        "num_inference_steps": 4,
        "guidance_scale": 0.0,
        "num_images": 1,
        "output_format": "png",
    }


@pytest.mark.parametrize(
    ("recommended", "body", "warned"),
    [
        ("lightning", {}, True),
        ("lightning", {"model": "schnell"}, False),
        ("schnell", {}, False),
        (None, {}, False),  # an older pack does not say
    ],
)
def test_a_request_without_a_model_hears_of_a_better_one_that_would_have_to_be_downloaded(
    modes: ModeLibrary, tmp_path: Path, recommended: str | None, body: dict[str, str], warned: bool
) -> None:
    full = json.loads((tmp_path / "api" / "text-to-image.json").read_text())
    shipped = {"class_type": "NeuroLuxChoiceParameter", "inputs": {"name": "model", "value": "starter"}}
    write_graph(tmp_path / "text-to-image.json", full | {"31": shipped}, workflow())
    models = MODELS.model_copy(update={"recommended_model": recommended})
    job = make_job({"prompt": "a cat", **body}, modes, models, now=1.0)
    text = "no model was named, so schnell is used; lightning suits this machine better, but has to be downloaded first"
    assert job.warnings == ([f"{text}: imagegen load lightning"] if warned else [])


def test_null_is_the_same_as_left_out(modes: ModeLibrary) -> None:
    job = resolve(modes, prompt="a cat", width=None, seed=None, model=None, guidance_scale=None)
    assert job.parameters["width"] == 1024


def test_given_values_are_kept(modes: ModeLibrary) -> None:
    job = resolve(modes, prompt="a", model="lightning", width=512, seed=MAX_SEED, num_inference_steps=8)
    assert (job.model, job.parameters["width"], job.parameters["seed"]) == ("lightning", 512, MAX_SEED)


def test_every_bad_field_is_named_at_once(modes: ModeLibrary) -> None:
    found = problems(
        modes, width=1000, height=8192, num_inference_steps=99, seed=-1, output_format="gif", num_images=9, size="1024"
    )
    assert set(found) == {
        "prompt",
        "width",
        "height",
        "num_inference_steps",
        "seed",
        "output_format",
        "num_images",
        "size",
    }
    assert found["prompt"] == "prompt is required"
    assert found["width"] == "width 1000 is not a multiple of 16; nearest: 992 and 1008"
    assert found["height"] == "height 8192 is outside 256 to 2048, the range of schnell"
    assert "mode text-to-image has no parameter 'size'" in found["size"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""),
        ("prompt", 7),
        ("prompt", "x" * 10_001),
        ("prompt", "\ud800"),
        ("width", "512"),
        ("width", 512.5),
        ("seed", 2**53),
        ("guidance_scale", float("nan")),
        ("num_images", 0),
        ("job_id", "not-a-uuid"),
        ("model", 3),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(modes: ModeLibrary, field: str, value: object) -> None:
    assert list(problems(modes, **{"prompt": "a", field: value})) == [field]


def test_a_distilled_model_takes_only_the_steps_it_was_made_for(modes: ModeLibrary) -> None:
    found = problems(modes, prompt="a", model="lightning", num_inference_steps=5)
    expected = "num_inference_steps 5 is not a value that lightning was made for: choose one of 1, 2, 4, 8"
    assert found == {"num_inference_steps": expected}


def test_a_negative_prompt_without_effect_is_said(modes: ModeLibrary) -> None:
    assert "no effect" in resolve(modes, prompt="a", negative_prompt="b").warnings[0]
    assert not resolve(modes, prompt="a", negative_prompt="b", model="lightning").warnings


def test_unknown_names_are_answered_with_those_that_exist(modes: ModeLibrary) -> None:
    with pytest.raises(UnknownModel, match="no model is called 'sdxl'; available: schnell, lightning"):
        resolve(modes, prompt="a", model="sdxl")
    with pytest.raises(UnknownMode, match="no mode is called 'video'; available: text-to-image"):
        resolve(modes, prompt="a", mode="video")
    with pytest.raises(UnknownModel):
        make_load_job("sdxl", MODELS, now=1.0)
