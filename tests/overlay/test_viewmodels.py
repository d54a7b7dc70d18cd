"""What the overlay shows and remembers, without a display."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bridge.client import AsyncImageGenClient
from bridge.contract import JobEvent, JobKind, JobState, JobStatus, ModelInfo, read_answer
from overlay.link import Link
from overlay.viewmodels.connection import BridgeState, Connection
from overlay.viewmodels.file_names import save_new, suggested_name
from overlay.viewmodels.form import FieldKind, GenerateForm
from overlay.viewmodels.history import History
from overlay.viewmodels.job_card import JobCard, Progress
from overlay.viewmodels.preferences import Preferences
from overlay.viewmodels.prompt_history import PromptHistory
from overlay.viewmodels.session import Session
from overlay.viewmodels.shown_job import from_card
from overlay.viewmodels.signal import Signal
from overlay.viewmodels.sizes import size_presets

SCHEMA: dict[str, Any] = {
    "title": "Text to image",
    "properties": {
        "prompt": {"type": "string", "default": "red apple", "description": "What the image shows."},
        "negative_prompt": {"type": "string", "default": ""},
        "model": {"type": "string"},
        "width": {"type": "integer", "default": 0, "minimum": 0, "maximum": 4096},
        "height": {"type": "integer", "default": 0, "minimum": 0, "maximum": 4096},
        "num_images": {"type": "integer", "default": 1, "minimum": 1, "maximum": 8},
        "num_inference_steps": {"type": "integer", "default": 0},
        "guidance_scale": {"type": "number", "default": -1},
        "seed": {"type": "integer", "default": 0, "minimum": 0, "maximum": 2**53 - 1},
        "output_format": {"type": "string", "default": "png", "enum": ["png", "jpeg", "webp"]},
    },
    "required": ["prompt"],
}


def model(name: str, side: int, steps: int, *, negative: bool = False, choices: list[int] | None = None) -> ModelInfo:
    sides = {"min": side // 2, "max": side * 2, "multiple_of": 16}
    return ModelInfo.model_validate(
        {
            "name": name,
            "title": name,
            "family": "flux",
            "license": "Apache-2.0",
            "commercial_use": True,
            "status": "ready",
            "loaded": False,
            "defaults": {"width": side, "height": side, "num_inference_steps": steps, "guidance_scale": 0.0},
            "limits": {
                "width": sides,
                "height": sides,
                "num_inference_steps": {"min": 1, "max": 50, "choices": choices},
                "guidance_scale": {"min": 0.0, "max": 20.0},
                "num_images": {"min": 1, "max": 8},
                "negative_prompt": negative,
            },
        }
    )


STARTER = model("starter", 128, 8)
LARGE = model("large", 1024, 4, negative=True)
LIGHTNING = model("lightning", 1024, 4, choices=[1, 2, 4, 8])


@pytest.fixture
def form() -> GenerateForm:
    return GenerateForm("text-to-image", SCHEMA, [STARTER, LARGE, LIGHTNING], "starter")


def test_defaults_follow_the_model_until_they_are_touched(form: GenerateForm) -> None:
    assert (form.value("width"), form.value("num_inference_steps")) == (128, 8)
    form.set("num_inference_steps", 12)
    form.set("model", "large")
    assert (form.value("width"), form.value("num_inference_steps")) == (1024, 12)
    form.set("prompt", "a fox")
    assert form.request() == {
        "prompt": "a fox",
        "model": "large",
        "num_inference_steps": 12,
        "mode": "text-to-image",
    }


def test_a_mode_with_a_model_of_its_own_shows_that_and_its_limits() -> None:
    own = {"properties": SCHEMA["properties"] | {"model": {"type": "string", "default": "large"}}}
    form = GenerateForm("edit", own, [STARTER, LARGE], "starter")
    assert (form.value("model"), form.value("width"), form.field("width").maximum) == ("large", 1024, 2048)
    form.set("prompt", "make it blue")
    assert "model" not in form.request()
    form.update_models([STARTER], "starter")
    assert (form.value("model"), form.value("width")) == ("starter", 128)


def test_a_value_that_another_model_cannot_take_gives_way_to_its_default(form: GenerateForm) -> None:
    form.set("model", "large")
    form.set("width", 2048)
    form.set("model", "starter")
    assert form.value("width") == 128


def test_steps_of_a_distilled_model_are_a_choice_and_are_sent_as_a_number(form: GenerateForm) -> None:
    form.set("model", "lightning")
    assert form.field("num_inference_steps").kind is FieldKind.CHOICE
    assert form.set("num_inference_steps", "2") is None
    assert form.request()["num_inference_steps"] == 2
    assert "one of 1, 2, 4, 8" in str(form.set("num_inference_steps", 3))


def test_a_negative_prompt_is_offered_only_where_the_model_uses_it(form: GenerateForm) -> None:
    assert "negative_prompt" not in [field.name for field in form.fields()]
    form.set("negative_prompt", "blurry")
    assert "negative_prompt" not in form.request()
    form.set("model", "large")
    assert form.request()["negative_prompt"] == "blurry"


def test_what_is_wrong_names_the_value_and_what_would_be_right(form: GenerateForm) -> None:
    assert form.problems() == {"prompt": "Prompt is empty"}
    assert form.needs_only_a_prompt
    form.set("prompt", "a fox")
    assert form.prompt == "a fox"
    assert form.set("width", 130) == "Width 130 is not a multiple of 16; nearest are 128 and 144"
    assert form.set("height", 4000) == "Height 4000 is above 256"


def test_a_mode_of_images_files_and_switches_makes_its_form() -> None:
    schema: dict[str, Any] = {
        "title": "Own",
        "properties": {
            "image": {"type": "string", "format": "image", "minLength": 1},
            "mask": {"type": ["string", "null"], "format": "image", "minLength": 1},
            "dataset": {"type": ["string", "null"], "format": "file"},
            "smooth": {"type": ["boolean", "null"], "default": True},
            "method": {"type": ["string", "null"], "default": "area", "enum": ["area", "lanczos", None]},
            "strength": {"type": ["number", "null"], "default": 0.5, "minimum": 0, "maximum": 1},
        },
        "required": ["image"],
    }
    form = GenerateForm("own", schema, [STARTER], "starter")
    kinds = {field.name: field.kind for field in form.fields()}
    assert kinds == {
        "image": FieldKind.IMAGE,
        "mask": FieldKind.IMAGE,
        "dataset": FieldKind.FILE,
        "smooth": FieldKind.BOOLEAN,
        "method": FieldKind.CHOICE,
        "strength": FieldKind.NUMBER,
    }
    assert form.field("method").choices == ("area", "lanczos")
    assert form.problems() == {"image": "Image is empty"}
    assert form.value("smooth") is True
    form.set("image", "data:image/png;base64,AA==")
    form.set("dataset", "data:application/zip;base64,AA==")
    form.set("smooth", False)
    assert form.request() == {
        "mode": "own",
        "image": "data:image/png;base64,AA==",
        "dataset": "data:application/zip;base64,AA==",
        "smooth": False,
    }
    assert form.to_remember() == {"smooth": False}
    form.set("image", None)
    assert form.problems() == {"image": "Image is empty"}
    assert (form.prompt, form.needs_only_a_prompt) == ("", False)


def test_each_result_is_shown_and_saved_as_what_it_is() -> None:
    names = {"0.png": "image/png", "1.webp": "image/webp", "2.mp4": "video/mp4", "3.safetensors": "application/"}
    place = {"bucket": "b", "size": 1, "digest": "d"}
    state = JobState.model_validate(
        {"job_id": "j", "kind": "generate", "mode": "m", "status": "done", "submitted_at": 0, "image_format": "png"}
        | {"parameters": {"prompt": "a"}, "images": [{**place, "name": f"j/{name}"} for name in names]}
    )
    card = JobCard.of(state)
    card.take_images([b"data"] * len(names))
    shown = [from_card(card, {}, index) for index in range(len(names))]
    assert all(each.mime.startswith(mime) for each, mime in zip(shown, names.values(), strict=True))
    assert [each.file_name.rpartition(".")[2] for each in shown] == [name.partition(".")[2] for name in names]
    assert [each.is_image for each in shown] == [True, True, False, False]


def test_a_seed_is_sent_only_while_it_is_locked(form: GenerateForm) -> None:
    form.set("prompt", "a fox")
    seed = form.roll_seed()
    assert form.request()["seed"] == seed
    form.seed_locked = False
    assert "seed" not in form.request()


def test_settings_are_remembered_without_the_prompt(form: GenerateForm, tmp_path: Path) -> None:
    form.set("prompt", "a secret")
    form.set("model", "large")
    form.set("num_inference_steps", 12)
    preferences = Preferences.load(tmp_path / "overlay.json")
    preferences.values[form.mode] = form.to_remember()
    preferences.save()
    assert "secret" not in (tmp_path / "overlay.json").read_text()
    again = GenerateForm(
        "text-to-image",
        SCHEMA,
        [STARTER, LARGE],
        "starter",
        Preferences.load(tmp_path / "overlay.json").values["text-to-image"],
    )
    assert (again.value("model"), again.value("num_inference_steps"), again.value("prompt")) == ("large", 12, "")


def test_damaged_preferences_are_defaults_and_keep_what_fits(tmp_path: Path) -> None:
    path = tmp_path / "overlay.json"
    path.write_text("{")
    assert Preferences.load(path).prompts == []
    path.write_text(json.dumps({"prompts": "no list", "save_folder": "/images", "dialog_size": [1, "x"]}))
    loaded = Preferences.load(path)
    assert (loaded.prompts, loaded.save_folder, loaded.dialog_size) == ([], "/images", None)


def test_prompt_history_walks_back_and_returns_to_what_was_typed() -> None:
    history = PromptHistory(["first", "second"])
    assert history.older("draft") == "second"
    assert history.older("second") == "first"
    assert history.older("first") is None
    assert history.newer() == "second"
    assert history.newer() == "draft"
    assert history.newer() is None
    history.add("first")
    assert history.older("") == "first"


def test_saved_images_get_a_name_of_their_own_and_overwrite_nothing(tmp_path: Path) -> None:
    name = suggested_name("A red fox, in the snow!", "flux-schnell", 7, "png")
    assert name == "a-red-fox-in-the-snow-flux-schnell-7.png"
    first, second = save_new(tmp_path, name, b"one"), save_new(tmp_path, name, b"two")
    assert (first.read_bytes(), second.read_bytes()) == (b"one", b"two")
    assert second.name == "a-red-fox-in-the-snow-flux-schnell-7 (2).png"
    assert len(list(tmp_path.iterdir())) == 2
    assert suggested_name("../../etc/passwd", None, None, "png") == "etc-passwd.png"
    assert suggested_name("красная лиса", "m", 1, "png") == "красная-лиса-m-1.png"


def test_size_presets_keep_the_models_area_and_grid() -> None:
    presets = size_presets(LARGE)
    assert (presets[0].width, presets[0].height) == (1024, 1024)
    for preset in presets:
        assert preset.width % 16 == 0
        assert preset.height % 16 == 0
        assert 0.9 < preset.width * preset.height / 1024**2 < 1.1
    assert presets[1].label == "4:3 – 1184 × 880"


def state(status: JobStatus, **changes: Any) -> JobState:
    return JobState(
        job_id="1",
        kind=JobKind.GENERATE,
        mode="text-to-image",
        model="starter",
        status=status,
        parameters={"prompt": "a fox", "seed": 5},
        submitted_at=1.0,
        **changes,
    )


def test_a_card_tells_each_phase_in_words() -> None:
    card = JobCard(request={"prompt": "a fox"}, job_id="1")
    assert card.progress.text == "Sending"
    card.take_state(state(JobStatus.QUEUED))
    assert card.progress.text == "Waiting"
    card.take_event(JobEvent(type="started", job_id="1"))
    card.take_event(JobEvent(type="progress", job_id="1", phase="Sample", value=3, maximum=8))
    assert (card.progress.text, card.progress.fraction) == ("Step 3 of 8", 3 / 8)
    card.take_event(JobEvent(type="done", job_id="1", state=state(JobStatus.DONE)))
    assert card.done
    assert card.seed(2) == 7


def test_a_waiting_card_tells_its_place_and_the_time_until_it_starts() -> None:
    card = JobCard.of(state(JobStatus.QUEUED, position=2, wait_seconds=100.0))
    assert card.progress.detail == "Waiting, 2 jobs ahead, 2 min left"


def test_a_card_of_a_job_that_runs_already_tells_how_far_it_is() -> None:
    progress = {"phase": "sample", "value": 3, "maximum": 4, "seconds_left": 7.0}
    card = JobCard.of(state(JobStatus.RUNNING, progress=progress))
    assert card.progress.detail == "Step 3 of 4, 7 s left"


def test_fields_of_a_newer_service_are_left_out_and_do_not_break_the_reading() -> None:
    newer = json.loads(state(JobStatus.RUNNING, progress={"phase": "sample"}).model_dump_json())
    newer["colour"] = {"of": "the job"}
    newer["progress"]["mood"] = "good"
    event = read_answer(JobEvent, json.dumps({"type": "state", "job_id": "1", "state": newer, "extra": 1}))
    assert event.state == state(JobStatus.RUNNING, progress={"phase": "sample"})


def test_a_callback_that_fails_does_not_keep_the_others_from_hearing() -> None:
    heard = []
    signal = Signal[[]]()
    signal.connect(lambda: 1 / 0)
    signal.connect(lambda: heard.append(1))
    signal.emit()
    assert heard == [1]


def test_the_card_of_a_failed_job_can_be_deleted_and_taken_back(tmp_path: Path) -> None:
    link = Link(deliver=lambda work: work())
    session = Session(AsyncImageGenClient("http://127.0.0.1:9"), link, Preferences.load(tmp_path / "overlay.json"))
    card = JobCard(request={"prompt": "a fox"}, job_id="1")
    session.cards.append(card)
    assert session.delete("1/0") is None, "a running job is cancelled, not deleted"
    card.fail("no such model")
    undo = session.delete("1/0")
    assert undo is not None
    assert session.cards == []
    undo()
    assert session.cards == [card]
    link.stop()


def test_time_left_is_said_as_one_would() -> None:
    said = [Progress("Loading", 0.5, seconds).detail for seconds in (None, 0.2, 4.4, 100, 7300)]
    assert said == ["Loading", "Loading", "Loading, 4 s left", "Loading, 2 min left", "Loading, 2.0 h left"]


def test_a_bridge_that_goes_away_is_down_and_one_being_started_is_starting() -> None:
    connection = Connection()
    connection.unreachable("")
    assert (connection.state, connection.can_start) == (BridgeState.DOWN, True)
    connection.starting()
    connection.unreachable("")
    assert (connection.state, connection.can_start) == (BridgeState.STARTING, False)
    connection.answered()
    assert (connection.ready, connection.banner) == (True, "")
    connection.unreachable("")
    assert connection.state is BridgeState.DOWN


def test_a_removed_image_stays_away_until_it_is_taken_back() -> None:
    hidden: list[str] = []
    history = History(hidden)
    image = {"bucket": "b", "name": "n", "size": 1, "digest": "d"}
    done = state(JobStatus.DONE, images=[image, image], finished_at=2.0)
    history.replace([done])
    first, second = history.images()
    assert (first.seed, second.seed) == (5, 6)
    history.remove(first)
    history.replace([done])
    assert [past.key for past in history.images()] == ["1/1"]
    history.restore(first)
    assert len(history.images()) == 2
    assert hidden == []
