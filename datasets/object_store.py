"""Objects in a bucket over an S3 interface: whole reads and writes, and writes that hold only if nobody was faster.

Every S3 answers a conditional write for one writer at a time. That is all that what is kept there rests on: no lock, no
rename, and a listing that shows what has been written before it (S3 promises that since 2020).

The endpoint and the credentials come from the environment only, under the names that every S3 client reads.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from datasets.addresses import ObjectAddress, parse_address
from datasets.durable import flush_to_disk
from datasets.errors import OfflineDqnError

_PATIENCE_S = 30.0
"""Seconds for which a request that the store does not answer is tried again."""

_REMEDIES = {
    "NoSuchBucket": "Make the bucket, or correct the address in the configuration.",
    "InvalidAccessKeyId": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to keys that the store knows.",
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY is not the one of AWS_ACCESS_KEY_ID, or AWS_REGION is another one.",
    "RequestTimeTooSkewed": "Set this machine's clock.",
    "AccessDenied": "Let these keys read, write, list and delete under the prefix.",
    "ExpiredToken": "Renew AWS_SESSION_TOKEN.",
    "NotImplemented": "This store lacks the request: conditional writes (If-None-Match, If-Match) are needed.",
}
"""What to do, by the code of the store's own error."""


class ObjectStoreError(OfflineDqnError):
    """The object store refused, or cannot be used as it is set."""


class ObjectMissingError(ObjectStoreError):
    """There is no object under the key."""


class StoreUnreachableError(ObjectStoreError):
    """The store did not answer. Whether a write that was under way has happened is not known."""


@dataclass(frozen=True)
class StoredObject:
    """What a listing says of an object.

    Attributes:
        key: its key below the store's prefix.
        n_bytes: its size.
        tag: the store's mark of this content, for `ObjectStore.put_if_match`.
        modified_at: when it was written, by the store's clock.
    """

    key: str
    n_bytes: int
    tag: str
    modified_at: datetime


