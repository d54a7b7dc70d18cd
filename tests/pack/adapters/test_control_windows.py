"""The part of the steps in which a ControlNet acts: where it covers none, the user is told."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.pack.adapters.test_adapter_graphs import files, with_control
from tests.pack.comfy_server import ComfyServer
from tests.pack.graphs import node, text_to_image

__all__ = ["files"]
NAME = "tiny-flux-canny"
WINDOWS: dict[str, tuple[float, float, int, list[int], str]] = {
    "all": (0.0, 1.0, 4, [0, 1, 2, 3], ""),
    "the first quarter": (0.0, 0.25, 4, [0], ""),
    "less than the first step": (0.0, 0.2, 4, [], "set end to 0.25 or more, or use 5 steps"),
    "the same with more steps": (0.0, 0.2, 5, [0], ""),
    "less than the last step": (0.8, 1.0, 4, [], "set start to 0.75 or less, or use 5 steps"),
    "between two": (0.3, 0.7, 4, [], "set end to 0.75 or more, or use 5 steps"),
    "in the middle": (0.3, 0.8, 4, [2], ""),
    "of one step": (0.0, 0.9, 1, [], "set end to 1 or more, or use 2 steps"),
    "a sliver": (0.5, 0.51, 4, [], "set end to 0.75 or more, or use 100 steps"),
}


@pytest.mark.usefixtures("comfy_modules")
@pytest.mark.parametrize("case", WINDOWS)
def test_the_steps_that_are_covered(case: str) -> None:
    from neurolux.adapters.control.applied import covered_steps, without_steps

    start, end, steps, covered, remedy = WINDOWS[case]
    assert covered_steps(start, end, steps) == covered
    if remedy:
        control = type("Control", (), {"start": start, "end": end, "file": type("File", (), {"name": "some"})})
        assert without_steps(control, steps).endswith(f"covers none of the {steps} steps whole; {remedy}")


@pytest.mark.usefixtures("files")
def test_a_controlnet_that_never_acts_is_told(comfyui: ComfyServer) -> None:
    told = []
    for end, steps in ((0.2, 4), (0.25, 4), (0.2, 5)):
        runs = [
            comfyui.run(with_control(text_to_image("tiny-flux-dev", steps=steps), NAME, end=end, strength=strength))
            for strength in (0.7, 0.2)
        ]
        told += runs[0].outputs.get("sample", {}).get("warnings", [])
        strong, weak = (np.asarray(comfyui.images(run)[0]) for run in runs)
        assert np.array_equal(strong, weak) == ((end, steps) == (0.2, 4))
    [warning] = told
    assert warning == (
        f"ControlNet {NAME} had no effect: from 0 to 0.2 it covers none of the 4 steps whole; set end to 0.25 or more, "
        "or use 5 steps"
    )


@pytest.mark.usefixtures("files")
def test_only_the_steps_that_run_count(comfyui: ComfyServer) -> None:
    graph = with_control(text_to_image("tiny-flux-dev", steps=10), NAME, end=0.2)
    graph["latent"] = node(
        "NeuroLuxEncodeImage", pipeline=["load", 0], image=["image", 0], fit="crop", width=0, height=0, batch_size=1
    )
    graph["sample"]["inputs"]["strength"] = 0.4
    run = comfyui.run(graph)
    assert "covers none of the 4 steps" in run.outputs["sample"]["warnings"][0]
    assert isinstance(comfyui.images(run)[0], Image.Image)
