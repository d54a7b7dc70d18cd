"""One job on a worker: its states, its run on ComfyUI, and its results."""
