"""ComfyUI and the node pack in this process: what a benchmark of pipelines, without server and bridge, begins with."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

REPO = Path(__file__).parents[1]
ENVIRONMENT = {
    # torch's own allocator keeps to ``set_per_process_memory_fraction``; CUDA's asynchronous one does not
    "PYTORCH_CUDA_ALLOC_CONF": "backend:native",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads sleep instead of spin on a busy machine
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
}


def settle_environment() -> None:
    """Set what the libraries read when they are imported: call it before torch is."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def start_comfyui(*, cpu: bool) -> None:
    """Make ComfyUI's modules and the pack importable, for this device.

    ComfyUI's folder goes to the end of the path, because it has modules called ``tests``, ``utils`` and ``server``.
    """
    from bridge.service.installer import find_installation
    from bridge.settings import Settings

    sys.path.insert(0, str(REPO / "custom_nodes"))
    sys.path.append(str(find_installation(Settings.from_environment()).root))
    logging.getLogger().setLevel(logging.ERROR)
    import comfy.cli_args

    comfy.cli_args.args.cpu = cpu
