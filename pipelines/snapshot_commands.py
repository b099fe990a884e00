"""The commands `snapshot ...`: freeze the replay dataset, and look at those that are there."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from datasets.locking import exclusive_lock
from pipelines import console
from pipelines.command import FAILED, AsOfOption, JsonOption, WorkspaceOption, command, expected, open_workspace_of
from reports.formatting import counted

if TYPE_CHECKING:
    from datasets.snapshot import SnapshotSummary

snapshot_app = typer.Typer(help="Freeze the replay dataset.", rich_markup_mode=None)

DigestArgument = Annotated[str, typer.Argument(help="Its digest, or the beginning of it; default: the newest.")]


@snapshot_app.callback(invoke_without_command=True)
def snapshot(
    context: typer.Context,
    workspace: WorkspaceOption = Path(),
    as_of: AsOfOption = None,
    as_json: JsonOption = False,
) -> None:
    """Freeze the replay dataset; with a command, look at those that are there."""
    if context.invoked_subcommand is None:
        freeze(workspace, as_of, as_json)
    elif workspace != Path() or as_of is not None or as_json:
        raise typer.BadParameter(
            f"options go behind the command: offline-dqn snapshot {context.invoked_subcommand} --workspace ..."
        )


@expected
def freeze(workspace: Path, as_of: AsOfOption, as_json: bool) -> None:
    from pipelines import stages

    opened = open_workspace_of(workspace, as_of)
    with exclusive_lock(opened.root / ".lock", f"The workspace {opened.root}", wait_s=0.0):
        path, summary = stages.snapshot(opened)
    opened.refresh_catalog(opened.open_lake())
    if as_json:
        console.print_json({"path": str(path), **summary.to_json()})
        return
    console.print_account("Snapshot frozen", {"folder": path, **_facts(summary)})


@command(snapshot_app, "list")
def snapshot_list(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """Every snapshot, and the releases that rest on it."""
    from pipelines.snapshots import list_snapshots

    found = list_snapshots(open_workspace_of(workspace))
    if as_json:
        console.print_json({"snapshots": [record.to_json() for record in found]})
        return
    rows = [
        [
            r.name,
            r.summary.as_of[:16].replace("T", " ") if r.summary else "-",
            f"{r.summary.n_steps:,}" if r.summary else "-",
            f"{r.summary.n_episodes:,}" if r.summary else "-",
            _splits(r.summary) if r.summary else "-",
            ", ".join(map(str, r.releases)) or "-",
            f"{r.state}: {r.note}" if r.note else r.state,
        ]
        for r in found
    ]
    heads = ["snapshot", "as of", "steps", "episodes", "splits", "releases", "state"]
    console.print_table("Snapshots", heads, rows, right=["steps", "episodes"])


@command(snapshot_app, "show")
def snapshot_show(
    digest: DigestArgument = "", workspace: WorkspaceOption = Path(), as_json: JsonOption = False
) -> None:
    """What a snapshot holds, and what was left out of it."""
    from datasets.snapshot import read_summary
    from pipelines.snapshots import find_snapshot

    record = find_snapshot(open_workspace_of(workspace), digest)
    summary = read_summary(record.path)  # says why where there is none
    if as_json:
        console.print_json(record.to_json())
        return
    console.print_account(
        f"Snapshot {record.name}, {record.state}",
        {"folder": record.path, **_facts(summary), "releases": ", ".join(map(str, record.releases)) or "none"},
    )
    settings = {name: value for name, value in summary.config.items() if not isinstance(value, dict)}
    coverage = {f"coverage.{name}": value for name, value in summary.config["coverage"].items()}
    console.print_account("Settings", {**settings, **coverage})


@command(snapshot_app, "verify")
def snapshot_verify(
    digest: DigestArgument = "", workspace: WorkspaceOption = Path(), as_json: JsonOption = False
) -> None:
    """Read every byte of a snapshot, and compare it with what was frozen."""
    from datasets.snapshot import changed_files, fetch_snapshot
    from pipelines.snapshots import find_snapshot

    record = find_snapshot(open_workspace_of(workspace), digest)
    if record.summary is not None:
        fetch_snapshot(record.path)
    changed = changed_files(record.path)
    if as_json:
        console.print_json({"path": str(record.path), "intact": not changed, "changed": changed})
    elif not changed:
        console.print_account(f"Snapshot {record.name}", {"bytes": "every file is what was frozen"})
    for name in changed:
        console.fail(f"{record.path / name} is not what was frozen (missing or changed)")
    if changed:
        raise typer.Exit(FAILED)


class Format(StrEnum):
    """What a snapshot can be exported to."""

    MINARI = "minari"
    D3RLPY = "d3rlpy"


class Split(StrEnum):
    """Which episodes are exported."""

    TRAIN = "train"
    SELECT = "select"
    GATE = "gate"


@command(snapshot_app, "export")
def snapshot_export(
    target: Annotated[Path, typer.Argument(help="Folder (minari) or file (d3rlpy) to be made.")],
    to: Annotated[Format, typer.Option(help="The format.")],
    digest: Annotated[str, typer.Option(help="Beginning of the snapshot's digest; default: the newest.")] = "",
    split: Annotated[list[Split], typer.Option(help="Splits to export; may be repeated.")] = [Split.TRAIN],  # noqa: B006
    ignore_masks: Annotated[bool, typer.Option("--ignore-masks", help="d3rlpy: export although it has none.")] = False,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Write a snapshot for Minari or d3rlpy."""
    from pipelines.snapshots import export_snapshot

    if Split.GATE in split:
        console.warn("gate episodes judge: what is trained on them must never meet the gate here")
    done = export_snapshot(
        open_workspace_of(workspace), digest, target, to=to.value, splits=split, ignore_masks=ignore_masks
    )
    if as_json:
        console.print_json(done.to_json())
        return
    unknown = (
        f"{counted(done.n_unknown_ends, 'episode')} cut off without a final observation" if done.n_unknown_ends else ""
    )
    unused = (
        f"{done.n_unused_finals:,} final observations: d3rlpy has no place for them" if done.n_unused_finals else ""
    )
    console.print_account(
        f"Exported to {done.format}",
        {
            "path": done.path,
            "steps": f"{done.n_steps:,} in {counted(done.n_episodes, 'episode')}",
            "ends": unknown,
            "left out": unused,
        },
    )


