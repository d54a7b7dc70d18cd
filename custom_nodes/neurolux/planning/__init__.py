"""Where weights live, in which type, and what that costs. Pure arithmetic: imports neither torch nor ComfyUI."""
