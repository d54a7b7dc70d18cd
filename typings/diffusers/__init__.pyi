"""diffusers exports its names lazily and annotates many arguments wrongly: what it gives is not checked."""

from typing import Any

def __getattr__(name: str) -> Any: ...
