"""From logged lines to what an episode of a canary was worth: open while it runs, closed once nothing can change it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from datasets.contract import Contract
from datasets.observations import ObservationError, Observations, observations_from_records
from datasets.step_rules import Judged, judge_steps

SUCCESS = "success"


@dataclass
class OpenStep:
    """One logged decision that may still get its reward."""

    at: float
    """Seconds since 1970."""
    step: int
    action: str
    observation: Mapping[str, Any]
    policy_version: str
    decided_by: str
    reward: float | None = None
    """As logged with the decision."""
    outcomes: list[tuple[float, float]] = field(default_factory=list)
    """Instant and reward of each outcome."""


@dataclass
class OpenEpisode:
    """An episode that is not complete yet."""

    episode_id: str
    cluster: str
    began: float
    """Seconds since 1970 of its first decision."""
    steps: dict[str, OpenStep] = field(default_factory=dict)
    """By decision_id."""
    ended: bool = False
    """Whether the log says that it terminated or was truncated."""
    final_observation: Mapping[str, Any] | None = None
    resume: dict[str, int] = field(default_factory=dict)
    """By log file, from where on all that concerns it can be read again."""

    @property
    def last_at(self) -> float:
        return max(step.at for step in self.steps.values())


@dataclass(frozen=True)
class ClosedEpisode:
    """What is kept of a complete episode."""

    episode_id: str
    cluster: str
    began: float
    ended: float
    """Seconds since 1970 of its last decision."""
    n_steps: int
    value: float
    """Discounted return."""
    n_late: int
    """Decisions whose scoring missed its deadline."""
    versions: Mapping[str, int]
    """Decisions that each release made itself, by its number as text."""
    rules: Mapping[str, tuple[int, int]]
    """Steps for which a condition was true, and for which it was known: success, and each constraint by its name."""
    n_unrewarded: int
    """Steps that were given the smallest reward, because none ever came."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**self.__dict__, "versions": dict(self.versions), "rules": {k: list(v) for k, v in self.rules.items()}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ClosedEpisode:
        """What `to_json` wrote."""
        return cls(**{**values, "rules": {k: (int(v[0]), int(v[1])) for k, v in values["rules"].items()}})


def is_complete(episode: OpenEpisode, contract: Contract, as_of: float) -> bool:
    """Whether nothing can change what an episode is worth: it has ended or was idle for too long, and its rewards are
    there or their time is over."""
    idle_s = as_of - episode.last_at
    timed_out = idle_s > contract.episodes.timeout_s
    if not episode.ended and not timed_out:
        return False
    if contract.outcomes is not None:
        return idle_s > contract.outcomes.window_s or all(s.reward is not None for s in episode.steps.values())
    return timed_out or all(s.reward is not None or s.outcomes for s in episode.steps.values())


def close_episodes(episodes: Sequence[OpenEpisode], contract: Contract) -> list[ClosedEpisode]:
    """What complete episodes were worth, in the same order.

    A reward that never came is the contract's default where rewards are outcomes, else the smallest possible one: what
    breaks a system also breaks its reports.

    Raises:
        ConstraintError: a condition of the contract fails on a step.
    """
    ordered = [sorted(episode.steps.values(), key=lambda s: (s.step, s.at)) for episode in episodes]
    rules = _judged(episodes, ordered, contract)
    closed = []
    for i, (episode, steps) in enumerate(zip(episodes, ordered, strict=True)):
        rewards = [_reward(step, contract) for step in steps]
        missing = _missing_reward(contract)
        value = sum(contract.gamma**k * (missing if r is None else r) for k, r in enumerate(rewards))
        versions: dict[str, int] = {}
        for step in steps:
            if step.decided_by not in ("late", "baseline"):
                versions[step.policy_version] = versions.get(step.policy_version, 0) + 1
        closed.append(
            ClosedEpisode(
                episode_id=episode.episode_id,
                cluster=episode.cluster,
                began=episode.began,
                ended=steps[-1].at,
                n_steps=len(steps),
                value=float(value),
                n_late=sum(step.decided_by == "late" for step in steps),
                versions=versions,
                rules=rules[i],
                n_unrewarded=sum(r is None for r in rewards) if contract.outcomes is None else 0,
            )
        )
    return closed


def _missing_reward(contract: Contract) -> float:
    if contract.outcomes is not None:
        return contract.outcomes.default
    return contract.reward.min if contract.reward.min is not None else 0.0


def _reward(step: OpenStep, contract: Contract) -> float | None:
    """The reward of a decision, as the lake will combine it; None where there is none."""
    if step.reward is not None:
        return step.reward
    rules = contract.outcomes
    if rules is None:
        return step.outcomes[0][1] if step.outcomes else None
    counted = sorted({(at, r) for at, r in step.outcomes if step.at <= at <= step.at + rules.window_s})
    if not counted:
        return None
    rewards = [reward for _, reward in counted]
    return {"sum": sum(rewards), "last": rewards[-1], "max": max(rewards)}[rules.combine]


def _judged(
    episodes: Sequence[OpenEpisode], ordered: Sequence[Sequence[OpenStep]], contract: Contract
) -> list[dict[str, tuple[int, int]]]:
    """For each episode the steps for which each condition is true and known.

    What a condition asks for and nobody measured counts as no success and as a breach, as in the gate.
    """
    conditions = ({SUCCESS: contract.success.when} if contract.success is not None else {}) | {
        f"breach {name}": condition for name, condition in contract.breaches.items()
    }
    if not conditions or not episodes:
        return [{} for _ in episodes]
    records = [s.observation for steps in ordered for s in steps]
    next_row: list[int] = []
    finals: list[Mapping[str, Any]] = []
    n_steps, row = len(records), 0
    for episode, steps in zip(episodes, ordered, strict=True):
        next_row += range(row + 1, row + len(steps))
        row += len(steps)
        if episode.final_observation is None:
            next_row.append(-1)
        else:
            next_row.append(n_steps + len(finals))
            finals.append(episode.final_observation)
    places = [
        f"episode '{e.episode_id}' step {s.step}" for e, steps in zip(episodes, ordered, strict=True) for s in steps
    ]
    names = contract.actions.names
    found = judge_steps(
        contract,
        conditions,
        observations=_observations(contract, [*records, *finals]),
        actions=np.array([names.index(s.action) for steps in ordered for s in steps], dtype=np.int64),
        next_row=np.array(next_row, dtype=np.int64),
        place=lambda step: places[step],
    )
    charged: dict[str, Judged] = {name: judged.charged(as_true=name != SUCCESS) for name, judged in found.items()}
    ends = np.cumsum([len(steps) for steps in ordered])
    starts = ends - [len(steps) for steps in ordered]
    return [
        {
            name.removeprefix("breach "): (int(judged.true[a:b].sum()), int(judged.known[a:b].sum()))
            for name, judged in charged.items()
        }
        for a, b in zip(starts.tolist(), ends.tolist(), strict=True)
    ]


def _observations(contract: Contract, records: Sequence[Mapping[str, Any]]) -> Observations:
    """The logged observations; one that the contract does not describe counts as not measured."""
    features = {name: f.model_copy(update={"nullable": True}) for name, f in contract.features.items()}
    lenient = contract.model_copy(update={"features": features})
    try:
        return observations_from_records(lenient, records)
    except ObservationError:
        return observations_from_records(lenient, [r if _fits(lenient, r) else {} for r in records])


def _fits(contract: Contract, record: Mapping[str, Any]) -> bool:
    try:
        observations_from_records(contract, [record])
    except ObservationError:
        return False
    return True
