"""Ridge regression by action."""

from __future__ import annotations

import numpy as np

from offline_dqn.ridge import Regression


def test_many_steps_of_nearly_equal_features_can_be_factored() -> None:
    # 40,000 steps with an action that 300 features nearly repeat: the smallest eigenvalues of the Gram matrix are about
    # 1e-3, and sums in float32 miss them by more than the ridge.
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(40_000, 1))
    features = np.concatenate([np.ones((40_000, 1)), 3 * shared + 1e-4 * rng.normal(size=(40_000, 300))], axis=1)
    targets = shared[:, 0] + rng.normal(size=40_000)
    regression = Regression(features.astype(np.float32), np.zeros(40_000, dtype=np.int64), 1, np.ones(40_000))
    fitted = features @ regression.solve(targets, 0.01)[:, 0]
    # All that can be predicted is the shared part, with slope 1 / 3 spread over the repeats.
    assert np.abs(fitted - shared[:, 0]).mean() < 0.1
