"""One cluster for the session: a fault is over when the next test begins."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bridge.client import ImageGenClient
from bridge.service.installer import Installation, pinned_installation
from bridge.settings import Settings
from tests.faults.cluster import Cluster


@pytest.fixture(scope="session")
def installation() -> Installation:
    """The pinned ComfyUI, unpacked once a machine."""
    return pinned_installation(Settings.from_environment())


@pytest.fixture(scope="session")
def cluster(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), installation)
    try:
        url = cluster.comfyui()
        cluster.wait_nats()
        cluster.worker(url)
        cluster.gateway()
        cluster.wait_comfyui()
        cluster.ready()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def client(cluster: Cluster) -> Iterator[ImageGenClient]:
    """A client of the cluster, whole again."""
    for process in cluster.processes.values():
        if process.process is None or process.process.poll() is not None:
            process.start()
    cluster.wait_nats()
    cluster.wait_comfyui()
    with cluster.ready() as client:
        yield client
