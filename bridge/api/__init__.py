"""The doors: REST, event streams, NATS subjects. They translate and never decide."""
