"""The error that a fitted model brings to the direct method: what its fit owes to luck, and to its random features.

A bootstrap of the model's values at the first steps takes the model for the truth. Two parts are missing: other fitting
episodes would have given another model, and so would other random features. The first is known episode by episode (the
influence of each on the value), so the bootstrap that draws gate episodes draws their part in the fit along with them;
episodes that only fit, and the spread between members, add normal noise to its replicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasets.replay import GATE, Replay
from offline_dqn.fqe import HeldOutValues
from reports.estimators import Floats
from reports.intervals import cluster_codes


@dataclass(frozen=True)
class ModelError:
    """Of one policy's direct value, in reward units.

    Attributes:
        gate_influence: (N,) what each gate episode moved by fitting models for the folds of others.
        outside_influence: (C,) the same of each cluster that lies outside the gate split.
        member_values: (M,) the value by each member of the ensemble.
    """

    gate_influence: Floats
    outside_influence: Floats
    member_values: Floats


@dataclass(frozen=True)
class FoldFit:
    """A model fitted outside a fold: the fold's share of the gate episodes, (E,) what it was fitted on, its values."""

    share: float
    fitted_on: NDArray[np.bool_]
    values: HeldOutValues


def model_error(replay: Replay, fits: Sequence[FoldFit]) -> ModelError | None:
    """The error of the mean over folds; None where a fold's model does not know its own.

    A cluster with episodes both inside and outside the gate split counts with its gate episodes.
    """
    influence = np.zeros(replay.n_episodes)
    members = np.zeros(len(fits[0].values.member_values))
    for fit in fits:
        if fit.values.influence is None:
            return None
        influence[fit.fitted_on] += fit.share * fit.values.influence
        members += fit.share * fit.values.member_values
    codes, of_gate = cluster_codes(replay.clusters), replay.split == GATE
    outside = np.bincount(codes[~of_gate], weights=influence[~of_gate], minlength=int(codes.max()) + 1)
    outside = outside.astype(np.float64)  # of no episode at all, bincount counts in whole numbers
    n_inside = np.bincount(codes[of_gate], minlength=len(outside))
    shared = np.divide(outside, n_inside, out=np.zeros_like(outside), where=n_inside > 0)
    only_outside = np.setdiff1d(codes[~of_gate], codes[of_gate])
    return ModelError(influence[of_gate] + shared[codes[of_gate]], outside[only_outside], members)


def model_noise(errors: Mapping[str, ModelError], n_replicates: int, rng: np.random.Generator) -> dict[str, Floats]:
    """(R,) normal draws by policy, for replicates of their direct values: what no draw of gate episodes can show.

    Policies share draws, for they share fitting episodes and random features: differences stay paired. The spread
    between members counts in full, not divided by their number: what they have in common does not average out.
    """
    if not errors:
        return {}
    outside = np.stack([e.outside_influence for e in errors.values()])  # (K, C)
    members = np.stack([e.member_values for e in errors.values()])  # (K, M)
    covariance = outside @ outside.T
    if members.shape[1] > 1:
        covariance = covariance + np.atleast_2d(np.cov(members))
    eigenvalues, vectors = np.linalg.eigh(covariance)
    draws = rng.normal(size=(n_replicates, len(covariance))) @ (np.sqrt(np.maximum(eigenvalues, 0.0)) * vectors).T
    return {name: draws[:, k] for k, name in enumerate(errors)}
