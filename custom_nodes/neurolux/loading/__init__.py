"""Loads files into modules and assembles modules into a pipeline, which is kept and shared."""
