"""The evidence of one canary: complete episodes, read from the server's logs a little further at every look.

What is complete is appended to `serving/canary_evidence/<canary>.jsonl`; beside it stands from where on the logs must
be read to find again what was not. So a look costs the new lines, and after a kill the lines of the episodes that were
open. Episodes are appended before the place moves on; those that a kill made one read twice are known by their ids.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from datasets.contract import Contract
from datasets.durable import write_durably
from datasets.erased import EPISODE, KEY, Erased, erased_changed_at, read_erased
from datasets.errors import OfflineDqnError
from datasets.privacy import PrivacyError, PrivacyKey, privacy_key
from pipelines.canary_episodes import ClosedEpisode, OpenEpisode, OpenStep, close_episodes, is_complete
from pipelines.canary_logs import StepRows, last_instant, log_files, parsed, whole_lines
from pipelines.canary_state import Canary
from pipelines.serving.outcome import OutcomeLog

LAKE = "lake"
"""Folder of a workspace that remembers who was erased."""


class EvidenceError(OfflineDqnError):
    """Evidence of a canary that cannot be read."""


class LoggingWorkspace(Protocol):
    """What is needed of a workspace to read its logs."""

    @property
    def root(self) -> Path: ...
    @property
    def contract(self) -> Contract: ...
    @property
    def logs_path(self) -> Path: ...
    @property
    def outcome_logs_path(self) -> Path: ...


@dataclass
class Evidence:
    """What is known of the episodes of one canary. Not safe for two threads at once; hold the canary's lock."""

    workspace: LoggingWorkspace
    canary: Canary
    closed: list[ClosedEpisode] = field(default_factory=list)
    """Complete ones, in the order in which they became so."""
    n_unreadable: int = 0
    """Lines that were no decision or outcome, since this process began to read."""
    n_afterwards: int = 0
    """Decisions and outcomes of episodes that were complete already."""
    _offsets: dict[str, int] = field(default_factory=dict)
    _open: dict[str, OpenEpisode] = field(default_factory=dict)
    _of_decision: dict[str, str] = field(default_factory=dict)
    _closed_ids: set[str] = field(default_factory=set)
    _older: dict[str, float] = field(default_factory=dict)
    """Episodes that began before the canary and may go on, and when they last did."""
    _stored_bytes: int = -1
    _erased: Erased | None = None
    """Whose episodes are no evidence any more, though logs may still hold them."""
    _erased_at: int = 0
    """When that last changed, as the file says."""
    _key: PrivacyKey | None = None

    def __post_init__(self) -> None:
        self._rows, self._outcomes = StepRows(self.workspace.contract), OutcomeLog(self.workspace.contract)

    def read(self, as_of: float) -> None:
        """Reads what was logged since, and closes what is complete at `as_of` (seconds since 1970).

        Raises:
            EvidenceError: what was stored cannot be read.
            ConstraintError: a condition of the contract fails on a step.
        """
        stored = self._path.stat().st_size if self._path.exists() else 0
        erased_at = erased_changed_at(self.workspace.root / LAKE)
        if stored != self._stored_bytes or erased_at != self._erased_at:  # first look, or another process was at it
            self._erased_at = erased_at
            self._load()
        before = dict(self._offsets)
        outcomes = list(self._new_lines(self.workspace.outcome_logs_path))  # first: their decisions were logged before
        for line in self._new_lines(self.workspace.logs_path):
            self._add_step(line, before)
        for line in outcomes:
            self._add_outcome(line)
        self._close(as_of)

    @property
    def n_open(self) -> int:
        """Episodes of the canary that are not complete."""
        return len(self._open)

    def cohort(self) -> list[ClosedEpisode]:
        """Complete episodes in the order of their start, up to the first that is not complete.

        Beyond it short episodes would be over-represented.
        """
        first = min((episode.began for episode in self._open.values()), default=float("inf"))
        return sorted((e for e in self.closed if e.began < first), key=lambda e: (e.began, e.episode_id))

    @property
    def _path(self) -> Path:
        return evidence_folder(self.workspace.root) / f"{self.canary.id}.jsonl"

    def _load(self) -> None:
        self.closed, self._open, self._of_decision = [], {}, {}
        self._erased = read_erased(self.workspace.root / LAKE)
        with suppress(PrivacyError):  # who was erased by a hash is told by the key alone
            self._key = privacy_key() if self.workspace.contract.privacy.is_set else None
        place = self._path.with_suffix(".json")
        try:
            known: dict[str, Any] = json.loads(place.read_bytes()) if place.exists() else {}
            self._offsets = known["resume"] if known else self._first_offsets()
            self._older = known["older"] if known else {}
            self.closed = [ClosedEpisode.from_json(line) for line in _records(self._path)]
        except (ValueError, TypeError, LookupError) as error:
            raise EvidenceError(
                f"{place} or {self._path.name} beside it cannot be read ({error}). Delete both: the logs are then read "
                "again from the canary's start."
            ) from error
        self._closed_ids = {episode.episode_id for episode in self.closed}
        self._stored_bytes = self._path.stat().st_size if self._path.exists() else 0

    def _first_offsets(self) -> dict[str, int]:
        """Files whose last line is too old to belong to an episode that still ran at the start are passed over."""
        oldest = self.canary.started_at.timestamp() - self.workspace.contract.episodes.timeout_s
        files = log_files(self.workspace.logs_path)
        return {_key(p): p.stat().st_size for p in files if (last_instant(p, self._rows) or oldest) < oldest}

    def _new_lines(self, folder: Path) -> Iterator[dict[str, Any]]:
        for path in log_files(folder):
            key = _key(path)
            for _, end, line in whole_lines(path, self._offsets.get(key, 0)):
                self._offsets[key] = end
                found = parsed(line)
                if found is None:
                    self.n_unreadable += bool(line.strip())
                else:
                    yield found

    def _add_step(self, line: dict[str, Any], resume: dict[str, int]) -> None:
        row = self._rows.read(line)
        if row is None:
            self.n_unreadable += 1
            return
        at, name = row["at"], row["episode_id"]
        if name in self._older:
            self._older[name] = max(at, self._older[name])
            return
        if name in self._closed_ids:
            self.n_afterwards += 1
            return
        if name not in self._open and self._is_erased(name, row.get("cluster")):
            return
        if name not in self._open and at < self.canary.started_at.timestamp():
            self._older[name] = at  # it began under the champion alone
            return
        episode = self._open.get(name)
        if episode is None:
            cluster = row.get("cluster")
            episode = OpenEpisode(name, name if cluster is None else str(cluster), at, resume=resume)
            self._open[name] = episode
        number = row["step"] if isinstance(row["step"], int) else len(episode.steps)
        decision = str(row["decision_id"] or f"{name}/{number}")
        reward = row["reward"]
        step = OpenStep(
            at=at,
            step=number,
            action=row["action"],
            observation=row["observation"],
            policy_version=str(row["policy_version"]),
            decided_by=str(row["decided_by"] or "policy"),
            reward=float(reward) if isinstance(reward, int | float) else None,
        )
        episode.steps.setdefault(decision, step)
        episode.began = min(episode.began, at)
        episode.ended = episode.ended or True in (row["terminated"], row["truncated"])
        self._of_decision[decision] = name

    def _is_erased(self, episode_id: str, cluster: Any) -> bool:
        erased = self._erased
        if erased is None or not any(erased.hashes.values()):
            return False
        names = {episode_id} | ({self._key.hash(episode_id)} if self._key is not None else set())
        by_cluster = self._key is not None and cluster is not None and erased.holds(KEY, self._key.hash(str(cluster)))
        return by_cluster or any(erased.holds(EPISODE, name) for name in names)

    def _add_outcome(self, line: dict[str, Any]) -> None:
        outcome = self._outcomes.read(line)
        if outcome is None:
            self.n_unreadable += 1
            return
        episode = self._open.get(self._of_decision.get(outcome.decision_id, ""))
        if episode is None:
            return  # of an episode that is older, or complete
        if outcome.reward is not None:
            episode.steps[outcome.decision_id].outcomes.append((outcome.at.timestamp(), outcome.reward))
        episode.ended = episode.ended or outcome.end is not None
        if outcome.final_observation is not None:
            episode.final_observation = outcome.final_observation

    def _close(self, as_of: float) -> None:
        contract = self.workspace.contract
        complete = [episode for episode in self._open.values() if is_complete(episode, contract, as_of)]
        closed = close_episodes(complete, contract)
        if closed:
            lines = b"".join(json.dumps(episode.to_json()).encode() + b"\n" for episode in closed)
            self._stored_bytes = _append(self._path, lines)
        for episode in complete:
            del self._open[episode.episode_id]
            for decision in episode.steps:
                self._of_decision.pop(decision, None)
        self.closed += closed
        self._closed_ids.update(episode.episode_id for episode in closed)
        timeout_s = contract.episodes.timeout_s
        self._older = {name: at for name, at in self._older.items() if at + timeout_s >= as_of}
        resume = dict(self._offsets)
        for places in {id(e.resume): e.resume for e in self._open.values()}.values():
            # Files that were not there yet when it began are read from their beginning.
            resume = {key: min(end, places.get(key, 0)) for key, end in resume.items()}
        write_durably(self._path.with_suffix(".json"), json.dumps({"resume": resume, "older": self._older}))


def evidence_folder(root: Path) -> Path:
    """Where a workspace keeps the evidence of its canaries."""
    return root / "serving" / "canary_evidence"


def _key(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _records(path: Path) -> list[dict[str, Any]]:
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def _append(path: Path, lines: bytes) -> int:
    """Adds whole lines, through to the disk, in place of one that a kill cut off; returns the size of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - (1 << 20)))
        tail = file.read()
        file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())
        return file.seek(0, 2)
