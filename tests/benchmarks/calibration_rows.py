"""From what many logs of one cell showed to the rows of docs/calibration.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from tests.benchmarks.outcomes import Outcome
from tests.benchmarks.rows import table

SLACK = 1.5
"""A level is held if the upper limit of what was observed is at most this many times the level."""

DRIFT = "drift: columns and stretches of nights"
DRIFT_POWER = 0.8
CANARY_ERROR = 0.05
"""`stop_error` and `promote_error`, as they are by default."""
DRIFT_POWER_WORK = "power: a changed night alarms"
CANARY = "canary: asymptotic confidence sequences, by assignment"
GUARD = "guard: all causes together"
GUARD_POWER_WORK = "power: a strange decision is left to version 0"
Kind = Literal["promise", "comparison"]


@dataclass(frozen=True, kw_only=True)
class CalibrationRow:
    """One error rate of one method in one world, against the level that it states."""

    work: str
    """What was counted."""
    world: str
    method: str
    kind: Kind
    """A promise is what a user relies on; a comparison explains it, or shows what another method would do."""
    level: float
    """Stated error rate. For power, the share of better candidates that should pass."""
    observed: float
    upper: float
    """One-sided 95 % upper limit of the rate (Clopper and Pearson 1934)."""
    n: int
    met: bool
    """upper at most `SLACK` times level; for power, observed at least level."""
    estimator: str | None = None
    """That decided in most logs."""
    candidate: str | None = None
    """What it does against the policy that wrote the log."""
    gain: float | None = None
    """Its true value minus the log's, in reward units; the mean over the logs where each has a candidate of its own."""
    horizon: float | None = None
    """Mean steps of an episode."""
    n_episodes: int | None = None
    """Of the gate."""
    overlap: float | None = None
    """Effective sample size in shares of the episodes, mean over the logs."""
    refused: float | None = None
    """Share of logs that a check other than the value bound refused."""
    refused_by: dict[str, float] | None = None
    """And by which."""
    bias: float | None = None
    rmse: float | None = None
    """Of the method's estimate, in reward units, over the logs where it gave one."""
    coverage_90: float | None = None
    coverage_95: float | None = None
    """Share of such intervals that hold the true value."""
    endings: dict[str, float] | None = None
    """Of canaries: shares of them that were stopped, promoted or undecided."""
    hours: float | None = None
    """Of canaries: median time to the end."""
    n_candidate: float | None = None
    """Of canaries: median episodes of the candidate."""
    cost: float | None = None
    """Of canaries: what the champion would have earned more in these, in reward units; mean over canaries."""


def upper_limit(n_found: int, n: int, confidence: float = 0.95) -> float:
    """One-sided upper limit of a rate of which `n_found` in `n` were seen; 1 where nothing was seen at all.

    Source: Clopper and Pearson 1934, The use of confidence or fiducial limits illustrated in the case of the binomial.
    """
    return 1.0 if n_found >= n else float(stats.beta.ppf(confidence, n_found + 1, n - n_found))


def gate_rows(cell: Any, outcomes: Sequence[Outcome]) -> list[CalibrationRow]:
    """Verdicts first, then what the difference and every estimator were worth.

    False passes are stated over all logs, and over those that no other check refused. A candidate beyond the margin is
    worse, one at it exactly as good as the level allows for; what is better asks for power.
    """
    if not outcomes:
        return []
    better = [o for o in outcomes if o["gain"] > -o["margin"] + 1e-9]
    worse = [o for o in outcomes if o["gain"] <= -o["margin"] + 1e-9]
    rows = _Rows(cell, outcomes)
    return [*rows.false_passes(worse), *rows.power(better), *rows.difference(), *rows.estimates()]


