from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from reports.formatting import apart
from reports.propensity import PropensityConfig, PropensityError, check_propensities, fit_behavior_model
from reports.records import PropensityReport

NAMES = ("down", "hold", "up")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Trees on small data only lose time to threads that wait for each other."""
    with threadpool_limits(1):
        yield


def logged(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities that depend on a feature (n, 1), actions, and the feature."""
    rng = np.random.default_rng(seed)
    feature = rng.normal(size=(n, 1)).astype(np.float32)
    probs = np.exp(np.concatenate([feature, 0 * feature, -feature], axis=1).astype(np.float64))
    probs /= probs.sum(axis=1, keepdims=True)
    actions = (rng.random(n)[:, None] > np.cumsum(probs, axis=1)).sum(axis=1)
    return probs, actions, feature


def check(p: np.ndarray, actions: np.ndarray, **changes: object) -> PropensityReport:
    arguments: dict[str, object] = {
        "available": np.ones((len(p), 3), dtype=bool),
        "clusters": np.arange(len(p)) // 5,
        "names": NAMES,
        "kind": "logged",
        "config": PropensityConfig(),
    }
    return check_propensities(p, actions, **(arguments | changes))  # type: ignore[arg-type]  # arguments by name


def test_true_probabilities_average_to_one() -> None:
    probs, actions, _ = logged(5000)
    report = check(probs[np.arange(5000), actions], actions)
    assert report.refused is None
    assert [a.average for a in report.actions] == pytest.approx([1, 1, 1], abs=0.1)
    assert not report.constant


def test_true_but_very_uneven_probabilities_are_seldom_refused() -> None:
    """Rare rows with a tiny p carry the average: on the plain scale a right log missed them, and failed, far too often.

    As in a Thompson sampler over 30 items: 5,000 rows, an item's log p normal around ln .003 with a deviation of 1.3.
    """
    rng, n_logs, n_rows, n_actions = np.random.default_rng(0), 60, 5000, 30
    n_refused = 0
    for _ in range(n_logs):
        p = np.minimum(0.03, np.exp(rng.normal(np.log(0.003), 1.3, size=(n_rows, n_actions))))
        p = np.concatenate([p, 1 - p.sum(axis=1, keepdims=True)], axis=1)
        actions = (rng.random(n_rows)[:, None] > np.cumsum(p, axis=1)).sum(axis=1)
        report = check_propensities(
            p[np.arange(n_rows), actions],
            actions,
            np.ones((n_rows, n_actions + 1), dtype=bool),
            np.arange(n_rows),
            [str(a) for a in range(n_actions + 1)],
            kind="logged",
            config=PropensityConfig(),
        )
        n_refused += report.refused is not None
    assert n_refused <= 3  # 1 % promised; 46 of 60 with a plain t interval


def test_wrong_probabilities_are_refused_by_action() -> None:
    probs, actions, _ = logged(5000)
    p = probs[np.arange(5000), actions]
    report = check(np.where(actions == 2, p / 2, p), actions)
    assert report.refused is not None
    assert report.refused.startswith("'up' has probabilities too small: their inverse averages to 2.0")
    assert "down" not in report.refused
    assert [a.passed for a in report.actions] == [True, True, False]


def test_errors_of_two_versions_that_cancel_in_the_pool_are_found() -> None:
    probs, actions, _ = logged(8000)
    p = probs[np.arange(8000), actions]
    first = np.arange(8000) < 4000
    wrong = np.where(first, p * 0.8, np.minimum(p / 0.75, 1.0))  # 1 / .8 and .75 average to 1 within .03
    versions = np.where(first, "7", "8")
    assert check(wrong, actions).refused is None
    report = check(wrong, actions, versions=versions)
    assert report.refused is not None
    assert "under policy_version '7' 'down' has probabilities too small" in report.refused
    assert "under policy_version '8' 'down' has probabilities too large" in report.refused
    assert report.refused.endswith("and 2 more")
    assert [v.version for v in report.versions] == ["7", "8"]
    assert check(p, actions, versions=versions).refused is None
    assert check(p, actions, versions=np.full(8000, "7")).versions == ()


