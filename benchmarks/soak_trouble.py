"""What a soak does to a service, and what has become of the jobs: processes killed and frozen, a full disk, oversized
requests."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.faults.cluster import MODE, Cluster
from tests.faults.disk import SmallDisk

KILLED = ("worker", "gateway", "nats", "comfyui")
DEATHS = ("worker_died", "comfyui_unavailable")
"""Error codes that a killed or frozen process explains."""
NO_SPACE = ("storage_full",)
"""Error codes that a full disk explains."""
FREEZES_S = (1.0, 5.0, 20.0)
"""How long a process may be frozen: less, and more, than the broker waits for a sign of life."""
FULL_S = 6.0
"""How long the disk stays full."""
LARGE_BODIES = (1_048_000, 1_048_300, 1_048_576, 1_048_577, 1_100_000, 5_000_000)
"""Bytes of a request around NATS' limit for a message and this service's limit for a body, and far above."""
REFUSED = (413, 422)


@dataclass
class Outcome:
    """What became of the jobs."""

    jobs: int
    kills: Counter[str] = field(default_factory=Counter)
    freezes: Counter[str] = field(default_factory=Counter)
    full_disks: int = 0
    oversized: Counter[int] = field(default_factory=Counter)
    """Oversized requests, by the status of the answer."""
    statuses: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    untrue: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        return not (self.lost or self.doubled or self.untrue or self.unanswered)

    def explains(self, code: str) -> bool:
        """Whether a job may have failed with this code, after what was done to the service."""
        return (code in DEATHS and bool(self.kills or self.freezes)) or (code in NO_SPACE and self.full_disks > 0)

    def report(self) -> str:
        lines = [
            f"{self.jobs} jobs in {self.seconds:.0f} s; killed: {_listed(self.kills)}; "
            f"frozen: {_listed(self.freezes)}; disk full: {self.full_disks}x; "
            f"oversized requests, by status: {_listed(self.oversized)}",
            "ended: " + ", ".join(f"{count} {status}" for status, count in sorted(self.statuses.items())),
            f"lost {len(self.lost)}, doubled {len(self.doubled)}, untrue states {len(self.untrue)}, "
            f"wrong answers to oversized requests {len(self.unanswered)}",
        ]
        return "\n".join([*lines, *self.lost[:20], *self.doubled[:20], *self.untrue[:20], *self.unanswered[:20]])


def _listed(counts: Counter[Any]) -> str:
    return ", ".join(f"{name} {count}x" for name, count in sorted(counts.items())) or "nothing"


@dataclass(frozen=True)
class Trouble:
    """How often each thing is done to the service."""

    kills: int = 0
    freezes: int = 0
    full_disks: int = 0
    oversized: int = 0


Deed = Callable[[Outcome, Callable[[str], None]], Awaitable[None]]
"""Something that is done to the service; it tells the given function what it does."""


Ask = Callable[..., Awaitable[tuple[int, bytes]]]
"""Sends a request, and again until the service has an opinion; gives its status and body."""


class Troublemaker:
    """Troubles one cluster. `disk` is the one that its NATS server writes to."""

    def __init__(self, cluster: Cluster, disk: SmallDisk | None, dice: random.Random, ask: Ask) -> None:
        self._cluster = cluster
        self._disk = disk
        self._dice = dice
        self._ask = ask

    def schedule(self, trouble: Trouble, jobs: int) -> list[tuple[int, Deed]]:
        """What to do after how many jobs."""
        moments = sorted(self._dice.randrange(jobs) for _ in range(trouble.kills))
        victims = [self._dice.choice(KILLED) for _ in range(trouble.kills)]
        schedule = [(moment, self._killing(victim)) for moment, victim in zip(moments, victims, strict=True)]
        for count, kind in (
            (trouble.freezes, self._freezing),
            (trouble.full_disks, self._filling),
            (trouble.oversized, self._exceeding),
        ):
            schedule += [(self._dice.randrange(jobs), kind()) for _ in range(count)]
        return sorted(schedule, key=lambda item: item[0])

    async def run(
        self,
        schedule: list[tuple[int, Deed]],
        accepted: Callable[[], int],
        outcome: Outcome,
        say: Callable[[str], None],
    ) -> None:
        """Do what the schedule says, as the number of accepted jobs grows."""
        for moment, deed in schedule:
            while accepted() < moment:  # noqa: ASYNC110 - counted by many tasks
                await asyncio.sleep(0.02)
            await deed(outcome, lambda text, moment=moment: say(f"after {moment} jobs: {text}"))

    def _killing(self, victim: str) -> Deed:
        async def kill(outcome: Outcome, say: Callable[[str], None]) -> None:
            say(f"kill -9 {victim}")
            outcome.kills[victim] += 1
            await asyncio.to_thread(self._cluster.processes[victim].restart)

        return kill

    def _freezing(self) -> Deed:
        victim, seconds = self._dice.choice(KILLED), self._dice.choice(FREEZES_S)

        async def freeze(outcome: Outcome, say: Callable[[str], None]) -> None:
            say(f"{victim} is frozen for {seconds:g} s")
            outcome.freezes[victim] += 1
            process = self._cluster.processes[victim].process
            assert process is not None
            process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(seconds)
            process.send_signal(signal.SIGCONT)

        return freeze

    def _filling(self) -> Deed:
        async def fill(outcome: Outcome, say: Callable[[str], None]) -> None:
            assert self._disk is not None
            say(f"the disk is full for {FULL_S:g} s")
            outcome.full_disks += 1
            await asyncio.to_thread(self._disk.fill)
            await asyncio.sleep(FULL_S)
            self._disk.release()
            # As `imagegen up` does where NATS has given up a stream, and an operator is told to.
            say("the disk is free; NATS is restarted")
            await asyncio.to_thread(self._cluster.processes["nats"].restart)

        return fill

    def _exceeding(self) -> Deed:
        size, wide = self._dice.choice(LARGE_BODIES), self._dice.random() < 0.5

        async def exceed(outcome: Outcome, say: Callable[[str], None]) -> None:
            body = {"mode": MODE, "prompt": ""}
            room = size - len(json.dumps(body, ensure_ascii=False))
            body["prompt"] = "é" * (room // 2) if wide else "x" * room
            data = json.dumps(body, ensure_ascii=False).encode()
            say(f"a request of {len(data)} bytes")
            headers = {"Content-Type": "application/json"}
            status, _ = await self._ask("POST", "/v1/jobs", data=data, headers=headers)
            outcome.oversized[status] += 1
            if status not in REFUSED:
                outcome.unanswered.append(f"a request of {len(data)} bytes was answered with HTTP {status}")
            plain = {"mode": MODE, "prompt": "x", "color": 1}
            status, _ = await self._ask("POST", "/v1/jobs", json=plain)
            if status != 202:
                outcome.unanswered.append(f"the request after one of {len(data)} bytes got HTTP {status}")

        return exceed
