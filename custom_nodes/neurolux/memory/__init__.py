"""The device: what is placed where, what is streamed, and what ComfyUI's memory manager knows of it."""