@expected
def import_command(
    dataset: Annotated[Path, typer.Argument(help="Folder of a Minari dataset.")],
    directory: Annotated[Path, typer.Argument(help="Folder of the new workspace.")],
    first_day: Annotated[
        datetime, typer.Option(help="Day of the first step: Minari knows no clock.", formats=["%Y-%m-%d"])
    ] = datetime(2000, 1, 1),
    as_json: JsonOption = False,
) -> None:
    """Make a workspace of a Minari dataset: its log, and a contract of its spaces."""
    from pipelines.snapshots import import_dataset

    logs = import_dataset(dataset, directory, first_day=first_day.date())
    if as_json:
        console.print_json({**logs.__dict__, "path": str(logs.path), "contract": logs.contract.to_json()})
        return
    console.print_account(
        f"Workspace for '{logs.contract.name}'",
        {
            "folder": directory,
            "log": logs.path,
            "steps": f"{logs.n_steps:,} in {counted(logs.n_episodes, 'episode')}",
            "cut": f"{logs.n_cut:,} episodes end without a flag, and count as truncated" if logs.n_cut else "",
            "ends": f"{logs.n_unknown_ends:,} final observations are not known" if logs.n_unknown_ends else "",
            "next": "look through contract.toml, then offline-dqn ingest",
        },
    )


def _facts(summary: SnapshotSummary) -> dict[str, object]:
    quarantined = counted(summary.n_unplaced, "quarantined row")
    gate = f"the nights from {summary.gate_since}" if summary.gate_since else ""
    versions = ", ".join(f"{table} {version}" for table, version in summary.lake_versions.items())
    return {
        "digest": summary.digest,
        "as of": summary.as_of,
        "steps": f"{summary.n_steps:,} in {counted(summary.n_episodes, 'episode')}",
        "splits": _splits(summary),
        "gate": gate,
        "judges from": summary.judge_since,
        "still open": counted(summary.n_open, "episode"),
        "damaged": f"{counted(summary.n_damaged, 'episode')}, {quarantined} without an episode",
        "because": "; ".join(f"{cause} ({n:,})" for cause, n in summary.damage.items()),
        "excluded": "; ".join(f"{counted(n, 'episode')} by {rule}" for rule, n in summary.excluded.items()),
        "before the change": f"{counted(summary.n_before_change, 'episode')} that may not judge"
        if summary.judge_since
        else "",
        "too new": f"{counted(summary.n_too_new, 'episode')} whose night is not closed" if summary.gate_since else "",
        "cut ends": f"{counted(summary.n_unusable_ends, 'last step')} whose next observation is not known",
        "erased": f"{counted(summary.n_erased, 'episode')}; before that it was {summary.redacted_from}"
        if summary.redacted_from
        else "",
        "lake versions": versions,
    }


def _splits(summary: SnapshotSummary) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in summary.split_episodes.items())
