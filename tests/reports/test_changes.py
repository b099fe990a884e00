from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.changes import changes_by_region, disagreement_with_log, disagreement_with_policy, telling_episodes


def test_total_variation_of_two_policies() -> None:
    one, other = np.array([[0.5, 0.5], [1.0, 0.0], [0.2, 0.8]]), np.array([[0.6, 0.4], [0.0, 1.0], [0.2, 0.8]])
    assert disagreement_with_policy(one, other) == pytest.approx([0.1, 1.0, 0.0])


@given(st.lists(st.floats(0.01, 1), min_size=6, max_size=6), st.integers(0, 2))
def test_what_the_log_shows_is_never_more_than_the_total_variation(raw: list[float], action: int) -> None:
    one, other = (np.array([v]) / np.sum(v) for v in (raw[:3], raw[3:]))
    shown = disagreement_with_log(one, np.array([action]), other[:, action])
    assert 0 <= shown[0] <= disagreement_with_policy(one, other)[0] + 1e-12


def test_unknown_behavior_counts_what_the_candidate_would_do_otherwise() -> None:
    shown = disagreement_with_log(np.array([[0.7, 0.3]]), np.array([1]), np.array([np.nan]))
    assert shown == pytest.approx([0.7])


def test_regions_come_by_their_part_in_all_disagreement() -> None:
    # Region 0: two steps of .1; region 1: one step of .6. Parts .25 and .75.
    candidate = np.array([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9]])
    baseline = np.array([[0.5, 0.5], [0.5, 0.5], [0.7, 0.3]])
    found = changes_by_region(
        np.array([0, 0, 1]), ("calm", "busy", "never visited"), disagreement_with_policy(candidate, baseline),
        candidate, baseline, np.array([0, 0, 1]), ("stay", "go"),
    )  # fmt: skip
    assert [(number, change.where) for number, change in found] == [(1, "busy"), (0, "calm")]
    busy, calm = (change for _, change in found)
    assert (busy.share_of_all, calm.share_of_all) == pytest.approx((0.75, 0.25))
    assert busy.candidate_shares == pytest.approx({"stay": 0.1, "go": 0.9})
    assert (calm.n_steps, calm.n_episodes, calm.disagreement) == (2, 1, pytest.approx(0.1))


def test_no_disagreement_has_no_parts() -> None:
    probs = np.array([[0.5, 0.5]])
    found = changes_by_region(np.array([0]), ("all",), np.zeros(1), probs, probs, np.array([0]), ("a", "b"))
    assert found[0][1].share_of_all == 0.0


def test_each_region_sends_its_most_telling_episode_and_none_comes_twice() -> None:
    # Episodes of 3 steps. Region 1 holds the two largest steps, both of episode 0; episode 2 is its next one.
    disagreement = np.array([0.9, 0.8, 0.1, 0.3, 0.0, 0.2, 0.5, 0.0, 0.0])
    regions = np.array([1, 1, 0, 0, 0, 0, 1, 1, 1])
    found = telling_episodes(disagreement, regions, (1, 0), np.array([0, 3, 6, 9]), n_episodes=9, n_steps=2)
    assert [(s.episode, s.peak) for s in found] == [(0, 0), (1, 3), (2, 6)]
    assert [(s.first, s.last) for s in found] == [(0, 2), (3, 5), (6, 8)]


@given(st.integers(1, 40), st.integers(0, 39), st.integers(1, 15))
def test_stretch_holds_the_step_and_stays_in_its_episode(length: int, peak: int, n_steps: int) -> None:
    disagreement = np.zeros(length + 5)
    at = 5 + min(peak, length - 1)
    disagreement[at] = 0.4
    (stretch,) = telling_episodes(
        disagreement, np.zeros(length + 5, dtype=np.int64), (0,), np.array([0, 5, 5 + length]), n_episodes=3,
        n_steps=n_steps,
    )  # fmt: skip
    assert 5 <= stretch.first <= at < stretch.last <= 5 + length
    assert stretch.last - stretch.first == min(n_steps, length)
