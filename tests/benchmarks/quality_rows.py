"""True values of policies over several seeds: means with intervals, verdicts against peers, and the page of docs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from scipy import stats

from tests.benchmarks.rows import machine, table, write_json

Verdict = Literal["better", "worse", "no difference"]

_SMALLEST = 1e-3
"""Differences below this share of the distance from zero are rounding, or the simulation's, not the learner's."""


@dataclass(frozen=True)
class Result:
    """One learner, trained once.

    Attributes:
        world, learner: names.
        seed: of the log and of the first weights.
        value: true expected discounted return of the greedy policy.
        seconds: of training, shared equally among learners that were trained as one computation.
    """

    world: str
    learner: str
    seed: int
    value: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A learner against a peer on the same logs.

    Attributes:
        peer: who.
        difference: mean of ours minus the peer's, by seed.
        low, high: 95 % t interval of that mean.
        verdict: "better" or "worse" where the interval leaves out 0.
    """

    peer: str
    difference: float
    low: float
    high: float
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class QualityRow:
    """One learner on one world.

    Attributes:
        work: "quality", the world, the learner.
        world, learner: names.
        value, low, high: mean true discounted return over the seeds, and its 95 % t interval.
        unit: of these.
        n_seeds: trainings.
        logger, best: true values of what wrote the log and of the optimum (None where it is not known).
        seconds: mean training time.
        against: every peer; empty for a peer itself.
        machine: where it ran.
    """

    work: str
    world: str
    learner: str
    value: float
    low: float
    high: float
    unit: str
    n_seeds: int
    logger: float
    best: float | None
    seconds: float
    against: tuple[Comparison, ...]
    machine: str


class KnownWorld(Protocol):
    """What the page says of a world."""

    @property
    def name(self) -> str: ...

    @property
    def about(self) -> str: ...

    def logger_value(self) -> float: ...

    def best_value(self) -> float | None: ...


def quality_rows(
    results: Sequence[Result], *, worlds: Sequence[KnownWorld], peers: tuple[str, ...]
) -> list[QualityRow]:
    """A row for every world and learner, in the order of the worlds and of the results."""
    rows = []
    for world in worlds:
        found: dict[str, dict[int, Result]] = {}
        for result in results:
            if result.world == world.name:
                found.setdefault(result.learner, {})[result.seed] = result
        for learner, by_seed in found.items():
            values = np.array([result.value for result in by_seed.values()])
            mean, low, high = t_interval(values)
            others = [p for p in peers if learner not in peers and p in found]
            rows.append(
                QualityRow(
                    work=f"quality {world.name}, {learner}",
                    world=world.name,
                    learner=learner,
                    value=_rounded(mean),
                    low=_rounded(low),
                    high=_rounded(high),
                    unit="discounted return",
                    n_seeds=len(values),
                    logger=_rounded(world.logger_value()),
                    best=None if world.best_value() is None else _rounded(float(world.best_value() or 0.0)),
                    seconds=_rounded(float(np.mean([result.seconds for result in by_seed.values()]))),
                    against=tuple(compare(p, by_seed, found[p]) for p in others),
                    machine=machine(),
                )
            )
    return rows


def compare(peer: str, ours: dict[int, Result], theirs: dict[int, Result]) -> Comparison:
    """Paired by seed: both learned from the same log.

    Raises:
        ValueError: they have not the same seeds.
    """
    if ours.keys() != theirs.keys():
        raise ValueError(f"{peer} has the seeds {sorted(theirs)}, ours {sorted(ours)}: finish both.")
    differences = np.array([ours[seed].value - theirs[seed].value for seed in sorted(ours)])
    size = max(abs(r.value) for r in [*ours.values(), *theirs.values()])
    mean, low, high = t_interval(differences)
    verdict: Verdict = "no difference"
    if abs(mean) > _SMALLEST * size and (low > 0 or high < 0):
        verdict = "better" if mean > 0 else "worse"
    return Comparison(peer=peer, difference=_rounded(mean), low=_rounded(low), high=_rounded(high), verdict=verdict)


def t_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Mean, and its Student t interval; (mean, -inf, inf) of a single value."""
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return mean, -np.inf, np.inf
    half = float(stats.t.ppf(0.5 + level / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


def quality_table(rows: Sequence[QualityRow]) -> str:
    """Plain text, as `make bench` prints it."""
    cells = [
        [
            row.work,
            f"{row.value:g} ({row.low:g} to {row.high:g})",
            f"{row.logger:g}",
            "not known" if row.best is None else f"{row.best:g}",
            "; ".join(f"{c.verdict} than {c.peer}" for c in row.against if c.verdict != "no difference"),
        ]
        for row in rows
    ]
    return table(cells, ["work", "true value", "the log's", "optimum", "paired by seed"])


def write_quality(folder: Path, rows: Sequence[QualityRow], worlds: Sequence[KnownWorld], settings: str) -> None:
    """`quality.json`, and `quality.md` for people."""
    write_json(folder / "quality.json", [asdict(row) for row in rows])
    (folder / "quality.md").write_text(quality_page(rows, worlds, settings))


def quality_page(rows: Sequence[QualityRow], worlds: Sequence[KnownWorld], settings: str) -> str:
    """Markdown: one table per world."""
    n_seeds = max((row.n_seeds for row in rows), default=0)
    parts = [
        "# What the learned policies are worth\n",
        "Written by `make bench WORK=quality`. True expected discounted return of greedy policies, mean and 95 % t "
        f"interval over {n_seeds} seeds, each with a log of its own. {settings} A verdict is that of the paired "
        "difference by seed: better or worse where its 95 % t interval leaves out 0.\n",
    ]
    for world in worlds:
        own = [row for row in rows if row.world == world.name]
        if own:
            parts.append(_world_part(world, own))
    return "\n".join(parts)


def _world_part(world: KnownWorld, rows: Sequence[QualityRow]) -> str:
    peers = list(dict.fromkeys(c.peer for row in rows for c in row.against))
    best = "not known" if rows[0].best is None else f"{rows[0].best:g}"
    heads = ["learner", "true value", "95 % interval", *(f"against {peer}" for peer in peers)]
    lines = [
        f"## {world.name}\n",
        f"{world.about[0].upper()}{world.about[1:]}. The log is worth {rows[0].logger:g}, the optimum {best}.\n",
        f"| {' | '.join(heads)} |",
        f"| --- | {' | '.join('---:' for _ in heads[1:])} |",
    ]
    for row in sorted(rows, key=lambda row: not row.against):
        verdicts = {c.peer: f"{c.verdict} ({c.difference:+g})" for c in row.against}
        cells = [row.learner, f"{row.value:g}", f"{row.low:g} to {row.high:g}", *(verdicts.get(p, "") for p in peers)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
