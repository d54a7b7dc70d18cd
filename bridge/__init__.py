"""The bridge: requests over REST and NATS become queued ComfyUI prompts. Imports neither torch nor the node pack."""

__version__ = "0.1.0"
