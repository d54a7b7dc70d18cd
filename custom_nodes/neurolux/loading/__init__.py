"""Files into modules, and modules into a pipeline that is kept and shared."""