@dataclass(frozen=True)
class _Rows:
    cell: Any
    outcomes: Sequence[Outcome]

    def false_passes(self, worse: Sequence[Outcome]) -> Iterator[CalibrationRow]:
        if not worse:
            return
        kind: Kind = "comparison" if self.cell.limit else "promise"
        method, alpha = self._gate, self.cell.alpha
        where = "" if len(worse) == len(self.outcomes) else " that are worse"
        yield self._row(f"false pass, over all logs{where}", method, kind, alpha, _passed(worse), verdicts=worse)
        unrefused = [o for o in worse if not o["refused_by"]]
        if unrefused:
            work = "false pass, over logs that no other check refused"
            yield self._row(work, method, kind, alpha, _passed(unrefused), verdicts=unrefused)
        bounds = {"the lower bound alone": [(o["bound"], o["margin"]) for o in worse]}
        for name in sorted({name for o in worse for name in o["other_bounds"]}):
            found = [(o["other_bounds"].get(name), o["margin"]) for o in worse]
            bounds[f"the lower bound of {name} alone"] = found
        for name, pairs in bounds.items():
            above = [bound > -margin for bound, margin in pairs if bound is not None]
            if above:
                yield self._row("false pass, over logs with such a bound", name, "comparison", alpha, above)

    def power(self, better: Sequence[Outcome]) -> Iterator[CalibrationRow]:
        if not better:
            return
        promised = self.cell.power is not None
        level = self.cell.power if promised else 0.8
        passed = _passed(better)
        share = sum(passed) / len(passed)
        row = self._row(
            "power: a better candidate passes", self._gate, "promise" if promised else "comparison", level, passed,
            verdicts=better, met=share >= level,
        )  # fmt: skip
        yield row

    def difference(self) -> Iterator[CalibrationRow]:
        """Candidate minus log, by what decides."""
        errors = [
            {"error": o["difference"] - o["gain"], "covers": o["interval"][0] <= o["gain"] <= o["interval"][1],
             "level": o["level"]}
            for o in self.outcomes
            if o["difference"] is not None and o["interval"] is not None
        ]  # fmt: skip
        yield from self._accuracy("the interval of the deciding difference misses it", self._gate, errors)

    def estimates(self) -> Iterator[CalibrationRow]:
        """Every estimator of the candidate's value, and the log's own mean return."""
        names = dict.fromkeys(name for o in self.outcomes for name in o["estimates"])
        for name in names:
            found = [o["estimates"].get(name, {"error": None}) | {"level": o["level"]} for o in self.outcomes]
            yield from self._accuracy(
                "its interval misses the true value", name, [f for f in found if f["error"] is not None]
            )

    def _accuracy(self, work: str, method: str, errors: Sequence[dict[str, Any]]) -> Iterator[CalibrationRow]:
        if not errors:
            return
        size = np.array([e["error"] for e in errors])
        covers = {level: [e["covers"] for e in errors if e["level"] == level] for level in (0.9, 0.95)}
        missed = [not covered for covered in covers[0.95] if covered is not None]
        if not missed:
            return
        shares = {level: _mean([c for c in found if c is not None]) for level, found in covers.items()}
        yield self._row(
            work, method, "comparison", 0.05, missed, bias=_rounded(size.mean()),
            rmse=_rounded(float(np.sqrt((size**2).mean()))), coverage_90=shares[0.9], coverage_95=shares[0.95],
        )  # fmt: skip

    @property
    def _deciding(self) -> str | None:
        """What decided in most logs."""
        found: str | None = Counter(o["deciding"] for o in self.outcomes).most_common(1)[0][0]
        return found

    @property
    def _gate(self) -> str:
        return f"gate, {self._deciding or 'nothing'} decides"

    def _row(
        self,
        work: str,
        method: str,
        kind: Kind,
        level: float,
        found: Sequence[bool],
        *,
        verdicts: Sequence[Outcome] | None = None,
        met: bool | None = None,
        **more: Any,
    ) -> CalibrationRow:
        upper = upper_limit(sum(found), len(found))
        overlaps = [o["overlap"] for o in self.outcomes if o["overlap"] is not None]
        if verdicts is not None:
            by = Counter(name for o in verdicts for name in o["refused_by"])
            more["refused"] = _rounded(sum(bool(o["refused_by"]) for o in verdicts) / len(verdicts))
            more["refused_by"] = {name: _rounded(n / len(verdicts)) for name, n in by.most_common()}
        return CalibrationRow(
            work=work, world=self.cell.world, method=method, kind=kind, level=level,
            observed=_rounded(sum(found) / len(found)), upper=_rounded(upper), n=len(found),
            met=upper <= SLACK * level if met is None else met, candidate=self.cell.candidate, estimator=self._deciding,
            gain=_significant(_mean([o["gain"] for o in self.outcomes])),
            horizon=_significant(_mean([o["mean_length"] for o in self.outcomes])),
            n_episodes=self.cell.conditions.n_episodes, overlap=_significant(_mean(overlaps)), **more,
        )  # fmt: skip


