"""Nodes that load a model by name, and one that warms it up."""

from __future__ import annotations

import time
import uuid
from typing import ClassVar

from comfy_api.latest import io
from comfy_execution.graph_utils import is_link
from comfy_execution.utils import get_executing_context

from ..adapters.borrow import borrow
from ..catalog.models import Model
from ..errors import InvalidParameter
from ..families.registry import families
from ..families.spec import FamilySpec
from ..library.known_models import known_models, model_stamp
from ..loading.handle import PipelineHandle
from ..loading.node_progress import NodeReporter
from ..loading.store import load_handle
from ..memory.out_of_memory import with_memory_errors
from ..planning.records import OFFLOAD_CHOICES, PRECISION_CHOICES
from .schema.inputs import pipeline_input
from .schema.outputs import pipeline_output
from .schema.sockets import CATEGORY

LOADERS = f"{CATEGORY}/loaders"
REMEDY = "Choose an offload that needs less memory (model or sequential) on the loader."


def model_input(family: str | None = None) -> io.Combo.Input:
    """The model widget: every known model, or those of one family."""
    catalog = known_models()
    names = catalog.names(family)
    default = catalog.default if catalog.default in names else names[0]
    return io.Combo.Input(
        "model",
        options=names,
        default=default,
        tooltip=(
            "A model from the catalog (found as single files in ComfyUI's folders, or else downloaded on first use), "
            "or a diffusers folder in models/diffusers/."
        ),
    )


def precision_input() -> io.Combo.Input:
    """The number format widget."""
    return io.Combo.Input(
        "precision",
        options=list(PRECISION_CHOICES),
        default="auto",
        tooltip=(
            "Number format of the weights in memory. auto: bf16 on GPUs that support it, fp32 on a CPU, fewer bits if "
            "memory is short. fp8, int8: half the size of bf16, nf4: a quarter, for the denoiser and T5. as-is: as "
            "stored in the files."
        ),
    )


def offload_input() -> io.Combo.Input:
    """The offload widget."""
    return io.Combo.Input(
        "offload",
        options=list(OFFLOAD_CHOICES),
        default="auto",
        tooltip=(
            "What stays on the GPU. none: everything. model: the component in use. stream: as many blocks as fit; "
            "the others are loaded just ahead of use. sequential: one layer at a time, slow. disk: like stream, but "
            "from files. auto: the fastest that fits."
        ),
    )


def compile_input() -> io.Boolean.Input:
    """The compile switch. Optional: graphs saved before it existed have no value for it."""
    return io.Boolean.Input(
        "compile",
        default=False,
        optional=True,
        tooltip=(
            "Runs the denoiser's blocks with torch.compile. The first image of each size waits for the compiler, "
            "seconds to minutes; after that a GPU needs up to a third less time. No effect if weights are streamed "
            "(offload stream, sequential or disk). Pixels may differ slightly by rounding."
        ),
    )


def loaded_output() -> io.Custom.Output:
    """The loader's only output."""
    return pipeline_output("The loaded model, for all later nodes.", "pipeline")


def load(
    node: type[io.ComfyNode], model: str, precision: str, offload: str, compile: bool, family: str | None = None
) -> io.NodeOutput:
    """Load by name, reporting on the running ``node``; raises ModelNotFound or InvalidParameter."""
    found = known_models().get(model)
    if family is not None and found.family != family:
        names = ", ".join(known_models().names(family))
        raise InvalidParameter("model", f"{model} is a {found.family} model; this loader takes {names}")
    if offload not in OFFLOAD_CHOICES:
        raise InvalidParameter("offload", f"unknown offload {offload!r}; use {', '.join(OFFLOAD_CHOICES)}")
    steps = steps_ahead(node, found) if found.step_distilled else 0
    handle = load_handle(found, model_stamp(found), steps, precision, offload, NodeReporter(), compile)
    return io.NodeOutput(handle)


