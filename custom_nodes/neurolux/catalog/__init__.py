"""The models that the pack knows, read from ``models.toml``. Data only: downloads nothing, imports no torch."""
