"""Everything that differs between model families, one module a family. Every other room asks the registry here."""
