"""Finds the files of models, and downloads them."""
