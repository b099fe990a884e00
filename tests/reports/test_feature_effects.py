from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from datasets.contract import Contract
from datasets.observations import Observations
from reports.feature_effects import feature_effects, steps_to_permute


@dataclass(frozen=True)
class ByOneFeature:
    """Q = (x, -x) of the feature `told`; goes left where it is positive."""

    told: str
    valued: bool = True
    digest: str = ""
    actions: tuple[str, ...] = ("left", "right")

    @property
    def contract(self) -> Contract:
        raise NotImplementedError

    def action_probs(self, observations: Observations, available: NDArray[np.bool_]) -> NDArray[np.float64]:
        left = observations.columns[self.told] > 0
        return np.where(left[:, None], [0.9, 0.1], [0.1, 0.9]) * np.ones_like(available, dtype=np.float64)

    def q_values(self, observations: Observations) -> NDArray[np.float64] | None:
        x = observations.columns[self.told]
        return np.stack([x, -x], axis=1) if self.valued else None

    def disagreement(self, observations: Observations) -> NDArray[np.float64] | None:  # noqa: ARG002  # the protocol's
        return None


def observations(n: int = 4_000) -> Observations:
    rng = np.random.default_rng(0)
    return Observations({"idle": rng.normal(size=n), "load": rng.choice([-1.0, 1.0], size=n)}, {})


def test_only_the_feature_that_decides_has_an_effect() -> None:
    # |x| = 1: the lead is 2, and -2 where the dealt value has the other sign, in half of the steps: 2 lost on average.
    seen = observations()
    found = feature_effects(ByOneFeature("load"), seen, np.ones((4_000, 2), dtype=bool), np.random.default_rng(1))
    load, idle = found
    assert (load.feature, idle.feature) == ("load", "idle")
    assert load.gap_lost == pytest.approx(2.0, abs=0.1)
    assert load.decisions_turned == pytest.approx(0.5, abs=0.025)
    assert load.probability_moved == pytest.approx(0.4, abs=0.02)
    assert (idle.gap_lost, idle.decisions_turned, idle.probability_moved) == (0.0, 0.0, 0.0)


def test_policy_without_values_is_ranked_by_the_probability_that_moves() -> None:
    found = feature_effects(
        ByOneFeature("load", valued=False), observations(), np.ones((4_000, 2), dtype=bool), np.random.default_rng(1)
    )
    assert [e.feature for e in found] == ["load", "idle"]
    assert [e.gap_lost for e in found] == [None, None]


def test_same_seed_gives_the_same_effects() -> None:
    both = [
        feature_effects(
            ByOneFeature("idle"), observations(300), np.ones((300, 2), dtype=bool), np.random.default_rng(5)
        )
        for _ in range(2)
    ]
    assert both[0] == both[1]


def test_one_feature_has_nothing_to_be_compared_with() -> None:
    alone = Observations({"load": np.array([1.0, -1.0])}, {})
    assert feature_effects(ByOneFeature("load"), alone, np.ones((2, 2), dtype=bool), np.random.default_rng(0)) == ()


def test_steps_without_a_choice_are_left_out_and_many_are_sampled() -> None:
    available = np.ones((9_000, 2), dtype=bool)
    available[::2, 0] = False
    rows = steps_to_permute(available, 4, np.random.default_rng(0))
    assert len(rows) == 2_000
    assert (rows % 2 == 1).all()
    assert (np.diff(rows) > 0).all()
    assert len(steps_to_permute(available, 1_000, np.random.default_rng(0))) == 100
    assert len(steps_to_permute(available[::2], 4, np.random.default_rng(0))) == 0
