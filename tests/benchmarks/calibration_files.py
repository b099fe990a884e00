"""What `make calibrate` leaves behind: every row, the worlds that reports quote, and a page with pictures."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from reports.calibration_line import SHIPPED, CalibratedWorld
from tests.benchmarks.calibration_rows import (
    CANARY,
    DRIFT,
    DRIFT_POWER_WORK,
    GUARD,
    GUARD_POWER_WORK,
    SLACK,
    CalibrationRow,
    promises_in_words,
)
from tests.benchmarks.rows import write_json

FALSE_PASS, POWER = "false pass, over all logs", "power: a better candidate passes"
UNREFUSED = "false pass, over logs that no other check refused"
_PICTURES = {"false_passes": "calibration-false-passes.svg", "power": "calibration-power.svg"}


def write_calibration(root: Path, rows: Sequence[CalibrationRow]) -> None:
    """`docs/calibration.json` with every row, `docs/calibration.md` with its pictures, and what the package ships."""
    docs = root / "docs"
    write_json(docs / "calibration.json", [_without_none(row) for row in rows])
    write_json(root / "reports" / SHIPPED, [asdict(world) for world in calibrated_worlds(rows)])
    write_pages(docs, rows)


def write_pages(docs: Path, rows: Sequence[CalibrationRow]) -> None:
    """The page and its pictures alone."""
    (docs / "calibration.md").write_text(calibration_page(rows))
    (docs / _PICTURES["false_passes"]).write_text(false_pass_picture(rows))
    (docs / _PICTURES["power"]).write_text(power_picture(rows))


def calibrated_worlds(rows: Sequence[CalibrationRow]) -> list[CalibratedWorld]:
    """Every promise on false passes, with the power in the same world where a better candidate was tried there."""
    power = {row.world: row for row in rows if row.work == POWER}
    return [
        CalibratedWorld(
            world=row.world,
            candidate=row.candidate or "",
            estimator=row.estimator or "",
            horizon=row.horizon or 0.0,
            n_episodes=row.n_episodes or 0,
            overlap=row.overlap,
            level=row.level,
            n_logs=row.n,
            false_pass=row.observed,
            upper=row.upper,
            held=row.met,
            power=power[row.world].observed if row.world in power else None,
            better=power[row.world].candidate if row.world in power else None,
        )
        for row in rows
        if row.work == FALSE_PASS and row.kind == "promise" and row.estimator is not None
    ]


def calibration_page(rows: Sequence[CalibrationRow]) -> str:
    """Markdown: the promises in words, the pictures, a table for each world, and how every estimator did there."""
    parts = [
        "# How often the gate is wrong",
        "Written by `make calibrate`. Each row counts simulated releases in a world where the true value of every "
        "policy is known: by dynamic programming over the log's horizon in tables, by simulating 200,000 service-hours "
        "or 20,000 service-days in the autoscaler. Every log goes through the whole evaluation (cross-fitting, the "
        "rule that names the deciding estimator, every check of the gate). Whatever wrote the log is the baseline. A "
        'candidate that is worse lies exactly at the margin, unless "margin 0" is said; then it lies beyond it. A '
        f"level is held if the one-sided 95 % upper limit of the rate is at most {SLACK:g} times the level. All rows, "
        "with more digits, are in [calibration.json](calibration.json).",
        promises_in_words(rows).replace("\n  ", "\n- ").replace("\n- ", "\n\n- ", 1),
        f"![False passes of each world with their limits]({_PICTURES['false_passes']})",
        f"![Power of each world]({_PICTURES['power']})",
    ]
    gate_rows = [row for row in rows if row.method not in (DRIFT, CANARY, GUARD)]
    for world in dict.fromkeys(row.world for row in gate_rows):
        parts += _world_part(world, [row for row in gate_rows if row.world == world])
    parts += _drift_part([row for row in rows if row.method == DRIFT])
    parts += canary_part([row for row in rows if row.method == CANARY])
    parts += guard_part([row for row in rows if row.method == GUARD])
    return "\n\n".join(parts) + "\n"


def _drift_part(rows: Sequence[CalibrationRow]) -> Iterator[str]:
    power = [row for row in rows if row.work == DRIFT_POWER_WORK]
    yield "## Drift"
    yield (
        "Counted are nights called drifted, by a column of the night or by a stretch of nights up to it, with the "
        "smallest size that matters set to 0. Where nothing changed, each would have cost a training. The level is "
        "that of the whole check. Only rows that name it run the joint tests too; the others leave out a quarter of "
        "the rate, and stretches with another one where a single night was judged."
    )
    for heading, shown in (("Nothing changed: false alarms", [r for r in rows if r not in power]), ("Power", power)):
        yield f"### {heading}"
        yield _markdown(
            ["world", "level", "observed", "at most", "nights", "held"],
            [
                [row.world, f"{row.level:.0%}", f"{row.observed:.1%}", f"{row.upper:.1%}", f"{row.n:,}", _held(row)]
                for row in shown
            ],
        )


def canary_part(rows: Sequence[CalibrationRow]) -> Iterator[str]:
    """What became of whole canaries: errors over all looks first, then the power, the time and the cost."""
    if not rows:
        return
    yield "## Canary"
    yield (
        "Whole canaries with the settings as they come: a look every hour at first, shares of 5, 20 and 50 %, 160 "
        "episodes an hour, undecided after ten days; in shared capacity a share of 50 %, 72 episodes an hour, 28 days. "
        "The cost is what the champion would have earned more in the candidate's episodes, the true gain that of an "
        "episode where the candidate has all the traffic."
    )
    yield _markdown(
        ["world", "candidate", "true gain", "counted", "level", "observed", "at most", "canaries", "held",
         "stopped", "promoted", "undecided", "hours", "its episodes", "cost"],
        [
            [row.world.removeprefix("canary, "), row.candidate or "", f"{row.gain:g}",
             "power" if row.work.startswith("power") else row.work.removeprefix("a canary "), f"{row.level:.0%}",
             f"{row.observed:.1%}", f"{row.upper:.1%}", f"{row.n:,}", _held(row),
             *(f"{(row.endings or {}).get(ending, 0.0):.0%}" for ending in ("stopped", "promoted", "undecided")),
             f"{row.hours:g}", f"{row.n_candidate:g}", f"{row.cost:g}"]
            for row in rows
        ],
    )  # fmt: skip


def guard_part(rows: Sequence[CalibrationRow]) -> Iterator[str]:
    """How often a guard takes an ordinary decision from its policy, and a strange one."""
    if not rows:
        return
    yield "## Guard"
    yield (
        "Counted are decisions left to version 0, for whatever cause, over many trainings in the same world. Where all "
        "is ordinary they are false alarms, and the level is what `guard.false_alarm_share` asks for; the limit allows "
        "for decisions of one training sharing its thresholds. Elsewhere they are the power."
    )
    yield _markdown(
        ["world", "counted", "level", "observed", "at most", "decisions", "held"],
        [
            [row.world, "power" if row.work == GUARD_POWER_WORK else "false alarms", f"{row.level:.0%}",
             f"{row.observed:.2%}", f"{row.upper:.2%}", f"{row.n:,}", _held(row)]
            for row in rows
        ],
    )  # fmt: skip


def _world_part(world: str, rows: Sequence[CalibrationRow]) -> Iterator[str]:
    verdicts = [row for row in rows if row.refused is not None and row.work != UNREFUSED]
    first = verdicts[0]
    steps = "One step" if first.horizon == 1 else f"{first.horizon:g} steps on average"
    overlap = "" if first.overlap is None else f"; effective sample {first.overlap:.0%} of the episodes"
    yield f"## {world}"
    yield f"{steps}{overlap}; decided by {first.estimator or 'nothing'}."
    yield _markdown(
        ["candidate", "true gain", "counted", "level", "observed", "at most", "logs", "held", "of logs not refused",
         "refused by"],
        [_verdict_cells(row, rows) for row in verdicts],
    )  # fmt: skip
    estimators = [row for row in rows if row.bias is not None]
    yield "<details><summary>Every estimator: bias, error and coverage</summary>"
    yield _markdown(
        ["candidate", "estimator", "bias", "root mean squared error", "90 % interval covers", "95 % interval covers"],
        [[row.candidate or "", row.method, f"{row.bias:g}", f"{row.rmse:g}", _share(row.coverage_90),
          _share(row.coverage_95)] for row in estimators],
    )  # fmt: skip
    yield "</details>"


def _verdict_cells(row: CalibrationRow, rows: Sequence[CalibrationRow]) -> list[str]:
    counted = "power" if row.work == POWER else row.work.removesuffix(", over all logs")
    open_ones = [r for r in rows if r.work == UNREFUSED and r.candidate == row.candidate and row.work != POWER]
    unrefused = "".join(f"{r.observed:.1%} of {r.n:,}, at most {r.upper:.1%}: {_held(r)}" for r in open_ones)
    return [row.candidate or "", f"{row.gain:g}", counted, f"{row.level:.0%}", f"{row.observed:.1%}",
            f"{row.upper:.1%}", f"{row.n:,}", _held(row), unrefused, _refusals(row)]  # fmt: skip


def _held(row: CalibrationRow) -> str:
    said = "yes" if row.met else "no"
    return said if row.kind == "promise" else f"({said})"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _refusals(row: CalibrationRow) -> str:
    named = ", ".join(f"{name} {share:.0%}" for name, share in list((row.refused_by or {}).items())[:4])
    return f"{row.refused:.0%}: {named}" if named else "none"


def _markdown(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in heads[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(heads), rule, *cells])


def false_pass_picture(rows: Sequence[CalibrationRow]) -> str:
    """SVG: for each world and candidate the rate of false passes and its upper limit, in shares of the stated level."""
    shown = [row for row in rows if row.work.startswith(FALSE_PASS)]
    return _picture(
        "False passes, in shares of the stated level: rate and one-sided 95 % upper limit",
        [_Line(row, row.observed / row.level, row.upper / row.level) for row in shown],
        largest=4.0, marks=((1.0, "1"), (SLACK, f"{SLACK:g}"), (3.0, "3")),
    )  # fmt: skip


def power_picture(rows: Sequence[CalibrationRow]) -> str:
    """SVG: for each world the share of logs in which a better candidate passed."""
    shown = [row for row in rows if row.work == POWER]
    return _picture(
        "Power: share of logs in which a better candidate passed",
        [_Line(row, row.observed, row.observed) for row in shown],
        largest=1.0, marks=((0.0, "0"), (0.8, ".8"), (1.0, "1")),
    )  # fmt: skip


class _Line(NamedTuple):
    row: CalibrationRow
    value: float
    limit: float


_LEFT, _WIDTH, _HEIGHT, _TOP = 470, 300, 16, 44


def _picture(title: str, lines: Sequence[_Line], *, largest: float, marks: Sequence[tuple[float, str]]) -> str:
    """A heading for each world, under it a dot for each candidate and a whisker to its limit.

    Hollow where nothing is promised; red where the level is not shown to be held, or the power not reached.
    """
    worlds = list(dict.fromkeys(line.row.world for line in lines))
    height = _TOP + _HEIGHT * (len(lines) + len(worlds)) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 40} {height}" role="img" '
        f'font-family="sans-serif" font-size="10"><title>{html.escape(title)}</title>',
        f'<rect width="100%" height="100%" fill="#fff"/><text x="8" y="16" font-size="13">{html.escape(title)}</text>',
    ]
    for place, name in marks:
        x = _LEFT + _WIDTH * place / largest
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 8}" y2="{height - 8}" stroke="#bbb"/>')
        parts.append(f'<text x="{x:.1f}" y="{_TOP - 12}" text-anchor="middle" fill="#555">{html.escape(name)}</text>')
    y = _TOP + 8
    for world in worlds:
        parts.append(f'<text x="8" y="{y + 3}" font-weight="bold">{html.escape(world)}</text>')
        for line in (line for line in lines if line.row.world == world):
            y += _HEIGHT
            parts += _marked(line, y, largest)
        y += _HEIGHT
    return "\n".join([*parts, "</svg>\n"])


def _marked(line: _Line, y: int, largest: float) -> Iterator[str]:
    color = "#1b6e3c" if line.row.met else "#b3261e"
    x, end = (_LEFT + _WIDTH * min(value / largest, 1.06) for value in (line.value, line.limit))
    yield f'<text x="{_LEFT - 12}" y="{y + 3}" text-anchor="end">{html.escape(line.row.candidate or "")}</text>'
    yield f'<line x1="{x:.1f}" x2="{end:.1f}" y1="{y}" y2="{y}" stroke="{color}" stroke-width="2"/>'
    fill = color if line.row.kind == "promise" else "#fff"
    yield f'<circle cx="{x:.1f}" cy="{y}" r="3.5" fill="{fill}" stroke="{color}"/>'


def _without_none(row: CalibrationRow) -> dict[str, object]:
    return {name: value for name, value in asdict(row).items() if value is not None}
