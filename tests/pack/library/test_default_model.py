"""The model of requests that name none."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from neurolux.catalog.reading import read_catalog
from neurolux.weights import sources


@pytest.fixture
def known_models(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, with what it asks ComfyUI for: the device."""
    comfy, management = ModuleType("comfy"), ModuleType("comfy.model_management")
    management.get_torch_device = lambda: SimpleNamespace(type="cuda")  # pyright: ignore[reportAttributeAccessIssue]
    comfy.model_management = management  # pyright: ignore[reportAttributeAccessIssue]
    for name, module in (
        ("comfy", comfy),
        ("comfy.model_management", management),
        ("folder_paths", ModuleType("folder_paths")),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "neurolux.library.known_models", raising=False)
    yield importlib.import_module("neurolux.library.known_models")
    sys.modules.pop("neurolux.library.known_models", None)


@pytest.mark.parametrize(
    ("token", "here", "expected"),
    [(None, False, "sdxl-lightning"), ("hf_x", False, "flux-schnell"), (None, True, "flux-schnell")],
)
def test_with_a_gpu_it_is_one_that_this_user_can_fetch(
    known_models: Any, monkeypatch: pytest.MonkeyPatch, token: str | None, here: bool, expected: str
) -> None:
    monkeypatch.delenv("NEUROLUX_DEFAULT_MODEL", raising=False)
    monkeypatch.setattr(sources, "token", lambda: token)
    monkeypatch.setattr(known_models, "is_here", lambda _: here)
    catalog = read_catalog()
    assert known_models.default_model(catalog) == expected
    assert not getattr(catalog.models[catalog.ungated].source, "gated", False)
