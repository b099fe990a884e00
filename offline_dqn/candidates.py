"""The policies that one training offers: its networks, the simple ones they must beat, and other forms of the best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from datasets.encoding import Encoder
from datasets.replay import Replay
from offline_dqn.choice import BehaviorModel, Choice
from offline_dqn.counted_model import CountedModel, count_observations
from offline_dqn.description import AnyPolicy
from offline_dqn.mixture import MOST_POLICIES, MixturePolicy, n_policies
from offline_dqn.planning import as_policy, isolates, plan
from offline_dqn.policy import QPolicy
from offline_dqn.simple_policies import constant_policies, tree_policy
from offline_dqn.trained import TrainedQ

Origin = Literal["simple", "counted", "network"]


@dataclass(frozen=True)
class Candidate:
    """A policy that may become the release.

    Attributes:
        name: as tables show it.
        origin: where it comes from.
        policy: exactly as it would act.
        behavior: the cloned logger, if there is one, for its supported form.
        learner: whose network it acts on, of whichever step; "" for what no learner trained.
    """

    name: str
    origin: Origin
    policy: AnyPolicy
    behavior: BehaviorModel | None = None
    learner: str = ""


def simple_candidates(train: Replay, exploration: float) -> Iterator[Candidate]:
    """Every constant action, and a small tree of the log."""
    for name, policy in constant_policies(train.contract, exploration).items():
        yield Candidate(name, "simple", policy)
    yield Candidate("tree of the log", "simple", tree_policy(train, exploration))


def counted_candidates(
    train: Replay, encoder: Encoder, exploration: float, *, pessimisms: Sequence[float], largest: int
) -> Iterator[Candidate]:
    """Plans on the counted model; none where observations are not from a small set."""
    observed = count_observations(train, encoder, largest=largest) if pessimisms else None
    if observed is None or not isolates(observed, encoder):
        return
    model = CountedModel.of(train, observed)
    for pessimism in pessimisms:
        name = f"counted, pessimism {pessimism:g}" if pessimism else "counted"
        policy = as_policy(model, observed, encoder, plan(model, pessimism), exploration)
        yield Candidate(name, "counted", policy)


def network_candidates(trained: TrainedQ) -> Iterator[Candidate]:
    """Every kept network as its learner means it to act; those of earlier updates named after these."""
    last = max((network.step for network in trained.networks), default=0)
    for network in trained.networks:
        name = network.name if network.step == last else f"{network.name} at {network.step}"
        clone = next((n for n in trained.networks if n.name == "bc" and n.step == network.step), None)
        behavior = None if clone is None else BehaviorModel(clone.architecture, clone.weights)
        yield Candidate(name, "network", trained.policy(network), behavior, network.name)


def other_forms(
    candidate: Candidate,
    replay: Replay,
    partner: AnyPolicy | None,
    *,
    temperatures: Sequence[float],
    support_thresholds: Sequence[float],
    mixture_shares: Sequence[float],
) -> Iterator[Candidate]:
    """The same values, acted on less boldly: by softmax, within the log's support, or in part of the decisions.

    Args:
        candidate: only what acts on a network's outputs has other forms.
        replay: steps on which the scale of temperatures is measured.
        partner: what a mixture falls back on: the champion or version 0; None, or one that is a mixture of as many
            policies as one may hold, leaves mixtures out.
        temperatures: in units of the mean distance between an observation's best action and its mean one; a clone's
            softmax is the cloned logger itself, and there is only that one.
        support_thresholds: above the candidate's own.
        mixture_shares: of decisions that the candidate makes.
    """
    policy = candidate.policy
    if not isinstance(policy, QPolicy):
        return
    if policy.kind == "logits":
        soft = {"softmax": 1.0}
    else:
        scale = _advantage_scale(policy, replay)
        soft = {f"softmax {t:g}": t * scale for t in temperatures if scale > 0}
    for name, temperature in soft.items():
        choice = policy.choice.model_copy(update={"rule": "softmax", "temperature": temperature})
        yield _named(candidate, name, replace(policy, choice=choice))
    for threshold in support_thresholds if candidate.behavior is not None else ():
        if threshold > policy.choice.support_threshold:
            choice = Choice(**policy.choice.model_dump() | {"support_threshold": threshold})
            yield _named(
                candidate, f"support {threshold:g}", replace(policy, choice=choice, behavior=candidate.behavior)
            )
    if partner is None or n_policies(partner) >= MOST_POLICIES:
        return
    for share in mixture_shares:
        yield _named(candidate, f"mixed {share:g}", MixturePolicy(own=policy, partner=partner, share=share))


def _named(candidate: Candidate, form: str, policy: AnyPolicy) -> Candidate:
    return replace(candidate, name=f"{candidate.name}, {form}", policy=policy)


def _advantage_scale(policy: QPolicy, replay: Replay) -> float:
    """Mean distance between the best available action's value and their mean, in reward units."""
    steps = np.arange(0, replay.n_steps, max(1, replay.n_steps // 20_000))
    q_values, available = policy.q_values(replay.observations.take(steps)), replay.permitted[steps]
    assert q_values is not None
    best = np.where(available, q_values, -np.inf).max(axis=1)
    mean = np.where(available, q_values, 0.0).sum(axis=1) / available.sum(axis=1)
    return float((best - mean).mean())
