from __future__ import annotations

import json
from datetime import datetime

import numpy as np
import pytest

from datasets.simulators.episode_logs import log_rows, write_logs
from datasets.simulators.service import ACTIONS, ZONES, ServiceParameters
from datasets.simulators.simulation import SimulatedNight, simulate_night
from datasets.simulators.threshold_rule import logging_policy


def simulated(night: int = 3, n_episodes: int = 48, seed: int = 1) -> SimulatedNight:
    return simulate_night(
        np.random.default_rng(seed),
        ServiceParameters(),
        night=night,
        n_episodes=n_episodes,
        policy=logging_policy(),
        policy_version="0",
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = write_logs(simulated(), tmp_path_factory.mktemp("logs") / "steps")
    assert path.name == "night-0003.jsonl"
    assert [other.name for other in path.parent.iterdir()] == [path.name]
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_one_line_per_decision_in_the_order_of_time(rows):
    assert len(rows) == 48 * 6
    times = [row["timestamp"] for row in rows]
    assert times == sorted(times)
    assert (times[0], times[-1]) == ("2026-01-07T00:00:00+00:00", "2026-01-07T23:50:00+00:00")
    assert datetime.fromisoformat(times[0]).utcoffset().total_seconds() == 0


def test_identities_are_unique(rows):
    assert len({row["decision_id"] for row in rows}) == len(rows)
    assert len({(row["episode_id"], row["step"]) for row in rows}) == len(rows)
    other = {row["decision_id"] for row in log_rows(simulated(night=4))}
    assert other.isdisjoint(row["decision_id"] for row in rows)


def test_only_the_last_step_is_truncated_and_carries_the_final_observation(rows):
    for row in rows:
        last = row["step"] == 5
        assert row["terminated"] is False
        assert row["truncated"] is last
        assert ("final_observation" in row) is last


def test_rows_say_what_was_simulated(rows):
    night = simulated()
    by_id = {(row["episode_id"], row["step"]): row for row in rows}
    ids = sorted({row["episode_id"] for row in rows})
    for episode, episode_id in enumerate(ids):
        for step in range(6):
            row = by_id[episode_id, step]
            assert row["action"] == ACTIONS[night.episodes.actions[episode, step]]
            assert row["reward"] == night.episodes.rewards[episode, step]
            assert row["behavior_prob"] == night.episodes.behavior_prob[episode, step]
            assert row["policy_version"] == "0"
            expect_observation(row["observation"], night, episode, step)
        expect_observation(row["final_observation"], night, episode, 6)


def expect_observation(found: dict[str, object], night: SimulatedNight, episode: int, step: int) -> None:
    wanted = {name: values[episode, step] for name, values in night.episodes.observations.items()}
    wanted["zone"] = ZONES[wanted["zone"]]
    assert found == wanted


def test_the_rule_read_from_the_log_gives_the_logged_propensity(rows):
    seen = {name: np.array([row["observation"][name] for row in rows]) for name in ("cpu", "replicas")}
    probs = logging_policy()(seen)
    taken = probs[np.arange(len(rows)), [ACTIONS.index(row["action"]) for row in rows]]
    np.testing.assert_array_equal(taken, [row["behavior_prob"] for row in rows])


def test_writing_a_night_again_replaces_it(tmp_path):
    first = write_logs(simulated(), tmp_path).read_bytes()
    assert write_logs(simulated(), tmp_path).read_bytes() == first
    assert write_logs(simulated(seed=2), tmp_path).read_bytes() != first
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failed_write_leaves_the_earlier_file(tmp_path, monkeypatch):
    before = write_logs(simulated(), tmp_path).read_bytes()

    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("datasets.simulators.episode_logs.json.dumps", fail)
    with pytest.raises(OSError, match="disk full"):
        write_logs(simulated(seed=2), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["night-0003.jsonl"]
    assert (tmp_path / "night-0003.jsonl").read_bytes() == before
