"""Which episodes train, select and judge, the same for the life of a workspace."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.contract import Contract
from datasets.replay import GATE, SELECT, TRAIN
from datasets.snapshot import SnapshotError
from datasets.snapshot_bucket import replace_shared_text, shared_text
from datasets.snapshot_config import SnapshotConfig

TOO_NEW = -1
"""In place of a split: the episode's night is not closed, so it cannot judge yet, and must not train before it has."""

SPLITS = "splits.json"
"""What the snapshots beside it have fixed."""


def split_of(cluster: str, salt: str, config: SnapshotConfig) -> int:
    """TRAIN, SELECT or GATE, from a salted 128-bit hash of the cluster: the same for the life of a workspace.

    Where the latest nights judge, all of the hash goes to TRAIN and SELECT, in the ratio of their shares.
    """
    digest = hashlib.sha256(f"{salt}\x00{cluster}".encode()).digest()[:16]
    place = int.from_bytes(digest, "big") / 2**128
    if config.gate == "latest_nights":
        place *= config.train_share + config.select_share
    if place < config.train_share:
        return TRAIN
    return SELECT if place < config.train_share + config.select_share else GATE


@dataclass(frozen=True)
class GateNights:
    """The nights that judge where `gate` is the latest nights, both inclusive.

    Days are counted from the calendar, not from the data, so that the window only ever moves forward with `as_of`,
    whatever arrives late or is erased. Everything that starts in it judges; what starts before is divided between
    `train` and `select`; what starts after is left out, because later it will judge. An episode so goes from gate to
    train as nights pass, never back: a policy may learn from nights that judged its predecessors, and is itself judged
    on nights that began after everything it learned from. Clusters may go on through both: the gate then asks how the
    policy does by the same clusters later, which is what it will meet.
    """

    first: date
    last: date


def gate_nights(config: SnapshotConfig, last_night: date) -> GateNights | None:
    """The window that ends with `last_night`; None where the hash decides."""
    if config.gate == "hash":
        return None
    return GateNights(last_night - timedelta(days=config.gate_nights - 1), last_night)


def last_night_over(contract: Contract, as_of: datetime, *, whole_nights: bool) -> date:
    """The newest night whose every episode has ended or timed out at `as_of`, and awaits no outcomes any more.

    Args:
        whole_nights: logs come in whole nights, as simulated and back-filled ones do: the one of `as_of` is over.
    """
    instant = as_of.astimezone(UTC)
    if whole_nights and contract.outcomes is None:  # the windows of such a night are open until later rows come in
        return instant.date()
    window_s = contract.outcomes.window_s if contract.outcomes is not None else 0.0
    return (instant - timedelta(seconds=contract.episodes.timeout_s + window_s)).date() - timedelta(days=1)


def split_episodes(
    clusters: Sequence[str],
    cluster_of_episode: NDArray[Any],
    nights: NDArray[np.datetime64],
    open_nights: NDArray[np.datetime64],
    salt: str,
    config: SnapshotConfig,
    judges: GateNights | None,
) -> NDArray[np.int8]:
    """(N,) TRAIN, SELECT, GATE or TOO_NEW of each episode.

    Args:
        clusters: their names; `cluster_of_episode` (N,) indexes them.
        nights: (N,) datetime64[D], on which the episode started.
        open_nights: nights of which an episode is still going on. They do not judge yet: their long episodes are
            missing (an old one trains all the same).
        judges: the nights of `gate`; None where the hash decides.
    """
    by_cluster = np.array([split_of(name, salt, config) for name in clusters], dtype=np.int8)
    split: NDArray[np.int8] = by_cluster[cluster_of_episode]
    if judges is None:
        return split
    recent = nights >= np.datetime64(judges.first)
    closed = (nights <= np.datetime64(judges.last)) & ~np.isin(nights, open_nights)
    return np.where(recent, np.where(closed, GATE, TOO_NEW), split).astype(np.int8)


