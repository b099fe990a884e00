"""What a user's own log says about the evaluation itself: backtests, placebos, and promises kept.

A number that cannot be trusted is not stored: `cause` says why, and the value is None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PolicySource = Literal["release", "uniform", "estimated"]
"""How the probabilities of a version's actions are known: it is a registered release and acts; its logged
probabilities are those of a uniform draw; or a model of it was fitted on episodes of its own."""

BacktestVerdict = Literal["covered", "missed", "cannot be judged"]
PlaceboVerdict = Literal["held", "too often", "undecided", "cannot be judged"]
PromiseVerdict = Literal["kept", "broken", "too early to tell", "cannot be judged"]
PROMISE_VERDICTS: tuple[PromiseVerdict, ...] = ("kept", "broken", "too early to tell", "cannot be judged")


@dataclass(frozen=True)
class BacktestEstimate:
    """One estimator's value of a version from another's episodes, beside what the version earned."""

    estimator: str
    value: float | None
    """Reward units per episode."""
    low: float | None
    high: float | None
    difference: float | None
    """Estimate minus what was earned (minus what the model of the version differs from it, where that is known)."""
    difference_low: float | None
    difference_high: float | None
    verdict: BacktestVerdict
    cause: str = ""
    """Why it cannot be judged; "" where it can."""


@dataclass(frozen=True)
class BacktestPair:
    """One version estimated from the episodes of another in the nights in which both acted."""

    version: str
    """Whose value is estimated."""
    from_version: str
    """Whose episodes it is estimated from."""
    n_nights: int
    """Nights in common."""
    n_episodes: int
    """Episodes of `version` in them, whose mean return is the truth to hit."""
    n_from_episodes: int
    verdict: BacktestVerdict = "cannot be judged"
    """Of the estimator that decides."""
    cause: str = ""
    """Why it cannot be judged; "" where it can."""
    note: str = ""
    """What to know about the version's probabilities."""
    source: PolicySource | None = None
    """How the version's action probabilities are known; None where they are not."""
    effective_sample_size: float | None = None
    """What the episodes of `from_version` are worth, in episodes."""
    earned: float | None = None
    """Mean return of `version` over its own episodes, in reward units."""
    earned_low: float | None = None
    earned_high: float | None = None
    model_error: float | None = None
    """Value of the model of `version` minus that of `version`, by its own episodes; 0 where the policy is exact."""
    model_error_low: float | None = None
    model_error_high: float | None = None
    deciding_estimator: str | None = None
    estimates: tuple[BacktestEstimate, ...] = ()

    @property
    def deciding(self) -> BacktestEstimate | None:
        """The estimate by which the gate would have decided; None where nothing decides."""
        return next((e for e in self.estimates if e.estimator == self.deciding_estimator), None)


@dataclass(frozen=True)
class Backtest:
    """Every two versions of one log, each estimated from the other's episodes."""

    pairs: tuple[BacktestPair, ...]
    level: float
    """Two-sided level of every interval."""
    cause: str = ""
    """Why there are no pairs; "" where there are some."""

    def count(self, verdict: BacktestVerdict) -> int:
        """Pairs with that verdict."""
        return sum(pair.verdict == verdict for pair in self.pairs)


@dataclass(frozen=True)
class Placebo:
    """How often the gate's bound passes a difference whose truth is 0: that of random halves of one log."""

    of: str
    """What is averaged over the halves: "return of the log", or "candidate minus baseline"."""
    unit: str
    """What was dealt into halves: "cluster" or "night"."""
    alpha: float
    """Share that may pass."""
    n_episodes: int
    n_units: int
    n_halves: int
    n_passed: int
    rate: float | None
    """Share of the halves whose lower bound lay above 0."""
    low: float | None
    high: float | None
    """Two-sided 95 % Clopper-Pearson interval of the rate, given this log."""
    verdict: PlaceboVerdict
    chance: float | None = None
    """How often units that share nothing would differ by as much; None where the units are the clusters themselves."""
    cause: str = ""


@dataclass(frozen=True)
class Promise:
    """What the gate promised of a release, and what the release has earned since its snapshot was frozen."""

    release: int
    promoted_at: str
    """ISO instant, UTC, of its first promotion."""
    promised: float | None = None
    """Value of the release by its evaluation, in reward units per episode."""
    promised_low: float | None = None
    """Lower end of that value's interval: the promise."""
    promised_high: float | None = None
    n_episodes: int = 0
    """Episodes that it wrote since, believed where its probabilities fit."""
    n_clusters: int = 0
    n_nights: int = 0
    earned: float | None = None
    """Mean return over their clusters."""
    earned_low: float | None = None
    earned_high: float | None = None
    """Confidence sequence of the mean return: holds however often it is looked at."""
    level: float | None = None
    """Of both intervals, two-sided; the second holds it over all nights together."""
    verdict: PromiseVerdict = "too early to tell"
    since: str = ""
    """Night in which the verdict was reached; "" before that."""
    cause: str = ""
    """Why it is too early or cannot be judged."""

    @property
    def crossed(self) -> bool:
        """Whether the ends of the confidence sequence have crossed: its mean return did not stay the same."""
        return self.earned_low is not None and self.earned_high is not None and self.earned_low > self.earned_high


@dataclass(frozen=True)
class Proof:
    """What the user's own log says about the evaluation."""

    backtest: Backtest
    placebos: tuple[Placebo, ...]
    promises: tuple[Promise, ...] = ()
