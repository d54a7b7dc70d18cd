"""What a dry run leaves of torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DRY_RUN_FIRST = """
import torch
from neurolux.dry_run.card import SimulatedMachine
from neurolux.dry_run.tensors import simulated_tensors

with simulated_tensors(SimulatedMachine(2**30, 2**30)), torch.device("meta"):
    torch.empty(1)
with torch.device("meta"):
    print(torch.tensor([]).device, torch.linspace(0, 1, 2).device)
"""


def test_a_device_chosen_after_a_dry_run_holds_for_every_function() -> None:
    """A fresh process, where torch has not yet listed the functions that a chosen device changes."""
    pack = Path(__file__).parents[3] / "custom_nodes"
    done = subprocess.run(
        [sys.executable, "-c", DRY_RUN_FIRST],
        env={**os.environ, "PYTHONPATH": str(pack)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.split() == ["meta", "meta"], done.stderr
