"""What an exclusion means for what was made before it: snapshots that hold its episodes, and releases that learned
from them or were judged on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from datasets.duck import duck, literal
from datasets.exclusions import Exclusion, excluded_episodes_sql, read_exclusions
from datasets.replay import SPLIT_NAMES
from datasets.snapshot import (
    DESCRIPTION,
    EPISODES,
    ErasedSnapshotError,
    SnapshotError,
    current_snapshot,
    fetch_episodes,
)
from pipelines.workspace import Workspace


@dataclass(frozen=True)
class Tainted:
    """A release whose snapshot holds episodes that are excluded now, or may have held some.

    Attributes:
        snapshot: the one that it was trained on, by its own name, also where an erasure left another in its place.
        episodes: how many by split; those of "train" taught it, those of "select" and "gate" judged it.
        rules: their names; all that matter where it cannot be told.
        is_champion: whether it is in charge.
        unknown: why it cannot be told, since the snapshot is gone; "" where it is known.
    """

    release: int
    snapshot: str
    episodes: Mapping[str, int]
    rules: tuple[str, ...]
    is_champion: bool = False
    unknown: str = ""

    @property
    def in_words(self) -> str:
        """A clause: "240 episodes that taught it and 210 that judged it are excluded since, by x1"."""
        if self.unknown:
            return (
                f"whether episodes that taught or judged it are excluded since, by {', '.join(self.rules)}, cannot be "
                f"told: {self.unknown}"
            )
        taught = self.episodes.get("train", 0)
        judged = sum(self.episodes.values()) - taught
        return (
            f"{taught:,} episodes that taught it and {judged:,} that judged it are excluded since, by "
            f"{', '.join(self.rules)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "rules": list(self.rules), "episodes": dict(self.episodes)}


def tainted_releases(workspace: Workspace, rules: Sequence[Exclusion] | None = None) -> list[Tainted]:
    """Every release whose snapshot holds excluded episodes or is gone, in order.

    Args:
        rules: those that matter; by default all that stand.
    """
    found = read_exclusions(workspace.open_lake()) if rules is None else rules
    champion = workspace.registry.champion()
    known: dict[str, Tainted | None] = {}
    tainted = []
    for release in workspace.releases_on_disk() if found else ():
        snapshot = _snapshot_name(workspace, release)
        if snapshot is None:
            continue
        if snapshot not in known:
            known[snapshot] = _taint(workspace, snapshot, found)
        taint = known[snapshot]
        if taint is not None:
            tainted.append(replace(taint, release=release, is_champion=release == champion))
    return tainted


@dataclass(frozen=True)
class Aged:
    """A release whose snapshot holds episodes that have left the lake since: no rule can mean them any more.

    Attributes:
        n_aged: episodes of it that the lake no longer has, such as by `[retention]`.
        n_episodes: of the snapshot.
    """

    release: int
    n_aged: int
    n_episodes: int

    @property
    def in_words(self) -> str:
        """A clause: "120 of the 2,000 episodes of its snapshot have left the lake since"."""
        return f"{self.n_aged:,} of the {self.n_episodes:,} episodes of its snapshot have left the lake since"


def aged_releases(workspace: Workspace) -> list[Aged]:
    """Every release of which an exclusion cannot tell wholly whether it rests on what is meant, in order.

    Where the snapshot is gone itself, `tainted_releases` says so.
    """
    snapshots = {release: _snapshot_name(workspace, release) for release in workspace.releases_on_disk()}
    n_aged = _n_aged(workspace, sorted({name for name in snapshots.values() if name is not None}))
    return [Aged(release, *n_aged[name]) for release, name in snapshots.items() if name in n_aged]


def _n_aged(workspace: Workspace, snapshots: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Of each snapshot that holds some: episodes that the lake no longer has, and all of them. Scans the lake once."""
    tables: dict[str, Path] = {}
    for snapshot in snapshots:
        with suppress(SnapshotError):
            tables[snapshot] = _episodes_of(workspace.snapshots_path / snapshot)
    if not tables:
        return {}
    held = " UNION ALL ".join(
        f"SELECT {literal(snapshot)} AS snapshot, episode_id FROM read_parquet({literal(str(table))})"
        for snapshot, table in tables.items()
    )
    steps = workspace.open_lake().scans(("steps",))["steps"]
    with duck() as connection:
        rows = connection.execute(
            f"""SELECT snapshot, count(*) FILTER (l.episode_id IS NULL) AS n_aged, count(*) FROM ({held}) s
            LEFT JOIN (SELECT DISTINCT episode_id FROM {steps}) l USING (episode_id) GROUP BY ALL HAVING n_aged > 0"""
        ).fetchall()
    return {snapshot: (n_aged, n_episodes) for snapshot, n_aged, n_episodes in rows}


