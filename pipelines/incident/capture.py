"""Capturing: the last episodes before a moment, every step around it, who decided, and the records beside them.

A capture is one folder that needs neither the lake nor the workspace to be read: Parquet files of rows as logged and
as training would see them, the releases that decided with the contract, and copies of the records.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb

from datasets.batches import consumed_files
from datasets.duck import duck, literal
from datasets.durable import flush_folder, flush_to_disk
from datasets.episodes import episodes_sql, transitions_sql
from datasets.exclusions import Exclusion, read_exclusions
from datasets.lake import Lake
from datasets.logfiles import LogFileError, find_log_files
from pipelines.incident.captured import Incident, IncidentError, digests_of, incidents_path, write_description
from pipelines.made_by import made_by
from pipelines.serving.switch import read_switch
from pipelines.workspace import Workspace
from reports.manifest import read_manifest

TABLES = ("steps", "outcomes", "quarantine", "episodes", "transitions")
"""Parquet files of a capture. `steps`, `outcomes` and `quarantine` are rows as logged, `transitions` what can be
learned from."""

_RECORDS = (
    "contract.toml",
    "offline_dqn.toml",
    "nights.jsonl",
    "serving/switch_history.jsonl",
    "serving/canary_history.jsonl",
    "notify/sent.jsonl",
    "notify/open.json",
)
"""Copied as they are, where they are."""

_DAYS = (2, 16, 128)
"""Days of the log that are searched for the last episodes, until there are enough."""


def capture(
    workspace: Workspace,
    *,
    at: datetime | None,
    by: str,
    note: str,
    n_episodes: int = 1000,
    minutes: int = 30,
    name: str = "",
) -> tuple[Path, Incident]:
    """Captures a moment into `incidents/<name>`, whole or not at all; changes nothing else.

    Args:
        at: the moment, by the log's clock; None for the newest step of the lake.
        n_episodes: the last ones that began at or before it, whatever became of them.
        minutes: before and after it, for which every step is captured, with its episode.
        name: of the folder; by default the moment.

    Raises:
        IncidentError: that folder exists, or the lake has nothing from before that moment.
    """
    lake = workspace.open_lake()
    moment = _moment(lake, at)
    called = name.strip() or f"{moment:%Y%m%dT%H%M%SZ}"
    target = _target(workspace, called)
    beside = target.with_name(f".{called}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    rules, commit, versions = read_exclusions(lake), lake.commit_number(), lake.versions()
    try:
        with duck(spill=beside / ".spill") as connection:
            _choose(connection, lake, moment, n_episodes, minutes)
            _copy_rows(connection, lake, rules, workspace.as_of(lake), beside)
            counts = connection.execute(
                "SELECT count(*), count(DISTINCT episode_id), count(*) FILTER (in_window) FROM captured"
            ).fetchall()[0]
            decided = connection.execute(
                """SELECT coalesce(policy_version, 'unknown'), count(*) FROM captured GROUP BY 1
                ORDER BY count(*) FILTER (in_window) DESC, count(*) DESC, 1"""
            ).fetchall()
        shutil.rmtree(beside / ".spill", ignore_errors=True)
        releases = _copy_releases(workspace, [version for version, _ in decided], beside)
        _copy_records(workspace, beside)
        incident = Incident(
            name=called,
            at=moment.isoformat(),
            captured_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            by=by,
            note=note,
            minutes=minutes,
            n_steps=counts[0],
            n_episodes=counts[1],
            n_window_steps=counts[2],
            decided=dict(decided),
            champion=workspace.registry.champion(),
            disabled=read_switch(workspace.serving_path) is not None,
            releases=tuple(releases),
            lake_commit=commit,
            lake_versions=versions,
            exclusions=tuple(rule.in_words for rule in rules),
            unread_logs=tuple(unread_logs(workspace, lake)),
            made_by=made_by(),
            files=digests_of(beside),
        )
        write_description(beside, incident)
        flush_folder(beside)
        beside.replace(target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    flush_to_disk(target.parent)
    return target, incident


def unread_logs(workspace: Workspace, lake: Lake) -> list[str]:
    """Log files of the workspace that hold more than the lake has taken in, by name."""
    taken: dict[str, int] = {}
    for record in consumed_files(lake):
        taken[record.path] = max(taken.get(record.path, 0), record.n_bytes)
    found = []
    for folder in (workspace.logs_path, workspace.outcome_logs_path):
        try:
            logs = find_log_files([folder])
        except LogFileError:
            continue
        names = {str(log.path.relative_to(workspace.root)): log.path.stat().st_size for log in logs}
        found += [name for name, size in names.items() if size > taken.get(name, 0)]
    return sorted(found)


def _moment(lake: Lake, at: datetime | None) -> datetime:
    with duck() as connection:
        first, last = connection.execute(f"SELECT min(timestamp), max(timestamp) FROM {lake.scan('steps')}").fetchall()[
            0
        ]
    if first is None:
        raise IncidentError(
            "The lake holds no decision with a time, so there is no moment to capture. `offline-dqn ingest` takes the "
            "logs in."
        )
    moment = (at or last).astimezone(UTC)
    if moment < first.astimezone(UTC):
        raise IncidentError(
            f"The lake has nothing from before {moment:%Y-%m-%d %H:%M:%S} UTC; it holds decisions from "
            f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M}. Name a later moment, or ingest the logs of "
            "that time first."
        )
    return moment


def _target(workspace: Workspace, name: str) -> Path:
    if name.startswith(".") or set("/\\\0") & set(name):
        raise IncidentError(f"'{name}' is no name for a folder of incidents: leave out slashes and a leading dot.")
    target = incidents_path(workspace) / name
    if target.exists():
        raise IncidentError(
            f"{target} is there already, and evidence is not written over. Give another --name, or move that folder."
        )
    return target


def _choose(connection: duckdb.DuckDBPyConnection, lake: Lake, moment: datetime, n_episodes: int, minutes: int) -> None:
    """Makes the table `captured`: every step of the chosen episodes, and whether it lies in the window."""
    steps, then = lake.scan("steps"), f"TIMESTAMPTZ {literal(moment.isoformat())}"
    day, window = moment.date(), timedelta(minutes=minutes)
    low, high = (f"TIMESTAMPTZ {literal((moment + side).isoformat())}" for side in (-window, window))
    for days in (*_DAYS, None):
        since = f"AND log_date >= DATE '{day - timedelta(days=days)}'" if days is not None else ""
        connection.execute(
            f"""CREATE OR REPLACE TEMP TABLE last_ones AS
            SELECT episode_id FROM {steps} WHERE timestamp <= {then} AND log_date <= DATE '{day}' {since}
            GROUP BY 1 ORDER BY min(timestamp) DESC, episode_id LIMIT {n_episodes}"""
        )
        if connection.execute("SELECT count(*) FROM last_ones").fetchall()[0][0] >= n_episodes:
            break
    within = f"timestamp BETWEEN {low} AND {high}"
    nights = f"log_date BETWEEN DATE '{(moment - window).date()}' AND DATE '{(moment + window).date()}'"
    connection.execute(
        f"""CREATE TEMP TABLE captured AS SELECT *, coalesce({within}, false) AS in_window FROM {steps}
        WHERE episode_id IN (
            SELECT episode_id FROM last_ones UNION SELECT episode_id FROM {steps} WHERE {within} AND {nights})"""
    )


def _copy_rows(
    connection: duckdb.DuckDBPyConnection, lake: Lake, rules: Sequence[Exclusion], as_of: datetime, folder: Path
) -> None:
    scans = lake.scans(("outcomes", "quarantine"))
    connection.execute("CREATE TEMP VIEW steps_of AS SELECT * EXCLUDE (in_window) FROM captured")
    decisions = "SELECT decision_id FROM captured WHERE decision_id IS NOT NULL"
    connection.execute(
        f"CREATE TEMP TABLE outcomes_of AS SELECT * FROM {scans['outcomes']} WHERE decision_id IN ({decisions})"
    )
    connection.execute(
        f"""CREATE TEMP TABLE quarantine_of AS SELECT * FROM {scans["quarantine"]}
        WHERE episode_id IN (SELECT episode_id FROM captured) OR decision_id IN ({decisions})"""
    )
    episodes = episodes_sql("steps_of", "outcomes_of", "quarantine_of", lake.contract, as_of, rules)
    connection.execute(f"CREATE TEMP TABLE episodes_of AS {episodes}")
    relations = {
        "steps": "SELECT * FROM captured ORDER BY timestamp, episode_id, step",
        "outcomes": "SELECT * FROM outcomes_of ORDER BY timestamp, decision_id",
        "quarantine": "SELECT * FROM quarantine_of ORDER BY source, source_line",
        "episodes": "SELECT * FROM episodes_of ORDER BY start, episode_id",
        "transitions": f"SELECT * FROM ({transitions_sql('steps_of', 'outcomes_of', 'episodes_of', lake.contract)}) "
        "ORDER BY timestamp, episode_id, position",
    }
    for table in TABLES:
        path = literal(str(folder / f"{table}.parquet"))
        connection.execute(f"COPY ({relations[table]}) TO {path} (FORMAT parquet, COMPRESSION zstd)")


def _copy_releases(workspace: Workspace, versions: Sequence[str], folder: Path) -> list[int]:
    """Copies the releases that decided, the champion and version 0; damaged ones too, since that may be the cause. What
    their evaluations wrote is left out: it decides nothing, and names episodes."""
    champion = workspace.registry.champion()
    named = {int(version) for version in versions if version.isdecimal()} | {0}
    wanted = sorted(named | ({champion} if champion is not None else set()))
    there = [release for release in wanted if workspace.release_path(release).is_dir()]
    for release in there:
        path = workspace.release_path(release)
        manifest = read_manifest(path)
        judged = set(manifest.evaluation_files) if manifest is not None else set()
        shutil.copytree(path, folder / "releases" / str(release), ignore=shutil.ignore_patterns(*judged))
    return there


def _copy_records(workspace: Workspace, folder: Path) -> None:
    decided = {  # which may lie in a bucket
        "history": [line.to_json() for line in workspace.registry.history()],
        "rejections": [line.to_json() for line in workspace.registry.rejections()],
    }
    for name, lines in decided.items():
        target = folder / "records" / "releases" / f"{name}.jsonl"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    drift = [f"drift/{path.name}" for path in sorted(workspace.drift_path.glob("*.jsonl"))[-2:]]
    metrics = [f"metrics/{path.name}" for path in sorted(workspace.metrics_path.glob("nights-*.jsonl"))[-2:]]
    for name in (*_RECORDS, *drift, *metrics):
        source = workspace.root / name
        if source.is_file():
            target = folder / "records" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
