"""Brings the pictures that a request came with into the worker's ComfyUI, before its graph is queued."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from bridge.comfyui.client import ComfyUI
from bridge.comfyui.errors import ComfyUIUnavailable
from bridge.execution import comfyui_back
from bridge.images_in import stored
from bridge.jobs import JobQueue
from bridge.modes import Mode, ParameterKind

SUBFOLDER = "imagegen"
"""Of ComfyUI's input folder. They stay there, so that a picture dropped on the editor finds what it was made from."""


async def place(
    queue: JobQueue, comfy: ComfyUI, mode: Mode, parameters: Mapping[str, JsonValue]
) -> dict[str, JsonValue]:
    """The parameters with every stored picture replaced by the name that ComfyUI gave it.

    It is named by its content, and ComfyUI keeps one file of two that are equal. Raises UnknownJob if the store has
    lost one, Unavailable, and ComfyUIError.
    """
    placed = dict(parameters)
    for name, value in parameters.items():
        parameter = mode.parameters.get(name)
        image = stored(value, queue.names.inputs)
        if image is None or parameter is None or parameter.kind is not ParameterKind.IMAGE:
            continue
        data = await queue.inputs.get(image)
        digest, extension = str(value).rpartition(".")[2][:32], image.name.rpartition(".")[2]
        placed[name] = await _upload(comfy, data, f"{digest}.{extension}")
    return placed


async def _upload(comfy: ComfyUI, data: bytes, filename: str) -> str:
    while True:
        try:
            return await comfy.upload_image(data, filename, SUBFOLDER)
        except ComfyUIUnavailable as error:
            await comfyui_back(comfy, error)
