"""What training takes of memory, and whether a pipeline can be trained as it is placed.

The activations that stay for the backward pass were counted by running the real architectures at full width, with a
LoRA on their attention projections, on torch's meta device (fused attention, bf16).
"""

from __future__ import annotations

from typing import Any

from ..errors import InvalidParameter
from ..loading.loaded import LoadedPipeline
from ..memory.machine import this_machine
from ..planning.costs import COMPUTE_BYTES, MARGIN
from .settings import formula_of

CHECKPOINTED_SHARE = 0.07
"""Of these: what is kept if each block's inside is computed again in the backward pass, and one block's inside."""
ADAPTER_BYTES = 16
"""A trained weight, its gradient and AdamW's two means, in fp32."""
FEWER = "Train with a smaller resolution or batch, or load with precision nf4 or int8"


def activation_bytes(loaded: LoadedPipeline, side: int, batch: int, tokens: int, *, checkpointed: bool) -> int:
    """Memory of the activations of one step."""
    config: Any = loaded.denoiser.config
    values = formula_of(loaded.model).kept_values(config, side, tokens)
    share = CHECKPOINTED_SHARE if checkpointed else 1.0
    return round(
        values * batch * share * COMPUTE_BYTES[loaded.placement.planned(loaded.denoiser_name).compute] * MARGIN
    )


def should_checkpoint(loaded: LoadedPipeline, side: int, batch: int, tokens: int) -> bool:
    """Whether activations are computed a second time instead of kept.

    Always with stored weights (int8, nf4): each layer would keep the whole weight that it made for the forward pass.
    """
    planned = loaded.placement.planned(loaded.denoiser_name)
    if planned.storage != planned.compute:
        return True
    machine = this_machine(loaded.device)
    free = machine.free_vram if machine.own_memory else machine.free_ram
    weights = planned.bytes if machine.own_memory else 0  # on a CPU they are in the RAM that is not free already
    return weights + activation_bytes(loaded, side, batch, tokens, checkpointed=False) > free


def check_placement(loaded: LoadedPipeline) -> None:
    """Raise InvalidParameter where the denoiser's weights come and go: the backward pass needs them once more."""
    planned = loaded.placement.planned(loaded.denoiser_name)
    streamed = planned.placement in ("stream", "disk") and planned.resident_blocks < planned.blocks
    if planned.placement == "sequential" or streamed:
        refuse_streamed(loaded)


def refuse_streamed(loaded: LoadedPipeline) -> None:
    """Raise InvalidParameter, with the remedy."""
    raise InvalidParameter(
        "offload",
        f"{loaded.model.name} is placed by offload {loaded.placement.mode}, where the weights of its "
        f"{loaded.denoiser_name} come and go block by block; training needs them all in place. Choose offload none or "
        "model on the loader, with precision nf4 or int8 if it does not fit",
    )
