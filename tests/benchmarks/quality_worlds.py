"""Logs of worlds whose truth is known, to compare learners by what their policies are worth.

Tabular worlds are solved by dynamic programming; CartPole and the autoscaler are simulated. Every log is drawn anew for
every seed; it carries the logger's probabilities, and nothing in it is held back for a gate: the truth is the judge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from datasets.contract import Contract
from datasets.observations import Observations
from datasets.replay import GATE, SELECT, TRAIN, Replay
from datasets.simulators.autoscaler_logs import as_simulated
from datasets.simulators.service import ServiceParameters
from datasets.simulators.simulation import true_value
from datasets.simulators.threshold_rule import logging_policy
from tests.benchmarks import cart_pole
from tests.benchmarks.autoscaler_cells import autoscaler_contract, logged_nights, replay_of
from tests.benchmarks.tables import Table, frozen_lake, masked_table, random_table, soft_around, taxi
from tests.offline_dqn.worlds import make_replay

FloatArray = NDArray[np.float64]


class ActingPolicy(Protocol):
    """What a world asks of a policy."""

    @property
    def actions(self) -> tuple[str, ...]:
        """Labels of the action axis."""

    def action_probs(self, observations: Observations, available: NDArray[np.bool_]) -> FloatArray:
        """(n, A) probabilities, 0 where unavailable."""


class World(Protocol):
    """A decision problem with a log and a truth."""

    @property
    def name(self) -> str:
        """Of the world, as tables show it."""

    @property
    def about(self) -> str:
        """How its log was made and how its truth is known, in one sentence."""

    def log(self, seed: int, *, train_share: float = 0.8, select_share: float = 0.2) -> Replay:
        """A log of its own for every seed; episodes are dealt to the splits at random, what is left over is GATE."""

    def value(self, policy: ActingPolicy) -> float:
        """True expected discounted return of an episode."""

    def logger_value(self) -> float:
        """True value of what wrote the log."""

    def best_value(self) -> float | None:
        """True value of the optimal policy; None where it is not known."""


@dataclass(frozen=True)
class TabularWorld:
    """A `Table` with a logging policy.

    Attributes:
        name, about: see `World`.
        make: the table and the (S, A) probabilities of its logger.
        n_episodes: logged.
        horizon: steps after which the log cuts an episode, its final observation kept.
    """

    name: str
    about: str
    make: Callable[[], tuple[Table, FloatArray]]
    n_episodes: int
    horizon: int

    def log(self, seed: int, *, train_share: float = 0.8, select_share: float = 0.2) -> Replay:
        """Every episode starts where the table says, and is drawn by the logger until it ends or is cut."""
        table, logger = self.make()
        rng = np.random.default_rng([seed, 1])
        rolled = table.roll(logger, self.n_episodes, self.horizon, rng)
        replay = make_replay(
            table.contract(self.name),
            table.observe(rolled.states),
            rolled.actions,
            rolled.rewards,
            rolled.lengths,
            terminated=rolled.terminated,
            available=table.available[rolled.states],
            next_row=rolled.next_row,
            behavior_prob=rolled.behavior_prob,
        )
        return dealt(replay, rng, train_share, select_share)

    def value(self, policy: ActingPolicy) -> float:
        """Exact, whatever the horizon of the log: the task goes on until it ends."""
        table, _ = self.make()
        states = np.arange(table.n_states)
        return table.value(policy.action_probs(table.observe(states), table.available))

    def logger_value(self) -> float:
        """Exact."""
        table, logger = self.make()
        return table.value(logger)

    def best_value(self) -> float:
        """Exact, by policy iteration."""
        table, _ = self.make()
        return table.value(table.best_policy())


@dataclass(frozen=True)
class CartPoleWorld:
    """Gymnasium's CartPole-v1 with a third of the log by each of three controllers: bad, weak, middling."""

    name: str = "CartPole, mixed quality"
    about: str = (
        "300 episodes, a third each by uniform moves, by chasing the angle with 50 % uniform moves, and by a "
        "controller that drifts off the track with 30 %; truth by simulating 1,000 episodes of at most 500 steps, "
        "the same starts for every policy"
    )
    n_episodes: int = 300
    n_truth_episodes: int = 1_000

    def log(self, seed: int, *, train_share: float = 0.8, select_share: float = 0.2) -> Replay:
        """Episodes of at most 500 steps; those that last as long are cut there, their final observation kept."""
        rng = np.random.default_rng([seed, 2])
        which = np.arange(self.n_episodes) % len(cart_pole.LOGGERS)
        rolled = cart_pole.roll(cart_pole.loggers(which), self.n_episodes, rng)
        columns = dict(zip(cart_pole.FEATURES, rolled.states.T, strict=True))
        replay = make_replay(
            _cart_pole_contract(),
            Observations(columns, {}),
            rolled.actions,
            rolled.rewards,
            rolled.lengths,
            terminated=rolled.terminated,
            next_row=rolled.next_row,
            behavior_prob=rolled.behavior_prob,
        )
        return dealt(replay, rng, train_share, select_share)

    def value(self, policy: ActingPolicy) -> float:
        """Mean over the simulated episodes."""

        def probs(states: FloatArray) -> FloatArray:
            columns = dict(zip(cart_pole.FEATURES, states.T, strict=True))
            return policy.action_probs(Observations(columns, {}), np.ones((len(states), 2), dtype=bool))

        return self._simulated(probs)

    def logger_value(self) -> float:
        """Mean of the three controllers."""
        which = np.arange(self.n_truth_episodes) % len(cart_pole.LOGGERS)
        return self._simulated(cart_pole.loggers(which))

    def best_value(self) -> float:
        """Of a pole that never falls within 500 steps."""
        return _geometric(np.array([cart_pole.HORIZON]))

    def _simulated(self, probs: cart_pole.ActionProbs) -> float:
        rolled = cart_pole.roll(probs, self.n_truth_episodes, np.random.default_rng(77))
        return _geometric(rolled.lengths)


