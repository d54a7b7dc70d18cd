"""Options of choices: the values that ComfyUI offers for the widgets that a mode's Choice parameters are linked to.

Only ComfyUI knows lists of files, such as the LoRAs. The gateway asks a worker, and the worker its ComfyUI's
`/object_info`, which reads the folders each time, so a new file is offered at once. If no worker answers, no value is
refused: ComfyUI validates it when the job runs.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

from bridge.broker.jobs import JobQueue
from bridge.broker.questions import ask_worker
from bridge.contract import BridgeError, WidgetOptions
from bridge.modes.library import Mode

log = logging.getLogger(__name__)

Widget = tuple[str, str]
"""Node class and input."""
Options = tuple[str, ...]
TIMEOUT_S = 5.0
FRESH_S = 2.0
"""Younger answers are used again. Before a value is refused, the worker is asked again anyway."""


class Offers:
    """The options of choices, as one gateway knows them."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._known: dict[Widget, tuple[float, Options | None]] = {}

    async def fill(self, mode: Mode, given: Mapping[str, Any] | None = None) -> Mode:
        """`mode` with the current options of its choices. `given` are the values that will be validated with them."""
        links = mode.links()
        if not links:
            return mode
        known = await self._options({widget for widgets in links.values() for widget in widgets}, FRESH_S)
        offered = _offered(links, known)
        if any(_lacks(offered.get(name), value) for name, value in (given or {}).items()):
            offered = _offered(links, await self._options(known, 0.0))
        return mode.offering(offered)

    async def _options(self, widgets: Iterable[Widget], max_age_s: float) -> dict[Widget, Options | None]:
        now = time.monotonic()
        wanted = [widget for widget in widgets if widget not in self._known or now - self._known[widget][0] > max_age_s]
        if wanted:
            answer = await self._ask(wanted)
            self._known |= {widget: (time.monotonic(), answer.get(widget)) for widget in wanted}
        return {widget: self._known[widget][1] for widget in widgets}

    async def _ask(self, widgets: list[Widget]) -> dict[Widget, Options | None]:
        question = json.dumps(widgets).encode()
        try:
            reply = await ask_worker(
                self._queue.nc, self._queue.names.options, question, WidgetOptions, timeout_s=TIMEOUT_S
            )
        except BridgeError as error:
            log.debug("the options of widgets are not known: %s", error)
            return {}
        return {
            widget: None if options is None else tuple(options)
            for widget, options in zip(widgets, reply.root, strict=False)
        }


def _offered(links: Mapping[str, list[Widget]], known: Mapping[Widget, Options | None]) -> dict[str, Options]:
    """By parameter: the options that all of its widgets offer. Parameters without known widgets are left out."""
    offered: dict[str, Options] = {}
    for name, widgets in links.items():
        lists = [options for widget in widgets if (options := known.get(widget)) is not None]
        if lists:
            offered[name] = tuple(value for value in lists[0] if all(value in options for options in lists))
    return offered


def _lacks(options: Options | None, value: Any) -> bool:
    return options is not None and isinstance(value, str) and value not in options
