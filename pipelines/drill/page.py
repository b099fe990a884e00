"""The figures of a drill as tables: in the terminal, and between two marks of a Markdown page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.drill.drill import Drill
from pipelines.drill.faults import FAULTS
from pipelines.drill.night import DrillError
from pipelines.drill.trial import Outcome

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

HEADS = ("fault", "variants", "injected", "survived", "rows lost", "rows added", "most new releases", "same policy")


def table_rows(drill: Drill) -> tuple[list[str], list[list[str]]]:
    """Heads and a row for each fault that was injected, with their sum last."""
    rows = []
    for name, fault in FAULTS.items():
        own = [outcome for outcome in drill.outcomes if outcome.trial.fault == name]
        if own:
            rows.append(_row(fault.what, own))
    if len(rows) > 1:
        rows.append(_row("together", drill.outcomes, variants=""))
    return list(HEADS), rows


def _row(what: str, own: Sequence[Outcome], variants: str | None = None) -> list[str]:
    drawn = ", ".join(dict.fromkeys(outcome.variant for outcome in own if outcome.variant))
    asked = [outcome.same_policy for outcome in own if outcome.same_policy is not None]
    return [
        what,
        drawn if variants is None else variants,
        str(len(own)),
        str(sum(not outcome.wrong for outcome in own)),
        str(sum(outcome.lost for outcome in own)),
        str(sum(outcome.added for outcome in own)),
        str(max(outcome.n_new_releases for outcome in own)),
        f"{sum(asked)} of {len(asked)}" if asked else "-",
    ]


def figures_of(drill: Drill) -> str:
    """The figures in Markdown: the table of faults, and every trial with its moment and what was said."""
    heads, rows = table_rows(drill)
    trials = [
        [
            str(outcome.trial.number),
            " ".join([outcome.trial.fault, *([f"({outcome.variant})"] if outcome.variant else [])]),
            outcome.moment,
            _how(outcome),
            "; ".join(outcome.wrong) or "survived",
        ]
        for outcome in drill.outcomes
    ]
    n_rows = f"{drill.n_rows['steps']:,} rows in the lake and {drill.n_rows['quarantine']:,} in quarantine"
    left_out = [f"Left out: {name}, {why}." for name, why in drill.left_out.items()]
    return "\n".join(
        [
            f"Seed {drill.seed}, {drill.cpu_s / 60:.0f} minutes of CPU; an undisturbed night leaves {n_rows}, and "
            f"changes its workspace {sum(drill.n_changes.values())} times.",
            *left_out,
            "",
            *_markdown(heads, rows, right=range(2, len(heads))),
            "",
            *_markdown(["", "fault", "at", "the night", "end"], trials),
        ]
    )


def _how(outcome: Outcome) -> str:
    if outcome.first is None:
        return "did not end"
    if outcome.first < 0:
        return f"killed; {outcome.resumed or 'begun anew'}"
    return "ended well" if outcome.first == 0 else f"failed; {outcome.resumed or 'begun anew'}"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    rule = ["---:" if place in right else "---" for place in range(len(heads))]
    return [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in (heads, rule, *rows)]


def write_figures(page: Path, drill: Drill) -> None:
    """Writes the figures between the page's marks.

    Raises:
        DrillError: the page does not have both marks.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DrillError(f"{page} does not have the marks {BEGIN} and {END} between which figures are written.")
    page.write_text(f"{before}{BEGIN}\n{figures_of(drill)}\n{END}{after}", encoding="utf-8")
