"""Pixels, masks, framing, tiles and contact sheets. Independent of models and pipelines."""
