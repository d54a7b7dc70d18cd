"""A set of images into a LoRA file."""
