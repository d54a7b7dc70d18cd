"""A short soak; `make soak` runs a long one."""

from __future__ import annotations

from pathlib import Path

from benchmarks.soak import soak, start
from bridge.service.installer import Installation
from tests.faults.cluster import Cluster


async def test_forty_jobs_and_four_kills_lose_nothing(installation: Installation, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "soak", installation)
    try:
        start(cluster, stand_in=True)
        outcome = await soak(cluster, jobs=40, kills=4, seed=4)
        assert outcome.sound, outcome.report()
        assert sum(outcome.kills.values()) == 4
        assert outcome.statuses == {"done": 40}
    finally:
        cluster.close()
