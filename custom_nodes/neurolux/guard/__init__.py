"""What ComfyUI's server answers to whom: middleware that the pack puts in front of every route of that ComfyUI."""
