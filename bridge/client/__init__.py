"""The Python client of the service, typed."""

from bridge.client.client import ClientError, ImageGenClient, ServiceUnreachable

__all__ = ["ClientError", "ImageGenClient", "ServiceUnreachable"]
