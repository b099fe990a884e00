"""Signed batches: a manifest beside the log files says what their bytes are, under a key that only the writer has.

One manifest per folder, `_manifest.json` (readers of logs pass over names that begin with `_`): each file's SHA-256
and size, and an HMAC-SHA-256 over all of them. A signature covers a whole file as it is: one that has grown since is
held until it is signed again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from datasets.durable import write_durably
from datasets.errors import OfflineDqnError
from datasets.locking import exclusive_lock
from datasets.logfiles import LogFile
from datasets.privacy import secret_in

KEY_VARIABLE = "OFFLINE_DQN_SIGNING_KEY"
"""The environment variable that holds the key."""

MANIFEST = "_manifest.json"
"""Name of the manifest in a folder of logs."""

_VERSION = 1


class SigningError(OfflineDqnError):
    """The signing key is missing or too short, or a manifest cannot be trusted or written."""


@dataclass(frozen=True)
class SigningKey:
    """The key, kept out of everything that prints it."""

    secret: bytes = field(repr=False)

    def signature(self, content: Mapping[str, Any]) -> str:
        """HMAC-SHA-256 of a manifest's content, as 64 hexadecimal digits."""
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hmac.new(self.secret, text.encode(), hashlib.sha256).hexdigest()


def signing_key(environ: Mapping[str, str] = os.environ) -> SigningKey:
    """The key in the environment.

    Raises:
        SigningError: there is none, or it is too short; says how to make one.
    """
    secret, lack = secret_in(environ, KEY_VARIABLE)
    if not lack:
        return SigningKey(secret)
    raise SigningError(
        f"Signatures need a key, and the environment variable {KEY_VARIABLE} {lack}. Nothing was read. Make one with "
        "`python -c 'import secrets; print(secrets.token_hex(32))'` and give it to whoever writes the logs and to "
        "whoever ingests them."
    )


@dataclass(frozen=True)
class Signatures:
    """What the manifests beside log files say. Each manifest is read once.

    Attributes:
        key: under which they must have been signed.
        folders: files' digests by name, or why the manifest is not to be trusted, by folder.
    """

    key: SigningKey
    folders: dict[Path, dict[str, str] | str] = field(default_factory=dict)

    def problem(self, log: LogFile, digest: str) -> str | None:
        """Why a log whose bytes have this SHA-256 must not be taken; None where it is signed as it is."""
        folder = log.path.parent
        if folder not in self.folders:
            try:
                self.folders[folder] = {name: entry["sha256"] for name, entry in _read(folder, self.key).items()}
            except SigningError as error:
                self.folders[folder] = str(error)
        signed = self.folders[folder]
        again = f"If it is as it should be, sign it with `offline-dqn sign {log.path}`; nothing of it was taken."
        if isinstance(signed, str):
            return f"{log.path} is held: {signed} Nothing of it was taken."
        if log.path.name not in signed:
            return f"{log.path} is held: it is not signed; {folder / MANIFEST} does not name it. {again}"
        if not hmac.compare_digest(signed[log.path.name], digest):
            return f"{log.path} is held: it was changed, or has grown, since it was signed. {again}"
        return None


def sign_logs(logs: Iterable[LogFile], key: SigningKey, *, at: datetime) -> list[Path]:
    """Signs log files as they are now, and returns the manifests that were written, one per folder.

    Files that an earlier manifest of the folder names stay in it.

    Raises:
        SigningError: a manifest is there that this key did not sign, or a file cannot be read.
    """
    by_folder: dict[Path, list[LogFile]] = {}
    for log in logs:
        by_folder.setdefault(log.path.parent, []).append(log)
    return [_sign_folder(folder, found, key, at) for folder, found in sorted(by_folder.items())]


def _sign_folder(folder: Path, logs: Iterable[LogFile], key: SigningKey, at: datetime) -> Path:
    path = folder / MANIFEST
    try:
        with exclusive_lock(folder / "._manifest.lock", f"The manifest {path}", wait_s=60.0):
            files = _read(folder, key) if path.exists() else {}
            files.update({log.path.name: _entry(log.path) for log in logs})
            content = {"version": _VERSION, "signed_at": at.isoformat(), "files": dict(sorted(files.items()))}
            write_durably(path, json.dumps({**content, "hmac": key.signature(content)}, indent=1) + "\n")
    except OSError as error:
        raise SigningError(
            f"{error.filename or folder} cannot be signed: {error.strerror or error}. {path} is as it was."
        ) from error
    return path


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"sha256": digest, "n_bytes": file.tell()}


def _read(folder: Path, key: SigningKey) -> dict[str, dict[str, Any]]:
    """The entries of a folder's manifest, by file name.

    Raises:
        SigningError: there is none, or it does not bear this key's signature.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        given = manifest.pop("hmac")
        files: dict[str, dict[str, Any]] = manifest["files"]
        whole = manifest["version"] == _VERSION and isinstance(given, str) and given.isascii()
        whole = whole and all(isinstance(entry["sha256"], str) for entry in files.values())
    except FileNotFoundError as error:
        raise SigningError(f"there is no manifest {path}; `offline-dqn sign {folder}` writes one.") from error
    except OSError as error:
        raise SigningError(f"the manifest {path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise SigningError(f"the manifest {path} is no manifest of this version. Have the logs signed anew.")
    if not hmac.compare_digest(given, key.signature(manifest)):
        raise SigningError(
            f"the manifest {path} does not bear a signature of the key in {KEY_VARIABLE}: it was changed, or signed "
            "with another key. Remove it and sign the logs anew if they are as they should be."
        )
    return files
