"""A prompt into ComfyUI's conditioning."""