def _passed(outcomes: Sequence[Outcome]) -> list[bool]:
    return [o["passed"] for o in outcomes]


def _mean(values: Sequence[float]) -> float | None:
    return _rounded(float(np.mean(values))) if len(values) else None


def drift_rows(cell: Any, outcomes: Sequence[Outcome]) -> list[CalibrationRow]:
    """The rate of alarms: false ones, or where something changed the power."""
    alarmed = [o["alarmed"] for o in outcomes]
    if not alarmed:
        return []
    share, upper = sum(alarmed) / len(alarmed), upper_limit(sum(alarmed), len(alarmed))
    kind: Kind = "promise" if cell.promised and not cell.changed else "comparison"
    level = DRIFT_POWER if cell.changed else cell.false_alarm_rate
    work = DRIFT_POWER_WORK if cell.changed else "false alarm of an unchanged night"
    met = share >= level if cell.changed else upper <= SLACK * level
    return [
        CalibrationRow(
            work=work, world=cell.world, method=DRIFT, kind=kind, level=level, observed=_rounded(share),
            upper=_rounded(upper), n=len(alarmed), met=met,
        )
    ]  # fmt: skip


_CANARY_WORK = {
    "not stopped": ("a canary stops a candidate as good as the champion", "stopped"),
    "no success": ("a canary promotes a candidate that is worse by the margin", "promoted"),
    "stopped": ("power: a canary stops a worse candidate", "stopped"),
    "promoted": ("power: a canary promotes a better candidate", "promoted"),
    "either": ("a canary stops a candidate that is worse by less than the margin", "stopped"),
}


def canary_rows(cell: Any, outcomes: Sequence[Outcome]) -> list[CalibrationRow]:
    """How the canaries of one cell ended: an error rate over all their looks, or the power and what it took."""
    if not outcomes:
        return []
    work, counted = _CANARY_WORK[cell.expects]
    endings = Counter(o["ending"] for o in outcomes)
    n = len(outcomes)
    share, upper = endings[counted] / n, upper_limit(endings[counted], n)
    is_error = cell.expects in ("not stopped", "no success")
    level = CANARY_ERROR if is_error else DRIFT_POWER
    return [
        CalibrationRow(
            work=work, world=cell.world, method=CANARY, kind="promise" if is_error and cell.promised else "comparison",
            level=level, observed=_rounded(share), upper=_rounded(upper), n=n,
            met=upper <= SLACK * level if is_error else share >= level, candidate=cell.candidate,
            gain=_significant(outcomes[0]["gain"]), n_episodes=int(np.median([o["n_episodes"] for o in outcomes])),
            endings={ending: _rounded(count / n) for ending, count in endings.most_common()},
            hours=float(np.median([o["hours"] for o in outcomes])),
            n_candidate=float(np.median([o["n_candidate"] for o in outcomes])),
            cost=_significant(float(np.mean([o["cost"] for o in outcomes]))),
        )
    ]  # fmt: skip


