"""Short soaks; `make soak` runs a long one."""

from __future__ import annotations

from pathlib import Path

from benchmarks.soak import Trouble, made_cluster, soak, start
from bridge.service.installer import Installation


async def test_forty_jobs_and_four_kills_lose_nothing(installation: Installation, tmp_path: Path) -> None:
    with made_cluster(tmp_path, installation) as (cluster, _):
        start(cluster, stand_in=True)
        outcome = await soak(cluster, jobs=40, trouble=Trouble(kills=4), seed=4)
    assert outcome.sound, outcome.report()
    assert sum(outcome.kills.values()) == 4
    assert outcome.statuses == {"done": 40}


async def test_forty_jobs_a_full_disk_freezes_and_a_large_request_lose_nothing(
    installation: Installation, tmp_path: Path
) -> None:
    with made_cluster(tmp_path, installation, small_disk_mib=256) as (cluster, disk):
        start(cluster, stand_in=True)
        trouble = Trouble(freezes=2, full_disks=1, oversized=1)
        outcome = await soak(cluster, jobs=40, trouble=trouble, seed=6, disk=disk)
    assert outcome.sound, outcome.report()
    assert (sum(outcome.freezes.values()), outcome.full_disks, sum(outcome.oversized.values())) == (2, 1, 1)