def taint_of(workspace: Workspace, release: int) -> Tainted | None:
    """What is excluded of a release's own snapshot; None where nothing is, or where it was not trained here."""
    snapshot = _snapshot_name(workspace, release)
    taint = taint_of_snapshot(workspace, snapshot) if snapshot is not None else None
    if taint is None:
        return None
    return replace(taint, release=release, is_champion=release == workspace.registry.champion())


def taint_of_snapshot(workspace: Workspace, snapshot: str) -> Tainted | None:
    """The same of a snapshot by the name of its folder, for whoever would learn from what it taught."""
    rules = read_exclusions(workspace.open_lake())
    return _taint(workspace, snapshot, rules) if rules else None


def _snapshot_name(workspace: Workspace, release: int) -> str | None:
    path = workspace.release_path(release) / "training.json"
    return str(json.loads(path.read_text(encoding="utf-8"))["snapshot"]) if path.exists() else None


def _taint(workspace: Workspace, snapshot: str, rules: Sequence[Exclusion]) -> Tainted | None:
    """Of a snapshot, under one rule at least; the release is filled in by who knows it."""
    try:
        table = _episodes_of(workspace.snapshots_path / snapshot)
    except SnapshotError as error:
        gone = f"an erasure left nothing of its snapshot {snapshot}" if isinstance(error, ErasedSnapshotError) else ""
        return Tainted(-1, snapshot, {}, tuple(rule.name for rule in rules), unknown=gone or str(error).rstrip("."))
    episodes, names = _excluded_in(workspace, table, rules)
    return Tainted(-1, snapshot, episodes, names) if episodes else None


def _episodes_of(folder: Path) -> Path:
    """The table of episodes of what stands for a snapshot now, fetched where it lies in a bucket.

    Raises:
        SnapshotError: it is gone, or cannot be read.
        ObjectStoreError: the bucket cannot be asked.
    """
    path = current_snapshot(folder)
    if not (path / DESCRIPTION).exists():
        raise SnapshotError(f"its snapshot {path.name} is gone")
    try:
        fetch_episodes(path)
    except ErasedSnapshotError:  # on another machine, a moment ago; its mark is here now
        return _episodes_of(path)
    if not (path / EPISODES).exists():
        raise SnapshotError(f"{EPISODES} of its snapshot {path.name} is missing")
    return path / EPISODES


def _excluded_in(
    workspace: Workspace, table: Path, rules: Sequence[Exclusion]
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Excluded episodes among those of a snapshot by split, and the rules."""
    tables = workspace.open_lake().scans(("steps", "outcomes", "quarantine"))
    excluded = excluded_episodes_sql(tables["steps"], tables["outcomes"], tables["quarantine"], rules)
    with duck() as connection:
        rows = connection.execute(
            f"""SELECT split, excluded, count(*) FROM read_parquet({literal(str(table))})
            JOIN ({excluded}) USING (episode_id) GROUP BY ALL"""
        ).fetchall()
    episodes: dict[str, int] = {}
    for split, _, n in sorted(rows):
        episodes[SPLIT_NAMES[split]] = episodes.get(SPLIT_NAMES[split], 0) + n
    return episodes, tuple(sorted({name for _, names, _ in rows for name in names.split(", ")}))
