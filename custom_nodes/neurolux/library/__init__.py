"""The models and adapters on this machine: diffusers folders, single files, adapter files, and what a model lacks."""
