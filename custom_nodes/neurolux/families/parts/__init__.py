"""Components that several families share. A component of one family alone is in that family's module."""
