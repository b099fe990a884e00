"""What a night left in a workspace, to be held against what an undisturbed one leaves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from datasets.batches import list_batches
from datasets.duck import duck
from datasets.lake import Lake
from pipelines.nights import read_nights
from pipelines.readings import ledger_of
from pipelines.workspace import Workspace

_OF_THE_INGEST = {
    "steps": ("batch_id", "source", "source_line"),
    "quarantine": ("batch_id", "source", "source_line", "file_digest", "header", "identity", "quarantined_at"),
}
"""Columns that tell which file and batch a row came by, which a log that is delivered twice may change."""

_UNFINISHED = ("night.json", "lake/_journal.json", "lake/_staging", "releases/.staging-*", "snapshots/.new")
"""What is there only while something is under way."""


@dataclass(frozen=True)
class Remains:
    """A workspace after its night.

    Attributes:
        rows: a digest of all rows by table, whatever their order, file and batch.
        n_rows: by table.
        lost, added: rows of the other workspace that are not here, and rows here that are not there.
        releases: numbers of the releases.
        policies: digest of each release's policy.
        n_readings: of `gate`, by release.
        n_nights: lines in nights.jsonl.
        wrong: what must not be, in words: an account that does not add up, a damaged release, work left unfinished.
    """

    rows: Mapping[str, str]
    n_rows: Mapping[str, int]
    lost: int
    added: int
    releases: tuple[int, ...]
    policies: Mapping[int, str]
    n_readings: Mapping[int, int]
    n_nights: int
    wrong: tuple[str, ...]


def look(workspace: Workspace, undisturbed: Path | None = None) -> Remains:
    """Reads a workspace whose night is over.

    Args:
        undisturbed: folder of the workspace it is held against; None counts no row as lost or added.
    """
    lake = workspace.open_lake()
    rows, n_rows = _digests(lake)
    lost, added = (0, 0) if undisturbed is None else _differing(lake, Lake(undisturbed / "lake", lake.contract))
    releases = tuple(workspace.releases_on_disk())
    readings = [release for reading in ledger_of(workspace).readings() for release in reading.releases]
    return Remains(
        rows=rows,
        n_rows=n_rows,
        lost=lost,
        added=added,
        releases=releases,
        policies={n: _policy(workspace.release_path(n)) for n in releases},
        n_readings={n: readings.count(n) for n in releases if n in readings},
        n_nights=len(read_nights(workspace.nights_path)),
        wrong=tuple(_wrong(workspace, lake)),
    )


def differences(found: Remains, wanted: Remains) -> list[str]:
    """What a repeated night left otherwise than an undisturbed one, in words; empty where it is the same."""
    said = [*found.wrong]
    if found.rows != wanted.rows:
        said.append(f"the lake differs: {found.lost:,} rows lost, {found.added:,} rows that should not be there")
    if found.releases != wanted.releases:
        said.append(f"releases are {_listed(found.releases)} and should be {_listed(wanted.releases)}")
    twice = [n for n, count in found.n_readings.items() if count > 1]
    if twice:
        said.append(f"`gate` was read more than once for release {_listed(twice)}")
    if found.n_nights < wanted.n_nights:
        said.append(f"nights.jsonl has {found.n_nights} lines and should have {wanted.n_nights}")
    return said


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def _columns(lake: Lake, table: str) -> str:
    left_out = ", ".join(_OF_THE_INGEST[table])
    with duck() as connection:
        known = [row[0] for row in connection.execute(f"DESCRIBE SELECT * FROM {lake.scan(table)}").fetchall()]
    kept = [f'"{column}"' for column in known if column not in left_out.split(", ")]
    return ", ".join(kept)


def _digests(lake: Lake) -> tuple[dict[str, str], dict[str, int]]:
    digests, counts = {}, {}
    scans = lake.scans(tuple(_OF_THE_INGEST))
    with duck() as connection:
        for table in _OF_THE_INGEST:
            found = connection.execute(
                f"SELECT md5(string_agg(row, '' ORDER BY row)), count(*) FROM "
                f"(SELECT md5(to_json(r)::VARCHAR) AS row FROM (SELECT {_columns(lake, table)} FROM {scans[table]}) r)"
            ).fetchone()
            assert found is not None  # an aggregate has one row
            digests[table], counts[table] = str(found[0]), int(found[1])
    return digests, counts


def _differing(lake: Lake, other: Lake) -> tuple[int, int]:
    """Rows of the other lake that are not in this one, and of this one that are not in the other."""
    here, there = lake.scans(tuple(_OF_THE_INGEST)), other.scans(tuple(_OF_THE_INGEST))
    lost = added = 0
    with duck() as connection:
        for table in _OF_THE_INGEST:
            columns = _columns(lake, table)
            sides = [f"SELECT to_json(r)::VARCHAR FROM (SELECT {columns} FROM {s[table]}) r" for s in (there, here)]
            for (first, second), what in (((sides[0], sides[1]), "lost"), ((sides[1], sides[0]), "added")):
                count = connection.execute(f"SELECT count(*) FROM ({first} EXCEPT ALL {second})").fetchone()
                assert count is not None
                if what == "lost":
                    lost += int(count[0])
                else:
                    added += int(count[0])
    return lost, added


def _policy(release: Path) -> str:
    return str(json.loads((release / "policy.json").read_text())["digest"])


def _wrong(workspace: Workspace, lake: Lake) -> list[str]:
    said = []
    for batch in list_batches(lake):
        counts = batch.counts
        went = (
            counts.n_lake + counts.n_quarantined + counts.n_duplicates + counts.n_held + counts.n_pending
            + counts.n_erased
        )  # fmt: skip
        if counts.n_in != went:
            said.append(f"batch {batch.batch_id} had {counts.n_in:,} rows in and accounts for {went:,}")
        if batch.status == "held":
            said.append(f"batch {batch.batch_id} is held: {batch.note}")
    n_listed = sum(b.counts.n_lake for b in list_batches(lake) if b.kind == "steps" and b.status == "lake")
    n_stored = _digests(lake)[1]["steps"]
    if n_listed != n_stored:
        said.append(f"the batches say that {n_listed:,} rows are in the lake, and {n_stored:,} are")
    said += [f"release {r.number}: {r.damage}" for r in workspace.registry.releases() if not r.intact]
    said += [f"{path.relative_to(workspace.root)} was left" for each in _UNFINISHED for path in _there(workspace, each)]
    return said


def _there(workspace: Workspace, pattern: str) -> list[Path]:
    return [p for p in workspace.root.glob(pattern) if p.is_file() or any(p.iterdir())]
