"""Held batches and damaged files from a shell."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import stages
from pipelines.workspace import Workspace
from tests.pipelines.conftest import Run


def spoil(path: Path, share: int) -> None:
    """Takes the reward out of every `share`-th row."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[::share]:
        row["reward"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def held(workspace: Workspace, run: Run) -> str:
    """The id of a batch whose rewards are missing in every second row."""
    spoil(stages.simulate(workspace, n_episodes=48).path, share=2)
    answer = run(workspace, "ingest", "--json")
    assert (answer.code, answer.json["batch"]["status"]) == (0, "held")
    return str(answer.json["batch"]["batch_id"])


def n_steps(workspace: Workspace) -> int:
    return int(workspace.query("SELECT count(*) FROM steps").rows[0][0])


def test_a_held_batch_is_shown_with_the_reason_and_what_to_do(held: str, workspace: Workspace, run: Run) -> None:
    listed = run(workspace, "batches", "list", "--json").json["batches"]
    shown = run(workspace, "batches", "show", held)
    again = run(workspace, "ingest")

    assert [batch["status"] for batch in listed] == ["lake", "held"]
    assert (listed[1]["n_in"], listed[1]["n_held"], listed[1]["n_lake"]) == (288, 288, 0)
    assert (shown.code, "FAILED" in shown.out) == (0, True)
    assert (again.code, "Nothing new" in again.out) == (0, True)
    assert n_steps(workspace) == 12000


def test_results_are_pages_too(held: str, workspace: Workspace, run: Run) -> None:
    lake = workspace.root / "lake"
    page = lake / "_held" / held / "validation.html"
    assert "reward" in page.read_text()
    page.unlink()
    assert run(workspace, "batches", "show", held, "--json").json["docs"] == str(page)
    assert "holds the batch" in page.read_text()

    run(workspace, "batches", "release", held)
    released = lake / "_validation" / held / "index.html"
    assert run(workspace, "batches", "show", held, "--json").json["docs"] == str(released)

    whole = run(workspace, "validate", "--docs", "--json").json
    assert whole["docs"] == str(lake / "_validation" / "lake" / "index.html")
    assert "Succeeded" in (lake / "_validation" / "lake" / "index.html").read_text()


def test_a_held_batch_can_be_let_in_once(held: str, workspace: Workspace, run: Run) -> None:
    released = run(workspace, "batches", "release", held, "--reviewer", "Ada", "--json").json
    again = run(workspace, "batches", "reject", held)

    assert released["status"] == "released"
    assert (released["n_lake"], released["n_quarantined"], released["n_held"]) == (144, 144, 0)
    assert "released by Ada" in released["note"]
    assert (again.code, "is not held: it is 'released'. Nothing was changed." in again.err) == (1, True)
    assert n_steps(workspace) == 12144


def test_a_held_batch_can_be_turned_away(held: str, workspace: Workspace, run: Run) -> None:
    rejected = run(workspace, "batches", "reject", held[:-2], "--reviewer", "Ada", "--json").json

    assert (rejected["status"], rejected["n_quarantined"], rejected["n_held"]) == ("rejected", 288, 0)
    assert n_steps(workspace) == 12000
    assert workspace.query("SELECT count(*) FROM quarantine").rows == ((288,),)


def test_a_damaged_file_ends_ingest_with_1_and_the_others_are_in(workspace: Workspace, run: Run) -> None:
    good = stages.simulate(workspace, n_episodes=48).path
    whole = gzip.compress(good.read_bytes())
    (good.parent / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])

    shown = run(workspace, "ingest")
    again = run(workspace, "ingest", "--json")

    assert shown.code == 1
    assert "cut.jsonl.gz" in shown.err
    assert "288" in shown.out
    assert n_steps(workspace) == 12288
    assert (again.code, again.json["batch"]) == (1, None)
    assert "cut.jsonl.gz" in again.json["damaged"][0]["file"]
