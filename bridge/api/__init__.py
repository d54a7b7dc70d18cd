"""The APIs: REST, event streams and NATS subjects. They translate, and never decide."""
