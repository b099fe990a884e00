"""Who learns: each learner of the family is a set of weights on the parts of one loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from offline_dqn.train_config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Learner:
    """One or more networks that minimise `td_weight * TD loss + penalty_weight * conservative penalty`.

    Attributes:
        name: as tables show it.
        td_weight: 0 leaves the conservative penalty alone: the cross-entropy of the logged action under a softmax of
            the outputs, which is behavior cloning (Pomerleau 1991).
        penalty_weight: of CQL(H) (Kumar et al. 2020); 0 is Double DQN (van Hasselt et al. 2016).
        target_gap: the penalty weight is a Lagrange multiplier that moves until the penalty is this large; None keeps
            it fixed.
        support_threshold: actions that the cloned logger takes less often than this, relative to its favourite, take
            no part in targets: discrete BCQ (Fujimoto et al. 2019); 0 admits all.
        n_members: networks, differing in their initial weights.
    """

    name: str
    td_weight: float = 1.0
    penalty_weight: float = 0.0
    target_gap: float | None = None
    support_threshold: float = 0.0
    n_members: int = 1

    @property
    def kind(self) -> Literal["values", "logits"]:
        """What its networks' outputs are."""
        return "values" if self.td_weight else "logits"


def learners_of(config: TrainConfig) -> tuple[Learner, ...]:
    """The configured learners; behavior cloning stands last."""
    n = config.n_members
    learners = [
        Learner(name=f"cql {weight:g}" if weight else "dqn", penalty_weight=weight, n_members=n)
        for weight in config.penalty_weights
    ]
    learners += [
        Learner(name=f"cql gap {gap:g}", penalty_weight=1.0, target_gap=gap, n_members=n) for gap in config.target_gaps
    ]
    learners += [
        Learner(name=f"bcq {threshold:g}", support_threshold=threshold, n_members=n)
        for threshold in config.bcq_thresholds
    ]
    if config.clone:
        learners.append(Learner(name="bc", td_weight=0.0, penalty_weight=1.0))
    return tuple(learners)


def member_slices(learners: Sequence[Learner]) -> Iterator[tuple[Learner, slice]]:
    """Each learner with its slice of the members' axis."""
    start = 0
    for learner in learners:
        yield learner, slice(start, start + learner.n_members)
        start += learner.n_members
