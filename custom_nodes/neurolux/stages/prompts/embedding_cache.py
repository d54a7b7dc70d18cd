"""Encoded prompts, so that a text encoder runs once for a text: not for another seed, nor when a text comes again.

They outlive the encoders' stay on the device, the pipeline's in memory and ComfyUI's own cache of node outputs, which
forgets what is not in the graph at hand.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

import torch

from .conditioning import Conditioning, Encoded

LARGEST_BYTES = 256_000_000
"""About 30 of FLUX.1-dev's prompts in 32 bit, hundreds of SDXL's."""


class EmbeddingCache:
    """Conditionings by what they were made from; the least recently used go when the bytes are too many."""

    def __init__(self, largest: int = LARGEST_BYTES) -> None:
        self.largest = largest
        self.bytes = 0
        self._kept: OrderedDict[Hashable, Conditioning] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable) -> Conditioning | None:
        """What was kept under ``key``, in lists of its own (its tensors are shared)."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            return [[embeds, dict(extra)] for embeds, extra in found]

    def put(self, key: Hashable, conditioning: Conditioning) -> None:
        """Keep ``conditioning``, unless it alone is too large."""
        size = conditioning_bytes(conditioning)
        if size > self.largest:
            return
        with self._lock:
            if key in self._kept:
                self.bytes -= conditioning_bytes(self._kept.pop(key))
            self._kept[key] = [[embeds, dict(extra)] for embeds, extra in conditioning]
            self.bytes += size
            while self.bytes > self.largest:
                _, oldest = self._kept.popitem(last=False)
                self.bytes -= conditioning_bytes(oldest)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._kept.clear()
            self.bytes = 0


def conditioning_bytes(conditioning: Conditioning) -> int:
    """Bytes of its tensors."""
    found = 0
    for embeds, extra in conditioning:
        others = [
            value
            for held in extra.values()
            for value in (held.others.values() if isinstance(held, Encoded) else [held])
        ]
        found += sum(value.nbytes for value in (embeds, *others) if isinstance(value, torch.Tensor))
    return found


embedding_cache = EmbeddingCache()
"""This process's encoded prompts."""
