"""A decision whose answer was lost is answered as it was logged, also by a server that was started since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines.serving.config import ServeConfig
from pipelines.serving.decision_log import DecisionLog
from pipelines.serving.recent_decisions import RecentDecisions
from tests.datasets.builders import step_row, tiny

CONTRACT = tiny(columns={"decision_id": "ref.id", "observation.cpu": "load"})
PROBS = [0.25, 0.5, 0.25]


def logged(number: int) -> bytes:
    row: dict[str, Any] = step_row("e", number, behavior_probs=PROBS, policy_version="3", decided_by="guard", load=0.5)
    row["ref"] = {"id": f"d{number}"}
    del row["observation"]["cpu"]
    return json.dumps(row).encode()


def test_a_lost_answer_is_found_in_the_log_before_and_after_a_restart(tmp_path: Path) -> None:
    recent = RecentDecisions(CONTRACT, tmp_path, capacity=2)
    with DecisionLog(tmp_path, ServeConfig(min_free_mb=0)) as log:
        for number in range(3):
            log.append([logged(number)])
            recent.logged(f"d{number}", logged(number))
    again = RecentDecisions(CONTRACT, tmp_path, capacity=2)
    for memory in (recent, again):
        found = memory.find("d2")
        assert found is not None
        assert (found.episode_id, found.step, found.action) == ("e", 2, "hold")
        assert (found.probability, found.probabilities) == (0.5, tuple(PROBS))
        assert (found.decided_by, found.release) == ("guard", "3")
        assert memory.find("d1") is not None
        assert memory.find("d0") is None  # too long ago
        assert memory.find("nobody") is None
    assert recent.find("d2") == again.find("d2")


def test_an_id_that_is_used_for_something_else_is_no_repetition(tmp_path: Path) -> None:
    recent = RecentDecisions(CONTRACT, tmp_path)
    recent.logged("d2", logged(2))
    found = recent.find("d2")
    assert found is not None
    seen = {"cpu": 0.5, "zone": "a", "busy": True, "load": [0.0, 1.0]}
    assert found.answers("e", seen)
    assert found.answers(None, seen)
    assert not found.answers("f", seen)
    assert not found.answers("e", {**seen, "cpu": 0.6})
    assert found.answers("e", {name: value for name, value in seen.items() if name != "zone"})
