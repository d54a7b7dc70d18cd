"""Windows and widgets. Layout is in the .ui files; what is here connects it to the view-models."""
