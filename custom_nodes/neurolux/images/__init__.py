"""Pixels, masks, framing, tiles and contact sheets. Knows nothing of models or pipelines."""
