from __future__ import annotations

import duckdb
import numpy as np
import pytest

from datasets.simulators.service import ACTIONS, ServiceParameters
from datasets.simulators.simulation import roll_out
from datasets.simulators.threshold_rule import (
    EXPLORATION,
    OTHERWISE,
    RULES,
    expected_episodes_per_effective_episode,
    logging_policy,
    rule_actions,
    with_exploration,
)


def test_sql_rules_and_numpy_rule_agree():
    grid = [(cpu, replicas) for cpu in (0, 0.2999, 0.3, 0.3001, 0.5, 0.6, 0.6001, 1) for replicas in (1, 2, 3, 12)]
    rng = np.random.default_rng(1)
    seen = roll_out(rng, ServiceParameters(), np.zeros(500, np.int64), logging_policy(), n_steps=6).observations
    cpu = np.concatenate([[row[0] for row in grid], seen["cpu"].ravel()])
    replicas = np.concatenate([[row[1] for row in grid], seen["replicas"].ravel()])
    cases = " ".join(f"WHEN {condition} THEN '{action}'" for condition, action in RULES)
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE steps (row INTEGER, observation STRUCT(cpu DOUBLE, replicas DOUBLE))")
        rows = [
            (i, {"cpu": float(c), "replicas": float(r)}) for i, (c, r) in enumerate(zip(cpu, replicas, strict=True))
        ]
        connection.executemany("INSERT INTO steps VALUES (?, ?)", rows)
        by_sql = connection.execute(f"SELECT CASE {cases} ELSE '{OTHERWISE}' END FROM steps ORDER BY row").fetchall()
    by_numpy = rule_actions({"cpu": cpu, "replicas": replicas})
    assert [ACTIONS[action] for action in by_numpy] == [row[0] for row in by_sql]
    assert len(set(by_numpy.tolist())) == 3


def test_propensities_by_hand():
    probs = logging_policy(0.6)({"cpu": np.array([0.9, 0.5, 0.1]), "replicas": np.array([4, 4, 4])})
    np.testing.assert_allclose(probs, [[0.2, 0.2, 0.6], [0.2, 0.6, 0.2], [0.6, 0.2, 0.2]])


def test_exploration_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match=r"epsilon must lie in \[0, 1\], found 1.5"):
        with_exploration(rule_actions, 1.5)


def test_episodes_per_effective_episode_by_hand():
    # eps .6, A 3: b0 = .6, b1 = .2, d = .4, so one changed step has 1 + .16 * (1 / .6 + 5) = 31 / 15.
    found = expected_episodes_per_effective_episode(epsilon=0.6, horizon=1, changed_share=1)
    assert found == pytest.approx(31 / 15)
    assert expected_episodes_per_effective_episode(epsilon=0.3, horizon=6, changed_share=0) == 1


def test_the_logged_exploration_suffices_for_a_candidate_that_changes_three_states_in_four():
    assert expected_episodes_per_effective_episode(epsilon=EXPLORATION, horizon=6, changed_share=0.75) < 20


def test_no_exploration_is_refused():
    with pytest.raises(ValueError, match="wanted epsilon in"):
        expected_episodes_per_effective_episode(epsilon=0, horizon=6, changed_share=0.5)
