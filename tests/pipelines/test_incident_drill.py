"""`make incident`: the lying collector, the pager, and the settings that it runs under; the whole takes minutes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from datasets.durable import append_record
from pipelines.incident.drill import MAKER, PAGER, pager, write_poisoned_log, write_settings
from pipelines.loop import fresh_workspace
from pipelines.notify.notices import Message
from pipelines.notify.receivers import deliver
from pipelines.workspace import WorkspaceError, open_workspace


def test_the_collector_tells_the_same_decisions_with_other_rewards(tmp_path: Path) -> None:
    steps, outcomes = tmp_path / "logs" / "steps", tmp_path / "logs" / "outcomes"
    for number, action in enumerate(("hold", "scale_down")):
        row = {"decision_id": f"d{number}", "episode_id": "e", "step": number, "action": action, "behavior_prob": 0.5}
        append_record(steps / "served-1.jsonl", row)
        append_record(outcomes / "served-1.jsonl", {"decision_id": f"d{number}", "reward": -3.0})
    append_record(
        outcomes / "served-1.jsonl", {"decision_id": "d1", "truncated": True, "final_observation": {"cpu": 1}}
    )

    n = write_poisoned_log(tmp_path, steps / "b.jsonl")
    first, second = (json.loads(line) for line in (steps / "b.jsonl").read_text().splitlines())

    assert n == 2
    assert (first["reward"], second["reward"]) == (-5.0, 0.0)
    assert first["episode_id"] == second["episode_id"] == "b-e"
    assert {first["decision_id"], second["decision_id"]} == {"b-d0", "b-d1"}
    assert (second["truncated"], second["final_observation"]) == (True, {"cpu": 1})
    assert "truncated" not in first


def test_the_pager_is_reached_as_a_night_would_reach_it() -> None:
    with pager() as pages:
        wrong = deliver(PAGER, Message("[page] it broke", "text", "failure"), timeout_s=10)
        assert not wrong
    assert [title for _, title in pages] == ["[page] it broke"]
    assert PAGER not in os.environ


def test_its_settings_are_whole_and_only_its_own_folder_is_made_anew(tmp_path: Path) -> None:
    workspace = fresh_workspace(tmp_path / "drill", MAKER)
    write_settings(workspace.root)
    assert open_workspace(workspace.root).config.notify.page == (PAGER,)
    fresh_workspace(tmp_path / "drill", MAKER)
    with pytest.raises(WorkspaceError, match="was not made by `make loop`"):
        fresh_workspace(tmp_path / "drill")
