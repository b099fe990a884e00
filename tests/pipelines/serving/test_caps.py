"""Caps across restarts: counted again from the log, whatever kills the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.contract import Contract, TimeFormat
from offline_dqn.caps import Turn
from pipelines.serving.caps import ActionCaps, CapsError, instant_us
from tests.datasets.builders import tiny

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


def capped(at_most: int = 3, per: str = "1h", by: str = "all", **tables: Any) -> Contract:
    return tiny({"actions": {"caps": {"up": {"at_most": at_most, "per": per, "by": by}}}}, **tables)


def line(at: datetime, action: Any = "up", episode: str = "e") -> str:
    return json.dumps({"episode_id": episode, "timestamp": at.isoformat(), "action": action})


def write(folder: Path, name: str, *lines: str, torn: str = "") -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(f"{text}\n" for text in lines) + torn)


def taken(contract: Contract, folder: Path, at: datetime, episode: str = "e") -> float:
    filled = ActionCaps.rebuilt(contract, folder).fill({"cpu": 0.5}, Turn.of(at, episode))
    assert filled["cpu"] == 0.5
    return float(filled["taken_up"])


def test_counters_are_rebuilt_from_the_log(tmp_path: Path) -> None:
    at = [NOON + timedelta(minutes=20 * n) for n in range(4)]
    write(tmp_path, "served-20260105-000001.jsonl", line(at[0]), line(at[1], "hold"))
    write(tmp_path, "served-20260105-000002.jsonl", line(at[2]), line(at[3]))

    assert taken(capped(), tmp_path, at[3] - timedelta(microseconds=1)) == 2.0  # at[0] is one hour before at[3]
    assert taken(capped(per="2h"), tmp_path, at[3]) == 3.0


def test_a_log_whose_times_came_from_requests_is_read_whole(tmp_path: Path) -> None:
    # The first file ends with an older day that was filled in: its capped action is ten minutes old all the same.
    write(tmp_path, "served-20260105-000001.jsonl", line(NOON), line(NOON - timedelta(days=1), "hold", "back-fill"))
    write(tmp_path, "served-20260105-000002.jsonl", line(NOON + timedelta(minutes=10), "hold"))

    caps = ActionCaps.rebuilt(capped(), tmp_path, in_order=False)

    assert caps.fill({}, Turn.of(NOON + timedelta(minutes=10)))["taken_up"] == 1.0


def test_what_the_caller_says_of_a_counter_is_not_believed() -> None:
    caps = ActionCaps(capped())

    assert caps.fill({"cpu": 0.5, "taken_up": -7}, Turn.of(NOON)) == {"cpu": 0.5, "taken_up": 0.0}


def test_files_older_than_the_window_are_not_read(tmp_path: Path) -> None:
    write(
        tmp_path, "served-20260104-000001.jsonl", "this is no JSON, and nobody needs it", line(NOON - timedelta(days=1))
    )
    write(tmp_path, "served-20260105-000001.jsonl", line(NOON))

    assert taken(capped(), tmp_path, NOON) == 1.0


def test_a_torn_last_line_was_never_answered_and_counts_nothing(tmp_path: Path) -> None:
    write(tmp_path, "served-20260105-000001.jsonl", line(NOON), torn=line(NOON)[:-9])

    assert taken(capped(), tmp_path, NOON) == 1.0


def test_other_logs_in_the_folder_count_nothing(tmp_path: Path) -> None:
    write(tmp_path, "night-0001.jsonl", line(NOON))

    assert taken(capped(), tmp_path, NOON) == 0.0
    assert taken(capped(), tmp_path / "absent", NOON) == 0.0


def test_a_line_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    write(tmp_path, "served-20260105-000001.jsonl", line(NOON).replace("{", "["), line(NOON))

    with pytest.raises(CapsError, match=r"served-20260105-000001.jsonl holds a line that cannot be read .* Restore"):
        ActionCaps.rebuilt(capped(), tmp_path)


def test_the_log_is_read_under_the_names_and_times_of_the_contract(tmp_path: Path) -> None:
    columns = {"action": "decision.act", "episode_id": "session"}
    contract = capped(by="episode", columns=columns, time={"format": "epoch_ms"})
    row = {"session": 7, "decision": {"act": "up"}, "timestamp": int(NOON.timestamp() * 1000)}
    write(tmp_path, "served-20260105-000001.jsonl", json.dumps(row))

    assert taken(contract, tmp_path, NOON, episode="7") == 1.0
    assert taken(contract, tmp_path, NOON, episode="8") == 0.0


def test_a_numeric_action_counts_for_its_bin(tmp_path: Path) -> None:
    actions = {"names": None, "bins": [0, 10, 50], "safe": 5, "caps": {"[10, 50]": {"at_most": 1, "per": "1d"}}}
    write(tmp_path, "served-20260105-000001.jsonl", line(NOON, 20), line(NOON, 9.5))

    filled = ActionCaps.rebuilt(tiny(actions=actions), tmp_path).fill({}, Turn.of(NOON))

    assert filled == {"taken_10_50": 1.0}


def test_without_caps_there_is_nothing_to_fill(tmp_path: Path) -> None:
    caps = ActionCaps.rebuilt(tiny(), tmp_path)

    assert not caps
    assert caps.fill({"cpu": 0.5}, Turn.of(NOON)) == {"cpu": 0.5}


def test_decisions_that_no_log_will_hold_find_every_cap_reached() -> None:
    assert ActionCaps(capped(7)).reached() == {"taken_up": 7.0}


@pytest.mark.parametrize(
    ("written", "time_format"),
    [
        ("2026-01-05T12:00:00Z", {}),
        ("2026-01-05T13:00:00+01:00", {}),
        ("2026-01-05 13:00:00", {"zone": "Europe/Berlin"}),
        ("05.01.2026 12:00", {"format": "%d.%m.%Y %H:%M", "zone": "UTC"}),
        (1767614400, {"format": "epoch_s"}),
        (1767614400000, {"format": "epoch_ms"}),
    ],
)
def test_times_are_read_as_the_contract_says(written: Any, time_format: dict[str, str]) -> None:
    assert instant_us(written, TimeFormat(**time_format)) == Turn.of(NOON).at_us


def test_a_time_without_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="has no zone"):
        instant_us("2026-01-05T12:00:00", TimeFormat())


STEPS = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from([0, 0, 0, 1, 25, 300]), st.integers(1, 6), st.integers(0, 7)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, at_most=st.integers(1, 3))
def test_no_kill_and_no_clock_put_back_lets_more_through_than_the_cap(
    steps: list[tuple[int, int, int, int]], at_most: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each step: some minutes pass, the clock is put back by some, a batch is decided. A killed server has written only
    so many of its lines (7: it is not killed), and a new one begins from the log. No real hour holds more than the cap.
    """
    folder, contract = tmp_path_factory.mktemp("log"), capped(at_most)
    caps, passed, behind, taken_at = ActionCaps.rebuilt(contract, folder), 0, 0, []
    for number, (minutes, put_back, n_decisions, n_written) in enumerate(steps):
        passed, behind = passed + minutes, behind + put_back
        clock = NOON + timedelta(minutes=passed - behind)
        actions = caps.decide(
            [Turn.of(clock)] * n_decisions,
            lambda _, rows: ["up" if row["taken_up"] < at_most else "hold" for row in rows],
            str,
        )
        kept = actions[:n_written]
        taken_at += [passed] * kept.count("up")
        write(folder, f"served-20260105-{number:06d}.jsonl", *(line(clock, action) for action in kept))
        if n_written < 7:
            caps = ActionCaps.rebuilt(contract, folder)
    for last in taken_at:
        assert sum(last - 60 < at <= last for at in taken_at) <= at_most


