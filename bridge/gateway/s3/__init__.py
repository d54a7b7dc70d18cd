"""Copies of results in S3-compatible storage: putting them there, and links to them. Optional: the extra `s3`."""

from __future__ import annotations

from bridge.gateway.s3.bucket import Bucket, S3Error
from bridge.gateway.s3.exports import Exports

__all__ = ["Bucket", "Exports", "S3Error"]
