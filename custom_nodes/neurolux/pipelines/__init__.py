"""Diffusers work, free of node classes: find the files, load, place in memory, encode, sample, decode, preview.

The heavy imports (diffusers, transformers) happen when a model is loaded, not when ComfyUI starts.
"""
