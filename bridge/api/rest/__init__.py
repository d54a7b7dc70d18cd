"""The REST API: routes that translate between HTTP and the gateway."""
