"""What every HTTP request passes before its endpoint: prefix, origin, token, limits, query, body, and errors."""
