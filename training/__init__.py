"""Trains the starter model: a very small FLUX pipeline, from openly licensed emoji and procedural shapes.

Each module with a ``main`` is one command, ``python -m training.<module>``. Nothing here is imported by the
service; prepared data and checkpoints live in a work folder (``training.paths``), never in the repository.
"""