@dataclass(frozen=True)
class ObjectStore:
    """The objects below an address. Keys are paths with '/', relative to it.

    Every method raises `ObjectStoreError`: `StoreUnreachableError` where the store does not answer, which leaves it
    open whether a write has happened, and otherwise what the store refused, with the bucket, the key and a remedy.
    """

    address: ObjectAddress
    _client: Any = field(repr=False, compare=False)

    def __reduce__(self) -> Any:
        """Another process opens the store by its own environment: keys do not travel."""
        return open_store, (self.address,)

    def get(self, key: str) -> bytes:
        """The content of an object.

        Raises:
            ObjectMissingError: there is none.
        """
        return self.get_tagged(key)[0]

    def get_tagged(self, key: str) -> tuple[bytes, str]:
        """The content of an object, and the mark of it that `put_if_match` wants.

        Raises:
            ObjectMissingError: there is none.
        """
        with self._asking("read", key):
            found = self._client.get(key)
            return found.bytes().to_bytes(), str(found.meta["e_tag"])

    def find(self, key: str) -> StoredObject | None:
        """What the store knows of an object; None where there is none."""
        try:
            with self._asking("look for", key):
                return _stored_object(self._client.head(key))
        except ObjectMissingError:
            self._check_bucket()  # the answer to this question has no text, so a missing bucket looks the same
            return None

    def list(self, folder: str = "", *, after: str = "") -> list[StoredObject]:
        """Every object in a folder and the folders in it, sorted by key.

        Args:
            after: only keys that sort behind this one.
        """
        with self._asking("list", folder):
            found = self._client.list(folder or None, offset=after or None, chunk_size=1000).collect()
        return sorted((_stored_object(meta) for meta in found), key=lambda stored: stored.key)

    def put(self, key: str, content: bytes | Path) -> None:
        """Writes an object, whole or not at all, over one that is there: for a key whose content is always the same."""
        if isinstance(content, Path) and not content.is_file():
            raise FileNotFoundError(f"{content} is gone, and cannot be written to {self.address}/{key}.")
        with self._asking("write", key):
            self._client.put(key, content)

    def put_if_absent(self, key: str, content: bytes) -> bool:
        """Writes an object unless there is one; returns whether the store holds this content under the key.

        Of several writers with different contents exactly one is told True. So put something of the writer's own into
        the content, a random id. The same content is taken for an earlier attempt of this writer, whose answer got
        lost on the way.
        """
        from obstore.exceptions import AlreadyExistsError

        try:
            with self._asking("write", key):
                self._client.put(key, content, mode="create", use_multipart=False)
        except ObjectStoreError as error:
            if not isinstance(error.__cause__, AlreadyExistsError):
                raise
            return self._holds(key, content)
        return True

    def put_if_match(self, key: str, content: bytes, tag: str) -> bool:
        """Writes over the content that `tag` marks; returns whether the store now holds this content under the key.

        False where somebody has written over it, or deleted it. As with `put_if_absent`, the content has to be this
        writer's own, and never one that was there before: equal contents have equal tags.
        """
        from obstore.exceptions import PreconditionError

        try:
            with self._asking("write", key):
                self._client.put(key, content, mode={"e_tag": tag}, use_multipart=False)
        except ObjectMissingError:
            return False
        except ObjectStoreError as error:
            if not isinstance(error.__cause__, PreconditionError):
                raise
            self._check_bucket()
            return self._holds(key, content)
        return True

    def delete(self, keys: Iterable[str]) -> None:
        """Deletes objects; one that is not there counts as deleted."""
        wanted = list(keys)
        if wanted:
            with self._asking("delete", wanted[0] if len(wanted) == 1 else f"{wanted[0]} and {len(wanted) - 1} more"):
                self._client.delete(wanted)

    def download(self, key: str, path: Path) -> None:
        """Writes an object to a file, through to the disk; the file is there whole or not at all.

        Raises:
            ObjectMissingError: there is no such object.
            OSError: the disk is full, or cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with beside.open("wb") as file:
                for chunk in self._chunks(key):
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)  # on a full disk, half a file would keep the room that others need
            raise
        flush_to_disk(path.parent)

    def under(self, folder: str) -> ObjectStore:
        """The store of the objects in a folder of this one."""
        return open_store(self.address / folder)

    def check_conditions(self) -> None:
        """Makes sure that the store keeps the conditions of a write, by a small object that it writes and deletes.

        Some stores with an S3 interface pass over conditions that they do not know, and tell two writers that each of
        them was alone. Ask once, before something is made that rests on them.

        Raises:
            ObjectStoreError: it does not keep them, or refuses to read, write or delete.
        """
        key = f"_conditions-{uuid.uuid4().hex}"
        self.put(key, b"first")
        try:
            second_is_told = not self.put_if_absent(key, b"second")
            content, tag = self.get_tagged(key)
            third_is_told = self.put_if_match(key, b"third", tag) and not self.put_if_match(key, b"fourth", tag)
            kept = second_is_told and content == b"first" and third_is_told and self.get(key) == b"third"
        finally:
            self.delete([key])
        if not kept:
            raise ObjectStoreError(
                f"The store of {self.address} passes over the conditions of a write (If-None-Match, If-Match): two "
                "machines would overwrite each other's work unseen. Use a store that keeps them, or a newer version."
            )

    def _chunks(self, key: str) -> Iterator[memoryview]:
        with self._asking("read", key):
            chunks = iter(self._client.get(key).stream(min_chunk_size=4 << 20))
        while True:
            with self._asking("read", key):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield memoryview(chunk)

    def _holds(self, key: str, content: bytes) -> bool:
        try:
            return self.get(key) == content
        except ObjectMissingError:
            return False

    def _check_bucket(self) -> None:
        with self._asking("list", ""):
            next(iter(self._client.list(chunk_size=1)), None)

    @contextmanager
    def _asking(self, verb: str, key: str) -> Iterator[None]:
        """Turns the client's errors into ours, with what was asked for."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, FileNotFoundError, ValueError) as error:
            named = f"{self.address}/{key}" if key else str(self.address)
            raise _our_error(error, f"Cannot {verb} {named}") from error