WORKER = """
import json, sys
from datetime import UTC, datetime
from pathlib import Path
from offline_dqn.caps import Turn
from pipelines.serving.caps import ActionCaps
from pipelines.serving.config import ServeConfig
from pipelines.serving.decision_log import DecisionLog
from tests.pipelines.serving.test_caps import capped, line

folder = Path(sys.argv[1])
log = DecisionLog(folder, ServeConfig(rotate_mb=1))
caps = ActionCaps.rebuilt(capped(5, "60s"), folder)
while True:
    now = datetime.now(UTC)
    choose = lambda _, rows: ["up" if row["taken_up"] < 5 else "hold" for row in rows]
    log.append([line(now, action).encode() for action in caps.decide([Turn.of(now)] * 3, choose, str)])
"""


def test_a_server_killed_again_and_again_keeps_to_the_cap(tmp_path: Path) -> None:
    """A real process under SIGKILL at random moments, with a cap of 5 a minute that it reaches at once."""
    rng, root = np.random.default_rng(3), Path(__file__).resolve().parents[3]
    folder = tmp_path / "steps"
    for _ in range(3):
        server = subprocess.Popen([sys.executable, "-c", WORKER, str(folder)], cwd=root, env={**os.environ})
        deadline = time.monotonic() + 20
        before = _size(folder)
        while _size(folder) == before and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0.0, 0.25)))
        server.send_signal(signal.SIGKILL)
        server.wait()
    text = b"".join(path.read_bytes() for path in sorted(folder.glob("served-*.jsonl"))).split(b"\n")[:-1]
    rows = [json.loads(row) for row in text]
    instants = [datetime.fromisoformat(row["timestamp"]) for row in rows if row["action"] == "up"]

    assert len(rows) > 100
    for last in instants:
        assert sum(last - timedelta(minutes=1) < instant <= last for instant in instants) <= 5
    assert len(instants) >= 5


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("served-*.jsonl")) if folder.is_dir() else 0
