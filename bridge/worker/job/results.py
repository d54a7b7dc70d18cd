"""Brings the files of a job from ComfyUI into the store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from bridge.broker.jobs import JobQueue
from bridge.comfyui.client import ComfyUI
from bridge.comfyui.errors import ComfyUIUnavailable
from bridge.comfyui.history import RunResult
from bridge.comfyui.messages import NodeDone
from bridge.contract import EXTENSIONS, IMAGE_FORMATS, BridgeError, FileFormat, ImageObject, format_of
from bridge.modes.library import Mode
from bridge.worker.patience import COMFYUI_WAIT_S, RETRY_S, insist


class Results:
    """The results of one job. Each file is fetched once, by a task of its own."""

    def __init__(self, comfy: ComfyUI, queue: JobQueue, job_id: str, mode: Mode) -> None:
        self._comfy = comfy
        self._queue = queue
        self._job_id = job_id
        self._mode = mode
        self._tasks: dict[str, asyncio.Task[ImageObject]] = {}

    def node_done(self, event: NodeDone) -> None:
        """Start to fetch while ComfyUI still ends the run. With several result nodes the order is known only later."""
        if self._mode.results == (event.node,):
            for index, file in enumerate(files_of(event.output)):
                self._fetch(index, file, self._mode.result_name(event.node))

    async def collect(self, result: RunResult) -> tuple[FileFormat, list[ImageObject]]:
        """Store the files of all result nodes.

        The format is that of the first image, or of the first file if none is an image. Raises BridgeError for a run
        without files and for a kind of file that no answer carries, ComfyUIError, Unavailable and StorageFull.
        """
        mode = self._mode
        files = [
            (file, mode.result_name(node)) for node in mode.results for file in files_of(result.outputs.get(node) or {})
        ]
        if not files:
            raise BridgeError(f"mode {mode.name} ended without an image; does a result node lack its input?")
        formats: list[FileFormat] = [known_format(file["filename"]) for file, _ in files]
        tasks = [self._fetch(index, file, name) for index, (file, name) in enumerate(files)]
        images: list[FileFormat] = [kind for kind in formats if kind in IMAGE_FORMATS]
        return (images or formats)[0], list(await asyncio.gather(*tasks))

    def _fetch(self, index: int, file: Mapping[str, Any], result: str) -> asyncio.Task[ImageObject]:
        key = f"{index} {file.get('type')} {file.get('subfolder')} {file['filename']}"
        task = self._tasks.get(key)
        if task is None or _failed(task):
            task = self._tasks[key] = asyncio.create_task(self._bring(index, file, result))
        return task

    async def _bring(self, index: int, file: Mapping[str, Any], result: str) -> ImageObject:
        name = file["filename"]
        kind = known_format(name)
        deadline = time.monotonic() + COMFYUI_WAIT_S
        while True:
            try:
                data = await self._comfy.view(name, file.get("subfolder", ""), file.get("type", "output"))
                break
            except ComfyUIUnavailable:  # It died after the run; the file is on its disk.
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(RETRY_S)
        stored = await insist(lambda: self._queue.store_image(self._job_id, index, kind, data))
        return stored.model_copy(update={"result": result})

    async def close(self) -> None:
        """Stop fetching what is no longer wanted."""
        unwanted = [task for task in self._tasks.values() if not task.done() or _failed(task)]
        for task in unwanted:
            task.cancel()
        if unwanted:  # Without any, nothing is awaited, and what follows goes out with what was just sent.
            await asyncio.gather(*unwanted, return_exceptions=True)


def files_of(output: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The files in a node's answer: `images` of most nodes, `gifs`, `audio` or `3d` of others."""
    return [
        each
        for found in output.values()
        if isinstance(found, list)
        for each in found
        if isinstance(each, dict) and isinstance(each.get("filename"), str)
    ]


def _failed(task: asyncio.Task[ImageObject]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def known_format(filename: str) -> FileFormat:
    """The kind of a result's file, by its name. Raises BridgeError for a kind that no answer carries."""
    kind = format_of(filename)
    if kind is None:
        raise BridgeError(f"a result is the file {filename!r}; results may be {', '.join(EXTENSIONS.values())} files")
    return kind
