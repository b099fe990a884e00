from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.contract import contract_from_text
from datasets.observations import Observations
from reports.feature_tree import EVERYWHERE, cut_regions
from reports.overlap_regions import map_overlap, needed_exploration
from reports.records import OverlapMap

CONTRACT = contract_from_text(
    """
name = "w"
gamma = 1.0
[features.cpu]
type = "numeric"
[features.replicas]
type = "numeric"
[features.zone]
type = "categorical"
values = ["a", "b"]
[features.busy]
type = "boolean"
nullable = true
[actions]
names = ["down", "hold", "up"]
""",
    "test",
)


def seen(n: int, seed: int = 0) -> Observations:
    rng = np.random.default_rng(seed)
    return Observations(
        {
            "cpu": rng.uniform(size=n),
            "replicas": rng.integers(1, 11, size=n).astype(np.float64),
            "zone": rng.integers(2, size=n).astype(np.int32),
            "busy": np.where(rng.random(n) < 0.1, np.nan, rng.integers(2, size=n).astype(np.float64)),
        },
        {"zone": ("a", "b")},
    )


def mapped(
    behavior: np.ndarray, candidate: np.ndarray, observations: Observations, length: int = 1, seed: int = 1
) -> OverlapMap:
    """A log of (T, A) behavior probabilities judged for a candidate, in episodes of `length` steps over 10 nights."""
    n = len(behavior)
    actions = (np.random.default_rng(seed).random(n)[:, None] > np.cumsum(behavior, axis=1)).sum(axis=1)
    return map_overlap(
        CONTRACT,
        observations,
        probs=candidate,
        actions=actions,
        behavior_probs=behavior[np.arange(n), actions],
        clusters=np.arange(n // length),
        offsets=np.arange(0, n + 1, length),
        n_nights=10,
        smallest_sample_size=30.0,
        products=True,
    )


def policies(unseen: np.ndarray, rare: float) -> tuple[np.ndarray, np.ndarray]:
    """A log that explores, but in the `unseen` rows takes "up" with probability `rare`, as the candidate does there."""
    n = len(unseen)
    behavior = np.tile([0.3, 0.4, 0.3], (n, 1))
    behavior[unseen] = [0.5 - rare / 2, 0.5 - rare / 2, rare]
    candidate = np.where(unseen[:, None], [0.05, 0.05, 0.9], [0.25, 0.45, 0.3])
    return behavior, candidate


def test_exploration_that_is_needed_by_hand() -> None:
    # taken = .9, cost 2: .81 / e + .01 / (1 - e) = 2 has 2 e^2 - 2.8 e + .81 = 0: e = (2.8 - sqrt(1.36)) / 4.
    assert needed_exploration(0.9, 2.0) == pytest.approx((2.8 - math.sqrt(1.36)) / 4)
    assert needed_exploration(0.9, 1.0) == pytest.approx(0.9)
    with pytest.raises(ValueError, match="cost of at least 1"):
        needed_exploration(0.9, 0.5)


@given(st.floats(0.01, 0.99), st.floats(1.0, 1e6))
def test_needed_exploration_meets_the_cost(taken: float, cost: float) -> None:
    share = needed_exploration(taken, cost)
    assert 0 < share <= taken + 1e-9
    assert taken**2 / share + (1 - taken) ** 2 / (1 - share) == pytest.approx(cost, rel=1e-3)


def test_the_region_without_support_is_found_and_told_in_words() -> None:
    observations = seen(6000)
    unseen = (observations.columns["replicas"] > 7) & (observations.columns["cpu"] < 0.3)
    found = mapped(*policies(unseen, 0.0), observations)
    first = found.regions[0]
    assert first.where in ("replicas >= 8 and cpu <= 0.3", "cpu <= 0.3 and replicas >= 8")
    assert first.step_share == pytest.approx(0.09, abs=0.02)
    assert first.mean_ratio == pytest.approx(0.1, abs=0.03)  # the candidate's other two actions
    assert (first.action, first.log_share) == ("up", 0.0)
    assert first.flagged is not None
    assert "the log never takes about 9" in first.flagged
    assert first.repair is not None
    assert "let the acting policy take 'up' in at least" in first.repair
    assert "more nights like these show none of it" in first.repair
    assert all(region.flagged is None for region in found.regions[1:])
    for region in found.regions[1:]:
        assert region.mean_ratio == pytest.approx(1.0, abs=0.1)


def test_regions_cover_every_step_once_and_their_mean_ratios_add_up() -> None:
    observations = seen(4000)
    unseen = observations.columns["zone"] == 1
    found = mapped(*policies(unseen, 0.05), observations)
    assert sum(region.n_steps for region in found.regions) == 4000
    assert sum(region.step_share for region in found.regions) == pytest.approx(1.0)
    assert found.histogram is not None
    assert sum(found.histogram.shares) + found.histogram.zero_share == pytest.approx(1.0)
    assert sum(found.histogram.weight_shares) == pytest.approx(1.0)


def test_a_log_that_follows_the_repair_is_not_flagged_any_more() -> None:
    observations = seen(6000)
    unseen = observations.columns["zone"] == 1
    rare = mapped(*policies(unseen, 0.002), observations, length=20)
    flagged = next(region for region in rare.regions if region.flagged is not None)
    assert flagged.where in ("zone = b", "zone other than a")
    assert flagged.repair is not None
    assert "'up' in at least" in flagged.repair
    wanted = float(flagged.repair.split("at least ")[1].split("%")[0]) / 100
    assert 0.1 < wanted < 0.9
    repaired = mapped(*policies(unseen, min(1.1 * wanted, 0.9)), observations, length=20)
    assert all(region.flagged is None for region in repaired.regions)


def test_a_rare_action_in_long_episodes_is_flagged_though_single_steps_would_do() -> None:
    observations = seen(6000)
    unseen = observations.columns["busy"] == 1.0
    policy = policies(unseen, 0.05)
    assert all(region.flagged is None for region in mapped(*policy, observations).regions)
    long = mapped(*policy, observations, length=60)
    assert any("the gate affords" in (region.flagged or "") for region in long.regions)


def test_a_candidate_that_is_the_log_has_one_region_and_no_flag() -> None:
    observations = seen(1000)
    behavior = np.tile([0.3, 0.4, 0.3], (1000, 1))
    found = mapped(behavior, behavior, observations)
    assert [region.where for region in found.regions] == [EVERYWHERE]
    assert found.regions[0].flagged is None
    assert (found.regions[0].action, found.regions[0].cost) == (None, pytest.approx(1.0))


def test_a_candidate_that_the_log_never_follows_has_no_weight_at_all() -> None:
    observations = seen(400)
    behavior, candidate = np.tile([0.5, 0.5, 0.0], (400, 1)), np.tile([0.0, 0.0, 1.0], (400, 1))
    found = mapped(behavior, candidate, observations)
    assert found.histogram is None
    assert found.regions[0].cost is None
    assert found.regions[0].flagged == (
        "the log never takes about 100% of what the candidate does there; its 400 steps are worth 0 of the candidate's"
    )


def test_tiny_probabilities_stay_finite() -> None:
    observations, n = seen(300), 300
    behavior = np.tile([1e-300, 1.0, 0.0], (n, 1))
    found = map_overlap(
        CONTRACT,
        observations,
        probs=np.tile([1.0, 0.0, 0.0], (n, 1)),
        actions=np.zeros(n, dtype=np.int64),
        behavior_probs=behavior[:, 0],
        clusters=np.arange(n),
        offsets=np.arange(n + 1),
        n_nights=2,
        smallest_sample_size=30.0,
        products=True,
    )
    assert found.regions[0].effective_steps == pytest.approx(300)


def test_missing_values_and_labels_are_told() -> None:
    observations = seen(3000)
    missing = np.isnan(observations.columns["busy"])
    found = cut_regions(CONTRACT, observations, missing.astype(np.float64), most=4, smallest=50)
    assert sorted(found.words) == ["busy known", "busy missing"]
    assert np.all((np.array(found.words)[found.region] == "busy missing") == missing)
    cpu = observations.columns["cpu"]
    band = ((cpu > 0.25) & (cpu <= 0.5)).astype(np.float64)
    assert "0.25 < cpu <= 0.5" in cut_regions(CONTRACT, observations, band, most=4, smallest=50).words
