"""The Python client of the service, typed: `AsyncImageGenClient`, and `ImageGenClient` for other programs.

Both ask the service over HTTP; nothing else of the bridge is imported than its wire format.
"""

from bridge.client.async_client import DEFAULT_URL, AsyncImageGenClient
from bridge.client.errors import (
    AnswerTimeout,
    BadUrl,
    ClientClosed,
    ClientError,
    ServiceUnreachable,
    UnexpectedAnswer,
    Unsendable,
)
from bridge.client.loop_thread import LoopThread
from bridge.client.saving import paths_for
from bridge.client.sync_client import ImageGenClient

__all__ = [
    "DEFAULT_URL",
    "AnswerTimeout",
    "AsyncImageGenClient",
    "BadUrl",
    "ClientClosed",
    "ClientError",
    "ImageGenClient",
    "LoopThread",
    "ServiceUnreachable",
    "UnexpectedAnswer",
    "Unsendable",
    "paths_for",
]
