"""What this machine has: diffusers folders, single files, adapters, and what of a model is missing."""