def open_store(address: ObjectAddress | str, *, patience_s: float | None = None) -> ObjectStore:
    """The store at an address, by the environment's endpoint and credentials. Asks it nothing yet.

    Read are AWS_ENDPOINT_URL (none: Amazon's own), AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
    AWS_SESSION_TOKEN, and whatever else identifies a machine to Amazon (web identity, container, instance).

    Args:
        patience_s: for how long a request that the store does not answer is tried again; default 30 s.

    Raises:
        ValueError: it is no address.
        ObjectStoreError: the client is not installed, the endpoint would be spoken to in the clear, or holds a login.
    """
    if isinstance(address, str):
        address = parse_address(address)
    if importlib.util.find_spec("obstore") is None:
        raise ObjectStoreError(
            f"{address} lies on an object store, whose client is not installed: "
            "python -m pip install 'offline-dqn[object-store]'."
        )
    from obstore.store import S3Store

    try:
        client = S3Store(
            address.bucket,
            prefix=address.prefix or None,
            client_options={"allow_http": _may_speak_in_the_clear(), "connect_timeout": "5s", "timeout": "120s"},
            retry_config={
                "max_retries": 10,
                "retry_timeout": timedelta(seconds=_PATIENCE_S if patience_s is None else patience_s),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=5),
                    "base": 2,
                },
            },
        )
    except Exception as error:  # of many kinds: a variable of the environment that the client cannot read
        raise ObjectStoreError(f"The object store {address} cannot be opened: {_first_line(error)}") from error
    return ObjectStore(address, client)


def _may_speak_in_the_clear() -> bool:
    """Whether http is allowed: keys and rows would travel readably, so to this machine only, or where it was asked."""
    variable, endpoint = _endpoint()
    try:
        parts = urlsplit(endpoint)
    except ValueError:  # whose text quotes the address
        raise ObjectStoreError(f"{variable} holds no address that can be read: wanted is https://HOST:PORT.") from None
    if "@" in endpoint:
        raise ObjectStoreError(
            f"{variable} holds a user or a password (its value is not shown). Wanted is https://HOST:PORT alone; the "
            "keys go into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    if parts.scheme != "http" or os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true"):
        return parts.scheme == "http"
    if _is_this_machine(parts.hostname or ""):
        return True
    raise ObjectStoreError(
        f"{variable} is {endpoint}, where rows would travel readably. Use https, or set AWS_ALLOW_HTTP=true for "
        "a network that you trust."
    )


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _stored_object(meta: Any) -> StoredObject:
    return StoredObject(meta["path"], meta["size"], str(meta["e_tag"]), meta["last_modified"].astimezone(UTC))


def _our_error(error: BaseException, failed: str) -> ObjectStoreError:
    text = str(error)
    found = re.search(r"<Code>(\w+)</Code>", text)
    code = found.group(1) if found else ""
    if isinstance(error, FileNotFoundError) and code != "NoSuchBucket":
        return ObjectMissingError(f"{failed}: there is no such object.")
    if code in _REMEDIES:
        return ObjectStoreError(f"{failed}: the store says {code}. {_REMEDIES[code]}")
    if re.search(r"/latest/(api/token|meta-data)", text):  # a machine of Amazon asks there who it is
        return ObjectStoreError(
            f"{failed}: there are no credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment."
        )
    if code:
        return ObjectStoreError(f"{failed}: the store says {code}: {_first_line(error)}")
    if "error sending request" in text or re.search(r"status code: 5\d\d|timed? ?out|retr(y|ies)", text):
        return StoreUnreachableError(
            f"{failed}: the store at {_endpoint()[1] or 'Amazon'} does not answer ({_first_line(error)}). Once it "
            "does, run the same command again."
        )
    return ObjectStoreError(f"{failed}: {_first_line(error)}")


def _endpoint() -> tuple[str, str]:
    """The variable that names the store, and its value; "" for Amazon's own."""
    variables = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    return next(((name, value) for name in variables if (value := os.environ.get(name, ""))), (variables[-1], ""))


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].strip()
