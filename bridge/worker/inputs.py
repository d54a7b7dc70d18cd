"""Brings the images and files that a request came with into the worker's ComfyUI, before its graph is queued."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from bridge.broker.jobs import JobQueue
from bridge.comfyui.client import ComfyUI
from bridge.comfyui.errors import ComfyUIUnavailable
from bridge.modes.images_in import stored
from bridge.modes.library import Mode
from bridge.modes.parameters import UPLOADS
from bridge.worker.execution import comfyui_back

SUBFOLDER = "imagegen"
"""Of ComfyUI's input folder. They stay for as long as jobs are kept, so that an image dropped on the editor finds what
it was made from; then `bridge.worker.input_cleaning` has them removed."""


def upload_names(parameters: Mapping[str, JsonValue], bucket: str) -> list[str]:
    """What the stored images among the parameters of a job are called in ComfyUI's folder."""
    return [_upload_name(value, image.name) for value in parameters.values() if (image := stored(value, bucket))]


def _upload_name(reference: JsonValue, stored_name: str) -> str:
    """By content: the digest that the reference ends with."""
    return f"{str(reference).rpartition('.')[2][:32]}.{stored_name.rpartition('.')[2]}"


async def place(
    queue: JobQueue, comfy: ComfyUI, mode: Mode, parameters: Mapping[str, JsonValue]
) -> dict[str, JsonValue]:
    """The parameters with every stored image replaced by the name that ComfyUI gave it.

    It is named by its content, and ComfyUI keeps one file of two that are equal. Raises UnknownJob if the store has
    lost one, Unavailable, and ComfyUIError.
    """
    placed = dict(parameters)
    for name, value in parameters.items():
        parameter = mode.parameters.get(name)
        image = stored(value, queue.names.inputs)
        if image is None or parameter is None or parameter.kind not in UPLOADS:
            continue
        data = await queue.inputs.get(image)
        placed[name] = await _upload(comfy, data, _upload_name(value, image.name))
    return placed


async def _upload(comfy: ComfyUI, data: bytes, filename: str) -> str:
    while True:
        try:
            return await comfy.upload_image(data, filename, SUBFOLDER)
        except ComfyUIUnavailable as error:
            await comfyui_back(comfy, error)
