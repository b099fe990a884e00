"""Addresses of an object store: a bucket and what the names of its objects begin with, as in `s3://bucket/prefix`."""

from __future__ import annotations

import re
from dataclasses import dataclass

SCHEME = "s3://"

# Of Amazon's naming rules for general purpose buckets; other stores allow no less.
_BUCKET = re.compile(r"[a-z0-9](?:[a-z0-9.-]{1,61})[a-z0-9]")
# What needs no escaping anywhere: not in a URL, not in a SQL literal, not in a shell.
_PART = re.compile(r"[A-Za-z0-9!_.=()+-]+")


@dataclass(frozen=True)
class ObjectAddress:
    """Where in an object store something lies. Endpoint and credentials are no part of it: the environment has them.

    Attributes:
        bucket: its name.
        prefix: what the names of the objects begin with, without slashes at its ends; "" for the whole bucket.
    """

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}".removesuffix("/")

    def __truediv__(self, part: str) -> ObjectAddress:
        """The address of what lies in this one under a plain name, as with paths."""
        return ObjectAddress(self.bucket, f"{self.prefix}/{part}".removeprefix("/"))


def is_object_address(text: str) -> bool:
    """Whether a place is meant to be in an object store."""
    return "://" in text


def parse_address(text: str) -> ObjectAddress:
    """The address that a text gives.

    Raises:
        ValueError: it is none; says what is wrong with which part of it. It never repeats what may be a secret.
    """
    if "@" in text:
        # Whatever is behind the scheme may be a key: it is not shown.
        raise ValueError(
            "an address holds no user, key or password; give them in the environment (AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY) and name only the bucket: s3://BUCKET/PREFIX"
        )
    scheme, _, rest = text.partition("://")
    if scheme != "s3":
        raise ValueError(
            f"'{scheme}://' is not spoken here; an address is s3://BUCKET/PREFIX, and the endpoint of another store "
            "than Amazon's is given in the environment (AWS_ENDPOINT_URL)"
        )
    bucket, _, prefix = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(
            f"'{bucket}' is no name of a bucket: 3 to 63 lowercase letters, digits, dots and hyphens, as in "
            "s3://BUCKET/PREFIX"
        )
    prefix = prefix.removesuffix("/")
    for part in prefix.split("/") if prefix else ():
        if part in (".", "..") or not _PART.fullmatch(part):
            raise ValueError(
                f"'{part}' cannot stand between the slashes of an address: letters, digits and any of ! _ . = ( ) + - "
                "can, and neither '.' nor '..' alone"
            )
    return ObjectAddress(bucket, prefix)
