"""The command `drift compare`: any two sets of rows, column by column."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines import console
from pipelines.command import JsonOption, command

if TYPE_CHECKING:
    from drift.records import ColumnDrift
    from drift.row_comparison import RowComparison

_MEMORY = "1GB"
"""For DuckDB; what is counted and sampled takes some hundred MB more."""


def add_compare_command(app: typer.Typer) -> None:
    """Adds it below `drift`."""
    command(app, "compare")(compare)


def compare(
    reference: Annotated[str, typer.Argument(help="File or quoted glob: Parquet, CSV or JSON Lines.")],
    live: Annotated[str, typer.Argument(help="The same of what is compared with it.")],
    independent_rows: Annotated[
        bool,
        typer.Option("--independent-rows", help="Each row was drawn by itself, so theory tells how far chance goes."),
    ] = False,
    rate: Annotated[
        float, typer.Option(help="With --independent-rows: share of equal pairs in which any column may drift.")
    ] = 0.01,
    min_psi: Annotated[float, typer.Option(min=0.0, help="With --independent-rows: smallest PSI that matters.")] = 0.02,
    bins: Annotated[int, typer.Option(min=2, max=100, help="Quantile bins of a numeric column.")] = 10,
    leave_out: Annotated[
        list[str] | None, typer.Option("--leave-out", help="Column not to compare; may be given often.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two sets of files column by column, in a memory that does not grow with them."""
    from datasets.duck import duck
    from drift.config import DriftConfig
    from drift.row_comparison import judged_as_independent
    from pipelines.comparing import compare_relations, files_relation

    if not 0.0 < rate < 1.0:
        raise typer.BadParameter(f"--rate is a share between 0 and 1; found {rate:g}")
    with duck(memory=_MEMORY) as connection, console.progress("comparing", None):
        sides = files_relation(connection, reference), files_relation(connection, live)
        floor = min(DriftConfig().floor, 1.0 / (4 * bins))
        found, left_out = compare_relations(connection, *sides, n_bins=bins, floor=floor, leave_out=leave_out or [])
    if independent_rows:
        found = judged_as_independent(found, rate=rate, min_psi=min_psi)
    if as_json:
        console.print_json({**found.to_json(), "left_out": left_out})
        return
    _print(reference, live, found, rate, min_psi)
    for name, why in left_out.items():
        console.warn(f"{name} was left out: {why}")


def _print(reference: str, live: str, found: RowComparison, rate: float, min_psi: float) -> None:
    sampled = found.reference_sample < found.reference_rows or found.live_sample < found.live_rows
    console.print_account(
        f"{live} against {reference}",
        {
            "reference": f"{found.reference_rows:,} rows",
            "live": f"{found.live_rows:,} rows",
            "sampled": f"bins are cut on {found.reference_sample:,} reference rows, Wasserstein is of these and "
            f"{found.live_sample:,} live ones; everything else is of all rows"
            if sampled
            else None,
            "verdict": _verdict(found, rate, min_psi),
        },
    )
    heads = ["column", "PSI", "KL(live || ref)", "KL(ref || live)", "JS", "Wasserstein", "missing", "unseen"]
    heads += ["threshold", ""] if found.independent else [""]
    rows = [_row(column, found.independent, min_psi) for column in sorted(found.columns, key=lambda c: -(c.psi or 0.0))]
    console.print_table("In nats; Wasserstein in the column's unit", heads, rows, right=heads[1:-1])


def _verdict(found: RowComparison, rate: float, min_psi: float) -> str:
    if not found.independent:
        return (
            "none: without nights and clusters nothing tells how far chance goes. Where each row was drawn by itself, "
            "say --independent-rows; steps of an episode were not"
        )
    judged = [column for column in found.columns if column.p_value is not None]
    basis = f"rows taken as independent, {rate:g} of equal pairs would show any drift, PSI below {min_psi:g} ignored"
    names = ", ".join(column.name for column in found.drifted[:5])
    more = f" and {len(found.drifted) - 5} more" if len(found.drifted) > 5 else ""
    return f"{len(found.drifted)} of {len(judged)} columns drifted{f': {names}{more}' if names else ''} ({basis})"


def _row(column: ColumnDrift, independent: bool, min_psi: float) -> list[object]:
    from drift.row_comparison import NO_VERDICT

    missing = (column.reference_missing_share, column.live_missing_share)
    numbers = [column.psi, column.kl, column.kl_reverse, column.js, column.wasserstein]
    cells: list[object] = [column.name, *(console.number(value) for value in numbers)]
    cells.append(" -> ".join(f"{share:.2%}" for share in missing if share is not None) if any(missing) else "-")
    cells.append("-" if column.unseen_share is None else f"{column.unseen_share:.2%}")
    if independent:
        cells.append(console.number(column.allowed(min_psi)))
    said = [] if column.status == "not enough data" else [column.status]
    cells.append(": ".join([*said, *([column.reason] if column.reason not in ("", NO_VERDICT) else [])]))
    return cells
