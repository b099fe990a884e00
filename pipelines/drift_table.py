"""A drift check in the terminal: the decision, a bar for each column, what else moved, and what to do next."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from drift.records import DriftReport
from reports.charts import shortened
from reports.drift_words import (
    column_words,
    folded_words,
    joint_words,
    ranked,
    slow_lines,
    times_allowed,
    unjudged,
    verdict_of,
)
from reports.formatting import visible
from reports.night_checks import NightCheck

_COLUMNS, _EFFECTS = 20, 3
_MOST_TIMES = 2.0
"""A bar ends here; the mark of what is allowed is in its middle."""
_NARROWEST_BAR, _WIDEST_BAR = 9, 31
_EIGHTHS = " ▏▎▍▌▋▊▉"
_ASCII = str.maketrans({"−": "-", "×": "x", "‖": "||", "…": "~", "→": ">", "⁻": "-"})


def print_check(check: NightCheck, out: Console, *, page: str) -> None:
    """Prints a night's check.

    Args:
        out: where to; its width and encoding decide what is drawn with which characters.
        page: where the page is, or the command that writes it.
    """
    verdict = verdict_of(check)
    style = {"calm": "green", "moved": "red", "unknown": "yellow"}[verdict.tone]
    out.print(Text(_safe(verdict.headline, out), style=f"bold {style}"))
    out.print(Text(_safe(verdict.sentence, out)))
    report = check.report
    if report is not None:
        out.print()
        if ranked(report):
            out.print(_table(report, out))
        for line in (folded_words(report, _COLUMNS), *_unjudged(report)):
            if line:
                out.print(Text(_safe(line, out), style="dim"))
        found = [*_beyond(report)]
        if found:
            out.print()
            out.print(_grid(found, out))
    out.print()
    to_do = [("what to do" if i == 0 else "", says, False) for i, says in enumerate(verdict.to_do)]
    out.print(_grid([*to_do, ("page", page, False)], out))


def bar(times: float, width: int, *, blocks: bool) -> str:
    """A bar of `times` what is allowed, `width` characters wide, with a mark in the middle where it reaches 1.

    Args:
        blocks: draw with Unicode blocks, to an eighth of a character; else with ASCII.
    """
    full, mark, beyond = ("█", "│", "▶") if blocks else ("#", "|", ">")
    filled = width * min(max(times, 0.0), _MOST_TIMES) / _MOST_TIMES
    whole = math.floor(filled)
    drawn = [full] * whole + [" "] * (width - whole)
    if whole < width:
        part = filled - whole
        drawn[whole] = _EIGHTHS[int(8 * part)] if blocks else full if part >= 0.5 else " "
    if times > _MOST_TIMES:
        drawn[-1] = beyond
    drawn[width // 2] = mark
    return "".join(drawn)


def _grid(lines: Sequence[tuple[str, str, bool]], out: Console) -> Table:
    """Lines of a name, what is said of it, and whether that alarms."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True, min_width=10)
    grid.add_column(overflow="fold")
    for name, words, alarmed in lines:
        grid.add_row(name, Text(_safe(words, out), style="red" if alarmed else ""))
    return grid


def _table(report: DriftReport, out: Console) -> Table:
    shown = ranked(report)[:_COLUMNS]
    narrow = out.width < 100
    longest = max(12, min(out.width // (4 if narrow else 3), 44))
    names = [_safe(shortened(_safe(column.name, out), longest), out) for column in shown]
    words = [_safe(column_words(column, report.min_psi), out) for column in shown]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    dated = any(column.since for column in shown)
    heads = ["column", *([] if narrow else ["of"]), "PSI", "allowed", "", *(["since"] if dated else []), ""]
    rows = [
        [name, *([] if narrow else [c.role]), _short(c.psi), _short(c.allowed(report.min_psi)), "",
         *([c.since or ""] if dated else []), said]
        for c, name, said in zip(shown, names, words, strict=True)
    ]  # fmt: skip
    place = heads.index("")
    widths = [max(len(head), *(len(row[i]) for row in rows)) for i, head in enumerate(heads)]
    left = out.width - sum(widths[:-1]) - min(widths[-1], 44 if not narrow else 24) - 2 * len(heads)
    width = max(_NARROWEST_BAR, min(left, _WIDEST_BAR)) // 2 * 2 + 1  # odd, so that it has a middle
    for i, head in enumerate(heads):
        number = head in ("PSI", "allowed")
        table.add_column(head, justify="right" if number else "left", no_wrap=i < len(heads) - 1, overflow="fold")
    for column, row in zip(shown, rows, strict=True):
        style = "red" if column.drifted else ""
        drawn = bar(times_allowed(column, report.min_psi), width, blocks=_has_blocks(out))
        cells = [Text(text, style=style) for text in row]
        cells[place] = Text(drawn, style=style or "dim")
        table.add_row(*cells)
    return table


def _unjudged(report: DriftReport) -> Iterator[str]:
    """The columns that could not be judged, those of one cause together."""
    for cause, names in unjudged(report).items():
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        yield f"not judged: {', '.join(names[:5])}{more} ({cause})"


def _beyond(report: DriftReport) -> Iterator[tuple[str, str, bool]]:
    """What was found beyond single columns and nights: its kind, in words, and whether it alarms."""
    yield from (("suspicious", one.sentence, True) for one in report.suspicions)
    if report.not_looked_for:
        yield ("not known", report.not_looked_for, False)
    if report.left_out:
        yield ("left out", report.left_out, False)
    yield from (("effect", one.sentence, False) for one in report.effects[:_EFFECTS])
    yield from (("together", joint_words(one), one.drifted) for one in report.joint)
    yield from (("slowly", line, True) for line in slow_lines(report))


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.2g}"


def _has_blocks(out: Console) -> bool:
    return "utf" in out.encoding.lower()


def _safe(text: str, out: Console) -> str:
    """The text as the terminal can show it: no control characters, and no letter that its encoding lacks."""
    text = visible(text)
    if _has_blocks(out):
        return text
    return text.translate(_ASCII).encode(out.encoding, "backslashreplace").decode(out.encoding)
