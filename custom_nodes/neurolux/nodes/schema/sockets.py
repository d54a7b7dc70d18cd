"""The types that links between our nodes carry."""

from __future__ import annotations

from comfy_api.latest import io

PipelineType = io.Custom("NEUROLUX_PIPELINE")
"""A PipelineHandle."""
FileType = io.Custom("NEUROLUX_FILE")
"""The path of a file on this machine."""

CATEGORY = "NeuroLux"
LARGEST_INTEGER = 2**53 - 1
"""The editor's numbers are JavaScript's: beyond this they lose their last digits."""
LARGEST_SEED = 2**64 - 1


class AnyComboName(str):
    """The name "COMBO", which fits every combo input and nothing else.

    A V1 node's combo has the list of its options as its type (``KSampler``'s sampler_name); a V3 node's is "COMBO".
    ComfyUI compares with ``!=`` (comfy_execution/validation.py), so this is where a list can be made to match.
    """

    def __ne__(self, other: object) -> bool:
        return not (isinstance(other, (list, tuple)) or other in ("COMBO", "*"))

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other) is True

    __hash__ = str.__hash__


class AnyComboOutput(io.Combo.Output):
    """An output that can be linked to any combo widget."""

    @property
    def io_type(self) -> AnyComboName:  # pyright: ignore[reportIncompatibleVariableOverride]
        return AnyComboName("COMBO")
