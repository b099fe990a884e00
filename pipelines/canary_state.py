"""The canary that runs, and every canary that ever ran: what the server reads, and what a kill must not tear.

`serving/canary_history.jsonl` is the truth: each line is an event with the whole state that it led to, and is only ever
appended. `serving/canary.json` is a copy of the last state for whoever wants to know it at once; where a kill came
between the two, the next one who holds the lock copies it again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import AwareDatetime, Field, ValidationError

from datasets.durable import append_record, read_records, write_durably
from datasets.errors import OfflineDqnError
from datasets.locking import exclusive_lock
from datasets.settings import Settings
from offline_dqn.assignment import assigned, block_assigned, block_of, block_start

Kind = Literal["slices", "switchback"]
Ending = Literal["promoted", "succeeded", "stopped", "aborted", "expired", "overtaken"]
"""Promoted: the candidate is champion. Succeeded: it may be, and a reviewer is asked. Stopped: it did harm. Aborted: by
a person. Expired: undecided for too long. Overtaken: champion, rules or bytes changed under it, or what taught it
was excluded."""
Event = Literal["started", "advanced", "ended"]
_LOCK_WAIT_S = 30.0


class CanaryError(OfflineDqnError):
    """A canary that cannot be read, or does not allow what was asked."""


class HasRoot(Protocol):
    """What is needed of a workspace to find its canary."""

    @property
    def root(self) -> Path:
        """Its folder."""


class Share(Settings):
    """A share of the traffic, and since when the candidate has it."""

    at: AwareDatetime
    share: float = Field(ge=0, le=1)


class Override(Settings):
    """Who allowed what the rules do not, and why."""

    reviewer: str
    reason: str


class Canary(Settings):
    """A release on trial against the champion, on part of the traffic."""

    id: int = Field(ge=1)
    """Number of the canary in its workspace."""
    release: int
    """The candidate."""
    champion: int | None
    """The champion it is compared with; None: none was promoted, and the rules of version 0 act. Where another one
    became champion since, the canary assigns nothing any more."""
    kind: Kind
    salt: str
    plan: tuple[float, ...] = Field(min_length=1)
    """Shares of the traffic, ascending; 1 at the end means promotion."""
    shares: tuple[Share, ...] = Field(min_length=1)
    """Each step taken, oldest first."""
    started_at: AwareDatetime
    started_by: str
    block_s: float | None = None
    """Length of a switchback's blocks."""
    burn_in_s: float = 0.0
    """Of each block: episodes that begin in it are no evidence."""
    digest: str
    """Of the candidate's `release.json` when the registry vouched for it."""
    rules: str
    """Digest of what the contract said of success and constraints."""
    certified_share: float
    """By the release's evaluation."""
    override: Override | None = None
    despite_excluded: tuple[str, ...] = ()
    """Exclusions that its release rested on when it was started, and that the override put up with."""
    ended_at: AwareDatetime | None = None
    ending: Ending | None = None
    reason: str = ""
    """Why it ended."""

    @property
    def running(self) -> bool:
        """Whether it still assigns traffic."""
        return self.ended_at is None

    @property
    def share(self) -> float:
        """Share of the traffic that the candidate gets now; of the blocks for a switchback."""
        return self.shares[-1].share if self.running else 0.0

    @property
    def next_share(self) -> float:
        """The following step of the plan; 1, promotion, after the last."""
        return next((share for share in self.plan if share > self.shares[-1].share), 1.0)

    def share_at(self, began_at: datetime) -> float:
        """Share in force for an episode that began at an instant; 0 before the start and after the end.

        A switchback's share counts from the first block that begins under it, so that no block changes hands.
        """
        at = began_at if self.block_s is None else block_start(block_of(began_at, self.block_s), self.block_s)
        if self.ended_at is not None and began_at >= self.ended_at:
            return 0.0
        return next((step.share for step in reversed(self.shares) if step.at <= at), 0.0)

    def assigned(self, episode_id: str, began_at: datetime) -> bool:
        """Whether the candidate acts for an episode.

        Args:
            began_at: when the episode began, where that is known: it then keeps its policy when the share rises or the
                block ends while it runs. Otherwise now.
        """
        share = self.share_at(began_at)
        if self.block_s is None:
            return assigned(episode_id, self.salt, share)
        return block_assigned(block_of(began_at, self.block_s), self.salt, share)


def canary_path(workspace: HasRoot) -> Path:
    """The copy of the last canary's state, for the server to watch."""
    return workspace.root / "serving" / "canary.json"


def read_canary(workspace: HasRoot) -> Canary | None:
    """The canary that runs; None where none does.

    Raises:
        CanaryError: its file cannot be read. Let the champion act.
    """
    path = canary_path(workspace)
    try:
        canary = Canary.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise CanaryError(
            f"{path} cannot be read ({str(error).splitlines()[0]}), so the champion acts alone. `offline-dqn canary "
            "status` writes it again from canary_history.jsonl beside it."
        ) from error
    return canary if canary.running else None


@contextmanager
def canary_lock(workspace: HasRoot) -> Iterator[None]:
    """One at a time changes or judges the canary.

    Raises:
        LockedError: another one is at it for long.
    """
    path = workspace.root / "serving" / ".canary.lock"
    with exclusive_lock(path, f"The canary of {workspace.root}", wait_s=_LOCK_WAIT_S):
        yield


def last_canary(workspace: HasRoot) -> Canary | None:
    """The newest canary, running or ended, by the history; mends the copy. To be called under the lock.

    Raises:
        CanaryError: the history cannot be read.
    """
    events = read_events(workspace)
    path = canary_path(workspace)
    if not events:
        path.unlink(missing_ok=True)  # what nothing in the history led to did not happen
        return None
    canary = _canary_of(workspace, events[-1])
    text = _text(canary)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_durably(path, text)
    return canary


def record_event(workspace: HasRoot, event: Event, canary: Canary, at: datetime, **facts: Any) -> None:
    """Appends what happened (the commit point), then writes the copy. To be called under the lock."""
    line = {"at": at.astimezone(UTC).isoformat(), "event": event, **facts, "canary": canary.model_dump(mode="json")}
    append_record(_history_path(workspace), line)
    write_durably(canary_path(workspace), _text(canary))


def read_events(workspace: HasRoot) -> list[dict[str, Any]]:
    """Every event of every canary, oldest first.

    Raises:
        CanaryError: a line cannot be read.
    """
    path = _history_path(workspace)
    try:
        return read_records(path)
    except ValueError as error:
        raise CanaryError(f"{path} cannot be read ({error}). Restore it from a backup.") from error


def _canary_of(workspace: HasRoot, event: dict[str, Any]) -> Canary:
    try:
        return Canary.model_validate(event["canary"], strict=False)
    except (LookupError, ValidationError) as error:
        raise CanaryError(
            f"The last line of {_history_path(workspace)} describes no canary ({str(error).splitlines()[0]}). Restore "
            "the file from a backup."
        ) from error


def _history_path(workspace: HasRoot) -> Path:
    return workspace.root / "serving" / "canary_history.jsonl"


def _text(canary: Canary) -> str:
    return json.dumps(canary.model_dump(mode="json"), indent=1) + "\n"
