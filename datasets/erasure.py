"""Erasure: a subject's rows leave the lake, its history, held batches and snapshots, and never come back.

What is to go is written down first; each part of the work can be repeated; the note goes last. So an erasure that was
cut off anywhere is finished by the next one, and its subject is refused from the first moment on.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from datasets.batches import commit_batch, list_batches
from datasets.contract import Contract
from datasets.data_docs import docs_folder
from datasets.duck import duck, literal
from datasets.durable import write_durably
from datasets.erased import DECISION, EPISODE, KEY, remember_erased
from datasets.errors import OfflineDqnError
from datasets.lake import Lake, changing, lake_lock, until_committed
from datasets.privacy import SEALED, PrivacyError, PrivacyKey
from datasets.redaction import redact_snapshot
from datasets.rewriting import Rewrite, held_files, rewrite_held, rewrite_rows
from datasets.snapshot import DESCRIPTION, EPISODES, ErasedSnapshotError, current_snapshot, fetch_episodes
from datasets.snapshot_bucket import pull_snapshots
from datasets.snapshot_writer import new_snapshot
from datasets.tables import scan_files

_INTENT = "_erasing.json"
_ROWS = ("steps", "outcomes", "quarantine")

Place = tuple[str, str, int]
"""Batch, source and line of a quarantined row."""

Traces = Callable[[Iterable[str], Iterable[str]], None]
"""Takes a subject's names out of what was made from the lake: its names in the lake, and the snapshots that held it."""


class ErasureError(OfflineDqnError):
    """A subject that cannot be named so."""


@dataclass(frozen=True)
class Subject:
    """Who is to be erased.

    Attributes:
        column: "" for an episode, else the hashed column of the log that names the subject.
        stored: the values that stand for it in the lake.
        plain: as it was given; looked for in text that could not be parsed.
    """

    column: str
    stored: tuple[str, ...]
    plain: str


@dataclass(frozen=True)
class Erasure:
    """What was erased, or would be.

    Attributes:
        episodes: the subject's episodes, whole: also those that only some of its rows name.
        n_rows: rows by table; "held" are those of batches that wait for a person.
        snapshots: name of each that held such episodes, with the name of what stands for it now; None where nothing
            is left of it, or where nothing was done yet.
        sources: log files that the rows came from, as the lake calls them.
    """

    episodes: tuple[str, ...]
    n_rows: dict[str, int]
    snapshots: dict[str, str | None]
    sources: tuple[str, ...]


def named_subject(contract: Contract, key: PrivacyKey | None, *, episode: str | None, named: str | None) -> Subject:
    """The subject that a command names: an episode's id, or `named` as COLUMN=VALUE.

    An episode id is taken as the log has it or, where the contract hashes it, also as the lake has it.

    Raises:
        ErasureError: neither or both are given, or COLUMN is not among `privacy.hash`.
    """
    if (episode is None) == (named is None):
        raise ErasureError("Name an episode (--episode ID) or a key (--key COLUMN=VALUE), one of them.")
    if episode is not None:
        hashed = (key.hash(episode),) if key is not None and "episode_id" in contract.hashed_columns else ()
        return Subject("", (episode, *hashed), episode)
    column, _, value = (named or "").partition("=")
    if key is None or column not in contract.privacy.hash or not value:
        known = ", ".join(contract.privacy.hash) or "there are none, its privacy.hash is empty"
        raise ErasureError(
            f"'{column}' is no key by which rows can be found. Wanted is --key COLUMN=VALUE with a column that the "
            f"contract hashes ({known}); single episodes go with --episode ID."
        )
    return Subject(column, (key.hash(value),), value)


