"""LoRA files: their dialects, and the layers that they change."""
