"""The simulated autoscaler under the whole evaluation: fitted Q evaluation, folds, night shocks, the real gate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from datasets.contract import Contract, contract_from_text
from datasets.observations import Observations
from datasets.replay import GATE, TRAIN, Replay
from datasets.simulators.autoscaler_logs import as_simulated
from datasets.simulators.service import ZONES, ServiceParameters
from datasets.simulators.simulation import RollOut, SimulatedNight, simulate_night, true_value
from datasets.simulators.threshold_rule import EXPLORATION, RULES, logging_policy
from offline_dqn.rule_policy import Rule, RulePolicy
from reports.evaluate_config import EvaluateConfig
from reports.evaluation import evaluate_candidate
from reports.gate import GateConfig
from tests.benchmarks.gate_cells import Outcome, outcome_of

_TRUTH_EPISODES = 200_000


@dataclass(frozen=True, kw_only=True)
class AutoscalerCell:
    """Seven nights of version 0, half of the episodes for the gate; the candidate is another controller."""

    method: ClassVar[str] = "gate: DR cross-fitted with fitted Q evaluation, bootstrap by cluster"
    world: str
    rules: tuple[tuple[str, str], ...]
    """Of the candidate, which explores like the log."""
    at_margin: bool
    """Take the candidate's true loss for the margin; else the margin is 0."""
    n_nights: int = 7
    episodes_per_night: int = 200
    alpha: float = 0.05
    logs: float = 0.1

    def __call__(self, seed: int) -> Outcome:
        """What the gate makes of one log."""
        contract, candidate = autoscaler_contract(), self.candidate()
        gain = _gain(self.rules)
        gate = GateConfig(alpha=self.alpha, margin=max(-gain, 0.0) if self.at_margin else 0.0)
        rng = np.random.default_rng([seed, 71])
        nights = logged_nights(rng, self.n_nights, self.episodes_per_night)
        evaluation = evaluate_candidate(
            replay_of(contract, nights, rng), candidate=candidate, baseline=None, version_zero=None,
            candidate_name="candidate", baseline_name="the log", excluded={}, config=EvaluateConfig(n_replicates=2_000),
            gate_config=gate, seed=seed,
        )  # fmt: skip
        return outcome_of(evaluation, gate, gain)

    def candidate(self) -> RulePolicy:
        """The other controller."""
        return _rule_policy(self.rules)


def logged_nights(rng: np.random.Generator, n_nights: int, n_episodes: int) -> list[SimulatedNight]:
    """Nights that version 0 wrote."""
    return [
        simulate_night(
            rng, ServiceParameters(), night=night, n_episodes=n_episodes, policy=logging_policy(), policy_version="0"
        )
        for night in range(1, n_nights + 1)
    ]


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


def _rule_policy(rules: tuple[tuple[str, str], ...]) -> RulePolicy:
    made = tuple(Rule(when=when, action=action) for when, action in rules)
    return RulePolicy(contract=autoscaler_contract(), rules=made, otherwise="hold", exploration=EXPLORATION)


@cache
def _gain(rules: tuple[tuple[str, str], ...]) -> float:
    """True value of the candidate minus that of version 0, on the same traffic; standard error below .01."""
    common: dict[str, Any] = {"n_episodes": _TRUTH_EPISODES, "seed": 0, "gamma": autoscaler_contract().gamma}
    ours = true_value(as_simulated(_rule_policy(rules)), ServiceParameters(), **common)
    return ours.value - true_value(logging_policy(), ServiceParameters(), **common).value


WORSE = (("observation.cpu > 0.4", "scale_up"), RULES[1])
BETTER = (("observation.cpu > 0.8", "scale_up"), RULES[1])

CELLS = (
    AutoscalerCell(world="autoscaler, 7 nights, 700 gate episodes, scales up early", rules=WORSE, at_margin=True,
                   logs=0.2),
    AutoscalerCell(world="autoscaler, 7 nights, 700 gate episodes, scales up late", rules=BETTER, at_margin=False),
)  # fmt: skip
