"""Which ControlNet ``auto`` means: a file of the user's first, else the catalog's, for this model and this image.

The width of the layers that meet decides what fits. No weights are opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ...catalog.auxiliary import CatalogControlNet
from ...errors import WeightsMissing
from ...families.registry import family_of
from ...families.spec import Controls
from ...weights.stamps import FileStamp, read_config, read_shapes
from ..detect import detect

UNION_WORD = "union"


def model_width(family: str, denoiser: Any) -> int:
    """What a ControlNet must have, to meet ``denoiser``'s layers."""
    return controls_of(family).model_width(denoiser)


def file_width(file: FileStamp, family: str) -> int | None:
    """What the ControlNet in ``file`` has; None where its names do not tell. Raises WeightsMissing if damaged."""
    if file.path.is_dir():
        config = read_config(file.name, file.path)
        return controls_of(family).folder_width(config)
    return controls_of(family).file_width(read_shapes(file.path))


def controls_of(family: str) -> Controls:
    """The family's ControlNets; a caller has seen that there are some."""
    controls = family_of(family).controls
    assert controls is not None
    return controls


def choose_file(files: Iterable[FileStamp], family: str, width: int, kind: str) -> FileStamp | None:
    """The first of ``files`` that fits and whose name says ``kind``; then the first whose name says union."""
    files = list(files)
    named = {word: [file for file in files if word in file.name.lower()] for word in (kind, UNION_WORD)}
    for file in [*named[kind], *named[UNION_WORD]]:
        try:
            found = detect("controlnet", file)
            fits = found.problem is None and found.family == family and file_width(file, family) in (width, None)
        except (WeightsMissing, ValueError, LookupError, TypeError, ArithmeticError):
            continue  # damaged; chosen by name it says so
        if fits:
            return file
    return None


def choose_catalog(
    entries: Sequence[CatalogControlNet], family: str, width: int, kind: str
) -> CatalogControlNet | None:
    """The catalog's first ControlNet that fits."""
    return next((one for one in entries if (one.family, one.width) == (family, width) and kind in one.kinds), None)