def test_an_interval_that_barely_misses_1_is_printed_so_that_one_sees_it() -> None:
    # Two actions logged at p = .4995, each taken in half of every cluster: 1 / (2 p) = 1.001 without any spread.
    actions, free = np.arange(1000) % 2, np.tile([True, True, False], (1000, 1))
    report = check(np.full(1000, 0.4995), actions, available=free, clusters=np.arange(1000) // 10)
    assert "averages to 1.001, with interval [1.001, 1.001], and right ones to 1" in (report.refused or "")
    assert apart(1.0003, 1.0) == "1.0003"
    assert apart(0.99999, 1.0) == "0.99999"
    assert apart(1.0, 1.0) == "1"
    assert apart(1.5, 1.0) == "1.5"


def test_constant_probability_of_one_third_is_right_for_a_uniform_logger_only() -> None:
    rng = np.random.default_rng(0)
    p = np.full(3000, 1 / 3)
    uniform = check(p, rng.integers(3, size=3000))
    assert uniform.constant
    assert uniform.refused is None
    assert check(p, rng.choice(3, p=[0.6, 0.2, 0.2], size=3000)).refused is not None


def test_rows_where_an_action_was_unavailable_do_not_count_against_it() -> None:
    rng = np.random.default_rng(0)
    available = np.ones((4000, 3), dtype=bool)
    available[:2000, 2] = False
    p = np.where(available[:, 2], 1 / 3, 1 / 2)
    actions = (rng.random(4000) * available.sum(axis=1)).astype(int)
    report = check(p, actions, available=available)
    assert report.refused is None
    assert report.actions[2].n_available == 2000


@pytest.mark.parametrize(
    ("p", "actions", "cause"),
    [
        (np.ones(100), np.arange(100) % 3, "deterministic logger"),
        (np.full(100, 0.9), np.zeros(100, dtype=int), "only 'down' was ever taken"),
        (np.full(100, np.nan), np.arange(100) % 3, "100 of 100 steps have no behavior probability"),
    ],
)
def test_a_log_that_cannot_carry_weights_is_refused(p: np.ndarray, actions: np.ndarray, cause: str) -> None:
    assert cause in (check(p, actions).refused or "")


def test_an_action_the_candidate_needs_but_the_log_never_holds_is_refused() -> None:
    actions = np.random.default_rng(0).integers(2, size=1000)
    p = np.full(1000, 0.5)
    needed = check(p, actions, used_shares=np.array([0.4, 0.4, 0.2]))
    assert "'up' was never taken, though the policies on trial would take it" in (needed.refused or "")
    assert check(p, actions, used_shares=np.array([0.5, 0.5, 0.0])).refused is None


@pytest.mark.parametrize("wrong", [0.0, 1.5, -0.1])
def test_impossible_probabilities_are_an_error(wrong: float) -> None:
    p = np.full(10, 0.5)
    p[4] = wrong
    with pytest.raises(PropensityError, match=r"outside \(0, 1\] in 1 of 10 steps.*at row 4"):
        check(p, np.arange(10) % 3)


@pytest.mark.parametrize("model", ["logistic", "boosting"])
def test_estimated_probabilities_come_near_the_true_ones(model: str) -> None:
    _, actions, feature = logged(3000)
    available = np.ones((3000, 3), dtype=bool)
    fitted = fit_behavior_model(
        feature,
        actions,
        available,
        np.arange(3000),
        config=PropensityConfig(model=model),  # type: ignore[arg-type]  # parametrized text
        seed=0,
    )
    fresh, _, new_feature = logged(2000, seed=1)
    found = fitted.action_probs(new_feature, available[:2000])
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    assert np.abs(found - fresh).mean() < (0.02 if model == "logistic" else 0.08)
    masked = available[:2000].copy()
    masked[:, 0] = False
    assert np.all(fitted.action_probs(new_feature, masked)[:, 0] == 0.0)


def test_calibration_tames_overconfident_trees() -> None:
    # The feature says nothing about the action, so every probability is 1/3 and deeper trees only memorize.
    rng = np.random.default_rng(0)
    features, actions = rng.normal(size=(600, 8)).astype(np.float32), rng.integers(3, size=600)
    available = np.ones((600, 3), dtype=bool)
    fitted = fit_behavior_model(
        features, actions, available, np.arange(600), config=PropensityConfig(model="boosting"), seed=0
    )
    fresh = fitted.action_probs(rng.normal(size=(600, 8)).astype(np.float32), available)
    assert fresh.max(axis=1).mean() < 0.6


def test_one_action_cannot_be_estimated() -> None:
    with pytest.raises(PropensityError, match="1 different actions"):
        fit_behavior_model(
            np.zeros((5, 1), dtype=np.float32),
            np.zeros(5, dtype=np.int64),
            np.ones((5, 3), dtype=bool),
            np.arange(5),
            config=PropensityConfig(),
            seed=0,
        )
