from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from datasets.observations import Observations
from datasets.replay import Replay
from drift.records import ColumnDrift
from drift.windows import window_from_replay
from reports.drift_effects import drift_effects, relabelled, requantiled
from tests.reports.promotion_world import Leaning, logged

POLICY = Leaning(-1.1)


def shifted(replay: Replay, **changes: float) -> Replay:
    columns = {name: values + changes.get(name, 0.0) for name, values in replay.observations.columns.items()}
    return replace(replay, observations=Observations(columns, replay.observations.vocabularies))


def first_value(replay: Replay) -> float:
    """Mean over the episodes of sum_a pi(a | s) Q(s, a) at their first steps."""
    first = replay.observations.take(replay.offsets[:-1])
    probs = POLICY.action_probs(first, replay.available[replay.offsets[:-1]])
    return float((probs * POLICY.q_values(first)).sum(axis=1).mean())


def drifted(*names: str) -> list[ColumnDrift]:
    return [
        ColumnDrift(
            name=name, kind="numeric", exogenous=False, status="drifted", reason="", reference_rows=1, live_rows=1
        )
        for name in names
    ]


def test_effect_is_what_putting_the_feature_back_takes_away() -> None:
    rng = np.random.default_rng(0)
    reference = logged(rng, POLICY, n_nights=3, per_night=200)
    unchanged = logged(rng, POLICY, n_nights=1, per_night=400)
    live = shifted(unchanged, load=1.5)
    effects = drift_effects(POLICY, live, [window_from_replay(reference)], drifted("observation.load"), seed=0)
    (effect,) = effects
    rows = np.arange(live.n_steps)
    now = POLICY.action_probs(live.observations.take(rows), live.available[rows]).mean(axis=0)
    before = POLICY.action_probs(unchanged.observations.take(rows), live.available[rows]).mean(axis=0)
    assert abs(effect.share_change - np.abs(now - before).sum() / 2) < 0.03
    assert effect.value_change is not None
    assert abs(effect.value_change - (first_value(live) - first_value(unchanged))) < 0.1
    assert effect.value_change < -0.4
    assert effect.overlap_change is not None
    assert effect.sentence.startswith("observation.load makes the champion take 'down' in ")
    assert "instead of" in effect.sentence
    assert "its estimated value falls by" in effect.sentence


def test_feature_that_the_champion_does_not_look_at_has_no_effect_and_the_largest_comes_first() -> None:
    rng = np.random.default_rng(0)
    reference = window_from_replay(logged(rng, POLICY, n_nights=3, per_night=100))
    live = shifted(logged(rng, POLICY, n_nights=1, per_night=100), load=1.0, weather=2.0)
    names = ("observation.weather", "observation.load", "reward", "observation.gone")
    effects = drift_effects(POLICY, live, [reference], drifted(*names), seed=0)
    assert [effect.column for effect in effects] == ["observation.load", "observation.weather"]
    assert effects[1].share_change == 0.0
    assert effects[1].value_change == 0.0
    assert "hardly changes what the champion does" in effects[1].sentence


def test_labels_and_flags_are_put_back() -> None:
    rng = np.random.default_rng(0)
    reference = window_from_replay(logged(rng, POLICY, n_nights=3, per_night=100))
    live = logged(rng, POLICY, n_nights=1, per_night=100)
    columns = dict(live.observations.columns)
    columns["level"], columns["busy"] = np.zeros_like(columns["level"]), np.ones_like(columns["busy"])
    live = replace(live, observations=Observations(columns, live.observations.vocabularies))
    effects = drift_effects(POLICY, live, [reference], drifted("observation.level", "observation.busy"), seed=0)
    assert {effect.column for effect in effects} == {"observation.level", "observation.busy"}
    assert all(effect.share_change == 0.0 for effect in effects)  # the champion looks at the load alone


def test_values_take_the_reference_values_of_their_ranks() -> None:
    values = np.array([5.0, 1.0, 3.0, 9.0])
    found = requantiled(values, np.array([10.0, 20.0, 30.0, 40.0]), np.ones(4), np.random.default_rng(0))
    assert found.tolist() == [30.0, 10.0, 20.0, 40.0]


def test_weights_say_how_much_of_the_reference_a_value_is() -> None:
    values = np.arange(8.0)
    found = requantiled(values, np.array([1.0, 2.0, 3.0]), np.array([1.0, 0.0, 3.0]), np.random.default_rng(0))
    assert found.tolist() == [1.0, 1.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0]  # a quarter and three quarters


def test_as_many_are_missing_as_in_the_reference() -> None:
    rng = np.random.default_rng(0)
    reference = np.where(np.arange(100) < 20, np.nan, np.arange(100.0))
    none_missing = requantiled(np.arange(50.0), reference, np.ones(100), rng)
    assert np.isnan(none_missing).sum() == 10
    all_missing = requantiled(np.full(50, np.nan), reference, np.ones(100), rng)
    assert np.isnan(all_missing).sum() == 10
    assert (all_missing[~np.isnan(all_missing)] >= 20).all()


@given(
    codes=st.lists(st.integers(-1, 2), min_size=1, max_size=40),
    reference=st.lists(st.integers(-1, 3), min_size=1, max_size=40),
    seed=st.integers(0, 100),
)
def test_labels_get_the_reference_shares_and_no_more_rows_move_than_that_takes(
    codes: list[int], reference: list[int], seed: int
) -> None:
    live, before = ("b", "a", "c"), ("a", "b", "c", "d")
    old, ref = np.array(codes), np.array(reference)
    new, vocabulary = relabelled(old, live, ref, before, np.ones(len(ref)), np.random.default_rng(seed))
    assert vocabulary == ("b", "a", "c", "d")
    moved = int((new != old).sum())
    gained = 0
    for label in (*vocabulary, None):
        code = -1 if label is None else vocabulary.index(label)
        ref_code = -1 if label is None else before.index(label)
        wanted = len(old) * (ref == ref_code).mean()
        found = int((new == code).sum())
        assert abs(found - wanted) < 1.0 + 1e-9
        gained += max(0, found - int((old == code).sum()))
    assert moved == gained
