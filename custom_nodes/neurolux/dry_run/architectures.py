"""The models that a dry run knows: those whose family describes them at full size."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from ..families.registry import families
from ..families.spec import Architecture


@cache
def known_architectures() -> Mapping[str, Architecture]:
    """By the catalog's names, in the order of the families."""
    return {name: parts for family in families().values() for name, parts in family.architectures().items()}
