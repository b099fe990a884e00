"""What an exclusion means for what was made before it: snapshots that hold its episodes, and releases that learned
from them or were judged on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets.duck import duck, literal
from datasets.exclusions import Exclusion, excluded_episodes_sql, read_exclusions
from datasets.replay import SPLIT_NAMES
from datasets.snapshot import DESCRIPTION, EPISODES
from pipelines.workspace import Workspace


@dataclass(frozen=True)
class Tainted:
    """A release whose snapshot holds episodes that are excluded now.

    Attributes:
        episodes: how many by split; those of "train" taught it, those of "select" and "gate" judged it.
        rules: their names.
        is_champion: whether it is in charge.
    """

    release: int
    snapshot: str
    episodes: Mapping[str, int]
    rules: tuple[str, ...]
    is_champion: bool = False

    @property
    def in_words(self) -> str:
        """A clause: "240 episodes that taught it and 210 that judged it are excluded since, by x1"."""
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
    """Every release whose snapshot holds excluded episodes, in order.

    Args:
        rules: those that matter; by default all that stand.
    """
    found = read_exclusions(workspace.open_lake()) if rules is None else rules
    champion = workspace.registry.champion()
    known: dict[str, tuple[Mapping[str, int], tuple[str, ...]]] = {}
    tainted = []
    for release in workspace.releases_on_disk() if found else ():
        snapshot = _snapshot_name(workspace, release)
        if snapshot is None:
            continue
        if snapshot not in known:
            known[snapshot] = _excluded_in(workspace, workspace.snapshots_path / snapshot, found)
        episodes, names = known[snapshot]
        if episodes:
            tainted.append(Tainted(release, snapshot, episodes, names, release == champion))
    return tainted


def taint_of(workspace: Workspace, release: int) -> Tainted | None:
    """What is excluded of a release's own snapshot; None where nothing is, or where it was not trained here."""
    rules = read_exclusions(workspace.open_lake())
    snapshot = _snapshot_name(workspace, release) if rules else None
    if snapshot is None:
        return None
    episodes, names = _excluded_in(workspace, workspace.snapshots_path / snapshot, rules)
    return Tainted(release, snapshot, episodes, names, release == workspace.registry.champion()) if episodes else None


def taint_of_snapshot(workspace: Workspace, snapshot: str) -> Tainted | None:
    """The same of a snapshot by the name of its folder, for whoever would learn from what it taught."""
    rules = read_exclusions(workspace.open_lake())
    episodes, names = _excluded_in(workspace, workspace.snapshots_path / snapshot, rules) if rules else ({}, ())
    return Tainted(-1, snapshot, episodes, names) if episodes else None


def _snapshot_name(workspace: Workspace, release: int) -> str | None:
    path = workspace.release_path(release) / "training.json"
    return str(json.loads(path.read_text(encoding="utf-8"))["snapshot"]) if path.exists() else None


def _excluded_in(
    workspace: Workspace, folder: Path, rules: Sequence[Exclusion]
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Excluded episodes of a snapshot by split, and the rules; nothing of one that is gone."""
    if not (folder / DESCRIPTION).exists():
        return {}, ()
    tables = workspace.open_lake().scans(("steps", "outcomes", "quarantine"))
    excluded = excluded_episodes_sql(tables["steps"], tables["outcomes"], tables["quarantine"], rules)
    with duck() as connection:
        rows = connection.execute(
            f"""SELECT split, excluded, count(*) FROM read_parquet({literal(str(folder / EPISODES))})
            JOIN ({excluded}) USING (episode_id) GROUP BY ALL"""
        ).fetchall()
    episodes: dict[str, int] = {}
    for split, _, n in sorted(rows):
        episodes[SPLIT_NAMES[split]] = episodes.get(SPLIT_NAMES[split], 0) + n
    return episodes, tuple(sorted({name for _, names, _ in rows for name in names.split(", ")}))
