"""Weights that are stored in fewer bits."""
