"""One bucket of S3-compatible storage: putting objects, and presigned URLs. All that knows obstore, which does both.

Credentials are those that every AWS program uses: the AWS_ variables, the shared credentials file with AWS_PROFILE, or
what the machine itself was given (web identity, container, instance).
"""

from __future__ import annotations

import asyncio
import configparser
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from bridge.settings import Settings, SettingsError

TIMEOUT_S = 30.0
"""For one request; an attempt to put an object makes a few."""
RETRY_S = 10.0
SIGN_TIMEOUT_S = 5.0
INSTANCE_ADDRESS = "169.254.169.254"
"""Where a program without credentials asks for those of its virtual machine."""
DEFAULT_REGION = "us-east-1"
CREDENTIAL_NAMES = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
}
"""obstore's names of credentials, by those in the shared file."""


class S3Error(Exception):
    """The storage did not take an object, or cannot be reached. The message is for logs and warnings."""


@dataclass(frozen=True)
class Link:
    """A presigned URL."""

    url: str
    expires_at: float


class Bucket:
    """One bucket. Raises SettingsError if obstore is missing or refuses the settings."""

    def __init__(
        self,
        name: str,
        *,
        endpoint: str | None = None,
        region: str | None = None,
        prefix: str = "",
        lifetime_s: float = 3600.0,
        env: Mapping[str, str] = os.environ,
    ) -> None:
        try:
            import obstore
            from obstore.store import S3Store
        except ImportError as error:
            raise SettingsError(
                "s3_bucket is set, and the package for S3 is missing: pip install 'neurolux-imagegen[s3]'"
            ) from error
        self.name = name
        self._obstore = obstore
        self._prefix = prefix.strip("/")
        self._lifetime = timedelta(seconds=lifetime_s)
        options: dict[str, Any] = {
            "region": region or env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or DEFAULT_REGION,
            "client_options": {"timeout": f"{TIMEOUT_S:g}s"},
            "retry_config": {"max_retries": 3, "retry_timeout": timedelta(seconds=RETRY_S)},
            **shared_credentials(env),
        }
        if endpoint:
            options["endpoint"] = endpoint
            options["client_options"]["allow_http"] = endpoint.startswith("http://")
        try:
            self._store = S3Store(name, **options)
        except Exception as error:
            # obstore's errors have no common base for this, and every one is about these options.
            raise SettingsError(f"S3 cannot be used with bucket {name!r}: {_first_line(error)}") from error

    @classmethod
    def of(cls, settings: Settings) -> Bucket | None:
        """The bucket of the settings; None if there is none. Raises SettingsError."""
        if settings.s3_bucket is None:
            return None
        return cls(
            settings.s3_bucket,
            endpoint=settings.s3_endpoint,
            region=settings.s3_region,
            prefix=settings.s3_prefix,
            lifetime_s=settings.s3_url_lifetime_s,
        )

    def uri(self, name: str) -> str:
        """The address of the object for a stored file, as `s3://bucket/key`."""
        return f"s3://{self.name}/" + (f"{self._prefix}/{name}" if self._prefix else name)

    async def put(self, uri: str, data: bytes, media_type: str) -> None:
        """Put an object. When this returns, the storage has it. Raises S3Error."""
        attributes = {"Content-Type": media_type}
        try:
            await self._obstore.put_async(self._store, self._key(uri), data, attributes=attributes, use_multipart=False)
        except Exception as error:
            # obstore raises its own errors, FileNotFoundError for a missing bucket, and more: all mean the same here.
            raise S3Error(f"the bucket {self.name} did not take an image: {_cause(error)}") from error

    async def get(self, uri: str) -> bytes | None:
        """An object; None if there is none. Raises S3Error."""
        try:
            found = await self._obstore.get_async(self._store, self._key(uri))
            return bytes(await found.bytes_async())
        except FileNotFoundError:
            return None
        except Exception as error:
            # As for `put`.
            raise S3Error(f"the bucket {self.name} did not return an image: {_cause(error)}") from error

    def holds(self, uri: str) -> bool:
        """Whether an address is one of this bucket."""
        return uri.startswith(f"s3://{self.name}/")

    async def links(self, uris: Sequence[str]) -> list[Link | None]:
        """A presigned URL for each object; None for one of another bucket. Raises S3Error without credentials."""
        own = [uri for uri in uris if self.holds(uri)]
        if not own:
            return [None] * len(uris)
        expires_at = time.time() + self._lifetime.total_seconds()
        keys = [self._key(uri) for uri in own]
        try:
            async with asyncio.timeout(SIGN_TIMEOUT_S):
                signed = await self._obstore.sign_async(self._store, "GET", keys, self._lifetime)
        except Exception as error:
            # A signature needs no request, but credentials may: those of an instance, for example.
            raise S3Error(f"no URL can be signed for the bucket {self.name}: {_cause(error)}") from error
        found = dict(zip(own, signed, strict=True))
        return [Link(found[uri], expires_at) if uri in found else None for uri in uris]

    def _key(self, uri: str) -> str:
        return uri.removeprefix(f"s3://{self.name}/")


def shared_credentials(env: Mapping[str, str]) -> dict[str, str]:
    """The credentials of the shared file, unless the variables hold some: these are obstore's affair.

    Raises SettingsError for a named profile that the file does not have.
    """
    if env.get("AWS_ACCESS_KEY_ID"):
        return {}
    path = Path(env.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()
    profile = env.get("AWS_PROFILE")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(path, encoding="utf-8")
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        raise SettingsError(f"the AWS credentials file {path} cannot be read: {_first_line(error)}") from error
    section = profile or "default"
    if not parser.has_section(section):
        if profile:
            raise SettingsError(f"the AWS credentials file {path} has no profile {profile!r} (AWS_PROFILE)")
        return {}
    return {to: parser[section][name] for name, to in CREDENTIAL_NAMES.items() if name in parser[section]}


def _cause(error: BaseException) -> str:
    if isinstance(error, TimeoutError) or INSTANCE_ADDRESS in str(error):
        return "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
