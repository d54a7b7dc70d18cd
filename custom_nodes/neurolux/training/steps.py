"""The steps of a training: a LoRA beside the denoiser's own weights, AdamW, and a checkpoint to go on from.

The LoRA is in the denoiser only while this runs, and its trained values are taken from the device before it leaves:
ComfyUI's memory manager (placement.py) brings a part home by pointing at its masters, which know nothing of training.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..adapters.lora.applied import clear_loras, quiet, take_out
from ..errors import InvalidParameter
from ..loading.loaded import LoadedPipeline
from ..memory.out_of_memory import with_memory_errors
from ..memory.streaming import CPU
from .files import Checkpoint, save_checkpoint
from .loss import Example, Objective
from .memory import ADAPTER_BYTES, FEWER, activation_bytes, refuse_streamed, should_checkpoint
from .settings import LoraSettings

ADAPTER = "in_training"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of each weight."""
WEIGHT_DECAY = 1e-4
LARGEST_GRADIENT = 1.0
"""The norm that gradients are cut to. Both as in diffusers' training scripts."""
CHECKPOINT_SECONDS = 60.0
_log = logging.getLogger(__name__)


@dataclass
class Training:
    """One training: what it is given, and how far it is."""

    loaded: LoadedPipeline
    settings: LoraSettings
    objective: Objective
    examples: Sequence[Example]
    checkpoint_path: Path
    begun_with: Mapping[str, Any]
    after_step: Callable[[Sequence[float]], None]
    """Called with the losses after each step; may raise, and then the steps that are done are kept."""
    checkpoint: Checkpoint | None = None
    """Where to go on from."""
    checkpointing: bool = field(init=False)
    """Whether activations are computed a second time instead of kept."""

    def __post_init__(self) -> None:
        settings = self.settings
        self.checkpointing = should_checkpoint(self.loaded, settings.side, settings.batch, self._tokens)

    @property
    def _tokens(self) -> int:
        return max(example.tokens for example in self.examples)

    def run(self) -> Checkpoint:
        """Train to the last step; what was learned. Raises OutOfMemory, or what ``after_step`` raises."""
        what = f"training on {self.settings.batch} x {self.settings.side}x{self.settings.side}"
        clear_loras(self.loaded)
        with torch.inference_mode(False), self.loaded.placement.borrowed():
            return with_memory_errors(what, f"{FEWER}.", self._attempt, self._keep_less)

    def _keep_less(self) -> str | None:
        if self.checkpointing:
            return None
        self.checkpointing = True
        return "activations computed a second time instead of kept"

    def _attempt(self) -> Checkpoint:
        loaded, side = self.loaded, self.settings.side
        placement, name = loaded.placement, loaded.denoiser_name
        others = [part for part, value in loaded.pipe.components.items() if isinstance(value, torch.nn.Module)]
        placement.unload([part for part in others if part != name])
        with self._adapter() as weights:
            needed = activation_bytes(loaded, side, self.settings.batch, self._tokens, checkpointed=self.checkpointing)
            needed += ADAPTER_BYTES * sum(weight.numel() for weight in weights.values())
            with placement.stage([name], needed), self._checkpointed(), torch.enable_grad(), attention(loaded.device):
                if not placement.in_place(name):
                    refuse_streamed(loaded)
                return self._steps(weights)

    @contextmanager
    def _adapter(self) -> Iterator[dict[str, torch.nn.Parameter]]:
        """A LoRA in the denoiser meanwhile, fresh or as in the checkpoint: its weights by name, in fp32."""
        from peft import LoraConfig

        denoiser: Any = self.loaded.denoiser
        name, rank = self.loaded.denoiser_name, self.settings.rank
        config = LoraConfig(
            r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(self.objective.targets)
        )  # alpha as the rank: a file without it is read so by everyone
        try:
            with self.loaded.placement.changing([name]), quiet(), torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(self.settings.seed % 2**63)
                denoiser.add_adapter(config, ADAPTER)
                weights = {}
                for key, weight in denoiser.named_parameters():
                    trained = f".{ADAPTER}." in key
                    weight.requires_grad_(trained)
                    if trained:
                        start = self.checkpoint.weights[key] if self.checkpoint else weight.data
                        weight.data = start.to(torch.float32, copy=True)
                        weights[key] = weight
            yield weights
        finally:
            with self.loaded.placement.changing([name]):
                take_out(self.loaded.pipe, ADAPTER, [name])

    @contextmanager
    def _checkpointed(self) -> Iterator[None]:
        denoiser: Any = self.loaded.denoiser
        if not self.checkpointing:
            yield
            return
        denoiser.enable_gradient_checkpointing()
        try:
            yield
        finally:
            denoiser.disable_gradient_checkpointing()

    def _steps(self, weights: Mapping[str, torch.nn.Parameter]) -> Checkpoint:
        settings, parameters = self.settings, list(weights.values())
        optimizer = torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=WEIGHT_DECAY)
        scaler = torch.amp.GradScaler(self.loaded.device.type, enabled=self.objective.dtype is torch.float16)
        losses: list[float] = []
        if self.checkpoint is not None:
            restore(self.checkpoint, weights, optimizer, scaler)
            losses = list(self.checkpoint.losses)
        saved = time.monotonic()
        try:
            for step in range(len(losses), settings.steps):
                generator = torch.Generator().manual_seed(settings.noise_seed(step))
                batch = [self.examples[place] for place in settings.picks(step, len(self.examples))]
                loss = self.objective.loss(batch, generator)
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
                for group in optimizer.param_groups:
                    group["lr"] = settings.rate(step)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
                losses.append(checked_loss(loss.item(), step, settings))
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    self._keep(captured(losses, weights, optimizer, scaler))
                    saved = time.monotonic()
                self.after_step(losses)
        except InvalidParameter:
            raise
        except BaseException:
            self._keep_what_is_done(losses, weights, optimizer, scaler)
            raise
        return self._keep(captured(losses, weights, optimizer, scaler))

    def _keep(self, checkpoint: Checkpoint) -> Checkpoint:
        self.checkpoint = checkpoint
        save_checkpoint(self.checkpoint_path, checkpoint, self.begun_with)
        return checkpoint

    def _keep_what_is_done(self, losses: list[float], *state: Any) -> None:
        """On the way out with an error or an interrupt, which must not be hidden by one of the disk."""
        done = self.checkpoint.step if self.checkpoint else 0
        if len(losses) == done:
            return
        try:
            self._keep(captured(losses, *state))
            _log.info("NeuroLux: training %s stopped after step %d; resume goes on", self.settings.name, len(losses))
        except (OSError, RuntimeError) as error:
            _log.error("NeuroLux: the checkpoint of %s could not be kept: %s", self.settings.name, error)