def _geometric(lengths: NDArray[np.int64]) -> float:
    """Mean discounted return of episodes that earn 1 a step."""
    gamma = _cart_pole_contract().gamma
    return float(((1.0 - gamma**lengths) / (1.0 - gamma)).mean())


@cache
def _cart_pole_contract() -> Contract:
    return Contract.model_validate(
        {
            "name": "cart-pole",
            "gamma": 0.99,
            "features": {name: {"type": "numeric"} for name in cart_pole.FEATURES},
            "actions": {"names": ["left", "right"]},
            "reward": {"min": 0.0, "max": 1.0},
        }
    )


@dataclass(frozen=True)
class AutoscalerWorld:
    """The product's own scenario: services whose replicas are scaled, logged by a threshold rule that explores."""

    name: str = "autoscaler"
    about: str = (
        "two nights of 1,000 service-hours by version 0 (thresholds, 70 % uniform); truth by simulating 20,000 "
        "service-hours of six steps, the same traffic for every policy"
    )
    n_nights: int = 2
    episodes_per_night: int = 1_000
    n_truth_episodes: int = 20_000

    def log(self, seed: int, *, train_share: float = 0.8, select_share: float = 0.2) -> Replay:
        """Version 0's log."""
        rng = np.random.default_rng([seed, 3])
        nights = logged_nights(rng, self.n_nights, self.episodes_per_night)
        return dealt(replay_of(autoscaler_contract(), nights, rng), rng, train_share, select_share)

    def value(self, policy: ActingPolicy) -> float:
        """Mean over the simulated service-hours."""
        return self._simulated(as_simulated(policy))

    def logger_value(self) -> float:
        """Of version 0 as it logs."""
        return self._simulated(logging_policy())

    def best_value(self) -> None:
        """Not known."""

    def _simulated(self, probs: Any) -> float:
        found = true_value(
            probs, ServiceParameters(), n_episodes=self.n_truth_episodes, seed=77, gamma=autoscaler_contract().gamma
        )
        return found.value


def dealt(replay: Replay, rng: np.random.Generator, train_share: float, select_share: float) -> Replay:
    """The replay with its episodes dealt to the splits at random, to the episode as the shares say."""
    n = replay.n_episodes
    place = rng.permutation(n)
    n_train, n_select = round(n * train_share), round(n * select_share)
    split = np.where(place < n_train, TRAIN, np.where(place < n_train + n_select, SELECT, GATE))
    return replace(replay, split=split.astype(np.int8))


@cache
def _frozen_lake() -> tuple[Table, FloatArray]:
    table = frozen_lake()
    return table, soft_around(table.best_policy(), table.available, 1.0)


@cache
def _taxi() -> tuple[Table, FloatArray]:
    table = taxi()
    return table, soft_around(table.best_policy(), table.available, 0.5)


@cache
def _random() -> tuple[Table, FloatArray]:
    return random_table(seed=5)


@cache
def _masked() -> tuple[Table, FloatArray]:
    return masked_table(seed=5)


WORLDS: tuple[World, ...] = (
    TabularWorld(
        "random table", "40 states, 5 actions, 600 episodes by a fixed stochastic policy that prefers some actions; "
        "truth by dynamic programming", _random, 600, 50,
    ),
    TabularWorld(
        "FrozenLake 8x8", "slippery, 10,000 episodes drawn uniformly; truth by dynamic programming",
        _frozen_lake, 10_000, 200,
    ),
    TabularWorld(
        "Taxi", "1,000 episodes by the optimal policy with 50 % uniform moves; truth by dynamic programming",
        _taxi, 1_000, 200,
    ),
    CartPoleWorld(),
    AutoscalerWorld(),
    TabularWorld(
        "masked table", "40 states, 12 actions of which 3 are available in a state, 600 episodes drawn uniformly among "
        "them; truth by dynamic programming; the peer acts within the masks, but cannot learn with them",
        _masked, 600, 50,
    ),
)  # fmt: skip
"""In the order of the tables."""
