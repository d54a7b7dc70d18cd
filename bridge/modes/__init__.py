"""Saved graphs as endpoints: read, described as JSON Schema, and bound to a request."""
