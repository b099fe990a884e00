"""A small tabular world whose policy values are known, and logs of it, many at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from reports.assessment import DECIDING_RULE, AssessmentConfig, assess
from reports.gate import GateConfig
from reports.records import Counts, Evaluation
from reports.trial import Arm, Trial, feasible_range

Floats = NDArray[np.float64]
GAMMA = 0.9


@dataclass(frozen=True)
class World:
    transitions: Floats  # (S, A, S); what is missing to 1 ends the episode
    rewards: Floats  # (S, A)
    first: Floats  # (S,)

    def q(self, policy: Floats) -> Floats:
        """(S, A), from (I - gamma P_pi) v = r_pi."""
        step = np.einsum("sa,sat->st", policy, self.transitions)
        values = np.linalg.solve(np.eye(len(step)) - GAMMA * step, (policy * self.rewards).sum(axis=1))
        return self.rewards + GAMMA * self.transitions @ values

    def value(self, policy: Floats) -> float:
        return float(self.first @ (policy * self.q(policy)).sum(axis=1))


@dataclass(frozen=True)
class Log:
    states: NDArray[np.int64]
    actions: NDArray[np.int64]
    rewards: Floats
    offsets: NDArray[np.int64]


def small_world(seed: int = 0, *, reward_shift: float = 0.0) -> World:
    rng = np.random.default_rng(seed)
    transitions = rng.dirichlet(np.ones(4), size=(4, 2)) * rng.uniform(0.6, 0.85, size=(4, 2, 1))
    return World(transitions, rng.uniform(-1, 1, size=(4, 2)) + reward_shift, np.full(4, 0.25))


def greedy(world: World, exploration: float) -> Floats:
    """The best policy of the world, with exploration."""
    policy = np.full((4, 2), 0.5)
    for _ in range(20):
        policy = np.eye(2)[world.q(policy).argmax(axis=1)]
    return np.asarray((1 - exploration) * policy + exploration / 2)


def simulate(world: World, policy: Floats, n: int, rng: np.random.Generator) -> Log:
    """`n` episodes, noise of standard deviation .3 on each reward."""
    episodes, steps, states, actions, rewards = [], [], [], [], []
    alive = np.arange(n)
    state = rng.choice(4, size=n, p=world.first)
    for t in range(400):
        action = (rng.random(len(alive)) > policy[state, 0]).astype(np.int64)
        episodes.append(alive)
        steps.append(np.full(len(alive), t))
        states.append(state)
        actions.append(action)
        rewards.append(world.rewards[state, action] + rng.normal(0, 0.3, len(alive)))
        reach = np.cumsum(world.transitions[state, action], axis=1)
        following = (rng.random(len(alive))[:, None] > reach).sum(axis=1)
        alive, state = alive[following < 4], following[following < 4]
        if not len(alive):
            break
    order = np.lexsort([np.concatenate(steps), np.concatenate(episodes)])
    lengths = np.bincount(np.concatenate(episodes), minlength=n)
    return Log(
        np.concatenate(states)[order],
        np.concatenate(actions)[order],
        np.concatenate(rewards)[order],
        np.concatenate([[0], np.cumsum(lengths)]),
    )


def make_trial(world: World, log: Log, behavior: Floats, candidate: Floats, **changes: object) -> Trial:
    """A trial of `candidate` against the log, with the true Q plus an error of .2 as its model."""
    n = len(log.offsets) - 1
    q = world.q(candidate) + 0.2 * np.cos(np.arange(8)).reshape(4, 2)
    fields: dict[str, object] = {
        "names": ("left", "right"),
        "actions": log.actions,
        "rewards": log.rewards,
        "available": np.ones((len(log.actions), 2), dtype=bool),
        "behavior_probs": behavior[log.states, log.actions],
        "propensity_kind": "logged",
        "offsets": log.offsets,
        "clusters": np.arange(n),
        "nights": np.arange(n) % 7,
        "truncated": np.zeros(n, dtype=bool),
        "gamma": GAMMA,
        "feasible": feasible_range(None, None, GAMMA, int(np.diff(log.offsets).max())),
        "largest_reward": None,
        "candidate": Arm(probs=candidate[log.states], q=q[log.states]),
        "baseline": None,
        "version_zero": None,
        "own_q": None,
    }
    return Trial(**(fields | changes))  # type: ignore[arg-type]  # fields by name


def evaluate_trial(
    trial: Trial, config: AssessmentConfig, gate: GateConfig, seed: int, **changes: object
) -> Evaluation:
    """The evaluation of a trial, without a replay dataset."""
    found = assess(trial, config, gate, np.random.default_rng(seed))
    lengths = np.diff(trial.offsets)
    counts = Counts(
        n_episodes=len(lengths),
        n_steps=int(lengths.sum()),
        n_clusters=len(np.unique(trial.clusters)),
        n_nights=len(np.unique(trial.nights)),
        n_truncated=int(trial.truncated.sum()),
        n_fitting_episodes=1_000,
        left_out={"incomplete": 3},
        damaged_share=0.0,
        mean_length=float(lengths.mean()),
        median_length=float(np.median(lengths)),
        longest_length=int(lengths.max()),
        night_episodes_upper=100.0,
    )
    change = None if trial.baseline is None else float(np.abs(trial.candidate.probs - trial.baseline.probs).max())
    evaluation = Evaluation(
        estimand="the discounted return of one episode",
        candidate_name="7",
        baseline_name="the logging policy",
        baseline_source="log",
        version_zero_name=None if trial.version_zero is None else "0",
        deciding_estimator=found.deciding_estimator,
        deciding_rule=DECIDING_RULE,
        estimates=found.estimates,
        comparisons=found.comparisons,
        agreement=found.agreement,
        overlaps=found.overlaps,
        propensities=found.propensities,
        q_claim=found.q_claim,
        design_effects=found.design_effects,
        action_shares=found.action_shares,
        bounds=found.bounds,
        sensitivity=found.sensitivity,
        safety=found.safety,
        slices=found.slices,
        feasible=trial.feasible,
        counts=counts,
        largest_probability_change=change,
        gamma=trial.gamma,
        alpha=gate.alpha,
        level=config.level,
        n_replicates=found.n_replicates,
        n_folds=5,
        seed=seed,
        config={"gate": gate.model_dump(mode="json")},
    )
    return replace(evaluation, **changes)  # type: ignore[arg-type]  # fields by name
