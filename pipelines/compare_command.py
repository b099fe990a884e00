"""The command `drift compare`: any two sets of rows, column by column."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines import console
from pipelines.command import JsonOption, WorkspaceOption, command, open_workspace_of

if TYPE_CHECKING:
    from drift.config import DriftConfig
    from drift.records import ColumnDrift
    from drift.row_comparison import RowComparison
    from pipelines.comparing import Pair

_MEMORY = "1GB"
"""For DuckDB; what is counted and sampled takes some hundred MB more."""


def add_compare_command(app: typer.Typer) -> None:
    """Adds it below `drift`."""
    command(app, "compare")(compare)


def compare(
    reference_files: Annotated[
        str | None, typer.Argument(metavar="REFERENCE", help="File or quoted glob: Parquet, CSV or JSON Lines.")
    ] = None,
    live_files: Annotated[
        str | None, typer.Argument(metavar="LIVE", help="The same of what is compared with it.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="In place of files, nights of the lake: 2026-01-01:2026-01-14.")
    ] = None,
    live: Annotated[
        str | None, typer.Option(help="Nights that are compared with them: 2026-01-20: for all since.")
    ] = None,
    night: Annotated[
        str | None, typer.Option(help="Column of the files with each row's date: nights then tell how far chance goes.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Column of what makes rows of a night dependent, such as a user or an episode.")
    ] = None,
    independent_rows: Annotated[
        bool,
        typer.Option("--independent-rows", help="Each row was drawn by itself: theory tells how far chance goes."),
    ] = False,
    rate: Annotated[
        float | None, typer.Option(help="Share of equal pairs in which any column may drift; default as in [drift].")
    ] = None,
    min_psi: Annotated[
        float | None, typer.Option(min=0.0, help="Smallest PSI that matters; default as in [drift].")
    ] = None,
    bins: Annotated[
        int | None, typer.Option(min=2, max=100, help="Quantile bins of a numeric column; default as in [drift].")
    ] = None,
    leave_out: Annotated[
        list[str] | None, typer.Option("--leave-out", help="Column not to compare; may be given often.")
    ] = None,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Compare two sets of files, or nights of the lake, column by column; memory does not grow with rows."""
    from drift.row_comparison import compare_rows
    from drift.row_verdicts import judged_as_independent
    from pipelines.comparing_nights import compare_nights

    files, ranges = (reference_files, live_files), (reference, live)
    of_lake = _of_lake(files, ranges)
    if independent_rows and (of_lake or night):
        raise typer.BadParameter("--independent-rows contradicts nights, whose rows are not independent")
    if (night or cluster) and of_lake:
        raise typer.BadParameter("--night and --cluster name columns of files; the lake knows its own")
    if cluster and not night:
        raise typer.BadParameter("--cluster wants --night too")
    if rate is not None and not 0.0 < rate < 1.0:
        raise typer.BadParameter(f"--rate is a share between 0 and 1; found {rate:g}")
    config = _config(open_workspace_of(workspace).config.drift if of_lake else None, rate, min_psi, bins)
    floor = min(config.floor, 1.0 / (4 * config.n_bins))
    named = [name for name in (night, cluster) if name]
    with (
        _sides(files, ranges if of_lake else None, workspace, named, leave_out or []) as (names, pair),
        console.progress("comparing", None),
    ):
        if of_lake or night:
            dates, clusters = ("night", "cluster") if of_lake else (night or "", cluster)
            found = compare_nights(pair, dates, clusters, config, floor=floor)
        else:
            found = compare_rows(pair.rows(0), pair.rows(1), n_bins=config.n_bins, floor=floor)
    if independent_rows:
        found = judged_as_independent(found, rate=config.false_alarm_rate, min_psi=config.min_psi)
    if as_json:
        console.print_json({**found.to_json(), "left_out": pair.left_out})
        return
    _print(names, found, config)
    for why in dict.fromkeys(pair.left_out.values()):
        left_out = [name for name, reason in pair.left_out.items() if reason == why and name not in named]
        if left_out:
            more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
            console.warn(f"left out, {why}: {', '.join(left_out[:5])}{more}")


def _of_lake(files: tuple[str | None, str | None], ranges: tuple[str | None, str | None]) -> bool:
    """Whether nights of the lake are meant."""
    if all(files) and not any(ranges):
        return False
    if all(ranges) and not any(files):
        return True
    raise typer.BadParameter(
        "name two files (or quoted globs), or nights of the lake: --reference 2026-01-01:2026-01-14 --live 2026-01-20:"
    )


