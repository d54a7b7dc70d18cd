"""What the node pack reports: its models, their limits and files, and the machine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bridge.contract.wire import PackModel


class IntegerLimit(PackModel):
    """Inclusive bounds; `choices`, where given, are the only values allowed."""

    min: int
    max: int
    multiple_of: int = 1
    choices: list[int] | None = None


class NumberLimit(PackModel):
    """Inclusive bounds."""

    min: float
    max: float


class ModelDefaults(PackModel):
    """What a null field of a request becomes."""

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float


class ModelLimits(PackModel):
    """What the model can do."""

    width: IntegerLimit
    height: IntegerLimit
    num_inference_steps: IntegerLimit
    guidance_scale: NumberLimit
    num_images: IntegerLimit
    negative_prompt: bool


class ComponentMemory(PackModel):
    """Where a loaded component's weights are: its device, their type, bytes in all and on the device, as measured."""

    component: str
    device: str
    storage: str
    placement: str
    bytes: int
    device_bytes: int


class FoundFile(PackModel):
    """A component of a model that is on the machine: its file, the folder it is in, how its weights are stored."""

    component: str
    file: str
    folder: str
    type: str | None
    bytes: int


class MissingFile(PackModel):
    """A component that no file was found for: what kind of file it is, where it belongs, about how large it is."""

    component: str
    kind: str
    folder: str
    example: str
    bytes: int | None


class ModelDownload(PackModel):
    """What fetching a model from the Hugging Face Hub takes."""

    repo: str
    bytes: int | None
    gated: bool
    license: str


class ModelFiles(PackModel):
    """What of a model is on the machine, what is missing, what it would cost to get, and what to do in one line."""

    found: list[FoundFile]
    missing: list[MissingFile]
    download: ModelDownload | None
    hint: str


class ModelInfo(PackModel):
    """One model. `status`: its weights are here, can be fetched on first use, or cannot be had (`reason` says why)."""

    name: str
    title: str
    family: str
    license: str
    commercial_use: bool
    status: Literal["ready", "downloadable", "missing"]
    reason: str | None = None
    loaded: bool
    memory: list[ComponentMemory] | None = Field(None, description="The components, where the model has been loaded.")
    source: str | None = None
    download_bytes: int | None = None
    files: ModelFiles | None = Field(None, description="What was found, what is missing, what it would cost to get.")
    defaults: ModelDefaults
    limits: ModelLimits


class AdapterInfo(PackModel):
    """A LoRA or a ControlNet file on the machine, or a ControlNet or a preprocessor of the catalog."""

    name: str
    kind: Literal["lora", "controlnet", "preprocessor"]
    family: str | None = Field(description="Of the models that it was made for; null where the file does not tell.")
    bytes: int
    problem: str | None = Field(None, description="Why it cannot be used with any model, where that is so.")
    memory: list[ComponentMemory] | None = Field(None, description="Where its weights are: ControlNets in memory.")
    title: str | None = None
    license: str | None = Field(None, description="Of one of the catalog; that of a file is not known.")
    status: Literal["ready", "downloadable", "missing"] = "ready"
    reason: str | None = Field(None, description="Why one of the catalog is missing.")
    source: str | None = Field(None, description="The repository that one of the catalog is downloaded from.")


class ModelInfoResponse(PackModel):
    """The models, and the machine that runs them. `current_model` is what ComfyUI really holds now."""

    current_model: str | None
    default_model: str
    device: str
    device_name: str
    cuda_available: bool
    dtype: str
    offload: str
    vram_total_bytes: int | None
    vram_free_bytes: int | None
    models: list[ModelInfo]
    adapters: list[AdapterInfo] = Field(default_factory=list, description="LoRAs, ControlNets and preprocessors.")

    def find(self, name: str) -> ModelInfo | None:
        """The model of that name."""
        return next((model for model in self.models if model.name == name), None)