def gate_share(config: SnapshotConfig, n_nights: int) -> float:
    """Share of episodes that judges, when a log holds `n_nights` nights."""
    if config.gate == "hash":
        return 1 - config.train_share - config.select_share
    return min(1.0, config.gate_nights / max(1, n_nights))


@dataclass(frozen=True)
class SplitLedger:
    """What the snapshots of a workspace have fixed so far, in `splits.json` beside them.

    Attributes:
        rule: salt, shares and kind of gate.
        trained_until: where the latest nights judge, the newest night that has been train or select.
    """

    rule: dict[str, Any]
    trained_until: date | None

    def check(self, other: SplitLedger, judges: GateNights | None, where: str) -> None:
        """Refuses a snapshot that `other` describes where it would let an episode judge that has trained.

        Raises:
            SnapshotError: the rule has changed, or a night would judge that was train or select.
        """
        changed = {name: (was, other.rule[name]) for name, was in self.rule.items() if was != other.rule[name]}
        if changed:
            said = ", ".join(f"{name} was {was!r} and is {now!r}" for name, (was, now) in changed.items())
            raise SnapshotError(
                f"The splits of a workspace never change, and [snapshot] no longer is what split those in {where}: "
                f"{said}. Episodes that trained a policy would judge the next one. Set it back; or, if no release "
                f"rests on those snapshots, delete the folder {where} and begin anew."
            )
        if judges and self.trained_until and judges.first <= self.trained_until:
            raise SnapshotError(
                f"The nights {judges.first} to {judges.last} cannot judge: those up to {self.trained_until} have been "
                "trained or selected on by an earlier snapshot. Take a later --as-of, or lower snapshot.gate_nights "
                f"until it fits (now {(judges.last - judges.first).days + 1})."
            )

    def merged(self, other: SplitLedger) -> SplitLedger:
        """Both together."""
        known = [night for night in (self.trained_until, other.trained_until) if night]
        return replace(self, trained_until=max(known, default=None))

    def text(self) -> str:
        """As it lies beside the snapshots."""
        until = self.trained_until.isoformat() if self.trained_until else None
        return json.dumps({"rule": self.rule, "trained_until": until}, indent=1)


def split_rule(config: SnapshotConfig, contract: Contract) -> dict[str, Any]:
    """What must stay the same for the life of a workspace."""
    return {
        "salt": config.salt or contract.name,
        "train_share": config.train_share,
        "select_share": config.select_share,
        "gate": config.gate,
    }


def fix_splits(folder: Path, ledger: SplitLedger, judges: GateNights | None) -> None:
    """Adds what a new snapshot fixes to what those in `folder` have fixed, whichever machine has frozen them.

    Raises:
        SnapshotError: as `SplitLedger.check`, against what stands now; or it cannot be read.
    """
    while True:
        before, tag = _read_tagged(folder)
        if before is not None:
            before.check(ledger, judges, str(folder))
        fixed = ledger.merged(before) if before is not None else ledger
        if fixed == before or replace_shared_text(folder / SPLITS, fixed.text(), tag):
            return


def read_ledger(folder: Path) -> SplitLedger | None:
    """What the snapshots in `folder` have fixed; None before the first.

    Raises:
        SnapshotError: it cannot be read.
    """
    return _read_tagged(folder)[0]


def _read_tagged(folder: Path) -> tuple[SplitLedger | None, str | None]:
    path = folder / SPLITS
    try:
        text, tag = shared_text(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    return (ledger_from(text, path) if text is not None else None), tag


def ledger_from(text: str, where: object) -> SplitLedger:
    """What `SplitLedger.text` gave.

    Args:
        where: it lies, for a message.

    Raises:
        SnapshotError: it cannot be read.
    """
    try:
        written = json.loads(text)
        until = written["trained_until"]
        return SplitLedger(dict(written["rule"]), date.fromisoformat(until) if until else None)
    except (ValueError, LookupError, TypeError) as error:
        raise _unreadable(where, error) from error


def _unreadable(where: object, error: Exception) -> SnapshotError:
    return SnapshotError(
        f"{where} says how episodes are split, and cannot be read ({error}). Restore it from a backup."
    )
