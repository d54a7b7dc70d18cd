"""Waiting for a broker or a ComfyUI that went away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from bridge.comfyui.client import ComfyUI
from bridge.comfyui.errors import ComfyUIError
from bridge.contract import Unavailable

BROKER_WAIT_S = 120.0
"""How long a job that has run waits for the broker to come back; after that it is left to be delivered again."""
COMFYUI_WAIT_S = 90.0
"""How long a job waits for a ComfyUI that went away while it had the job."""
RETRY_S = 0.25
COMFYUI_RETRY_S = 0.5

Answer = TypeVar("Answer")


async def insist(work: Callable[[], Awaitable[Answer]]) -> Answer:
    """Do something with the broker, and repeat it while the broker is away. Raises Unavailable if it stays away."""
    deadline = time.monotonic() + BROKER_WAIT_S
    while True:
        try:
            return await work()
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(RETRY_S)


async def comfyui_ready(comfy: ComfyUI) -> None:
    """Wait until ComfyUI answers. A job stays in the queue, where its state is true, until it can be run."""
    while not comfy.connected:
        try:
            await comfy.system_stats()
            return
        except ComfyUIError:
            await asyncio.sleep(COMFYUI_RETRY_S)


async def comfyui_back(comfy: ComfyUI, error: ComfyUIError) -> None:
    """Wait for a ComfyUI that went away. Raises `error` if it stays away."""
    try:
        async with asyncio.timeout(COMFYUI_WAIT_S):
            await comfyui_ready(comfy)
    except TimeoutError:
        raise error from None