def attention(device: torch.device) -> AbstractContextManager[object]:
    """On a CPU the fused attention's backward pass takes twice the time of plain matrix products."""
    return sdpa_kernel([SDPBackend.MATH]) if device == CPU else nullcontext()


def checked_loss(loss: float, step: int, settings: LoraSettings) -> float:
    """``loss``, if it is a number. Raises InvalidParameter."""
    if math.isfinite(loss):
        return loss
    raise InvalidParameter(
        "learning_rate",
        f"the loss of step {step + 1} is {loss}: the training diverged at learning_rate {settings.learning_rate:g}; "
        f"use a smaller one, such as {settings.learning_rate / 5:g}",
    )


def captured(
    losses: Sequence[float],
    weights: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> Checkpoint:
    """The training as it is now, in RAM."""
    kept = {name: weight.detach().to(CPU, copy=True) for name, weight in weights.items()}
    moments = {
        f"{moment}/{name}": optimizer.state[weight][moment].detach().to(CPU, copy=True)
        for name, weight in weights.items()
        for moment in MOMENTS
        if weight in optimizer.state
    }
    return Checkpoint(len(losses), kept, moments, list(losses), scaler.state_dict())


def restore(
    checkpoint: Checkpoint,
    weights: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    """The optimizer as it was; the weights are already."""
    for name, weight in weights.items():
        found = {moment: checkpoint.optimizer.get(f"{moment}/{name}") for moment in MOMENTS}
        if found["step"] is not None:
            optimizer.state[weight] = {
                moment: value.clone() if moment == "step" else value.to(weight.device, copy=True)
                for moment, value in found.items()
                if value is not None
            }
    if checkpoint.scaler:
        scaler.load_state_dict(dict(checkpoint.scaler))
