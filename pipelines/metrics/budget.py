"""What a training may still cost, watched while it runs: it stops before the budget is exceeded, not after."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datasets.durable import write_durably
from offline_dqn.stopping import TrainingStoppedError
from pipelines.metrics.config import CostConfig
from pipelines.metrics.usage import Meter, StageUsage, Usage, UsageLog

_LOOK_EVERY_S = 0.2
"""Seconds between two looks at what was spent; a look takes some 50 microseconds."""

_KEEP_EVERY_S = 5.0
"""Seconds of spending that a kill may hide from the attempt that goes on."""

_SPENT = "spent.json"


class BudgetSpentError(TrainingStoppedError):
    """A training was stopped, or not begun, because of what it costs."""


class TrainingBudget:
    """The budget of one training: its networks, and then the choice among its candidates.

    Args:
        prices: with the budgets.
        log: what earlier stages took; the newest training in it tells what one costs.
        folder: of the training's checkpoints, where what earlier attempts cost is kept.
        settings: all that decides the training; with others, what was spent before was spent on something else.
        n_updates: how many it is to do.
        meter: of this attempt.
    """

    def __init__(
        self,
        prices: CostConfig,
        log: UsageLog,
        *,
        folder: Path,
        settings: Mapping[str, Any],
        n_updates: int,
        meter: Meter,
    ) -> None:
        self._prices, self._meter, self._n_updates, self._snapshot = prices, meter, n_updates, folder.name
        self._path = folder / _SPENT
        self._digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
        spent, self._step = self._earlier()
        self._before = spent
        now = datetime.now(UTC)
        of_month = sum(line.cost(prices) for line in log.of_month(now)) if prices.month_budget else 0.0
        left = {
            "training_budget": prices.training_budget - spent if prices.training_budget is not None else None,
            "month_budget": prices.month_budget - of_month if prices.month_budget is not None else None,
        }
        known = {name: amount for name, amount in left.items() if amount is not None}
        self._name = min(known, key=lambda name: known[name], default="")
        self._left = known.get(self._name)
        networks, choice = log.last("train", trained=True), log.last("choose")
        self._begins, self._per_update = _rate(networks, prices)
        self._choice = choice.cost(prices) if choice else 0.0
        self._began_with: int | None = None
        self.first: Usage | None = None  # what was used before the first update
        self._next_look, self._kept_at = 0.0, time.monotonic()
        self._seen: float | None = None

    def check_projection(self) -> None:
        """Refuses a training that would exceed its budget, as far as the last one tells.

        Raises:
            BudgetSpentError: it would, or nothing is left.
        """
        if self._left is None:
            return
        if self._left <= 0:
            raise BudgetSpentError(f"The training was not begun: {self._limit()} is spent. {self._remedy()}")
        if self._per_update is None:
            return
        remaining = max(0, self._n_updates - self._step)
        expected = self._begins + self._per_update * remaining + self._choice
        if expected > self._left:
            goes_on = f" from update {self._step:,} on" if self._step else ""
            raise BudgetSpentError(
                f"The training was not begun: {remaining:,} updates{goes_on} and the choice among their candidates "
                f"would cost about {self._amount(expected)}, by what the last training took, and of {self._limit()} "
                f"{self._amount(self._left)} is left. {self._remedy()}"
            )

    def may_update(self, step: int) -> None:
        """Called before every update with how many are done; what choosing took the last time is kept back.

        Raises:
            BudgetSpentError: the next updates might exceed the budget.
        """
        self._step = step
        if self._began_with is None:
            self._began_with, self.first = step, self._meter.read()
        self._look(self._choice, f"after {step:,} of {self._n_updates:,} updates")

    def may_judge(self) -> None:
        """Called before every candidate is judged.

        Raises:
            BudgetSpentError: judging it might exceed the budget.
        """
        self._look(0.0, f"while choosing, with all {self._step:,} updates done,")

    def finished(self, n_updates: int) -> None:
        """All updates that training does are done; it may do fewer than it was set."""
        self._step = n_updates

    def choose_by(self, meter: Meter) -> None:
        """The networks are trained: choosing has another meter, and is charged to the same budget."""
        spent = self._cost()
        self._before += spent
        self._left = self._left - spent if self._left is not None else None
        self._meter, self._next_look, self._seen = meter, 0.0, None
        self._keep()

    @property
    def updates_done(self) -> int | None:
        """By this attempt alone; None without any."""
        return self._step - self._began_with if self._began_with is not None and self._step > self._began_with else None

    def _look(self, kept_back: float, when: str) -> None:
        now = time.monotonic()
        if self._left is None or now < self._next_look:
            return
        spent = self._cost()
        # By the next look as much again may be spent as since the last one, and half as much again for a slow update.
        ahead = 0.0 if self._seen is None else 1.5 * (spent - self._seen)
        self._seen = spent
        self._next_look = time.monotonic() + _LOOK_EVERY_S
        if now - self._kept_at > _KEEP_EVERY_S:
            self._kept_at = now
            self._keep()
        if spent + ahead + kept_back > self._left:
            self._keep()
            back = f" ({self._amount(kept_back)} of it kept back for choosing)" if kept_back else ""
            kept = (
                f"Its checkpoint is kept: it goes on from update {self._step:,}" if self._step else "Nothing was kept"
            )
            raise BudgetSpentError(
                f"The training was stopped {when} before it exceeded {self._limit()}: of {self._amount(self._left)} "
                f"that was left{back} it has spent {self._amount(spent)}. {kept}. {self._remedy()}"
            )

    def _cost(self) -> float:
        return self._meter.read().cost(self._prices)

    def _amount(self, amount: float) -> str:
        return f"{amount:.3g} {self._prices.currency}"

    def _limit(self) -> str:
        amount = self._prices.training_budget if self._name == "training_budget" else self._prices.month_budget
        return f"[cost] {self._name} = {amount:g} {self._prices.currency}"

    def _remedy(self) -> str:
        return (
            f"Raise {self._name} in offline_dqn.toml and run `offline-dqn train`, which takes the newest snapshot "
            f"(this one is {self._snapshot}), or lower train.n_updates."
        )

    def _earlier(self) -> tuple[float, int]:
        """What earlier attempts cost, and the updates they did."""
        try:
            found = json.loads(self._path.read_text())
        except (OSError, json.JSONDecodeError):
            return 0.0, 0
        return (found["cost"], found["step"]) if found.get("settings") == self._digest else (0.0, 0)

    def _keep(self) -> None:
        if self._left is None:
            return
        line = {"settings": self._digest, "cost": self._before + self._cost(), "step": self._step}
        with contextlib.suppress(OSError):  # the next attempt then counts from less; the checkpoint tells of the disk
            write_durably(self._path, json.dumps(line))


def _rate(training: StageUsage | None, prices: CostConfig) -> tuple[float, float | None]:
    """Cost of a training until its first update, and of each update; None where none is known."""
    if training is None or not training.n_updates:
        return 0.0, None
    begins = training.first.cost(prices) if training.first is not None else 0.0
    return begins, max(0.0, training.cost(prices) - begins) / training.n_updates
