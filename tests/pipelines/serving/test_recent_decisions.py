"""A decision whose answer was lost is answered as it was logged, also by a server that was started since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.serving.config import ServeConfig
from pipelines.serving.decision_log import DecisionLog
from pipelines.serving.recent_decisions import RecentDecisions
from pipelines.serving.refusals import RefusedRequestError
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


def test_the_same_request_is_answered_as_it_was_logged_and_another_one_is_refused(tmp_path: Path) -> None:
    recent = RecentDecisions(CONTRACT, tmp_path)
    recent.logged("d2", logged(2))
    observation = {"cpu": 0.5, "zone": "a", "busy": True, "load": [0.0, 1.0]}
    asked: dict[str, Any] = {"decision_id": "d2", "episode_id": "e", "observation": observation}

    for same in (asked, {**asked, "step": 2}, {**asked, "episode_id": None}):
        assert recent.answers_to([same]) == [
            {
                "decision_id": "d2",
                "action": "hold",
                "action_value": None,
                "probability": 0.5,
                "probabilities": {"down": 0.25, "hold": 0.5, "up": 0.25},
                "decided_by": "guard",
                "release": 3,
                "forbidden": {},
            }
        ]
    for other in ({"step": 3}, {"episode_id": "f"}, {"observation": {**observation, "cpu": 0.6}}):
        with pytest.raises(RefusedRequestError, match="'d2' was decided already, for another request"):
            recent.answers_to([{**asked, **other}])
    with pytest.raises(RefusedRequestError, match="'d2' was decided already"):
        recent.answers_to([{**asked, "decision_id": "new"}, asked])
    assert recent.answers_to([{**asked, "decision_id": "new"}, {"observation": observation}]) is None


def test_a_request_with_other_actions_is_another_one(tmp_path: Path) -> None:
    contract = tiny({"actions": {"caps": {"up": {"at_most": 1, "per": "1h"}}}})
    recent = RecentDecisions(contract, tmp_path)
    seen = {"cpu": 0.5, "taken_up": 1.0}
    for name, mask, decided_by in (
        ("free", None, "policy"),
        ("masked", ["hold", "up"], "policy"),
        ("stuck", ["up", "hold"], "shield"),
    ):
        row = step_row("e", 0, decision_id=name, behavior_probs=PROBS, policy_version="3", decided_by=decided_by)
        recent.logged(name, json.dumps(row | {"observation": seen, "available_actions": mask}).encode())

    def answered(name: str, mask: list[str] | None, **more: Any) -> bool:
        asked = {"decision_id": name, "episode_id": "e", "observation": {"cpu": 0.5, **more}, "available_actions": mask}
        try:
            return bool(recent.answers_to([asked]))
        except RefusedRequestError:
            return False

    assert answered("free", None, taken_up=None)  # what a client says of a counter means nothing
    assert answered("masked", ["up", "hold"])
    assert answered("stuck", ["up"])  # the cap was reached, and the safe action acted
    assert not answered("free", ["down"])
    assert not answered("masked", ["hold"])
    assert not answered("masked", ["down", "hold", "up"])
    assert not answered("masked", None)
    assert not answered("stuck", ["down"])
