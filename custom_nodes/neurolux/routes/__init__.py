"""The routes that the pack adds to ComfyUI's own server. Thin: they ask the other rooms."""
