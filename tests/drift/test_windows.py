from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from datasets.contract import contract_from_text
from datasets.errors import OfflineDqnError
from datasets.observations import Observations
from datasets.replay import Replay
from drift.windows import DriftColumn, DriftWindow, window_from_replay
from tests.drift.worlds import one_column

CONTRACT = """
name = "demo"
gamma = 0.9
[features.cpu]
type = "numeric"
[features.season]
type = "numeric"
exogenous = true
[features.zone]
type = "categorical"
[features.embedding]
type = "vector"
length = 2
[actions]
names = ["wait", "warm"]
"""


def test_window_of_a_replay_leaves_final_observations_out() -> None:
    observations = Observations(
        {
            "cpu": np.array([0.1, 0.2, 0.3, 0.9]),
            "season": np.zeros(4),
            "zone": np.array([0, 1, -1, 0], dtype=np.int32),
            "embedding": np.zeros((4, 2)),
        },
        {"zone": ("a", "b")},
    )
    replay = Replay(
        contract=contract_from_text(CONTRACT, "demo"),
        digest="",
        observations=observations,
        available=np.ones((4, 2), dtype=bool),
        actions=np.array([0, 1, 1]),
        rewards=np.array([1.0, 2.0, 3.0]),
        terminated=np.array([False, False, True]),
        truncated=np.array([False, True, False]),
        next_row=np.array([1, 3, -1]),
        behavior_prob=np.full(3, 0.5),
        offsets=np.array([0, 2, 3]),
        episode_ids=np.array(["e", "f"], dtype=object),
        clusters=np.array([7, 8]),
        nights=np.array(["2026-03-01", "2026-03-02"], dtype="datetime64[D]"),
        policy_versions=np.array(["", ""], dtype=object),
        split=np.zeros(2, dtype=np.int8),
    )
    window = window_from_replay(replay, weights=np.array([1.0, 2.0, 3.0]))
    assert list(window.columns) == [
        *(f"observation.{name}" for name in ("cpu", "season", "zone", "embedding")), "action", "reward"
    ]  # fmt: skip
    assert window.columns["observation.cpu"].values.tolist() == [0.1, 0.2, 0.3]
    assert window.columns["observation.zone"].vocabulary == ("a", "b")
    assert window.columns["observation.season"].exogenous
    assert window.columns["action"].vocabulary == ("wait", "warm")
    assert (window.n_rows, window.n_episodes, window.n_clusters, window.n_nights) == (3, 2, 2, 2)
    assert window.effective_episodes == pytest.approx((1.5 + 3.0) ** 2 / (1.5**2 + 3.0**2))


def test_infinite_values_are_refused_with_every_column_named() -> None:
    infinite = DriftColumn("numeric", np.array([0.0, np.inf, -np.inf]))
    vector = DriftColumn("vector", np.array([[0.0, 1.0], [np.inf, 0.0], [0.0, 0.0]]))
    with pytest.raises(OfflineDqnError, match=r"(?s)2 columns.*a: 2 of 3 rows are infinite, first row 2.*b: 1 of 3"):
        DriftWindow({"a": infinite, "b": vector}, np.zeros(3, int), np.zeros(1, int), np.zeros(1, "datetime64[D]"))


def test_booleans_and_weights_are_checked() -> None:
    with pytest.raises(OfflineDqnError, match="other numbers than 0 and 1"):
        one_column(DriftColumn("boolean", np.full(100, 2.0)))
    window = one_column(DriftColumn("boolean", np.zeros(100)))
    with pytest.raises(OfflineDqnError, match="some are negative or not finite"):
        DriftWindow(window.columns, window.episode_of_row, window.clusters, window.nights, np.full(100, -1.0))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (DriftColumn("numeric", np.zeros(5)), "has 5 entries of 100 rows"),
        (DriftColumn("numeric", np.zeros((100, 2))), "is numeric but has 2 dimensions"),
        (DriftColumn("categorical", np.full(100, 3), ("a",)), "codes outside its vocabulary of 1 labels"),
    ],
)
def test_columns_that_do_not_fit_are_refused(column: DriftColumn, message: str) -> None:
    window = one_column(DriftColumn("numeric", np.zeros(100)))
    with pytest.raises(ValueError, match=message):
        DriftWindow({"x": column}, window.episode_of_row, window.clusters, window.nights)


def test_importing_drift_loads_no_heavy_library() -> None:
    code = "import sys, drift.decision; print([m for m in ('torch', 'scipy', 'pandas', 'prefect') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_return_weighs_what_the_last_row_of_its_episode_does() -> None:
    returns = DriftColumn("numeric", np.array([3.0, 4.0]), role="episode", rows=np.array([1, 2]))
    rewards = DriftColumn("numeric", np.array([1.0, 2.0, 4.0]), role="reward")
    window = DriftWindow(
        {"return": returns, "reward": rewards},
        episode_of_row=np.array([0, 0, 1]),
        clusters=np.arange(2),
        nights=np.full(2, np.datetime64("2026-03-01")),
        weights=np.array([0.5, 0.25, 2.0]),
    )
    assert window.episodes_of(returns).tolist() == [0, 1]
    assert window.episodes_of(rewards).tolist() == [0, 0, 1]
    weights = window.weights_of(returns)
    assert weights is not None
    assert weights.tolist() == [0.25, 2.0]
    assert window.weights_of(rewards) is window.weights
    assert window.weights_of(DriftColumn("numeric", np.zeros(3), exogenous=True)) is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.array([0, 2]), r"3 rows of 2 episodes, but column 'return' has 3 entries of 2 rows"),
        (np.array([0, 1, 3]), r"3 rows of 2 episodes, but column 'return' has entries of rows outside the window"),
    ],
)
def test_entries_that_do_not_fit_their_rows_are_refused(rows: NDArray[np.int64], message: str) -> None:
    column = DriftColumn("numeric", np.zeros(3), role="episode", rows=rows)
    with pytest.raises(ValueError, match=message):
        DriftWindow({"return": column}, np.array([0, 0, 1]), np.arange(2), np.full(2, np.datetime64("2026-03-01")))


def test_chosen_episodes_keep_their_rows_and_what_is_of_some_rows_only() -> None:
    window = DriftWindow(
        {
            "reward": DriftColumn("numeric", np.arange(6.0)),
            "return": DriftColumn("numeric", np.array([3.0, 7.0, 5.0]), rows=np.array([2, 4, 5])),
        },
        episode_of_row=np.array([0, 0, 0, 1, 1, 2]),
        clusters=np.array([4, 5, 6]),
        nights=np.array(["2026-03-01", "2026-03-02", "2026-03-03"], dtype="datetime64[D]"),
        weights=np.arange(6.0),
    )
    kept = window.subset(np.array([False, True, True]))
    assert kept.columns["reward"].values.tolist() == [3.0, 4.0, 5.0]
    assert kept.columns["return"].values.tolist() == [7.0, 5.0]
    assert kept.episodes_of(kept.columns["return"]).tolist() == [0, 1]
    weights = kept.weights_of(kept.columns["return"])
    assert weights is not None
    assert weights.tolist() == [4.0, 5.0]
    assert kept.clusters.tolist() == [5, 6]
