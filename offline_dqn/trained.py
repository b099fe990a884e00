"""What training leaves behind: every kept network, and how to act on one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from datasets.contract import Contract
from datasets.encoding import Encoder
from offline_dqn.architecture import Architecture, Weights
from offline_dqn.choice import BehaviorModel, Choice
from offline_dqn.learners import Learner
from offline_dqn.q_policy import QPolicy
from offline_dqn.train_config import TrainConfig

Metrics = dict[str, float]
"""Of one measurement, "<learner>/<metric>" and what all share. Values (`q_*`, `td_error_abs`) are in reward units;
`td_loss` and `conservative_penalty` are what is minimised, in units of the reward scale."""


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork:
    """The networks of one learner after some updates.

    Attributes:
        name: the learner's.
        step: updates done.
        learner: what they minimised.
        architecture, weights: as many members as the learner has.
        q_greedy_mean, q_greedy_max: mean and largest value of the best available action over the training observations,
            in reward units (of logits they mean nothing), less the potential where there is one.
    """

    name: str
    step: int
    learner: Learner
    architecture: Architecture
    weights: Weights
    q_greedy_mean: float
    q_greedy_max: float

    @property
    def kind(self) -> Literal["values", "logits"]:
        """What the outputs are."""
        return self.learner.kind


@dataclass(frozen=True, kw_only=True)
class TrainedQ:
    """What training yields.

    Attributes:
        contract, encoder, config: what was learned, from what.
        reward_scale: reward units per unit of the networks' output.
        snapshot_digest: of the replay dataset trained on.
        n_steps, n_unusable_steps: steps learned from, and steps left out because nothing is known to follow them.
        n_updates: updates done; fewer than configured where training settled.
        networks: by step, then in the order of the learners.
        diverged: learners whose loss stopped being finite, and when.
        feasible_max: no policy can earn more from any observation, in reward units; None where that is not known, or
            where a potential was taken off the values (the gate then checks the policy's own).
        history: metrics by update, each with its "step".
    """

    contract: Contract
    encoder: Encoder
    config: TrainConfig
    reward_scale: float
    snapshot_digest: str
    n_steps: int
    n_unusable_steps: int
    n_updates: int
    networks: tuple[TrainedNetwork, ...]
    diverged: Mapping[str, str]
    feasible_max: float | None
    history: tuple[Metrics, ...]

    def network(self, name: str, step: int | None = None) -> TrainedNetwork:
        """A learner's networks after `step` updates, by default the last ones.

        Raises:
            ValueError: there are none.
        """
        found = [n for n in self.networks if n.name == name and step in (None, n.step)]
        if not found:
            known = ", ".join(f"{n.name} at {n.step}" for n in self.networks)
            raise ValueError(f"there is no network '{name}' at {step or 'the end'}; there are: {known}")
        return found[-1]

    def exceeds_feasible(self, network: TrainedNetwork) -> bool:
        """Whether it promises clearly more than can be earned, by more than the rewards' scale: it has diverged.

        Fitted values scatter; where the best that can happen does happen, half of them lie above it.
        """
        if network.kind == "logits" or self.feasible_max is None:
            return False
        return network.q_greedy_max > self.feasible_max + self.reward_scale

    def policy(self, network: TrainedNetwork, choice: Choice | None = None) -> QPolicy:
        """The policy that acts on a network, with the configured exploration.

        Args:
            network: one of `networks`.
            choice: how it acts; by default greedily by the configured CVaR share, and for BCQ within its support. A
                support threshold is judged by the clone of the same step.
        """
        if choice is None:
            share = self.config.cvar_share if network.kind == "values" else 1.0
            choice = Choice(cvar_share=share, support_threshold=network.learner.support_threshold)
        behavior = None
        if choice.support_threshold > 0:
            clone = self.network("bc", network.step)
            behavior = BehaviorModel(clone.architecture, clone.weights)
        return QPolicy(
            contract=self.contract,
            encoder=self.encoder,
            architecture=network.architecture,
            weights=network.weights,
            reward_scale=self.reward_scale if network.kind == "values" else 1.0,
            exploration=self.config.exploration,
            kind=network.kind,
            choice=choice,
            behavior=behavior,
            potential=self.config.potential if network.kind == "values" else None,
            snapshot_digest=self.snapshot_digest,
            config={**self.config.model_dump(mode="json"), "learner": network.name, "updates": network.step},
        )


def feasible_maximum(contract: Contract) -> float | None:
    """The largest discounted return that any policy can earn from any step, from the contract's reward range.

    None where the contract names no largest reward, or gamma = 1 and a positive reward can be earned forever.
    """
    largest = contract.reward.max
    if largest is None or largest <= 0.0 or contract.episodes.kind == "one_step":
        return largest  # where every reward is a cost, ending after one step is the best that can happen
    return largest / (1.0 - contract.gamma) if contract.gamma < 1.0 else None
