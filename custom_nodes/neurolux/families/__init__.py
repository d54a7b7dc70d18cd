"""Everything that differs between model families, in one module per family. Other rooms use the registry."""
