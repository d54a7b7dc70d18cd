"""Uploads the images and files of a request to the worker's ComfyUI, before its graph is queued."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from bridge.broker.jobs import JobQueue
from bridge.comfyui.client import ComfyUI
from bridge.comfyui.errors import ComfyUIUnavailable
from bridge.modes.images_in import stored
from bridge.modes.library import Mode
from bridge.modes.parameters import UPLOADS
from bridge.worker.patience import comfyui_back

SUBFOLDER = "imagegen"
"""In ComfyUI's input folder. Uploads stay for as long as jobs are kept, so that the editor finds what a dropped image
was made from; then `bridge.worker.input_cleaning` has them removed."""


def upload_names(parameters: Mapping[str, JsonValue], bucket: str) -> list[str]:
    """The names that the stored images among a job's parameters have in ComfyUI's folder."""
    return [_upload_name(value, image.name) for value in parameters.values() if (image := stored(value, bucket))]


def _upload_name(reference: JsonValue, stored_name: str) -> str:
    """A name made of the content: the digest at the end of the reference."""
    return f"{str(reference).rpartition('.')[2][:32]}.{stored_name.rpartition('.')[2]}"


async def place(
    queue: JobQueue, comfy: ComfyUI, mode: Mode, parameters: Mapping[str, JsonValue]
) -> dict[str, JsonValue]:
    """Upload every stored image, and return the parameters with the names that ComfyUI gave them.

    Names come from the content, so ComfyUI keeps one file of two that are equal. Raises ImageExpired if the store has
    lost an image, Unavailable, and ComfyUIError.
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
