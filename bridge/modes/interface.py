"""What a published graph takes and gives, frozen when it was published: `api/<name>.interface.json`.

An author chooses inputs in ComfyUI's App Mode by widget. Which name, type and limits such a widget has is known to the
editor and to ComfyUI, which a gateway has not; so the node pack writes it down (`neurolux.publishing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from bridge.contract import MAX_SEED
from bridge.modes.graphs import Graph
from bridge.modes.parameters import RESERVED, Parameter, ParameterKind, known_kinds


@dataclass(frozen=True)
class Interface:
    """Parameters that no boundary node describes, and the result nodes with their names; empty: found in the graph."""

    parameters: tuple[Parameter, ...] = ()
    results: Mapping[str, str] = field(default_factory=dict)


class _Parameter(BaseModel):
    model_config = ConfigDict(extra="ignore")  # A newer pack may say more.

    name: str
    kind: ParameterKind
    default: JsonValue = ""
    targets: Annotated[list[tuple[str, str]], Field(min_length=1)]
    places: list[tuple[str, str, int]] = Field(default_factory=list)
    description: str = ""
    required: bool = False
    minimum: int | float | None = None
    maximum: int | float | None = None
    step: int | float | None = None
    max_length: int | None = None
    choices: list[str] = Field(default_factory=list)
    accept: list[str] = Field(default_factory=list)


class _Result(BaseModel):
    model_config = ConfigDict(extra="ignore")

    node: str
    name: str


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore")

    parameters: list[_Parameter] = Field(default_factory=list)
    results: list[_Result] = Field(default_factory=list)


def interface_file(path: Path) -> Path:
    """Where the interface of a mode is, by the file of its workflow."""
    return path.parent / "api" / f"{path.stem}.interface.json"


def read_interface(content: Any, graph: Graph) -> Interface:
    """Read the content of the file; None for a mode without one. Raises ValueError if the graph does not fit it."""
    if content is None:
        return Interface()
    file = _File.model_validate(content)
    parameters = [_parameter(one, graph) for one in file.parameters]
    names = [one.name for one in parameters]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two inputs of the app are named {twice[0]!r}")
    results = {one.node: one.name for one in file.results}
    if gone := [node for node in results if node not in graph]:
        raise ValueError(f"the result node {gone[0]} is not in the graph: publish it again")
    return Interface(tuple(parameters), results)


def _parameter(one: _Parameter, graph: Graph) -> Parameter:
    if not one.name.isidentifier() or one.name in RESERVED:
        raise ValueError(f"an input of the app is named {one.name!r}, which no field of a request can be")
    for node_id, key in one.targets:
        if key not in graph.get(node_id, {}).get("inputs", {}):
            raise ValueError(f"{one.name} sets {key!r} of node {node_id}, which the graph has not: publish it again")
    seed = one.kind is ParameterKind.SEED
    return Parameter(
        name=one.name,
        kind=one.kind,
        default=one.default,
        targets=tuple(one.targets),
        places=tuple(one.places),
        description=one.description,
        required=one.required,
        minimum=0 if seed else one.minimum,
        maximum=MAX_SEED if seed else one.maximum,
        step=one.step,
        choices=tuple(one.choices),
        max_length=one.max_length,
        accept=known_kinds(one.name, one.accept),
    )
