"""Erasure in captures: an erased subject's rows and names leave every incident, which says so and stays readable."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq

from datasets.contract import Contract
from datasets.duck import duck, literal, quoted
from datasets.durable import write_durably
from pipelines.incident.capture import TABLES
from pipelines.incident.captured import (
    Incident,
    IncidentError,
    digests_of,
    incidents_path,
    list_incidents,
    read_incident,
    write_description,
)
from pipelines.workspace import Workspace

_UNDER_WAY = "under way"
"""In the place of the instant while rows leave: whoever repeats the erasure finishes it."""

_BY_EPISODE = ("steps", "episodes", "transitions")


def erase_from_incidents(
    workspace: Workspace, names: Collection[str], pattern: re.Pattern[bytes] | None, erased: bytes
) -> None:
    """Takes a subject out of every capture; repeated after a kill, it ends in the same.

    Args:
        names: of the subject as the lake has them: its episodes, and hashed keys.
        pattern: finds its names in text; None where all are too short to mean anything.
        erased: stands in their place.
    """
    for incident in list_incidents(workspace):
        folder = incidents_path(workspace) / incident.name
        cut_off = incident.redacted_at == _UNDER_WAY
        whole = set(digests_of(folder)) if cut_off else _unchanged(folder, incident)

        def begins(folder: Path = folder, incident: Incident = incident) -> None:
            write_description(folder, replace(incident, redacted_at=_UNDER_WAY))

        try:
            changed = _erase_rows(folder, workspace.contract, names, begins)
            changed = _erase_text(folder, pattern, erased, begins) or changed
        except OSError as error:
            raise IncidentError(f"{folder} could not be redacted: {error}. Repeat the erasure.") from error
        if changed or cut_off:
            at = datetime.now(UTC).isoformat(timespec="seconds")
            found = read_incident(folder)  # its own text may have named the subject
            now = digests_of(folder)
            files = {name: now[name] if name in whole and name in now else was for name, was in found.files.items()}
            write_description(folder, replace(found, files=files, redacted_at=at))


def _unchanged(folder: Path, incident: Incident) -> set[str]:
    """Files that are what was captured: a redaction must not make others look so."""
    return {name for name, digest in digests_of(folder).items() if incident.files.get(name) == digest}


def _erase_rows(folder: Path, contract: Contract, names: Collection[str], begins: Callable[[], None]) -> bool:
    if not names or not (folder / "steps.parquet").exists():
        return False
    listed = ", ".join(literal(name) for name in sorted(names))
    steps = f"read_parquet({literal(str(folder / 'steps.parquet'))})"
    stored = pq.read_schema(folder / "steps.parquet").names
    keys = [f"keys.{quoted(name)} IN ({listed})" for name in contract.privacy.hash if "keys" in stored]
    with duck() as connection:
        connection.execute(
            f"""CREATE TEMP TABLE gone AS SELECT DISTINCT episode_id FROM {steps}
            WHERE {" OR ".join([f"episode_id IN ({listed})", *keys])}"""
        )
        connection.execute(
            f"""CREATE TEMP TABLE gone_decisions AS SELECT DISTINCT decision_id FROM {steps}
            WHERE episode_id IN (FROM gone) AND decision_id IS NOT NULL"""
        )
        of_decision = "coalesce(decision_id IN (FROM gone_decisions), false)"
        of_episode = "coalesce(episode_id IN (FROM gone), false)"
        conditions = {
            **dict.fromkeys(_BY_EPISODE, of_episode),
            "outcomes": of_decision,
            "quarantine": f"{of_episode} OR {of_decision} OR coalesce(episode_id IN ({listed}), false)",
        }
        changed = False
        for table in sorted(TABLES, key=lambda name: name == "steps"):  # which the others are found by, last
            path = folder / f"{table}.parquet"
            rows = f"read_parquet({literal(str(path))})"
            ((n,),) = connection.execute(f"SELECT count(*) FROM {rows} WHERE {conditions[table]}").fetchall()
            if n:
                begins()
                beside = path.with_suffix(".part")
                connection.execute(
                    f"COPY (SELECT * FROM {rows} WHERE NOT ({conditions[table]})) TO {literal(str(beside))} "
                    "(FORMAT parquet, COMPRESSION zstd)"
                )
                beside.replace(path)
                changed = True
    return changed


def _erase_text(folder: Path, pattern: re.Pattern[bytes] | None, erased: bytes, begins: Callable[[], None]) -> bool:
    """Records, notes and the postmortem."""
    changed = False
    if pattern is None:
        return False
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".json", ".jsonl", ".md", ".html"} and path.is_file():
            content = path.read_bytes()
            if pattern.search(content):
                begins()
                write_durably(path, pattern.sub(erased, content))
                changed = True
    return changed
