"""Nodes that load a model: one for all, one for each family, and one that only loads."""

from __future__ import annotations

import time
import uuid

from comfy_api.latest import io

from ..adapters.borrow import borrow
from ..errors import InvalidParameter
from ..library.known_models import known_models, model_stamp
from ..loading.handle import PipelineHandle
from ..loading.node_progress import NodeReporter
from ..loading.store import load_handle
from ..memory.out_of_memory import with_memory_errors
from ..planning.planner import OFFLOAD_CHOICES, PRECISION_CHOICES
from .inputs import pipeline_input
from .sockets import CATEGORY, PipelineType

LOADERS = f"{CATEGORY}/loaders"
REMEDY = "Choose a leaner offload (model or sequential) on the loader."


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
            "A catalog model (its single files are found in ComfyUI's folders; else it is downloaded on first use), "
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
            "How the weights lie in memory. auto: bf16 on GPUs that compute it, fp32 on a CPU, fewer bits where memory "
            "demands it. fp8, int8, nf4: half and a quarter of bf16, for the denoiser and T5. as-is: as in the files."
        ),
    )


def offload_input() -> io.Combo.Input:
    """The offload widget."""
    return io.Combo.Input(
        "offload",
        options=list(OFFLOAD_CHOICES),
        default="auto",
        tooltip=(
            "What stays on the GPU. none: everything. model: the part at work. stream: as many blocks as fit, the "
            "others come ahead of use. sequential: one layer at a time, slow. disk: as stream, from files. "
            "auto: the fastest that fits."
        ),
    )


def compile_input() -> io.Boolean.Input:
    """The compile switch. Optional: graphs that were saved before it was there have no value for it."""
    switch = io.Boolean.Input(
        "compile",
        default=False,
        optional=True,
        tooltip=(
            "torch.compile for the denoiser's blocks. The first image of each size waits for the compiler, seconds "
            "to minutes; a GPU then takes up to a third less time. Not where weights are streamed (offload stream, "
            "sequential, disk). Pixels may be rounded otherwise."
        ),
    )
    switch.extra_dict["advanced"] = True  # the argument of that name is newer than the oldest ComfyUI that we run on
    return switch


def pipeline_output() -> io.Custom.Output:
    """The pipeline socket."""
    return PipelineType.Output("pipeline", display_name="pipeline", tooltip="The loaded model, for every later stage.")


def load(
    model: str, steps: int, precision: str, offload: str, compile: bool, family: str | None = None
) -> io.NodeOutput:
    """Load by name, reporting on the node; raises ModelNotFound or InvalidParameter."""
    found = known_models().get(model)
    if family is not None and found.family != family:
        names = ", ".join(known_models().names(family))
        raise InvalidParameter("model", f"{model} is a {found.family} model; this loader takes {names}")
    if offload not in OFFLOAD_CHOICES:
        raise InvalidParameter("offload", f"unknown offload {offload!r}; use {', '.join(OFFLOAD_CHOICES)}")
    handle = load_handle(found, model_stamp(found), steps, precision, offload, NodeReporter(), compile)
    return io.NodeOutput(handle)


class ModelLoader(io.ComfyNode):
    """What the nodes that load by name have in common."""

    @classmethod
    def validate_inputs(cls, model: str) -> bool:
        """Leave the model's name to ``execute``: its error says which models there are."""
        return True

    @classmethod
    def fingerprint_inputs(cls, model: str | None = None, **_: object) -> tuple[int, ...]:
        """Run a loader again when a local model's files have changed."""
        found = known_models().models.get(model or "")
        return model_stamp(found) if found is not None else ()


class LoadModel(ModelLoader):
    """Load Model."""

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
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=100,
                    tooltip=(
                        "Chooses the checkpoint of a step-distilled model such as sdxl-lightning. 0: the model's "
                        "default. Other models ignore it."
                    ),
                ),
                compile_input(),
            ],
            outputs=[pipeline_output()],
        )

    @classmethod
    def execute(cls, model: str, precision: str, offload: str, steps: int, compile: bool = False) -> io.NodeOutput:
        return load(model, steps, precision, offload, compile)


class LoadFlux(ModelLoader):
    """Load Flux."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxLoadFlux",
            display_name="Load Flux",
            category=LOADERS,
            description="Loads a FLUX model: flux-schnell (four steps), flux-dev (guidance), or your own folder.",
            inputs=[model_input("flux"), precision_input(), offload_input(), compile_input()],
            outputs=[pipeline_output()],
        )

    @classmethod
    def execute(cls, model: str, precision: str, offload: str, compile: bool = False) -> io.NodeOutput:
        return load(model, 0, precision, offload, compile, "flux")


class LoadSDXLLightning(ModelLoader):
    """Load SDXL-Lightning."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxLoadSDXLLightning",
            display_name="Load SDXL-Lightning",
            category=LOADERS,
            description="Loads SDXL-Lightning with the checkpoint that was distilled for a number of steps.",
            inputs=[
                model_input("sdxl"),
                io.Combo.Input(
                    "steps",
                    options=["1", "2", "4", "8"],
                    default="4",
                    tooltip="The checkpoint. Sample in just as many steps. 1 is experimental; 4 is a good middle.",
                ),
                precision_input(),
                offload_input(),
                compile_input(),
            ],
            outputs=[pipeline_output()],
        )

    @classmethod
    def execute(cls, model: str, steps: str, precision: str, offload: str, compile: bool = False) -> io.NodeOutput:
        if not str(steps).isdecimal():
            raise InvalidParameter("num_inference_steps", f"steps {steps!r} is not a number; use 1, 2, 4 or 8")
        return load(model, int(steps), precision, offload, compile, "sdxl")


class WarmUp(io.ComfyNode):
    """Load Only."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NeuroLuxWarmUp",
            display_name="Load Only",
            category=LOADERS,
            description="Puts a model's weights onto their device now, so that the first image does not wait.",
            inputs=[pipeline_input("The model to have ready.")],
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
