"""Decision problems with exact values in which releases are put to the test, and the logs that are drawn in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from datasets.contract import Contract
from datasets.observations import Observations
from datasets.replay import GATE, SELECT, TRAIN, Replay
from tests.benchmarks.tables import Table, cliff_walking, drawn_table, frozen_lake, soft_around, taxi
from tests.offline_dqn.worlds import make_replay

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class GateWorld:
    """A table whose states are seen through features.

    Attributes:
        table: the decision problem; every action is always available.
        features: (S,) code of each state, by feature. States with the same codes cannot be told apart.
        about: in a few words.
    """

    table: Table
    features: Mapping[str, Ints]
    about: str

    @cached_property
    def seen(self) -> Ints:
        """(S,) number of what is seen in each state."""
        return np.ravel_multi_index(tuple(self.features.values()), self._sizes)

    def contract(self, *, propensity: str = "logged", rewards: tuple[float, float] | None = None) -> Contract:
        """One categorical feature for each, and the reward's range where there is one."""
        values = {
            "name": "calibration",
            "gamma": self.table.gamma,
            "features": {name: {"type": "categorical", "values": list(self._labels[name])} for name in self.features},
            "actions": {"names": list(self.table.actions)},
            "behavior": {"propensity": propensity},
        }
        if rewards is not None:
            values["reward"] = {"min": rewards[0], "max": rewards[1]}
        return Contract.model_validate(values)

    def observe(self, states: Ints) -> Observations:
        """What is logged in these states."""
        return Observations({n: codes[states].astype(np.int32) for n, codes in self.features.items()}, self._labels)

    def first_states(self, observations: Observations) -> Ints:
        """(n,) the first state in which each observation is made."""
        columns = tuple(observations.columns[name] for name in self.features)
        return self._first[np.ravel_multi_index(columns, self._sizes)]

    def best_policy(self) -> Floats:
        """(S, A) the action of the largest optimal value, summed over states that look alike."""
        return self._acting_on(self.table.action_values(self.table.best_policy()))

    def worst_policy(self, policy: Floats) -> Floats:
        """(S, A) the action of the smallest value under `policy`."""
        return self._acting_on(-self.table.action_values(policy))

    def _acting_on(self, q_values: Floats) -> Floats:
        summed = np.zeros((int(np.prod(self._sizes)), q_values.shape[1]))
        np.add.at(summed, self.seen, q_values)
        return np.asarray(np.eye(q_values.shape[1])[summed.argmax(axis=1)][self.seen])

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(int(codes.max()) + 1 for codes in self.features.values())

    @cached_property
    def _labels(self) -> dict[str, tuple[str, ...]]:
        return {
            name: tuple(f"{name}{i}" for i in range(size))
            for name, size in zip(self.features, self._sizes, strict=True)
        }

    @cached_property
    def _first(self) -> Ints:
        first = np.full(int(np.prod(self._sizes)), -1)
        first[self.seen[::-1]] = np.arange(self.table.n_states)[::-1]
        return first


