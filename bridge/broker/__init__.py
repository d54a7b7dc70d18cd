"""NATS: the connection, streams and stores, and the durable job queue."""
