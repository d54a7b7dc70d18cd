"""Memory plans: where weights live, in which type, and at what cost. Pure arithmetic, without torch or ComfyUI."""
