"""Who may ask the server: bearer tokens from the environment, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Literal

from datasets.errors import OfflineDqnError
from pipelines.serving.refusals import RefusedRequestError

TOKENS_VARIABLE = "OFFLINE_DQN_SERVE_TOKENS"
_SHORTEST = 16
Role = Literal["act", "read"]
ROLES: Mapping[str, tuple[Role, ...]] = {"act": ("act",), "read": ("read",), "admin": ("act", "read")}
"""`act` asks for decisions and reports outcomes, `read` sees releases and metrics, `admin` both."""


class TokenError(OfflineDqnError):
    """Tokens in the environment that cannot be used; never shows one."""


class Tokens:
    """The tokens of one server.

    Args:
        digests: SHA-256 of each token, with what it may do.
    """

    def __init__(self, digests: Mapping[bytes, tuple[Role, ...]]) -> None:
        self._digests = dict(digests)

    @property
    def required(self) -> bool:
        """Whether anybody has to show one."""
        return bool(self._digests)

    def check(self, authorization: str | None, role: Role | None) -> None:
        """Lets a request through.

        Args:
            authorization: the header, "Bearer TOKEN".
            role: that it needs; None where any known token does.

        Raises:
            RefusedRequestError: 401 without a known token, 403 where it may not do this.
        """
        if not self._digests:
            return
        if not authorization:
            raise RefusedRequestError.of(
                "token_missing", "this server wants the header 'Authorization: Bearer TOKEN'", status=401
            )
        kind, _, token = authorization.partition(" ")
        shown = hashlib.sha256(token.strip().encode()).digest()
        roles: tuple[Role, ...] | None = None
        for digest, theirs in self._digests.items():  # every one, so that the time tells nothing of which is near
            if hmac.compare_digest(digest, shown):
                roles = theirs
        if roles is None or kind.lower() != "bearer":
            raise RefusedRequestError.of("token_wrong", "this bearer token is not known here", status=401)
        if role is not None and role not in roles:
            raise RefusedRequestError.of("role_missing", f"this token may not do this; that needs '{role}'", status=403)


def tokens_from(environment: Mapping[str, str]) -> Tokens:
    """The tokens of OFFLINE_DQN_SERVE_TOKENS: `ROLE:TOKEN`, several with commas between them; without it none.

    Raises:
        TokenError: a role is unknown, or a token is too short to be a secret.
    """
    digests: dict[bytes, tuple[Role, ...]] = {}
    for place, entry in enumerate(
        filter(None, map(str.strip, environment.get(TOKENS_VARIABLE, "").split(","))), start=1
    ):
        role, colon, token = entry.partition(":")
        if not colon or role not in ROLES:
            raise TokenError(
                f"{TOKENS_VARIABLE}: entry {place} begins with no role; write act:TOKEN, read:TOKEN or admin:TOKEN."
            )
        if len(token) < _SHORTEST:
            raise TokenError(
                f"{TOKENS_VARIABLE}: the token of entry {place} has {len(token)} characters, wanted are at least "
                f"{_SHORTEST}. `openssl rand -hex 32` makes one."
            )
        digests[hashlib.sha256(token.encode()).digest()] = ROLES[role]
    return Tokens(digests)