@dataclass(frozen=True, eq=False)
class TablePolicy:
    """A policy of a world, as the evaluation asks for it."""

    contract: Contract
    world: GateWorld
    probs: Floats
    """(S, A), equal in states that look alike."""
    values: Floats | None = None
    """(S, A) its own Q-values."""
    digest: str = "a table"

    @property
    def actions(self) -> tuple[str, ...]:
        """Labels of the action axis."""
        return self.contract.actions.names

    def action_probs(self, observations: Observations, available: NDArray[np.bool_]) -> Floats:  # noqa: ARG002
        """(n, A); every action is available."""
        return np.asarray(self.probs[self.world.first_states(observations)])

    def q_values(self, observations: Observations) -> Floats | None:
        """(n, A) in reward units."""
        return None if self.values is None else np.asarray(self.values[self.world.first_states(observations)])

    def disagreement(self, observations: Observations) -> None:
        """There is one table."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """How a log is drawn; all of it leaves the true values as they are.

    Attributes:
        horizon: steps after which an episode is cut.
        n_episodes: of the gate.
        n_others: that models may be fitted on, in shares of it.
        select: share of these on which candidates are compared.
        noise: standard deviation of a uniform error of each reward.
        cost: taken off every reward.
        cluster_size: episodes that share a shock.
        shock: its standard deviation: as much as the first action gains, the others lose together.
        clusters_known: whether the contract names what they share; else each episode is taken for a cluster.
        disaster: loss that one action brings once in 1,000 steps, on top of rewards whose mean stays what it is.
        disaster_action: which.
        propensity: whether behavior probabilities are logged, or have to be estimated.
    """

    horizon: int
    n_episodes: int
    n_others: float = 1.0
    select: float = 0.0
    noise: float = 0.0
    cost: float = 0.0
    cluster_size: int = 1
    shock: float = 0.0
    clusters_known: bool = True
    disaster: float = 0.0
    disaster_action: int = 0
    propensity: str = "logged"


def draw_log(world: GateWorld, logger: Floats, conditions: Conditions, rng: np.random.Generator) -> Replay:
    """Episodes of (S, A) `logger`; the first ones, cluster by cluster, are for the gate.

    The contract names the range of rewards unless shocks make it unbounded. `conditions.cost` is part of `world.table`
    already.
    """
    table = world.table
    n_gate = conditions.n_episodes
    n = n_gate + round(conditions.n_others * n_gate)
    n_select = round(conditions.select * (n - n_gate))
    rolled = table.roll(logger, n, conditions.horizon, rng)
    group = np.arange(n) // conditions.cluster_size
    rewards = _shaken(rolled.rewards, rolled.actions, np.repeat(group, rolled.lengths), table, conditions, rng)
    estimated = conditions.propensity == "estimated"
    replay = make_replay(
        world.contract(propensity=conditions.propensity, rewards=_reward_range(table, conditions)),
        world.observe(rolled.states),
        rolled.actions,
        rewards,
        rolled.lengths,
        terminated=rolled.terminated,
        next_row=rolled.next_row,
        behavior_prob=np.full(len(rewards), np.nan) if estimated else rolled.behavior_prob,
    )
    first_night = np.datetime64("2026-01-05")
    night = group if conditions.cluster_size > 1 else np.arange(n) * 14 // n
    return replace(
        replay,
        clusters=group if conditions.clusters_known else np.arange(n),
        nights=first_night + night.astype("timedelta64[D]"),
        split=np.where(np.arange(n) < n_gate, GATE, np.where(np.arange(n) < n_gate + n_select, SELECT, TRAIN)).astype(
            np.int8
        ),
    )


def _shaken(
    rewards: Floats, actions: Ints, group: Ints, table: Table, conditions: Conditions, rng: np.random.Generator
) -> Floats:
    first = actions == 0
    if conditions.noise:
        rewards = rewards + conditions.noise * np.sqrt(3.0) * rng.uniform(-1.0, 1.0, len(rewards))
    if conditions.shock:
        shocks = rng.normal(0.0, conditions.shock, int(group.max()) + 1)
        rewards = rewards + shocks[group] * np.where(first, 1.0, -1.0 / (len(table.actions) - 1))
    if conditions.disaster:
        risked, struck = actions == conditions.disaster_action, rng.random(len(rewards)) < 1e-3
        rewards = rewards + conditions.disaster * risked * (1e-3 - struck)
    return rewards


def _reward_range(table: Table, conditions: Conditions) -> tuple[float, float] | None:
    if conditions.shock:
        return None
    possible = table.reward[table.transition > 0]
    error = conditions.noise * np.sqrt(3.0) + 1e-3 * conditions.disaster + 1e-9
    return float(possible.min() - error - conditions.disaster), float(possible.max() + error)


def shifted(world: GateWorld, logger: Floats, direction: str, shift: float, conditions: Conditions) -> Floats:
    """(S, A) the logger with so much of its probability moved.

    Directions: "better", to the best action; "worse", to the worst one; "looser", to all actions alike; "riskier", to
    the one that may bring a disaster; "equal", to the best action in one half of the observations and to the worst in
    the other, just so much that nothing is gained.
    """
    if direction == "better":
        return (1 - shift) * logger + shift * world.best_policy()
    if direction == "worse":
        return (1 - shift) * logger + shift * world.worst_policy(logger)
    if direction == "looser":
        return soft_around(logger, world.table.available, shift)
    if direction == "riskier":
        return np.asarray((1 - shift) * logger + shift * np.eye(logger.shape[1])[conditions.disaster_action])
    return _equal(world, logger, shift, conditions.horizon)


def _equal(world: GateWorld, logger: Floats, shift: float, horizon: int) -> Floats:
    """As much moved to the better as is lost elsewhere by moving `shift` to the worse, or the other way round."""
    table, value = world.table, world.table.value(logger, horizon)
    better_half = (np.random.default_rng(1).permutation(int(world.seen.max()) + 1) % 2 == 0)[world.seen][:, None]
    best, worst = world.best_policy(), world.worst_policy(logger)

    def moved(up: float, down: float) -> Floats:
        better, worse = (1 - up) * logger + up * best, (1 - down) * logger + down * worst
        return np.where(better_half, better, worse)

    def gain(up: float, down: float) -> float:
        return table.value(moved(up, down), horizon) - value

    if gain(shift, shift) > 0:
        up = float(optimize.brentq(lambda up: gain(up, shift), 0.0, shift, xtol=1e-14))
        return moved(up, shift)
    down = float(optimize.brentq(lambda down: gain(shift, down), 0.0, shift, xtol=1e-14))
    return moved(shift, down)


@cache
def gate_world(name: str, cost: float = 0.0) -> GateWorld:
    """The world of that name, with a cost taken off every reward of a step."""
    world = _WORLDS[name]()
    table = world.table
    return replace(world, table=replace(table, reward=table.reward - cost)) if cost else world


def _one_feature(table: Table, about: str, name: str = "state") -> GateWorld:
    return GateWorld(table, {name: np.arange(table.n_states)}, about)


def _taxi() -> GateWorld:
    """Its 500 states are ((row * 5 + column) * 5 + passenger) * 4 + destination."""
    table = taxi()
    row, column, passenger, destination = np.unravel_index(np.arange(500), (5, 5, 5, 4))
    return GateWorld(table, {"row": row, "column": column, "passenger": passenger, "destination": destination}, "Taxi")


def _hidden() -> GateWorld:
    """A table of 13 states in which pairs of states look alike: what is seen does not say where one is."""
    table = drawn_table(seed=8, n_states=12, n_actions=3, end_prob=0.15, gamma=0.95)
    return GateWorld(table, {"seen": np.arange(13) // 2}, "7 observations of 13 states")


_WORLDS: Mapping[str, Callable[[], GateWorld]] = {
    "one step": lambda: _one_feature(
        drawn_table(seed=1, n_states=12, n_actions=4, end_prob=1.0, gamma=1.0), "12 contexts, 4 actions"
    ),
    "5 steps": lambda: _one_feature(
        drawn_table(seed=2, n_states=10, n_actions=3, end_prob=0.2, gamma=0.95), "10 states, 3 actions"
    ),
    "20 steps": lambda: _one_feature(
        drawn_table(seed=5, n_states=30, n_actions=4, end_prob=0.05, gamma=0.95), "30 states, 4 actions"
    ),
    "endless": lambda: _one_feature(
        drawn_table(seed=6, n_states=12, n_actions=3, end_prob=0.0, gamma=0.99), "12 states, 3 actions, no end"
    ),
    "hidden": _hidden,
    "FrozenLake 4x4": lambda: _one_feature(frozen_lake(map_name="4x4"), "FrozenLake 4x4, slippery"),
    "FrozenLake 8x8": lambda: _one_feature(frozen_lake(), "FrozenLake 8x8, slippery"),
    "CliffWalking": lambda: _one_feature(cliff_walking(), "CliffWalking"),
    "Taxi": _taxi,
}
