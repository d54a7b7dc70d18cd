"""Windows and widgets. The .ui files hold the layout; the modules connect it to the view-models."""
