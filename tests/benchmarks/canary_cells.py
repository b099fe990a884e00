"""Whole canaries in worlds whose truth is known: who is stopped, who is promoted, after how long and at which cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal
from zlib import crc32

import numpy as np

from reports.canary_comparison import Arms
from reports.canary_config import CanaryConfig
from reports.canary_verdict import RETURN, Measure, Verdict, judge_canary
from tests.benchmarks.canary_worlds import LIMIT, Autoscaler, Episodes, Plain, SharedCapacity

_FIRST_LOOK, _GROWTH = 4, 1.04
"""Hours to the first look; later ones come when there are so many times as many."""


@dataclass(frozen=True, kw_only=True)
class CanaryCell:
    """One candidate in one world; its canary runs until it is stopped, promoted or out of time."""

    world: str
    candidate: str
    episodes: Plain | Autoscaler | SharedCapacity
    plan: tuple[float, ...] = (0.05, 0.2, 0.5)
    days: int = 10
    expects: Literal["not stopped", "no success", "stopped", "promoted", "either"] = "not stopped"
    """By the truth: `either` is worse by less than the margin."""
    promised: bool = True
    """False where slices are known to mislead."""
    logs: float = 1.0

    def __call__(self, seed: int) -> dict[str, Any]:
        """How one canary ended, and what it cost."""
        rng = np.random.default_rng([seed, crc32(f"{self.world} {self.candidate}".encode())])
        config = CanaryConfig()
        parts: list[Episodes] = []
        shares: list[float] = []
        step, step_hour, hour = 0, 0, 0
        while hour < 24 * self.days:
            until = max(hour + 1, step_hour + _FIRST_LOOK, round(hour * _GROWTH))
            part = self.episodes.draw(rng, np.arange(hour, until), self.plan[step])
            parts.append(part)
            shares += [self.plan[step]] * len(part.value)
            hour = until
            verdict = self._judge(parts, np.array(shares), step, step_hour, config)
            if verdict.action == "stop":
                return self._outcome("stopped", parts)
            if verdict.action == "advance":
                if step == len(self.plan) - 1:
                    return self._outcome("promoted", parts)
                step, step_hour = step + 1, hour
        return self._outcome("undecided", parts)

    def _judge(self, parts: list[Episodes], shares: Any, step: int, step_hour: int, config: CanaryConfig) -> Verdict:
        every = Episodes(*(np.concatenate(columns) for columns in zip(*(vars(p).values() for p in parts), strict=True)))
        arms = Arms(every.candidate, shares, every.unit, every.hour)
        measures = [
            Measure(RETURN, every.value, np.ones(len(every.value))),
            Measure("success", every.success, every.n_steps),
            Measure("breaches of slo", every.breaches, every.n_steps, is_loss=True, limit=LIMIT),
            Measure("late decisions", every.late, every.n_steps, is_loss=True),
        ]
        return judge_canary(
            arms,
            measures,
            config,
            next_share=self.plan[step + 1] if step + 1 < len(self.plan) else 1.0,
            at_step=(every.hour >= step_hour).astype(np.float64),
            exposure=1.0,
            in_blocks=self.in_blocks,
        )

    @property
    def in_blocks(self) -> bool:
        """Whether it is a switchback."""
        return isinstance(self.episodes, SharedCapacity) and self.episodes.in_blocks

    def _outcome(self, ending: str, parts: list[Episodes]) -> dict[str, Any]:
        n_candidate = int(sum(part.candidate.sum() for part in parts))
        return {
            "ending": ending,
            "n_episodes": int(sum(len(part.value) for part in parts)),
            "n_candidate": n_candidate,
            "hours": int(parts[-1].hour[-1]) + 1,
            "cost": -self.episodes.gain * n_candidate,
            "gain": self.episodes.gain,
        }


_SHAPES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("normal returns", {}),
    ("skewed costs", {"shape": "skewed"}),
    ("a loss of 10 sd in one of 200", {"shape": "disaster"}),
    ("rhythm and trend while the share rises", {"rhythm": 1.0, "trend": 2.0}),
    ("clusters of 5 with a taste", {"cluster": 5}),
)
_RULES = (
    ("the champion's twin", (0.6, 0.3), "not stopped"),
    ("scales up at .57", (0.57, 0.27), "either"),
    ("scales up at .5", (0.5, 0.2), "stopped"),
    ("scales up at .4", (0.4, 0.1), "stopped"),
    ("scales up at .7", (0.7, 0.3), "promoted"),
    ("scales up at .7, down at .45", (0.7, 0.45), "promoted"),
    ("hardly scales up: earns more, misses the objective", (1.1, 0.8), "stopped"),
)
_POWER = 0.4
"""Share of the logs where no error rate is promised."""


def _plain(name: str, candidate: str, expects: Any, **settings: Any) -> CanaryCell:
    logs = 1.0 if expects in ("not stopped", "no success") else _POWER
    return CanaryCell(
        world=f"canary, {name}", candidate=candidate, episodes=Plain(**settings), expects=expects, logs=logs
    )


def _at_margin(settings: dict[str, Any]) -> float:
    return -CanaryConfig().margin_sd * Plain(**settings).spread


def _shared(candidate: str, planned: float, in_blocks: bool, expects: Any) -> CanaryCell:
    return CanaryCell(
        world=f"canary, shared capacity, {'switchback' if in_blocks else 'slices'}", candidate=candidate,
        episodes=SharedCapacity(planned=planned, in_blocks=in_blocks), plan=(0.5,), days=28, expects=expects,
        promised=in_blocks, logs=1.0 if expects == "not stopped" else _POWER,
    )  # fmt: skip


CELLS = (
    *(_plain(name, "equal", "not stopped", **settings) for name, settings in _SHAPES),
    *(_plain(name, "worse by the margin", "no success", effect=_at_margin(s), **s) for name, s in _SHAPES),
    *(_plain("normal returns", f"{effect:+g} sd", "stopped", effect=effect) for effect in (-0.2, -0.5, -1.0)),
    *(_plain("normal returns", f"{effect:+g} sd", "promoted", effect=effect) for effect in (0.1, 0.3)),
    _plain("normal returns", "as good, 10 points less success and more breaches", "stopped", worse_rates=0.1),
    _plain("normal returns", "as good, 5 % of decisions late", "stopped", late=0.05),
    *(
        CanaryCell(world="canary, autoscaler", candidate=name, episodes=Autoscaler(candidate=rule), expects=expects,
                   logs=1.0 if expects == "not stopped" else _POWER)
        for name, rule, expects in _RULES
    ),
    _shared("equal", 0.6, True, "not stopped"),
    _shared("asks for more", 0.4, False, "stopped"),
    _shared("asks for more", 0.4, True, "stopped"),
)  # fmt: skip
