"""Sixteen clients at full speed while the server is killed, releases change, and the switch is thrown."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipelines.serving.switch import disable, enable
from pipelines.workspace import Workspace
from tests.benchmarks.load import Load, drive, request_bytes
from tests.pipelines.serving.running import OBSERVATION, logged, make_champion, served_workspace, serving

CLIENTS = 16


@dataclass
class Seen:
    """What sixteen clients were told."""

    answers: list[dict[str, Any]] = field(default_factory=list)
    refused: list[bytes] = field(default_factory=list)
    load: Load | None = None

    def take(self, answer: bytes) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 200"):
            self.answers.append(json.loads(body))
        else:
            self.refused.append(answer)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return served_workspace(tmp_path / "workspace")


def under_load(port: int, seconds: float) -> tuple[Seen, threading.Thread]:
    """Starts sixteen clients beside the test."""
    seen, numbers = Seen(), itertools.count(time.time_ns())

    def request() -> bytes:
        body = {"episode_id": f"e{next(numbers)}", "step": 0, "observation": OBSERVATION}
        return request_bytes("/v1/act", json.dumps(body).encode())

    def run() -> None:
        seen.load = drive(port, request, clients=CLIENTS, seconds=seconds, on_answer=seen.take)

    thread = threading.Thread(target=run)
    thread.start()
    return seen, thread


@pytest.mark.parametrize("durability", ["process", "disk"])
def test_every_answer_is_in_the_log_after_a_kill(workspace: Workspace, durability: str) -> None:
    settings = workspace.root / "offline_dqn.toml"
    settings.write_text(f'{settings.read_text()}\n[serve]\ndurability = "{durability}"\n')
    answered: list[dict[str, Any]] = []
    for _ in range(2):
        with serving(workspace) as server:
            seen, clients = under_load(server.port, 20.0)
            wait_for(lambda: len(seen.answers) > 150)  # noqa: B023  # used at once
            server.process.kill()
            clients.join()
            answered += seen.answers
            assert seen.refused == []
    with serving(workspace):  # a new start mends what the kill tore
        pass

    lines = {line["decision_id"]: line for line in logged(workspace)}
    lost = [a["decision_id"] for a in answered if a["decision_id"] not in lines]
    assert lost == [], f"answered {len(answered)}, logged {len(lines)}, lost {len(lost)}"
    assert len(answered) <= len(lines) <= len(answered) + 2 * CLIENTS  # those whose answer was under way
    for answer in answered:
        line = lines[answer["decision_id"]]
        assert (line["action"], line["behavior_prob"]) == (answer["action"], answer["probability"])


def test_promotions_and_the_switch_cost_no_request(workspace: Workspace) -> None:
    with serving(workspace) as server:
        seen, clients = under_load(server.port, 6.0)
        wait_for(lambda: len(seen.answers) > 50)
        for change in (
            lambda: make_champion(workspace, 2),
            lambda: disable(workspace.serving_path, by="Ada", note="drill"),
            lambda: enable(workspace.serving_path, by="Ada", note=""),
            lambda: make_champion(workspace, 1, "rollback"),
        ):
            change()
            time.sleep(1.2)
        clients.join()
        code, err = server.stop()

    assert code == 0, err
    assert seen.refused == []
    assert seen.load is not None
    assert seen.load.n_failed == 0
    acted = Counter((answer["release"], answer["decided_by"]) for answer in seen.answers)
    assert set(acted) >= {(1, "policy"), (2, "policy"), (0, "baseline")}
    in_order = [key for key, _ in itertools.groupby(line["policy_version"] for line in logged(workspace))]
    assert in_order == ["1", "2", "0", "2", "1"]  # each took over once and for all
    sent = {answer["decision_id"] for answer in seen.answers}
    assert sent <= {line["decision_id"] for line in logged(workspace)}


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it did not come within 30 s"
        time.sleep(0.01)
