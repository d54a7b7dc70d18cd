"""The wire format: requests, responses, events, models and errors."""
