"""Tells by the names of its tensors what a weight file is."""