def _config(known: DriftConfig | None, rate: float | None, min_psi: float | None, bins: int | None) -> DriftConfig:
    """The `[drift]` table with what was asked for in its place."""
    from drift.config import DriftConfig

    known = known or DriftConfig()
    asked = {"false_alarm_rate": rate, "min_psi": min_psi, "n_bins": bins}
    values = known.model_dump() | {name: value for name, value in asked.items() if value is not None}
    values["n_replicates"] = max(known.n_replicates, int(5 / values["false_alarm_rate"]) + 1)
    return DriftConfig(**values)


@contextmanager
def _sides(
    files: tuple[str | None, str | None],
    ranges: tuple[str | None, str | None] | None,
    workspace: Path,
    named: list[str],
    leave_out: list[str],
) -> Iterator[tuple[tuple[str, str], Pair]]:
    """What both sides are called, and the pair of them."""
    from datasets.duck import duck
    from pipelines.comparing import files_relation, pair_of, require_columns
    from pipelines.comparing_nights import Nights, lake_sides

    if ranges is None:
        names = str(files[0]), str(files[1])
        with duck(memory=_MEMORY) as connection:
            sides = [files_relation(connection, name) for name in names]
            for side in sides:
                require_columns(side, named)
            yield names, pair_of(connection, sides[0], sides[1], leave_out=[*leave_out, *named])
        return
    names = f"nights {ranges[0]}", f"nights {ranges[1]}"
    parsed = [Nights.parsed(str(text)) for text in ranges]
    with lake_sides(open_workspace_of(workspace), parsed, names) as (connection, sides):
        yield names, pair_of(connection, sides[0], sides[1], leave_out=leave_out)


def _print(names: tuple[str, str], found: RowComparison, config: DriftConfig) -> None:
    sampled = found.reference_sample < found.reference_rows or found.live_sample < found.live_rows
    console.print_account(
        f"{names[1]} against {names[0]}",
        {
            "reference": f"{found.reference_rows:,} rows",
            "live": f"{found.live_rows:,} rows",
            "sampled": f"bins are cut on {found.reference_sample:,} reference rows, Wasserstein is of these and "
            f"{found.live_sample:,} live ones; everything else is of all rows"
            if sampled
            else None,
            "verdict": _verdict(found, config),
        },
    )
    heads = ["column", "PSI", "KL(live || ref)", "KL(ref || live)", "JS", "Wasserstein", "missing", "unseen"]
    heads += ["threshold", ""] if found.basis else [""]
    rows = [_row(column, found, config) for column in sorted(found.columns, key=lambda c: -(c.psi or 0.0))]
    console.print_table("In nats; Wasserstein in the column's unit", heads, rows, right=heads[1:-1])


def _verdict(found: RowComparison, config: DriftConfig) -> str:
    from drift.row_comparison import NO_VERDICT

    if not found.basis:
        problem = next((c.reason for c in found.columns if c.reason.startswith("no verdict")), NO_VERDICT)
        if problem != NO_VERDICT:
            return problem.removeprefix("no verdict: ")
        return (
            "none: without nights and clusters nothing tells how far chance goes. Name the columns that hold them "
            "(--night, --cluster), or say --independent-rows where each row was drawn by itself; steps of an episode "
            "were not"
        )
    judged = [column for column in found.columns if column.p_value is not None]
    rate, least = config.false_alarm_rate, config.min_psi
    basis = f"{found.basis}; {rate:g} of equal pairs would show any drift, PSI below {least:g} ignored"
    names = ", ".join(column.name for column in found.drifted[:5])
    more = f" and {len(found.drifted) - 5} more" if len(found.drifted) > 5 else ""
    return f"{len(found.drifted)} of {len(judged)} columns drifted{f': {names}{more}' if names else ''} ({basis})"


def _row(column: ColumnDrift, found: RowComparison, config: DriftConfig) -> list[object]:
    missing = (column.reference_missing_share, column.live_missing_share)
    numbers = [column.psi, column.kl, column.kl_reverse, column.js, column.wasserstein]
    cells: list[object] = [column.name, *(console.number(value) for value in numbers)]
    cells.append(" -> ".join(f"{share:.2%}" for share in missing if share is not None) if any(missing) else "-")
    cells.append("-" if column.unseen_share is None else f"{column.unseen_share:.2%}")
    if found.basis:
        cells.append(console.number(column.allowed(config.min_psi)))
    said = [] if column.status == "not enough data" else [column.status]
    known = [] if column.reason.startswith("no verdict") else [column.reason]
    cells.append(": ".join(filter(None, [*said, *known])))
    return cells
