"""What a stranger's checker finds wrong with the servers that `imagegen up` starts: nothing that we can mend."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from bridge.service.advisories import known_of
from tests.service.conftest import Service


def findings(url: str) -> list[dict[str, Any]]:
    """What `ligsp check URL` reports, but for what passes."""
    command = [sys.executable, "-m", "ligsp", "check", url, "--json", "-"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    [target] = json.loads(run.stdout)["targets"]
    assert target["results"], run.stdout
    return [result for result in target["results"] if result["status"] in ("fail", "warn")]


def test_of_comfyui_only_its_version_is_found(service: Service) -> None:
    found = findings(service.comfyui_url)
    assert [result["id"] for result in found] in ([], ["OPS-3"]), found
    known = {advisory.id for advisory in known_of("0.3.75")}
    for line in (line for result in found for line in result["evidence"] if line.startswith("GHSA")):
        assert line.split()[0] in known, "our own record must have it"


def test_of_the_gateway_nothing_is_found(service: Service) -> None:
    assert findings(service.url) == []
