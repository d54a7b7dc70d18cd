"""Takes a job, runs it on its one ComfyUI, and reports."""
