"""The commands `backtest` and `promises`: what the user's own log says about the evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pipelines import console
from pipelines.command import (
    REFUSED,
    AsOfOption,
    JsonOption,
    PathsArgument,
    WorkspaceOption,
    command,
    open_workspace_of,
)
from reports.formatting import spanned
from reports.proof_records import PROMISE_VERDICTS

if TYPE_CHECKING:
    from reports.proof_records import Backtest, BacktestPair, Placebo

proof_app = typer.Typer(rich_markup_mode=None)


@command(proof_app, "backtest")
def backtest(
    paths: PathsArgument = None,
    workspace: WorkspaceOption = Path(),
    as_of: AsOfOption = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate each policy version of the log from another's episodes, and compare with what it earned."""
    from pipelines.proving import prove
    from reports.records import to_json

    opened = open_workspace_of(workspace, as_of)
    with console.progress("estimating", None):
        found = prove(opened, paths or [])
    if as_json:
        console.print_json(to_json(found))
    else:
        print_backtest(found.backtest)
        print_placebos(found.placebos)
    if found.backtest.count("missed"):
        raise typer.Exit(REFUSED)


@command(proof_app, "promises")
def promises(workspace: WorkspaceOption = Path(), as_of: AsOfOption = None, as_json: JsonOption = False) -> None:
    """What each promoted release has earned, beside what its evaluation promised."""
    from pipelines import stages
    from reports.promises import earned_words
    from reports.records import to_json

    found = stages.promises(open_workspace_of(workspace, as_of))
    counts = {verdict: sum(p.verdict == verdict for p in found) for verdict in PROMISE_VERDICTS}
    if as_json:
        console.print_json({"promises": [to_json(promise) for promise in found], "counts": counts})
        return
    if not found:
        console.print_account("Promises", {"none": "no trained release was promoted yet"})
        return
    rows = [
        [
            p.release,
            p.promoted_at[:10],
            _spanned(p.promised, p.promised_low, p.promised_high),
            earned_words(p).replace("\u2212", "-"),
            f"{p.n_episodes:,}",
            p.n_nights,
            p.verdict,
            p.since or "-",
        ]
        for p in found
    ]
    heads = ["release", "promoted", "promised", "earned, read every night", "episodes", "nights", "verdict", "since"]
    console.print_table("Promises", heads, rows, right=["release", "episodes", "nights"])
    for p in found:
        if p.cause:
            advice = " `offline-dqn drift` says what changed." if p.crossed else ""
            console.out.print(f"- release {p.release}, {p.verdict}: {p.cause}.{advice}", markup=False)
    console.out.print(", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n) + ".", markup=False)


def print_backtest(found: Backtest) -> None:
    """A row per pair, and what cannot be judged with its cause."""
    if found.cause:
        console.print_account("Backtest", {"cannot be judged": found.cause})
        return
    rows = [_row(pair) for pair in found.pairs]
    heads = ["version", "episodes of", "it earned", "estimate", "by", "difference", "verdict", "checked by"]
    title = f"Backtest: what a version earned, and its estimate from another's episodes ({found.level:.0%} intervals)"
    console.print_table(title, heads, rows)
    for pair in found.pairs:
        about = f"{pair.version} from {pair.from_version}"
        if pair.cause:
            console.out.print(f"- {about} cannot be judged: {pair.cause}.", markup=False)
        if pair.note:
            console.out.print(f"- {about}: {pair.note}{_model_error(pair)}.", markup=False)
    judged = found.count("covered") + found.count("missed")
    if judged:
        console.out.print(
            f"{found.count('covered')} of {judged} judged estimates are covered: the interval of the difference holds "
            f"0. At {found.level:.0%}, one in {round(1 / (1 - found.level))} misses by luck alone.",
            markup=False,
        )


def _row(pair: BacktestPair) -> list[object]:
    estimate = pair.deciding
    others = [
        f"{e.estimator} {e.verdict}" for e in pair.estimates if e.verdict != "cannot be judged" and e is not estimate
    ]
    return [
        pair.version,
        f"{pair.from_version} ({pair.n_from_episodes:,})",
        _spanned(pair.earned, pair.earned_low, pair.earned_high),
        _spanned(estimate.value, estimate.low, estimate.high) if estimate else "-",
        (pair.deciding_estimator or "-") + (", modelled" if pair.source == "estimated" else ""),
        _spanned(estimate.difference, estimate.difference_low, estimate.difference_high) if estimate else "-",
        pair.verdict,
        ", ".join(others) or "-",
    ]


def _spanned(value: float | None, low: float | None, high: float | None) -> str:
    return "-" if value is None else spanned(value, low, high).replace("\u2212", "-")


def _model_error(pair: BacktestPair) -> str:
    if pair.model_error is None:
        return ""
    error = _spanned(pair.model_error, pair.model_error_low, pair.model_error_high)
    return f"; the model earns {error} more than the version itself, which the difference takes off"


def print_placebos(found: tuple[Placebo, ...]) -> None:
    """A row per way of dealing halves."""
    rows = [
        [
            f"{p.of}, halves of {p.unit}s",
            f"{p.n_episodes:,} in {p.n_units:,} {p.unit}s",
            f"{p.n_passed:,} of {p.n_halves:,}" if p.n_halves else "-",
            "-" if p.rate is None else f"{p.rate:.2%} [{p.low:.2%}, {p.high:.2%}]",
            f"{p.alpha:.2%}",
            p.verdict,
        ]
        for p in found
    ]
    heads = ["placebo", "episodes", "passed", "false passes [95 %]", "may be", "level"]
    console.print_table("Placebo: the log's own policy against itself", heads, rows, right=["passed", "may be"])
    for p in found:
        if p.cause:
            console.out.print(f"- halves of {p.unit}s cannot be judged: {p.cause}.", markup=False)
        elif p.verdict == "too often" and p.unit == "night":
            console.out.print(
                "- nights share shocks that the bound leaves out: set episodes.cluster in the contract to what makes "
                "them alike.",
                markup=False,
            )
