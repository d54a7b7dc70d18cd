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
    """The values of fields that a request leaves null."""

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float


class ModelLimits(PackModel):
    """The values that the model accepts."""

    width: IntegerLimit
    height: IntegerLimit
    num_inference_steps: IntegerLimit
    guidance_scale: NumberLimit
    num_images: IntegerLimit
    negative_prompt: bool


class ComponentMemory(PackModel):
    """A loaded component: its device, the type of its weights, and their measured bytes, all and on the device."""

    component: str
    device: str
    storage: str
    placement: str
    bytes: int
    device_bytes: int


class FoundFile(PackModel):
    """A component of a model that is on this machine: its file, its folder, and the type of its weights."""

    component: str
    file: str
    folder: str
    type: str | None
    bytes: int


class MissingFile(PackModel):
    """A component without a file: the kind of file, the folder where it belongs, and its approximate size."""

    component: str
    kind: str
    folder: str
    example: str
    bytes: int | None


class ModelDownload(PackModel):
    """The download of a model from the Hugging Face Hub."""

    repo: str
    bytes: int | None
    gated: bool
    license: str


class ModelFiles(PackModel):
    """The files of a model: those found, those missing, what to download, and a one-line hint."""

    found: list[FoundFile]
    missing: list[MissingFile]
    download: ModelDownload | None
    hint: str


class ModelInfo(PackModel):
    """One model. `status`: its weights are here, are downloaded on first use, or are not available (see `reason`)."""

    name: str
    title: str
    family: str
    license: str
    commercial_use: bool
    status: Literal["ready", "downloadable", "missing"]
    reason: str | None = None
    loaded: bool
    memory: list[ComponentMemory] | None = Field(None, description="Its components, if the model is loaded.")
    source: str | None = None
    download_bytes: int | None = None
    files: ModelFiles | None = Field(None, description="Files that were found and files that are missing.")
    defaults: ModelDefaults
    limits: ModelLimits


class AdapterInfo(PackModel):
    """A LoRA or ControlNet file on this machine, or a ControlNet or preprocessor of the catalog."""

    name: str
    kind: Literal["lora", "controlnet", "preprocessor"]
    family: str | None = Field(description="The family of models it was made for; null if the file does not say.")
    bytes: int
    problem: str | None = Field(None, description="Why no model can use it, if so.")
    memory: list[ComponentMemory] | None = Field(None, description="Where its weights are, for a ControlNet in memory.")
    title: str | None = None
    license: str | None = Field(None, description="The license of a catalog entry; null for files.")
    status: Literal["ready", "downloadable", "missing"] = "ready"
    reason: str | None = Field(None, description="Why a catalog entry is missing.")
    source: str | None = Field(None, description="The repository of a catalog entry.")


class ModelInfoResponse(PackModel):
    """The models, and the machine that runs them. `current_model` is the model that ComfyUI holds now."""

    current_model: str | None
    default_model: str
    recommended_model: str | None = Field(
        None, description="The best model for this machine by size and licence. It may have to be downloaded."
    )
    device: str
    device_name: str
    cuda_available: bool
    dtype: str
    offload: str
    vram_total_bytes: int | None
    vram_free_bytes: int | None
    models: list[ModelInfo]
    adapters: list[AdapterInfo] = Field(default_factory=list, description="LoRAs, ControlNets and preprocessors.")

    @property
    def better_model(self) -> ModelInfo | None:
        """The recommended model, if requests that name no model do not get it."""
        better = self.recommended_model and self.recommended_model != self.default_model
        return self.find(self.recommended_model) if better and self.recommended_model else None

    def find(self, name: str) -> ModelInfo | None:
        """The model of that name."""
        return next((model for model in self.models if model.name == name), None)
