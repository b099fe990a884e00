"""The simulated autoscaler under the whole evaluation: fitted Q evaluation, folds, night shocks, the real gate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.contract import Contract, contract_from_text
from datasets.observations import Observations
from datasets.replay import GATE, TRAIN, Replay
from datasets.simulators.autoscaler_logs import as_simulated
from datasets.simulators.service import ZONES, ServiceParameters
from datasets.simulators.simulation import (
    FIRST_NIGHT,
    ActionProbs,
    RollOut,
    SimulatedNight,
    roll_out,
    simulate_night,
    true_value,
)
from datasets.simulators.threshold_rule import EXPLORATION, RULES, logging_policy
from datasets.simulators.workload import DAY_S, WEEK_S
from offline_dqn.fqe_config import FqeConfig
from offline_dqn.rule_policy import Rule, RulePolicy
from reports.evaluate_config import EvaluateConfig
from reports.evaluation import evaluate_candidate
from reports.gate import GateConfig
from tests.benchmarks.gate_worlds import Conditions
from tests.benchmarks.outcomes import Outcome, level_of, outcome_of

_FQE = FqeConfig(n_random_features=100, max_steps=20_000, ridges=(3.0, 300.0))
"""A fit takes a tenth of the time of the default, and leaves more to what corrects it."""

_TRUTH_HOURS, _TRUTH_DAYS = 200_000, 20_000


@dataclass(frozen=True, kw_only=True)
class AutoscalerCell:
    """Nights of version 0, half of the episodes for the gate; the candidate is another controller."""

    rules: tuple[tuple[str, str], ...]
    """Of the candidate, which explores like the log."""
    candidate: str
    """What it does, in words."""
    at_margin: bool
    """Take the candidate's true loss for the margin; else the margin is 0."""
    steps: int = 6
    """Of an episode: 6 of ten minutes are a service-hour, 288 of five minutes a service-day."""
    exploration: float = EXPLORATION
    n_nights: int = 7
    episodes_per_night: int = 200
    alpha: float = 0.05
    limit: bool = False
    power: float | None = None
    logs: float = 0.1

    @property
    def world(self) -> str:
        """The world, its logger and the log, in words."""
        length = "service-hours of 6 steps" if self.steps <= 6 else f"service-days of {self.steps} steps"
        n_gate = self.n_nights * self.episodes_per_night // 2
        return f"autoscaler, {length}; {n_gate:,} gate episodes, logger {self.exploration:.0%} uniform"

    @property
    def conditions(self) -> Conditions:
        """Size and horizon of the log."""
        return Conditions(horizon=self.steps, n_episodes=self.n_nights * self.episodes_per_night // 2)

    def __call__(self, seed: int) -> Outcome:
        """What the gate makes of one log."""
        contract = autoscaler_contract()
        candidate = _rule_policy(self.rules, self.exploration)
        ours, logged = _values(self.rules, self.exploration, self.steps)
        margin = max(logged - ours, 0.0) if self.at_margin else 0.0
        gate = GateConfig(alpha=self.alpha, margin=margin, slice_margin=2 * margin)  # zones lose more and less than it
        rng = np.random.default_rng([seed, 71])
        nights = logged_nights(rng, self.n_nights, self.episodes_per_night, self.exploration, self.steps)
        evaluation = evaluate_candidate(
            replay_of(contract, nights, rng), candidate=candidate, baseline=None, version_zero=None,
            candidate_name="candidate", baseline_name="the log", excluded={}, explain=False,
            config=EvaluateConfig(n_replicates=2_000, level=level_of(seed), fqe=_FQE), gate_config=gate, seed=seed,
        )  # fmt: skip
        return outcome_of(evaluation, candidate_value=ours, log_value=logged)


def service_parameters(steps: int) -> ServiceParameters:
    """Up to six steps are of ten minutes, more are of five."""
    return ServiceParameters(step_s=600 if steps <= 6 else 300, steps_per_episode=steps)


def logged_nights(
    rng: np.random.Generator, n_nights: int, n_episodes: int, exploration: float = EXPLORATION, steps: int = 6
) -> list[SimulatedNight]:
    """Nights that version 0 wrote: service-hours around the clock, or whole days that begin at midnight."""
    parameters, policy = service_parameters(steps), logging_policy(exploration)
    if steps <= 6:
        return [
            simulate_night(rng, parameters, night=n, n_episodes=n_episodes, policy=policy, policy_version="0")
            for n in range(1, n_nights + 1)
        ]
    days = []
    for night in range(1, n_nights + 1):
        seconds = np.full(n_episodes, (night - 1) * DAY_S, dtype=np.int64)
        episodes = roll_out(rng, parameters, seconds, policy, n_steps=steps)
        starts = FIRST_NIGHT + seconds.astype("timedelta64[s]")
        days.append(SimulatedNight(night, "0", starts, parameters.step_s, episodes))
    return days


def replay_of(contract: Contract, nights: list[SimulatedNight], rng: np.random.Generator) -> Replay:
    """The nights as a replay dataset of steps with all their final observations, half of the episodes for the gate."""
    parts: list[RollOut] = [night.episodes for night in nights]
    n, horizon = sum(len(p.actions) for p in parts), parts[0].actions.shape[1]
    seen = {name: np.concatenate([p.observations[name] for p in parts]) for name in parts[0].observations}
    columns = {
        name: np.concatenate([v[:, :horizon].ravel(), v[:, horizon]]).astype(np.int32 if name == "zone" else np.float64)
        for name, v in seen.items()
    }
    flat = {name: np.concatenate([getattr(p, name) for p in parts]).ravel() for name in ("actions", "rewards")}
    last = np.arange(n * horizon) % horizon == horizon - 1
    following = np.where(last, n * horizon + np.arange(n * horizon) // horizon, np.arange(n * horizon) + 1)
    return Replay(
        contract=contract,
        digest="0" * 64,
        observations=Observations(columns, {"zone": ZONES}),
        available=np.ones((n * (horizon + 1), 3), dtype=bool),
        actions=flat["actions"],
        rewards=flat["rewards"],
        terminated=np.zeros(n * horizon, dtype=bool),
        truncated=last,
        next_row=following,
        behavior_prob=np.concatenate([p.behavior_prob for p in parts]).ravel(),
        offsets=np.arange(n + 1) * horizon,
        episode_ids=np.array([f"e{i}" for i in range(n)], dtype=object),
        clusters=np.arange(n),
        nights=np.concatenate([night.starts for night in nights]).astype("datetime64[D]"),
        policy_versions=np.full(n, "0", dtype=object),
        split=np.where(_half(n, rng), GATE, TRAIN).astype(np.int8),
    )


def _half(n: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    return np.asarray(rng.permutation(n) < n // 2)


@cache
def autoscaler_contract() -> Contract:
    path = resources.files("datasets") / "scenarios" / "autoscaler.toml"
    return contract_from_text(path.read_text(), "the autoscaler's contract")


def _rule_policy(rules: tuple[tuple[str, str], ...], exploration: float) -> RulePolicy:
    made = tuple(Rule(when=when, action=action) for when, action in rules)
    return RulePolicy(contract=autoscaler_contract(), rules=made, otherwise="hold", exploration=exploration)


@cache
def _values(rules: tuple[tuple[str, str], ...], exploration: float, steps: int) -> tuple[float, float]:
    """True values of the candidate and of version 0, on the same traffic of whole weeks."""
    candidate = as_simulated(_rule_policy(rules, exploration))
    return _value(candidate, steps), _value(logging_policy(exploration), steps)


def _value(policy: ActionProbs, steps: int) -> float:
    parameters, gamma = service_parameters(steps), autoscaler_contract().gamma
    if steps <= 6:
        return true_value(policy, parameters, n_episodes=_TRUTH_HOURS, seed=0, gamma=gamma).value
    # Every service-day of a week of its own, for the shocks that services share within one.
    days = np.arange(_TRUTH_DAYS, dtype=np.int64)
    seconds = days * WEEK_S + days % 7 * DAY_S
    rewards = roll_out(np.random.default_rng(0), parameters, seconds, policy, n_steps=steps).rewards
    return float((rewards @ gamma ** np.arange(steps)).mean())


EARLY = (("observation.cpu > 0.4", "scale_up"), RULES[1])
LATE = (("observation.cpu > 0.8", "scale_up"), RULES[1])
_DAY: dict[str, Any] = {"steps": 288, "exploration": 0.2, "n_nights": 20, "episodes_per_night": 16, "logs": 0.1}

CELLS = (
    AutoscalerCell(rules=EARLY, candidate="worse: scales up early", at_margin=True, logs=0.5),
    AutoscalerCell(rules=LATE, candidate="better: scales up late", at_margin=False, logs=0.2),
    AutoscalerCell(rules=EARLY, candidate="worse: scales up early", at_margin=True, **_DAY),
    AutoscalerCell(rules=LATE, candidate="better: scales up late", at_margin=False, **_DAY),
)  # fmt: skip
