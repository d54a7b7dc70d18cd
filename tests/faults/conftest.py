"""One cluster for the session: a fault is over when the next test begins."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and what it signed for the server and for a client."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("req", "-newkey", "rsa:2048", "-nodes")
    openssl(*new, "-x509", "-days", "2", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    for name in ("server", "client"):
        openssl(*new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl(
            "x509", "-req", "-days", "2", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-CAcreateserial", "-extfile", "names", "-out", f"{name}.pem",
        )  # fmt: skip
    return folder
