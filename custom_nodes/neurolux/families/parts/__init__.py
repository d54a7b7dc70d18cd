"""Components that several families share. A component of a single family is in that family's module."""
