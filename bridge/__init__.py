"""The bridge: REST and NATS requests become queued ComfyUI prompts. Imports no torch and nothing of the node pack."""

__version__ = "0.1.0"
