"""Gateway and worker on a NATS server that lets nobody in without TLS and credentials."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nkeys
import pytest
from nacl.signing import SigningKey

from bridge.broker.connection import Refused, connect
from bridge.contract import Unavailable
from bridge.service.installer import Installation
from bridge.settings import Access
from tests.faults.cluster import Cluster, ended, submit

PATIENCE_S = 3600.0
"""Longer than any test: a refusal is told at once."""


@pytest.fixture
def secured(installation: Installation, certificates: Path, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster whose NATS server asks for a certificate, a user and a password."""
    tls = {name: str(certificates / file) for name, file in
           {"cert_file": "server.pem", "key_file": "server.key", "ca_file": "ca.pem"}.items()}  # fmt: skip
    cluster = Cluster(
        tmp_path / "secured",
        installation,
        tls={**tls, "verify": True},
        authorization={"users": [{"user": "imagegen", "password": "s3cret"}]},
    )
    cluster.nats_url = cluster.nats_url.replace("nats://", "tls://")
    try:
        cluster.wait_nats()
        yield cluster
    finally:
        cluster.close()


def test_with_certificates_and_a_password_jobs_run(
    secured: Cluster, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secured.options = ["--nats-tls-ca", str(certificates / "ca.pem"), "--nats-user", "imagegen"]
    secured.options += ["--nats-tls-cert", str(certificates / "client.pem")]
    secured.options += ["--nats-tls-key", str(certificates / "client.key")]
    secured.secrets = {"IMAGEGEN_NATS_PASSWORD": "s3cret"}
    secured.worker(secured.stand_in())
    secured.gateway()
    client = secured.ready()
    assert ended(client, submit(client, color=1)).status == "done"


def test_without_them_the_refusal_is_one_clear_line(secured: Cluster, certificates: Path) -> None:
    command = [sys.executable, "-m", "bridge", "worker", "--comfyui-url", "http://127.0.0.1:1"]
    command += ["--nats-url", secured.nats_url]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert "certificate" in result.stderr


async def test_a_wrong_password_is_named_as_such(secured: Cluster, certificates: Path) -> None:
    access = Access(
        user="imagegen",
        password="wrong",
        tls_ca=certificates / "ca.pem",
        tls_cert=certificates / "client.pem",
        tls_key=certificates / "client.key",
    )
    with pytest.raises(Refused, match="refuses this connection.*uthorization"):
        await connect(secured.nats_url, "test", access=access, patience_s=PATIENCE_S)


async def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"credentials file .*gone\.creds does not exist"):
        await connect("nats://127.0.0.1:1", "test", access=Access(credentials=tmp_path / "gone.creds"))
    with pytest.raises(Unavailable, match=r"TLS files for NATS cannot be used.*gone\.pem"):
        await connect("nats://127.0.0.1:1", "test", access=Access(tls_ca=tmp_path / "gone.pem"))


async def test_a_token_and_a_credentials_file_let_in(installation: Installation, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "token", installation, authorization={"token": "t0ken"})
    try:
        cluster.wait_nats()
        nc = await connect(cluster.nats_url, "test", access=Access(token="t0ken"))
        await nc.close()
        with pytest.raises(Refused):
            await connect(cluster.nats_url, "test", access=Access(token="other"), patience_s=PATIENCE_S)
    finally:
        cluster.close()
    credentials, config = write_credentials(tmp_path / "user.creds")
    cluster = Cluster(tmp_path / "operator", installation, **config)
    try:
        cluster.wait_nats()
        nc = await connect(cluster.nats_url, "test", access=Access(credentials=credentials))
        info = await nc.jetstream().account_info()
        assert info.streams == 0
        await nc.close()
        with pytest.raises(Refused):
            await connect(cluster.nats_url, "test", patience_s=PATIENCE_S)
    finally:
        cluster.close()


# -- an operator, an account and a user, as `nsc` makes them ---------------------------------------------------------

PREFIXES = {
    "operator": nkeys.PREFIX_BYTE_OPERATOR,
    "account": nkeys.PREFIX_BYTE_ACCOUNT,
    "user": nkeys.PREFIX_BYTE_USER,
}


def write_credentials(path: Path, **permissions: Any) -> tuple[Path, dict[str, Any]]:
    """A .creds file of a user with these permissions, and the configuration of a server that trusts it."""
    keys = {kind: SigningKey.generate() for kind in PREFIXES}
    public = {kind: public_key(kind, key) for kind, key in keys.items()}
    limits = {"subs": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "data": -1, "payload": -1,
              "wildcards": True, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}  # fmt: skip
    operator = jwt("operator", public, keys["operator"], public["operator"], {})
    account = jwt("account", public, keys["operator"], public["operator"], {"limits": limits})
    system = SigningKey.generate()  # JetStream wants a system account
    public["system"] = public_key("account", system)
    system_claims = {**public, "account": public["system"]}
    system_jwt = jwt("account", system_claims, keys["operator"], public["operator"], {})
    user = jwt(
        "user", public, keys["account"], public["account"], {"subs": -1, "data": -1, "payload": -1, **permissions}
    )
    seed = seed_of("user", keys["user"])
    path.write_text(
        f"-----BEGIN NATS USER JWT-----\n{user}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
    return path, {
        "operator": operator,
        "resolver": "MEMORY",
        "system_account": public["system"],
        "resolver_preload": {public["account"]: account, public["system"]: system_jwt},
    }


def crc16(data: bytes) -> bytes:
    value = 0
    for byte in data:
        value ^= byte << 8
        for _ in range(8):
            value = (value << 1 ^ (0x1021 if value & 0x8000 else 0)) & 0xFFFF
    return value.to_bytes(2, "little")


def encode(raw: bytes) -> str:
    return base64.b32encode(raw + crc16(raw)).decode().rstrip("=")


def public_key(kind: str, key: SigningKey) -> str:
    return encode(bytes([PREFIXES[kind]]) + bytes(key.verify_key))


def seed_of(kind: str, key: SigningKey) -> str:
    first = nkeys.PREFIX_BYTE_SEED | PREFIXES[kind] >> 5
    second = (PREFIXES[kind] & 31) << 3
    return encode(bytes([first, second]) + bytes(key))


def jwt(kind: str, public: dict[str, str], signer: SigningKey, issuer: str, claims: dict[str, Any]) -> str:
    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    body = {"iat": 1, "iss": issuer, "name": kind, "sub": public[kind], "nats": {**claims, "type": kind, "version": 2}}
    body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode().rstrip("=")
    text = part({"typ": "JWT", "alg": "ed25519-nkey"}) + "." + part(body)
    signature = base64.urlsafe_b64encode(signer.sign(text.encode()).signature).decode().rstrip("=")
    return f"{text}.{signature}"
