"""What the schemas of several nodes share."""
