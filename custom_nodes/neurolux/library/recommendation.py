"""Chooses the model for a machine: from the catalog's facts, what is on this machine, and a plan for each model.

``imagegen models --recommend`` and the model of requests that name none come from the same choice. Imports neither
torch nor ComfyUI, uses no network, and downloads nothing.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..catalog.models import Catalog, Model, RepoSource
from ..families.registry import family_of
from ..planning.planner import make_plan
from ..planning.records import Machine, Plan, Workload, gigabytes
from ..planning.report import aligned_columns, placement_text, seconds, shortages, whole_seconds
from ..weights.download.sources import hub_endpoint, is_here
from .folder_models import as_shipped, find_folder_models
from .plan_query import PlanQuery, machine_text, workload_for
from .shelf import Shelf

DEFAULT_MODEL_VARIABLE = "NEUROLUX_DEFAULT_MODEL"
PERMISSIVE = ("Apache-2.0", "MIT")
"""Licences that allow any use and limit no revenue."""
RULES = (
    "A model that is on this machine and fits comes before one that would have to be downloaded, and one that fits "
    "into memory before one whose weights would be read from the disk for each image. Then count the licence "
    "(Apache-2.0 and MIT before others), the size of the images, and the speed. A model that is gated or forbids "
    "commercial use is only named, unless it is on this machine. Without a GPU no download is recommended. The model "
    "that ships with the project comes last."
)
PURPOSES = {"fill": "completes masked images only", "edit": "edits images by an instruction only"}
LINE = 110
"""Characters of a line of ``RULES``."""


@dataclass(frozen=True)
class Candidate:
    """One model of the catalog, and how one image of its default size would be made on a machine."""

    model: Model
    machine: Machine
    workload: Workload
    plan: Plan

    @property
    def licence(self) -> str:
        """The licence, with a remark if it could not be checked."""
        return self.model.license + (" (not verified)" if "license" in self.model.unverified else "")

    @property
    def terms(self) -> str:
        """What the licence asks, as text."""
        return self.model.terms or ("commercial use allowed" if self.model.commercial_use else "no commercial use")

    @property
    def gated(self) -> str | None:
        """The repository whose licence has to be accepted with an account; None if there is none."""
        source = self.model.source
        return source.repo if isinstance(source, RepoSource) and source.gated else None

    @property
    def download_bytes(self) -> int | None:
        """Bytes to download; None for a model that ships with the project, or where they are unknown."""
        return self.model.source.download_bytes if isinstance(self.model.source, RepoSource) else None

    @property
    def single_bytes(self) -> int | None:
        """Bytes of ComfyUI's single files in 16 bits; None for models without such files."""
        if not self.model.patterns:
            return None
        return sum(2 * shape.parameters for shape in self.model.components.values())

    @property
    def seconds(self) -> float | None:
        """About what an image takes; None where the speed of the device is only assumed."""
        return None if self.machine.rates_from == "assumed" else whole_seconds(self.plan)

    @property
    def licence_rank(self) -> int:
        """0 for a licence without conditions of use, 1 for one that allows commercial use, else 2."""
        if self.model.license in PERMISSIVE:
            return 0
        return 1 if self.model.commercial_use else 2

    @property
    def work(self) -> str:
        """One image, as text."""
        size, steps = f"{self.workload.width}x{self.workload.height}", self.workload.steps
        passes = " of two passes" if self.workload.passes > 1 else ""
        return f"{size} in {steps} {'steps' if steps > 1 else 'step'}{passes}"


@dataclass(frozen=True)
class Choice:
    """The result: the best model for a machine, and what speaks against each other one."""

    best: Candidate
    default: str
    """The model for requests that name none. It is on this machine, so that nothing is downloaded unasked."""
    here: frozenset[str]
    others: tuple[tuple[Candidate, str], ...]
    """The other models, the next best ones first, each with the reason."""


def plan_model(model: Model, machine: Machine) -> Candidate:
    """A plan for ``model`` on ``machine``, from the sizes in the catalog. Takes some 50 ms."""
    workload = workload_for(model, PlanQuery())
    costs = family_of(model.family).costs
    plan = make_plan(costs, model.components, machine, workload, force_upcast_vae=model.force_upcast_vae)
    return Candidate(model, machine, workload, plan)


def with_local(shipped: Catalog, folders: Iterable[Path], shelf: Shelf | None) -> Catalog:
    """``shipped`` with the diffusers folders in ``folders`` and the single files of ``shelf``."""
    catalog = shipped.with_models(as_shipped(model, shipped) for model in find_folder_models(folders))
    if shelf is None:
        return catalog
    from .single_files import catalog_files

    return catalog_files(catalog, shelf)


def models_here(shipped: Catalog, catalog: Catalog) -> frozenset[str]:
    """The names of the shipped models whose files are all on this machine, in ``catalog`` with the local models."""
    return frozenset(name for name in shipped.models if is_here(catalog.models[name]))


def choose(candidates: Collection[Candidate], here: Collection[str], fallback: str) -> Choice:
    """The best of ``candidates``. ``here``: the names of those on this machine; ``fallback``: the model that ships."""

    def rank(one: Candidate) -> tuple[Any, ...]:
        name, pixels = one.model.name, one.workload.width * one.workload.height
        last, away = name == fallback, name not in here
        return last, away, one.plan.reads_files, one.licence_rank, -pixels, whole_seconds(one.plan)

    ordered = sorted(candidates, key=rank)
    best = next(one for one in ordered if one.model.name == fallback or not obstacles(one, here))
    others = [one for one in ordered if one is not best]
    others.sort(key=lambda one: bool(obstacles(one, here)))
    return Choice(
        best,
        best.model.name if best.model.name in here else fallback,
        frozenset(here),
        tuple((one, obstacles(one, here) or drawback(one, best, here, fallback)) for one in others),
    )