def guard_rows(cell: Any, outcomes: Sequence[Outcome]) -> list[CalibrationRow]:
    """The share of decisions that the guard takes over: false alarms, or where something is strange the power.

    Steps of one training share its thresholds, so the upper limit is the larger of the binomial one and of Student's t
    over trainings.
    """
    if not outcomes:
        return []
    fired, asked = (sum(o[name] for o in outcomes) for name in ("fired", "asked"))
    share, upper = fired / asked, upper_limit(fired, asked)
    if len(outcomes) > 1:
        shares = np.array([o["fired"] / o["asked"] for o in outcomes])
        error = float(shares.std(ddof=1)) / len(shares) ** 0.5
        upper = max(upper, min(1.0, share + float(stats.t.ppf(0.95, len(shares) - 1)) * error))
    if cell.strange:
        work, level, met = GUARD_POWER_WORK, DRIFT_POWER, share >= DRIFT_POWER
    else:
        work, level = "false alarm on an ordinary decision", cell.false_alarm_share
        met = upper <= SLACK * level
    kind: Kind = "promise" if cell.promised and not cell.strange else "comparison"
    return [
        CalibrationRow(
            work=work, world=cell.world, method=GUARD, kind=kind, level=level, observed=_rounded(share),
            upper=_rounded(upper), n=asked, met=met,
        )
    ]  # fmt: skip


def calibration_table(rows: Sequence[CalibrationRow]) -> str:
    """The table of `make calibrate`: under each world its candidates, with what passed and what refused them."""
    lines: list[str] = []
    shown = [row for row in rows if row.refused is not None or row.method in (DRIFT, CANARY, GUARD)]
    for world in dict.fromkeys(row.world for row in shown):
        cells = [_cells_of(row) for row in shown if row.world == world]
        lines += ["", world, *(f"  {line}" for line in table(cells, _HEADS).splitlines())]
    return "\n".join(lines)


_HEADS = ["candidate", "counted", "level", "observed", "upper", "n", "held", "refused", "by"]


def _cells_of(row: CalibrationRow) -> list[str]:
    by = "" if not row.refused_by else ", ".join(f"{n} {s:.0%}" for n, s in list(row.refused_by.items())[:4])
    refused = "" if row.refused is None else f"{row.refused:.0%}"
    held = ("yes" if row.met else "NO") if row.kind == "promise" else ("(yes)" if row.met else "(no)")
    counted = row.work.removeprefix("false pass, over ").removesuffix(": a better candidate passes")
    counted = counted.replace("logs that no other check refused", "logs not refused")
    return [row.candidate or row.method, counted, f"{row.level:g}", f"{row.observed:g}", f"{row.upper:g}", str(row.n),
            held, refused, by]  # fmt: skip


def promises_in_words(rows: Sequence[CalibrationRow]) -> str:
    """How many promises are held, how many broken beyond chance, and how many need more logs to tell."""
    promises = [row for row in rows if row.kind == "promise"]
    held = sum(row.met for row in promises)
    broken = [row for row in promises if not row.met and _broken(row)]
    words = f"{held} promises are held, {len(promises) - held} are not: "
    words += f"{len(broken)} of these err more often than stated, {len(promises) - held - len(broken)} need more logs."
    named = (f"{row.world}; {row.candidate}; {row.work}: {row.observed:g} for {row.level:g}" for row in broken)
    return "\n  ".join([words, *named])


def _broken(row: CalibrationRow) -> bool:
    """Whether the one-sided 95 % limit on the other side says so: of a rate the lower one, of power the upper."""
    if row.work.startswith("power"):
        return row.upper < row.level
    n_found = round(row.observed * row.n)
    return n_found > 0 and float(stats.beta.ppf(0.05, n_found, row.n - n_found + 1)) > row.level


def _rounded(value: float) -> float:
    return round(float(value), 4)


def _significant(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")
