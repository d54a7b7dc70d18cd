"""Trains the transformer and both text encoders together; resumes where it stopped.

Rectified flow on cached latents. The learning rate is flat and falls over the last quarter (``--fall``) of
``--minutes``; the weights from before the fall are kept (``transformer_flat.pt``), so training can go on from there
with more minutes. An interrupt or a SIGTERM ends the step in hand, saves, and exits.
Several processes share one training under ``torchrun --nproc-per-node 2 -m training.train_transformer``: on a busy
CPU two processes of one thread each wait for each other once a step, two threads at every matrix product; on CUDA
each process takes one GPU.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import signal
import threading
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from training import checkpoint
from training.flow import MiddleReader, Sizes, Starter, build_optimizers, draw_batch, flow_loss, load_bank, token_grid
from training.models import write_edges
from training.paths import work_dir
from training.scenes import SIDE, TOKEN
from training.word_codes import initial_codes

CHECKPOINT = "transformer.pt"
FLAT = "transformer_flat.pt"
LOG = "transformer.jsonl"
_SAVE_SECONDS = 120
_MIDDLE = 0.4  # weight of the loss that asks each token where it is
_LONG_EVERY = 150  # steps between small batches with as many text tokens as FluxPipeline sends by default


def rate_share(progress: float, step: int, fall: float) -> float:
    """Warm-up over 60 steps, flat, then a straight fall over the last share ``fall``."""
    return min((step + 1) / 60, 1.0) * min(1.0, max(0.02, (1 - progress) / fall))


@torch.no_grad()
def average_into(average: Starter, model: Starter, step: int) -> None:
    """Exponential moving average of the weights, quick at first."""
    keep = min(0.998, (step + 1) / (step + 10))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)


@torch.no_grad()
def share_gradients(trained: nn.Module, processes: int) -> None:
    """Average the gradients of all processes, as one flat tensor."""
    gradients = [weight.grad for weight in trained.parameters() if weight.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= processes
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _share_progress(progress: float, device: str) -> float:
    """Every process follows the first one's clock, so that all stop after the same step."""
    shared = torch.tensor([progress], dtype=torch.float64, device=device)
    dist.broadcast(shared, 0)
    return shared.item()


def _state(
    model: Starter,
    average: Starter,
    reader: MiddleReader,
    optimizers: list[torch.optim.Optimizer],
    step: int,
    seconds: float,
) -> dict[str, Any]:
    return {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "reader": reader.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
        "seconds": seconds,
    }


def main() -> None:
    """Train until ``--minutes`` of training in all have passed, or until it is asked to stop; then save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="in all, those already spent included")
    parser.add_argument("--batch", type=int, help="images a step in each process; 64 on a CPU, 512 elsewhere")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="AdamW's learning rate; Muon's is twice that")
    parser.add_argument("--fall", type=float, default=0.25, help="share of the minutes in which the rate falls")
    parser.add_argument(
        "--mixture", default="composed", help="banks of scenes: composed, placed, or both: composed+placed"
    )
    parser.add_argument("--sized", type=float, default=0.5, help="share of batches that are of a random size")
    parser.add_argument("--from-flat", action="store_true", help="go on from the weights before the last fall")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    kind = torch.device(options.device).type
    batch = options.batch or (64 if kind == "cpu" else 512)

    processes, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if processes > 1:
        if kind == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    torch.manual_seed(options.seed)
    model = Starter()
    path = work_dir() / CHECKPOINT
    if options.from_flat and rank == 0:
        shutil.copyfile(work_dir() / FLAT, path)
    if processes > 1:
        dist.barrier()
    state = checkpoint.load(path)
    if state is None:
        model.set_word_codes(initial_codes(options.seed))
    average = copy.deepcopy(model).requires_grad_(False).to(options.device)
    model.to(options.device).train()
    reader = MiddleReader(model.transformer).to(options.device)
    trained = nn.ModuleList([model, reader])
    optimizers = [*build_optimizers(model, options.rate), torch.optim.AdamW(reader.parameters(), lr=options.rate)]
    full_rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    step, spent = 0, 0.0
    if state is not None:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        reader.load_state_dict(state["reader"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, spent = state["step"], state["seconds"]
    torch.manual_seed(options.seed + 1000 * step + rank)  # the noise; weights above are the same in every process

    bank = load_bank(options.mixture)
    sizes = Sizes(options.mixture)
    begun, saved_at, recent, falling = time.time() - spent, time.time(), [], False
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    bar = tqdm(initial=step, desc="transformer", mininterval=5, disable=rank > 0)
    while True:
        seconds = time.time() - begun
        progress = 1.0 if stop.is_set() else seconds / (options.minutes * 60)
        progress = _share_progress(progress, options.device) if processes > 1 else progress
        if progress >= 1:
            break
        rng = np.random.default_rng((options.seed, step, rank))
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, full in zip(groups, full_rates, strict=True):
            group["lr"] = full * rate_share(progress, step, options.fall)
        if step % _LONG_EVERY == _LONG_EVERY - 1:
            latents, text = draw_batch(bank, max(4, batch // 8), rng, length=512)
        elif rng.random() < options.sized:
            # About as many image tokens as any other batch.
            latents, text = sizes.draw_batch(batch * (SIDE // TOKEN) ** 2, rng)
        else:
            latents, text = draw_batch(bank, batch, rng)
        with torch.autocast(kind, torch.bfloat16):
            loss = flow_loss(model, latents.to(options.device), text.to(options.device))
            middle = reader.loss(token_grid(latents))
        (loss + _MIDDLE * middle).backward()
        if processes > 1:
            share_gradients(trained, processes)
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        write_edges(model.transformer)
        average_into(average, model, step)
        step += 1
        bar.update()
        recent.append((loss.item(), middle.item()))
        if rank == 0 and len(recent) == 25:
            figures = dict(zip(("loss", "middle"), np.mean(recent, axis=0).round(5).tolist(), strict=True))
            bar.set_postfix(**figures, done=f"{progress:.0%}")
            with (work_dir() / LOG).open("a", encoding="utf-8") as log:
                log.write(json.dumps({"step": step, "seconds": round(seconds), **figures}) + "\n")
            recent.clear()
        if rank == 0 and not falling and progress > 1 - options.fall:
            falling = True
            checkpoint.save(work_dir() / FLAT, _state(model, average, reader, optimizers, step, seconds))
        if rank == 0 and time.time() - saved_at > _SAVE_SECONDS:
            checkpoint.save(path, _state(model, average, reader, optimizers, step, seconds))
            saved_at = time.time()
    if rank == 0 and not falling and not stop.is_set():  # Its last step was too long to begin in the fall.
        checkpoint.save(work_dir() / FLAT, _state(model, average, reader, optimizers, step, time.time() - begun))
    if rank == 0:
        checkpoint.save(path, _state(model, average, reader, optimizers, step, time.time() - begun))
    if processes > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
