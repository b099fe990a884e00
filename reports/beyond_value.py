"""Safety and slices of a trial: what the contract asks of a candidate beside its value."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from reports.estimators import Floats
from reports.gate import GateConfig
from reports.records import Safety, Slices
from reports.safety import assess_safety
from reports.slices import assess_slices, slice_action_shares
from reports.trial import Trial


def assess_beyond_value(
    trial: Trial,
    log_weights: Mapping[str, Floats],
    differences: Floats | None,
    *,
    refusals: Mapping[str, str | None],
    difference_refused: str | None,
    gate: GateConfig,
    level: float,
    n_replicates: int,
    rng: np.random.Generator,
) -> tuple[Safety | None, Slices | None]:
    """None for what the contract does not ask about.

    Args:
        trial: with its outcomes; without them both are None.
        log_weights: (T,) of the deciding estimator by role; empty where nothing can be weighted.
        differences: (N,) per-episode terms of the deciding difference to the baseline; None where there are none.
        refusals: why weighted estimates are not trusted, by role.
        difference_refused: why the deciding difference is not.
        gate: levels.
        level: of the intervals shown.
        n_replicates: of the bootstrap, at least.
        rng: draws it.
    """
    outcomes = trial.outcomes
    if outcomes is None:
        return None, None
    safety_rng, slices_rng = rng.spawn(2)
    safety, slices = None, None
    if outcomes.breaches or outcomes.forbidden or outcomes.success is not None:
        safety = assess_safety(
            outcomes,
            log_weights,
            trial.offsets,
            trial.clusters,
            refusals=refusals,
            alpha=gate.alpha,
            level=level,
            n_replicates=n_replicates,
            rng=safety_rng,
        )
    if outcomes.slices:
        shares = {
            i: slice_action_shares(part.members, trial.offsets, trial.actions, trial.candidate.probs, trial.names)
            for i, part in enumerate(outcomes.slices)
        }
        slices = assess_slices(
            outcomes.slices,
            differences,
            trial.clusters,
            shares,
            refused=difference_refused,
            notes=outcomes.notes,
            alpha=gate.slice_alpha,
            n_replicates=n_replicates,
            rng=slices_rng,
        )
    return safety, slices