def erase_subject(
    lake: Lake,
    subject: Subject,
    key: PrivacyKey | None,
    snapshots_path: Path,
    *,
    at: datetime,
    dry_run: bool = False,
    traces: Traces | None = None,
) -> Erasure:
    """Erases everything that the lake, its held batches and the snapshots hold of a subject, and remembers it by hash.

    Killed anywhere, it is finished by the next erasure or by `finish_erasure`. A subject of which nothing is stored is
    remembered all the same: its rows may come yet.

    Args:
        dry_run: only say what would go.
        traces: called last, also for an erasure that was cut off before; while it fails, the erasure is unfinished.

    Raises:
        LakeError: the disk is full; says how the lake stands. Repeat the command then.
        SnapshotError: a snapshot cannot be written; the erasure is finished when it is repeated.
    """
    found: Erasure | None = None

    def erase() -> Erasure:
        nonlocal found
        with lake_lock(lake):
            if not dry_run:
                _finish(lake, snapshots_path, traces)
            with changing(lake):
                lake.finish_commit()
                here, intent = _find(lake, subject, key, snapshots_path)
                # Another machine may have been faster: then what was found before has gone by now, or just above.
                found = here if found is None else _together(found, here)
                if dry_run:
                    return found
                write_durably(lake.root / _INTENT, json.dumps({**intent, "at": at.isoformat()}))
            _finish(lake, snapshots_path, traces)
        return found

    erased = until_committed(erase)
    if dry_run:
        return erased
    return replace(erased, snapshots={name: _successor(snapshots_path / name) for name in erased.snapshots})


def _together(before: Erasure, after: Erasure) -> Erasure:
    return Erasure(
        episodes=tuple(sorted({*before.episodes, *after.episodes})),
        n_rows={table: before.n_rows[table] + n for table, n in after.n_rows.items()},
        snapshots={**before.snapshots, **after.snapshots},
        sources=tuple(sorted({*before.sources, *after.sources})),
    )


def finish_erasure(lake: Lake, snapshots_path: Path, *, traces: Traces | None = None) -> bool:
    """Finishes an erasure that was cut off; returns whether there was one. `traces` as for `erase_subject`."""
    if not (lake.root / _INTENT).exists():
        return False

    def finish() -> bool:
        with lake_lock(lake):
            _finish(lake, snapshots_path, traces)
        return True

    return until_committed(finish)


# --- what there is of a subject


def _find(lake: Lake, subject: Subject, key: PrivacyKey | None, snapshots_path: Path) -> tuple[Erasure, dict[str, Any]]:
    with duck() as connection:

        def asked(sql: str) -> list[Any]:
            return connection.execute(sql).fetchall()

        stored = {table: [lake.scan(table)] for table in _ROWS}
        held = {table: list(_held_scans(lake, table)) for table in _ROWS}
        every = {table: stored[table] + held[table] for table in _ROWS}
        bad = {place: episode for scan in every["quarantine"] for place, episode in _naming(asked, scan, subject, key)}
        if subject.column:
            episodes = {episode for episode in bad.values() if episode is not None}
            condition = f'keys."{subject.column}" = {literal(subject.stored[0])}'
            episodes |= _values(asked, "episode_id", every["steps"], condition)
        else:
            episodes = set(subject.stored)
        meant = _among("episode_id", episodes)
        decisions = _values(asked, "decision_id", every["steps"], f"{meant} AND decision_id IS NOT NULL")
        quarantined = _values(asked, "decision_id", every["quarantine"], f"{meant} OR {_at_places(bad)}")
        # A bad row may name a decision of somebody else: that stays with the step that has it.
        others = f"NOT ({meant}) AND {_among('decision_id', quarantined)}"
        decisions |= quarantined - _values(asked, "decision_id", every["steps"], others)
        conditions = {"steps": meant, "outcomes": _among("decision_id", decisions)}
        conditions["quarantine"] = f"{meant} OR {conditions['outcomes']} OR {_at_places(bad)}"
        n_rows = {table: _n_rows(asked, stored[table], conditions[table]) for table in _ROWS}
        n_rows["held"] = sum(_n_rows(asked, held[table], conditions[table]) for table in _ROWS)
        sources = {s for table in _ROWS for s in _values(asked, "source", every[table], conditions[table])}
        snapshots = [path.name for path in _snapshots(snapshots_path) if _holds(asked, path, meant)]
        stored_episodes = _values(asked, "episode_id", [*every["steps"], *every["quarantine"]], meant)
    found = Erasure(tuple(sorted(stored_episodes)), n_rows, dict.fromkeys(snapshots), tuple(sorted(sources)))
    intent = {
        "keys": list(subject.stored) if subject.column else [],
        "episodes": sorted(episodes),
        "decisions": sorted(decisions),
        "places": sorted(bad),
        "snapshots": snapshots,
    }
    return found, intent


