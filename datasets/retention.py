"""Retention: rows that are older than configured leave the lake, and the account of their batches says so.

Episodes go whole: a step stays as long as its episode has one that is young enough, since an episode without its
beginning would look damaged. A quarantined row stays as long as its episode, too, because it is what marks the episode
as damaged; only its text goes earlier.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import Field

from datasets.duck import duck, literal
from datasets.lake import Lake, changing, lake_lock, until_committed
from datasets.privacy import SEALED
from datasets.rewriting import Rewrite, rewrite_held, rewrite_rows
from datasets.settings import Settings
from datasets.tables import scan_files


class RetentionConfig(Settings):
    """How long things are kept. What a champion or a candidate rests on is kept whatever its age."""

    steps_days: int | None = Field(None, ge=1)
    """Days after which the steps of an episode leave the lake, counted from its last night, with the outcomes and the
    quarantined rows that belong to them; null keeps them for ever."""
    quarantine_days: int | None = Field(None, ge=1)
    """Days after which the raw text of a quarantined row is emptied; its place and its reason stay. Text that could
    not be redacted goes after the contract's `privacy.raw_days` in any case."""
    versions_hours: int = Field(24, ge=1)
    """Hours for which files stay on the disk that are no longer part of the lake, for readers that have them open."""
    pinned_days: int = Field(30, ge=0)
    """Days for which the versions of the lake can still be opened that the champion's snapshot was frozen from."""
    snapshot_days: int | None = Field(None, ge=1)
    """Days after which a snapshot is removed that no champion, former champion or candidate was trained on; null keeps
    them for ever."""


def aged_rows(lake: Lake, config: RetentionConfig, *, as_of: datetime) -> dict[str, Rewrite]:
    """The rows that are too old at `as_of`, by table."""
    if config.steps_days is None:
        return {}
    first_kept = as_of.astimezone(UTC).date() - timedelta(days=config.steps_days)
    kept = f"SELECT episode_id FROM {lake.scan('steps')} WHERE log_date >= DATE '{first_kept}'"
    before = f"TIMESTAMPTZ {literal(f'{first_kept} 00:00:00+00')}"
    awaiting = f"SELECT decision_id FROM {lake.scan('steps')} WHERE decision_id IS NOT NULL AND episode_id IN ({kept})"
    return {
        "steps": Rewrite(f"log_date < DATE '{first_kept}' AND episode_id NOT IN ({kept})"),
        "outcomes": Rewrite(f"timestamp < {before} AND decision_id NOT IN ({awaiting})"),
        "quarantine": Rewrite(
            f"quarantined_at < {before} AND (episode_id IS NULL OR episode_id NOT IN ({kept}))",
        ),
    }


def aged_texts(lake: Lake, config: RetentionConfig, *, at: datetime) -> Rewrite:
    """The quarantined rows whose raw text is too old at `at`, with that text emptied; for held batches, too."""
    sealed_before = at - timedelta(days=lake.contract.privacy.raw_days)
    aged = f"starts_with(raw, {literal(SEALED)}) AND quarantined_at < TIMESTAMPTZ {literal(sealed_before.isoformat())}"
    if config.quarantine_days is not None:
        before = at - timedelta(days=config.quarantine_days)
        aged += f" OR raw IS NOT NULL AND quarantined_at < TIMESTAMPTZ {literal(before.isoformat())}"
    return Rewrite(aged, {"raw": "NULL"})


def retire_rows(
    lake: Lake, config: RetentionConfig, *, as_of: datetime, at: datetime, dry_run: bool = False
) -> dict[str, int]:
    """Removes the rows, and empties the raw texts, that are older than configured.

    The rows stay in older versions of the lake until those are vacuumed; the texts are gone from the disk at once.

    Args:
        as_of: what the age of rows is counted from.
        at: the clock: what the age of quarantined texts is counted from, and what is recorded with removed rows.
        dry_run: only count them.

    Returns:
        How many, by table; "raw text" for the texts.

    Raises:
        LakeError: the disk is full or the memory too small.
    """
    if dry_run:
        aged = aged_texts(lake, config, at=at)
        n_texts = _count(lake, {"quarantine": aged})["quarantine"] + _count_held(lake, aged)
        return {**_count(lake, aged_rows(lake, config, as_of=as_of)), "raw text": n_texts}
    return until_committed(lambda: _retire_once(lake, config, as_of=as_of, at=at))


def _retire_once(lake: Lake, config: RetentionConfig, *, as_of: datetime, at: datetime) -> dict[str, int]:
    with lake_lock(lake), changing(lake, "the removal of old rows"):
        lake.finish_commit()
        reason = f"older than {config.steps_days} days"
        rows = aged_rows(lake, config, as_of=as_of)
        n_rows = rewrite_rows(lake, rows, reason=reason, at=at) if rows else {}
        texts = {"quarantine": aged_texts(lake, config, at=at)}
        n_held = sum(by_table["quarantine"] for by_table in rewrite_held(lake, texts).values())
        emptied = rewrite_rows(lake, texts, reason="", at=at, purge=True)
        return {**n_rows, "raw text": emptied["quarantine"] + n_held}


def _count(lake: Lake, rewrites: Mapping[str, Rewrite]) -> dict[str, int]:
    counted: dict[str, int] = {}
    with duck() as connection:
        for table, rewrite in rewrites.items():
            found: Any = connection.execute(
                f"SELECT count(*) FROM {lake.scan(table)} WHERE ({rewrite.where}) IS TRUE"
            ).fetchone()
            counted[table] = int(found[0])
    return counted


def _count_held(lake: Lake, rewrite: Rewrite) -> int:
    files = sorted(str(path) for path in lake.held_path.glob("*/quarantine.parquet"))
    if not files:
        return 0
    with duck() as connection:
        scanned = scan_files(files, by_date=False)
        found: Any = connection.execute(f"SELECT count(*) FROM {scanned} WHERE ({rewrite.where}) IS TRUE").fetchone()
    return int(found[0])
