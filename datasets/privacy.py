"""Keyed hashes and sealed text: how what a contract's `[privacy]` names is kept without being readable.

One key, from the environment and never stored, makes both. Hashes are plain HMAC-SHA-256 of a value's text, so that
equal values stay equal; text that could not be redacted is sealed with AES-256-GCM under a key derived from it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import duckdb

from datasets.contract import Contract
from datasets.errors import OfflineDqnError
from datasets.locking import exclusive_lock

KEY_VARIABLE = "OFFLINE_DQN_PRIVACY_KEY"
"""The environment variable that holds the key."""

MIN_KEY_BYTES = 32
"""Shortest key; HMAC-SHA-256 is as strong as its key up to this length."""

HASHED = "hmac:"
"""How a hash begins where it stands in redacted raw text, so that it is never hashed a second time."""

SEALED = "sealed:v1:"
"""How sealed text begins."""

_HEX_LENGTH = 64
_NONCE_BYTES = 12
_KEY_CHECK = "_privacy.json"
_PRIVACY = "privacy"

Agree = Callable[[bytes], bytes]
"""Says the same to every machine: what the first of them said."""


class PrivacyError(OfflineDqnError):
    """The privacy key is missing, too short or another one, or sealed text cannot be opened with it."""


@dataclass(frozen=True)
class PrivacyKey:
    """The key, kept out of everything that prints it."""

    secret: bytes = field(repr=False)

    def hash(self, value: str) -> str:
        """HMAC-SHA-256 of `value` in UTF-8, as 64 hexadecimal digits."""
        return hmac.new(self.secret, value.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

    @cached_property
    def check(self) -> str:
        """What tells this key from another one and says nothing else about it."""
        return hmac.new(self._derived("check"), b"offline-dqn", hashlib.sha256).hexdigest()

    def seal(self, text: str) -> str:
        """`text` encrypted and authenticated, behind the mark SEALED; text that is sealed already stays as it is."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # part of the extra `pipeline`

        if text.startswith(SEALED):
            return text
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = AESGCM(self._derived("seal")).encrypt(nonce, text.encode("utf-8", "surrogatepass"), SEALED.encode())
        return SEALED + base64.urlsafe_b64encode(nonce + sealed).decode("ascii")

    def unseal(self, sealed: str) -> str:
        """The text that `seal` was given.

        Raises:
            PrivacyError: it was sealed under another key, or was changed since.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        try:
            data = base64.b64decode(sealed.removeprefix(SEALED), altchars=b"-_", validate=True)
            opened = AESGCM(self._derived("seal")).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], SEALED.encode())
        except (InvalidTag, ValueError, binascii.Error) as error:
            raise PrivacyError(
                f"A sealed text of {len(sealed)} characters cannot be opened: it was sealed under another key than the "
                f"one in {KEY_VARIABLE}, or was changed since."
            ) from error
        return opened.decode("utf-8", "surrogatepass")

    def _derived(self, purpose: str) -> bytes:
        """A key of 32 bytes for one purpose (HKDF, RFC 5869)."""
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        return HKDF(SHA256(), length=32, salt=None, info=f"offline-dqn {purpose}".encode()).derive(self.secret)


def privacy_key(environ: Mapping[str, str] = os.environ) -> PrivacyKey:
    """The key in the environment.

    Raises:
        PrivacyError: there is none, or it is too short; says how to make one.
    """
    secret, lack = secret_in(environ, KEY_VARIABLE)
    if not lack:
        return PrivacyKey(secret)
    raise PrivacyError(
        f"The contract hashes or drops columns, and the environment variable {KEY_VARIABLE}, whose key does it, "
        f"{lack}. Nothing was read. Make one with `python -c 'import secrets; print(secrets.token_hex(32))'`, keep it "
        "where secrets are kept (without it a subject's rows cannot be found again), and set it for every run."
    )


def secret_in(environ: Mapping[str, str], variable: str) -> tuple[bytes, str]:
    """The bytes of a secret in the environment, and what it lacks in words; "" where it may be used."""
    given = environ.get(variable, "").strip().encode("utf-8", "surrogateescape")
    if len(given) >= MIN_KEY_BYTES:
        return given, ""
    return given, f"holds {len(given)} bytes, and at least {MIN_KEY_BYTES} are wanted" if given else "is not set"


def key_for(
    contract: Contract, lake_root: Path, environ: Mapping[str, str] = os.environ, *, agree: Agree = lambda said: said
) -> PrivacyKey | None:
    """The key that a lake's rows are hashed under; None where the contract names nothing to hide.

    The first key a lake meets is remembered by its check value, in the lake.

    Args:
        agree: takes what a machine would remember first, and returns what all of them do.

    Raises:
        PrivacyError: there is no key, or it is not the one that the lake's rows were hashed under.
    """
    if not contract.privacy.is_set:
        return None
    key = privacy_key(environ)
    path = lake_root / _KEY_CHECK
    with exclusive_lock(lake_root / "_privacy_lock", f"The key check of {lake_root}", wait_s=60.0):
        known = _known_check(path)
        if known is None:
            beside = path.with_name(path.name + ".new")
            beside.write_bytes(agree(json.dumps({"key_check": key.check}).encode()))
            beside.replace(path)
            known = _known_check(path)
            assert known is not None
        if not hmac.compare_digest(known, key.check):
            raise PrivacyError(
                f"The key in {KEY_VARIABLE} is not the one that the lake {lake_root} was written under: the same "
                "subject would get two hashes, and could be neither joined nor erased. Nothing was read. Set the "
                "earlier key, or start a new workspace."
            )
    return key


def _known_check(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["key_check"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise PrivacyError(
            f"{path} does not say which key the lake was written under. Restore it from a backup: a wrong key would "
            "split the rows of a subject."
        ) from error


# --- the same hash in DuckDB


def install_key(connection: duckdb.DuckDBPyConnection, key: PrivacyKey, name: str = _PRIVACY) -> None:
    """Makes `hash_sql` (or `hmac_sql` of that name) work on this connection and its cursors. The key is a variable of
    the session: no query text holds it."""
    block = hashlib.sha256(key.secret).digest() if len(key.secret) > 64 else key.secret
    padded = block.ljust(64, b"\0")
    for variable, mask in (_variables(name)[0], 0x36), (_variables(name)[1], 0x5C):
        connection.execute(f"SET VARIABLE {variable} = ?", [bytes(byte ^ mask for byte in padded)])


def hmac_sql(text: str, name: str = _PRIVACY) -> str:
    """SQL of `PrivacyKey.hash` of a VARCHAR expression, under the key installed as `name`; null stays null."""
    inner, outer = _variables(name)
    return f"sha256(getvariable('{outer}') || unhex(sha256(getvariable('{inner}') || encode({text}))))"


def hash_sql(text: str) -> str:
    """SQL of the hash that is stored for a value: as `hmac_sql`, but a hash from redacted raw text is kept as it is.

    `text` is computed up to four times: give a column.
    """
    kept = f"starts_with({text}, '{HASHED}') AND length({text}) = {len(HASHED) + _HEX_LENGTH}"
    return f"CASE WHEN {kept} THEN substr({text}, {len(HASHED) + 1}) ELSE {hmac_sql(text)} END"


def _variables(name: str) -> tuple[str, str]:
    return f"offline_dqn_{name}_inner", f"offline_dqn_{name}_outer"
