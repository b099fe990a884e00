"""What a person sees: short aligned accounts on stdout, progress and warnings on stderr."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from reports.formatting import duration

_PLAIN_WIDTH = 160
"""Columns where the output goes to a file or a pipe, which have no width of their own."""


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=_PLAIN_WIDTH)


_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters but the tab and the line feed, and what turns the direction of writing around."""


def printable(text: str) -> str:
    """Text that a terminal shows and does not obey: a label of a log could otherwise clear the screen, hide what stands
    beside it or set the clipboard.

    Source: Unicode TR36, section 2.10 (bidirectional controls); ECMA-48 (C0 and C1).
    """
    return _UNPRINTABLE.sub(lambda found: _escape_of(found[0]), text)


def _escape_of(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def shown_text(value: object) -> str:
    """A value as text for rich: neither markup nor a control sequence."""
    return escape(printable(str(value)))


out = _console(stderr=False)
err = _console(stderr=True)

_LINE_EVERY_S = 10.0
"""Seconds between progress lines where there is no terminal to draw a bar on."""


def print_json(values: Any) -> None:
    """One JSON object on stdout; JSON has no NaN and no infinity, so they become null."""
    print(json.dumps(_json_values(values), default=str, allow_nan=False))  # rich would wrap it


def _json_values(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {str(key): _json_values(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_json_values(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def cell(value: Any) -> Any:
    """A value as a cell of a table or CSV file: what is nested as JSON, the rest as it is."""
    nested = isinstance(value, Mapping | list | tuple)
    return json.dumps(_json_values(value), default=str, ensure_ascii=False) if nested else value


def shown(value: Any) -> Any:
    """A value as a cell that a person reads: as `cell`, with every float at six significant digits."""
    return cell(_six_digits(value))


def _six_digits(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _six_digits(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_six_digits(each) for each in value]
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    # All digits before the point are kept: a large number is not easier to read as a power of ten.
    return round(value, max(0, 5 - math.floor(math.log10(abs(value))))) if value else value


def print_account(title: str, facts: Mapping[str, object]) -> None:
    """A title and aligned facts; those that are None or empty are left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        if value is not None and value != "":
            grid.add_row(shown_text(name), shown_text(value))
    out.print(f"[bold]{shown_text(title)}[/bold]")
    out.print(grid)


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()
) -> None:
    """A table; columns named in `right` are aligned to the right."""
    table = Table(
        title=printable(title) or None, title_justify="left", title_style="bold", header_style="dim", box=None
    )
    table.padding = (0, 2, 0, 0)
    for column in columns:
        table.add_column(shown_text(column), justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*["" if value is None else shown_text(value) for value in row])
    out.print(table)


def warn(text: str) -> None:
    """A warning that matters."""
    err.print(f"[yellow]warning:[/yellow] {shown_text(text)}", soft_wrap=True)


def fail(text: str) -> None:
    """What went wrong and what to do."""
    err.print(f"[red]error:[/red] {shown_text(text)}", soft_wrap=True)


def number(value: float | None, digits: int = 4) -> str:
    """A number with a few significant digits; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}g}"


class Advance(Protocol):
    """Takes how far a step has come in all, and how many units a second it does, where that is known."""

    def __call__(self, done: int, per_s: float | None = None, /) -> None: ...


@contextmanager
def progress(what: str, total: int | None, unit: str = "") -> Iterator[Advance]:
    """Progress of a long step: yields a function that takes how far it has come in all.

    A bar on a terminal; elsewhere a line at the start and every ten seconds.

    Args:
        what: the step's name.
        total: how far it will come; None where that is not known.
        unit: of what is counted, such as "updates"; named beside a measured rate.
    """
    if err.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("{task.fields[pace]}"), console=err, transient=True) as bar:
            task = bar.add_task(what, total=total, pace="")

            def move(done: int, per_s: float | None = None) -> None:
                bar.update(task, completed=done, pace=pace(done, total, per_s, unit))

            yield move
        return
    began = last = time.monotonic()
    err.print(f"{what} ...")

    def line(done: int, per_s: float | None = None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _LINE_EVERY_S:
            last = now
            of = f" of {total}" if total else ""
            parts = [f"{what}: {done}{of} after {now - began:.0f} s", pace(done, total, per_s, unit)]
            err.print(", ".join(part for part in parts if part))

    yield line


def pace(done: int, total: int | None, per_s: float | None, unit: str) -> str:
    """Rate and time left in words; "" where the rate is not known.

    The rate is the step's own: of a training that was resumed, the bar would count updates of the day before.
    """
    if not per_s:
        return ""
    rate = f"{per_s:,.0f} {unit}/s" if per_s >= 10 else f"{per_s:.2g} {unit}/s"
    return f"{rate}, {duration((total - done) / per_s)} left" if total is not None and total > done else rate