def _naming(
    asked: Callable[[str], list[Any]], quarantine: str, subject: Subject, key: PrivacyKey | None
) -> Iterator[tuple[Place, str | None]]:
    """Quarantined rows whose text names the subject, with their episode."""
    sought = list(subject.stored)
    if not subject.column:  # an id that is not hashed stands there as it is, or as JSON writes it
        sought += [subject.plain, json.dumps(subject.plain)[1:-1]]
    contains = " OR ".join(f"contains(raw, {literal(text)})" for text in [*sought, SEALED])
    pattern = word_pattern([*sought, subject.plain, json.dumps(subject.plain)[1:-1]])
    rows = asked(f"SELECT batch_id, source, source_line, episode_id, raw FROM {quarantine} WHERE {contains}")
    for batch_id, source, line, episode, raw in rows:
        if pattern.search(_opened(raw, key)):
            yield (batch_id, source, line), episode


def word_pattern(texts: Iterable[str]) -> re.Pattern[str]:
    """Finds each text where it stands as a word of its own: "e-1" neither in "e-12" nor in "the-1"."""
    listed = "|".join(re.escape(text) for text in dict.fromkeys(texts))
    return re.compile(rf"(?<![\w\-])(?:{listed})(?![\w\-])")


def _opened(raw: str, key: PrivacyKey | None) -> str:
    if key is None or not raw.startswith(SEALED):
        return raw
    try:
        return key.unseal(raw)
    except PrivacyError:
        return ""  # changed since it was sealed: nobody can read it, and it is purged in time


def _values(asked: Callable[[str], list[Any]], column: str, scans: Iterable[str], condition: str) -> set[str]:
    found = (row for scan in scans for row in asked(f"SELECT DISTINCT {column} FROM {scan} WHERE {condition}"))
    return {value for (value,) in found if value is not None}


def _n_rows(asked: Callable[[str], list[Any]], scans: Iterable[str], condition: str) -> int:
    return sum(asked(f"SELECT count(*) FROM {scan} WHERE {condition}")[0][0] for scan in scans)


def _among(column: str, values: Iterable[str]) -> str:
    listed = ", ".join(literal(value) for value in sorted(values))
    return f"{column} IN ({listed})" if listed else "false"


def _at_places(places: Iterable[Place]) -> str:
    listed = ", ".join(f"({literal(batch)}, {literal(source)}, {line})" for batch, source, line in sorted(places))
    return f"(batch_id, source, source_line) IN ({listed})" if listed else "false"


def _held_scans(lake: Lake, table: str) -> Iterator[str]:
    for batch in sorted(lake.held_path.iterdir()) if lake.held_path.exists() else []:
        files = held_files(batch, table)
        if files:
            yield scan_files(map(str, files), by_date=False)


def _snapshots(folder: Path) -> list[Path]:
    pull_snapshots(folder)  # what others have frozen
    found = sorted(path.parent for path in folder.glob(f"*/{DESCRIPTION}"))
    for path in found:
        fetch_episodes(path)
    return found