def steps_ahead(node: type[io.ComfyNode], model: Model) -> int:
    """The steps that the graph will sample ``model`` in, as far as they can be read from it; 0 for its default.

    The checkpoint for them is loaded first. Sampling chooses by itself, so a wrong guess costs time and nothing else.
    """
    context, hidden = get_executing_context(), node.hidden
    prompt = hidden.prompt if hidden is not None else None
    if context is None or not prompt:
        return 0
    reached, waiting = {context.node_id}, [context.node_id]
    while waiting:
        source = waiting.pop()
        for name, each in prompt.items():
            inputs = each.get("inputs", {})
            if name in reached or not any(is_link(value) and value[0] == source for value in inputs.values()):
                continue
            reached.add(name)
            waiting.append(name)
            steps = inputs.get("steps")
            if is_link(steps):
                steps = prompt.get(steps[0], {}).get("inputs", {}).get("value")
            if steps in (model.limits.num_inference_steps.choices or ()):
                return int(steps)
    return 0


class ModelLoader(io.ComfyNode):
    """What the nodes that load by name have in common."""

    @classmethod
    def validate_inputs(cls, model: str) -> bool:
        """Leave the model's name to ``execute``: its error lists the known models."""
        return True

    @classmethod
    def fingerprint_inputs(cls, model: str | None = None, **_: object) -> tuple[int, ...]:
        """Run a loader again when a local model's files have changed.

        And in each job if the checkpoints share nothing, so that all nodes use the one that is sampled with.
        """
        found = known_models().models.get(model or "")
        if found is None:
            return ()
        each_job = found.step_distilled and not found.shares_components
        return (*model_stamp(found), uuid.uuid4().int) if each_job else model_stamp(found)


class LoadModel(ModelLoader):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxLoadModel",
            display_name="Load Model",
            category=LOADERS,
            description="Loads any known model: FLUX, SDXL-Lightning, SDXL, or your own diffusers folder.",
            inputs=[
                model_input(),
                precision_input(),
                offload_input(),
                compile_input(),
            ],
            outputs=[loaded_output()],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def execute(cls, model: str, precision: str, offload: str, compile: bool = False) -> io.NodeOutput:
        return load(cls, model, precision, offload, compile)


class FamilyLoader(ModelLoader):
    """Loads the models of one family. The family's record says what the node is called."""

    family: ClassVar[FamilySpec]

    @classmethod
    def define_schema(cls) -> io.Schema:
        node = cls.family.loader
        assert node is not None
        return io.Schema(
            node_id=node.node_id,
            display_name=node.title,
            category=LOADERS,
            description=node.description,
            inputs=[
                model_input(cls.family.name),
                precision_input(),
                offload_input(),
                compile_input(),
            ],
            outputs=[loaded_output()],
            hidden=[io.Hidden.prompt],
        )

    @classmethod
    def execute(cls, model: str, precision: str, offload: str, compile: bool = False) -> io.NodeOutput:
        return load(cls, model, precision, offload, compile, cls.family.name)


def family_loaders() -> list[type[io.ComfyNode]]:
    """The loader of each family that has one of its own."""
    found = [family for family in families().values() if family.loader is not None]
    return [type(f"{family.title}Loader", (FamilyLoader,), {"family": family}) for family in found]


class WarmUp(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxWarmUp",
            display_name="Warm Up",
            category=LOADERS,
            description="Moves a model's weights to their device now, so that the first image does not have to wait.",
            inputs=[pipeline_input("The model to warm up.")],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_: object) -> str:
        """Never cached: the weights may have left the device since."""
        return uuid.uuid4().hex

    @classmethod
    def execute(cls, pipeline: PipelineHandle) -> io.NodeOutput:
        started = time.perf_counter()
        loaded = borrow(pipeline, NodeReporter())
        with_memory_errors(f"placing {loaded.model.name} on {loaded.device}", REMEDY, loaded.placement.load)
        elapsed = (time.perf_counter() - started) * 1000 + loaded.take_load_ms()
        report = {
            "model": loaded.model.name,
            "load_time_ms": round(elapsed, 1),
            "device": str(loaded.device),
            "dtype": str(loaded.precision.main).removeprefix("torch."),
            "offload": loaded.placement.mode,
        }
        return io.NodeOutput(ui={"loaded": [report]})