def own_choice(catalog: Catalog) -> str | None:
    """The model that the user has made the default by the environment variable; None if there is none."""
    chosen = os.environ.get(DEFAULT_MODEL_VARIABLE, "")
    return chosen if chosen in catalog.models else None


def obstacles(one: Candidate, here: Collection[str]) -> str:
    """All that keeps a model from being chosen, with what to do about it; empty if it can be chosen."""
    found = [PURPOSES[one.model.purpose]] if one.model.purpose in PURPOSES else []
    if not one.plan.fits:
        found.append(f"does not fit: {' and '.join(shortages(one.plan, one.machine, bare=True))}")
    if one.model.name not in here:
        if not one.model.commercial_use:
            found.append(one.terms)
        if one.gated:
            found.append(
                f"gated: accept its licence at {hub_endpoint()}/{one.gated} and log in (`hf auth login`, or HF_TOKEN)"
            )
        if not one.machine.own_memory and one.download_bytes is not None:
            found.append("not worth a download without a GPU, where an image takes minutes")
    return "; ".join(found)


def drawback(one: Candidate, best: Candidate, here: Collection[str], fallback: str) -> str:
    """What puts a model behind the best one: the first difference, in the order of ``RULES``."""
    if one.model.name == fallback:
        return f"ships with the project, for machines without another model; makes {one.work}"
    if best.model.name in here and one.model.name not in here:
        return "would have to be downloaded"
    if one.plan.reads_files and not best.plan.reads_files:
        return "its weights would be read from the disk for each image"
    if one.licence_rank > best.licence_rank:
        return one.terms
    if one.workload.width * one.workload.height < best.workload.width * best.workload.height:
        return f"smaller images: {one.work}"
    if one.seconds is not None and best.seconds is not None:
        return f"slower: about {seconds(one.seconds)} an image instead of {seconds(best.seconds)}"
    return f"slower: {one.work}"


def lines(choice: Choice, default: str) -> list[str]:
    """The choice as text, line by line. ``default``: what requests that name no model get now."""
    best, name = choice.best, choice.best.model.name
    rows = [
        ("licence", f"{best.licence}: {best.terms}"),
        ("size", size_text(best, name in choice.here)),
        ("memory", memory_text(best)),
    ]
    if best.seconds is not None:
        rows.append(("time", f"about {seconds(best.seconds)} for {best.work}"))
    if name not in choice.here:
        rows.append(("to get it", f"imagegen load {name}"))
    text = [f"For {machine_text(best.machine)}: {name}", *(f"  {row}" for row in aligned_columns(rows)), ""]
    until = "Nothing is downloaded until you ask for it. " if name not in choice.here else ""
    text += [f"{until}Requests that name no model get {default}.", "", f"Instead of {name}:"]
    table = [(one.model.name, size_text(one, one.model.name in choice.here), one.licence) for one, _ in choice.others]
    for row, (_, reason) in zip(aligned_columns(table), choice.others, strict=True):
        text += [f"  {row}", f"      {reason}"]
    return [*text, "", *textwrap.wrap(RULES, LINE)]


def size_text(one: Candidate, here: bool) -> str:
    """What has to be downloaded, as text."""
    source = one.model.source
    if here or not isinstance(source, RepoSource):
        return "on this machine"
    size = gigabytes(source.download_bytes) if source.download_bytes else "unknown size"
    single = one.single_bytes
    smaller = single is not None and source.download_bytes is not None and single < 0.9 * source.download_bytes
    files = f" (as single files in 16 bits {gigabytes(single)})" if smaller and single is not None else ""
    return f"{size} to download{files}{', gated' if one.gated else ''}"


def memory_text(one: Candidate) -> str:
    """How the plan uses the memory, as text."""
    plan, denoiser = one.plan, family_of(one.model.family).denoiser
    card = f"{gigabytes(plan.peak_vram)} of VRAM and " if one.machine.own_memory else ""
    where = placement_text(plan.components[denoiser])
    return f"{denoiser} in {plan.precision} ({where}); at most {card}{gigabytes(plan.peak_ram)} of RAM"


def document(choice: Choice, default: str) -> dict[str, Any]:
    """The choice as JSON."""
    return {
        "recommended": entry(choice.best, choice.here, None),
        "default": default,
        "others": [entry(one, choice.here, reason) for one, reason in choice.others],
        "machine": machine_document(choice.best.machine),
        "rules": RULES,
    }


def machine_document(machine: Machine) -> Mapping[str, Any]:
    """What the choice used of the machine, as JSON."""
    return {
        "device": machine.device,
        "card": machine.card or None,
        "vram_bytes": machine.free_vram if machine.own_memory else None,
        "ram_bytes": machine.free_ram,
    }


def entry(one: Candidate, here: Collection[str], reason: str | None) -> dict[str, Any]:
    """One model as JSON. ``reason``: what speaks against it; None for the recommended one."""
    model, plan = one.model, one.plan
    return {
        "model": model.name,
        "title": model.title,
        "license": model.license,
        "license_verified": "license" not in model.unverified,
        "commercial_use": model.commercial_use,
        "terms": model.terms or None,
        "gated": one.gated is not None,
        "here": model.name in here,
        "download_bytes": one.download_bytes,
        "single_files_bytes": one.single_bytes,
        "fits": plan.fits,
        "precision": plan.precision,
        "offload": plan.offload,
        "peak_vram": plan.peak_vram,
        "peak_ram": plan.peak_ram,
        "seconds": one.seconds,
        "reason": reason,
    }