def _holds(asked: Callable[[str], list[Any]], snapshot: Path, meant: str) -> bool:
    path = snapshot / EPISODES
    return path.exists() and bool(asked(f"SELECT 1 FROM read_parquet({literal(str(path))}) WHERE {meant} LIMIT 1"))


# --- taking it out


def _finish(lake: Lake, snapshots_path: Path, traces: Traces | None) -> None:
    """Carries an intent out, from wherever it stopped. The caller holds the lake's lock."""
    path = lake.root / _INTENT
    if not path.exists():
        return
    intent = json.loads(path.read_text(encoding="utf-8"))
    with changing(lake):
        lake.finish_commit()
        _take_out(lake, snapshots_path, intent)
    if traces is not None:
        traces([*intent["keys"], *intent["episodes"]], intent["snapshots"])
    path.unlink()


def _take_out(lake: Lake, snapshots_path: Path, intent: Mapping[str, Any]) -> None:
    at = datetime.fromisoformat(intent["at"])
    remember_erased(lake.root, {EPISODE: intent["episodes"], DECISION: intent["decisions"], KEY: intent["keys"]}, at=at)
    meant, decided = _among("episode_id", intent["episodes"]), _among("decision_id", intent["decisions"])
    places = _at_places((batch, source, line) for batch, source, line in intent["places"])
    rewrites = {
        "steps": Rewrite(meant),
        "outcomes": Rewrite(decided),
        "quarantine": Rewrite(f"{meant} OR {decided} OR {places}"),
    }
    rewrite_held(lake, rewrites)
    _correct_held_accounts(lake)
    # A table without such a row may have had one: a replay takes rows out of quarantine, and its former files still lie
    # there, and on every machine with a copy, until the next vacuum. So all of them are purged, everywhere.
    if not any(rewrite_rows(lake, rewrites, reason="erased", at=at, purge=True).values()):
        lake.commit({}, purge=tuple(rewrites))
    # The index holds hashes of identities, those of erased rows among them; it is made anew from the lake.
    shutil.rmtree(lake.root / "_identities", ignore_errors=True)
    (lake.root / "validation.json").unlink(missing_ok=True)  # of the lake as it was; `validate` makes it anew
    shutil.rmtree(docs_folder(lake), ignore_errors=True)  # pages are made again when they are asked for
    _redact_snapshots(snapshots_path, intent["episodes"], meant, at)


def _correct_held_accounts(lake: Lake) -> None:
    """Counts what is left of each held batch: what is missing was erased, now or by an erasure that was cut off."""
    for batch in (batch for batch in list_batches(lake) if batch.status == "held"):
        files = [f for table in _ROWS for f in held_files(lake.held_path / batch.batch_id, table)]
        n_held = 0
        if files:
            with duck() as connection:
                listed = ", ".join(literal(str(file)) for file in files)
                query = f"SELECT sum(num_rows)::BIGINT FROM parquet_file_metadata([{listed}])"
                n_held = int(connection.execute(query).fetchall()[0][0])
        n_gone = batch.counts.n_held - n_held
        if n_gone:
            counts = replace(batch.counts, n_held=n_held, n_erased=batch.counts.n_erased + n_gone)
            folder = lake.staging_path / f"{batch.batch_id}-erased"
            commit_batch(lake, replace(batch, counts=counts), [], {}, folder)
            shutil.rmtree(lake.staging_path, ignore_errors=True)


def _redact_snapshots(folder: Path, episodes: Iterable[str], meant: str, at: datetime) -> None:
    if not folder.is_dir():
        return
    with new_snapshot(folder):
        pass  # waits for a snapshot that is being frozen from what the lake was
    with duck() as connection:
        holding = [p for p in _snapshots(folder) if _holds(lambda sql: connection.execute(sql).fetchall(), p, meant)]
    for path in holding:
        redact_snapshot(path, set(episodes), at=at)


def _successor(path: Path) -> str | None:
    try:
        return current_snapshot(path).name
    except ErasedSnapshotError:
        return None
