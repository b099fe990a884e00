"""Several fits of Q that differ in their random features: their mean is the value, their spread a part of its error."""

from __future__ import annotations

import numpy as np

from datasets.encoding import Encoder
from datasets.replay import Replay
from offline_dqn.fqe import HeldOutValues, QEvaluation
from offline_dqn.fqe_config import FqeConfig
from offline_dqn.fqe_features import Array


class FqeEnsemble:
    """`n_members` of `QEvaluation` on the same episodes, each with draws of its own: features and, on a long log,
    episodes. Prepared once for any number of policies.

    The others take the strength of shrinkage and the influence of episodes over from the first member: those are most
    of the work, and features drawn anew change neither how noisy the log is nor who was in it.
    """

    def __init__(self, replay: Replay, config: FqeConfig, *, encoder: Encoder, seed: int) -> None:
        """Draw features and factor. Arguments and errors as for `QEvaluation`."""
        # Without random features and drawn episodes every member would be the first one again.
        differ = config.n_random_features > 0 or replay.n_steps > config.max_steps
        seeds = np.random.SeedSequence(seed).generate_state(config.n_members if differ else 1).tolist()
        chosen = config.model_copy(update={"ridges": config.ridges[:1]})  # nothing to choose from is not prepared
        self._members = tuple(
            QEvaluation(replay, config if i == 0 else chosen, encoder=encoder, seed=member)
            for i, member in enumerate(seeds)
        )

    @property
    def first(self) -> QEvaluation:
        """The first member: what else is fitted on these features needs no ensemble."""
        return self._members[0]

    def held_out(self, evaluation_probs: Array, held: Replay, held_probs: Array) -> HeldOutValues:
        """As `QEvaluation.held_out`, averaged over the members; `member_values` (M,) are theirs one by one."""
        first = self.first.held_out(evaluation_probs, held, held_probs)
        others = [m.held_out(evaluation_probs, held, held_probs, like=first) for m in self._members[1:]]
        found = [first, *others]
        return HeldOutValues(
            q_values=np.mean([f.q_values for f in found], axis=0),
            member_values=np.concatenate([f.member_values for f in found]),
            influence=first.influence,
            ridge=first.ridge,
        )
