"""What becomes of a request before a worker has it: accepted, resolved, indexed, called back."""
