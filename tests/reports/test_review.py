"""Promotion where others act too: stale comparisons, rejections, altered bytes, and two reviewers at once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reports.history import Rejection
from reports.registry import JUDGED_AGAINST, Registry, RegistryError, RejectedError, StaleDecisionError
from tests.reports.test_registry import AT, add_release, open_registry


@pytest.fixture(scope="module")
def judged_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rules and two candidates that both passed against the logging policy (and so against the rules, too)."""
    path = tmp_path_factory.mktemp("review")
    registry = open_registry(path)
    add_release(registry, "baseline")
    for n in (1, 2):
        add_release(registry, "not evaluated", content=f"[{n}]")
        judge(registry, n, "none, 0")
    return path


@pytest.fixture
def workspace(judged_workspace: Path, tmp_path: Path) -> Path:
    return shutil.copytree(judged_workspace, tmp_path / "workspace")


def judge(registry: Registry, release: int, against: str) -> None:
    files = {"evaluation.json": b"{}", "report.html": b"<p>"}
    registry.record_evaluation(release, gate="passed", files=files, tags={JUDGED_AGAINST: against})


def test_a_decision_against_a_former_champion_is_stale(workspace: Path) -> None:
    registry = open_registry(workspace)
    registry.promote(1, reviewer="Ada", at=AT)

    with pytest.raises(StaleDecisionError) as refused:
        registry.promote(2, reviewer="Grace")

    assert str(refused.value) == (
        "Release 2 cannot be promoted: it was compared with the logging policy, and release 1 is the champion since "
        "2024-05-01 03:00:00 UTC (promote, by Ada). Its gate says nothing about a lead over that. `offline-dqn "
        "evaluate 2 --again` compares it with what acts now, for another reading of `gate`; the next night "
        "trains and judges a candidate of its own."
    )
    assert registry.stale(1) == ""
    judge(registry, 2, "1, 0")
    assert registry.promote(2, reviewer="Grace").from_release == 1
    assert "it was compared with the logging policy, and release 2 is" in registry.stale(1)


def test_a_release_that_was_compared_with_nobody_knows_what_is_not_promoted(workspace: Path) -> None:
    registry = open_registry(workspace)
    add_release(registry, "not evaluated", content="[3]")
    assert registry.stale(3) == ""  # nothing was decided on it
    registry.record_evaluation(3, gate="passed", files={"evaluation.json": b"{}", "report.html": b"<p>"})

    with pytest.raises(StaleDecisionError, match=r"Release 3 cannot be promoted: what it was compared with is not rec"):
        registry.promote(3, reviewer="Ada")
    judge(registry, 3, "none")
    assert registry.promote(3, reviewer="Ada").to_release == 3


def test_a_champion_that_came_back_makes_a_decision_current_again(workspace: Path) -> None:
    registry = open_registry(workspace)
    registry.promote(1, reviewer="Ada")
    assert registry.stale(2)

    registry.rollback(reviewer="Ada")  # to the rules, which release 2 was compared with, too

    assert registry.stale(2) == ""
    assert registry.promote(2, reviewer="Ada").from_release == 0


def test_a_rejection_is_recorded_and_stands_in_the_way(workspace: Path) -> None:
    registry = open_registry(workspace)

    said = registry.reject(1, reviewer=" Ada ", note="scales down at noon", at=AT)

    assert said == Rejection(AT, 1, "Ada", "scales down at noon")
    assert registry.rejections() == [said]
    assert registry.champion() is None
    with pytest.raises(
        RejectedError, match=r"Release 1 was rejected by Ada on 2024-05-01 03:00 UTC: scales down at noo"
    ):
        registry.promote(1, reviewer="Grace")
    registry.promote(2, reviewer="Grace")
    registry.rollback(reviewer="Grace")
    assert registry.promote(1, reviewer="Grace", despite_rejection=True).to_release == 1
    assert registry.rejections() == [said]  # the no stays on record


@pytest.mark.parametrize(
    ("release", "reviewer", "note", "message"),
    [
        (0, "Ada", "no", "Release 0, the baseline, is what one can always go back to"),
        (2, "Ada", "no", "Release 2 is the champion; `offline-dqn rollback`"),
        (9, "Ada", "no", "There is no release 9; there are: 0, 1, 2"),
        (1, " ", "no", "Who rejects release 1, and why"),
        (1, "Ada", " ", "Who rejects release 1, and why"),
    ],
)
def test_a_rejection_names_a_release_a_person_and_a_reason(
    workspace: Path, release: int, reviewer: str, note: str, message: str
) -> None:
    registry = open_registry(workspace)
    registry.promote(2, reviewer="Ada")

    with pytest.raises(RegistryError, match=message):
        registry.reject(release, reviewer=reviewer, note=note)
    assert registry.rejections() == []


def test_a_rejection_that_a_crash_cut_off_did_not_happen(workspace: Path) -> None:
    registry = open_registry(workspace)
    registry.reject(1, reviewer="Ada", note="no", at=AT)
    path = workspace / "releases" / "rejections.jsonl"
    path.write_bytes(path.read_bytes() + b'{"at": "2024-')

    assert len(registry.rejections()) == 1
    registry.reject(2, reviewer="Ada", note="no", at=AT)
    assert [r.release for r in registry.rejections()] == [1, 2]


@pytest.mark.parametrize("name", ["policy.json", "evaluation.json", "report.html", "release.json"])
@pytest.mark.parametrize("action", ["promote", "rollback"])
def test_one_changed_byte_is_refused_wherever_it_lies(workspace: Path, name: str, action: str) -> None:
    registry = open_registry(workspace)
    if action == "rollback":
        registry.promote(1, reviewer="Ada")
        registry.promote(0, reviewer="Ada")
    before = registry.history()
    path = workspace / "releases" / "1" / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    with pytest.raises(RegistryError, match=f"Release 1 is not what was registered: {name}"):
        registry.promote(1, reviewer="Ada") if action == "promote" else registry.rollback(1, reviewer="Ada")
    assert registry.history() == before


PROMOTE = """
import json, sys
from pathlib import Path
from reports.registry import Registry, RegistryError
root, release, reviewer = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
registry = Registry(root / "mlflow.db", root / "releases", "autoscaler")
registry.releases()  # MLflow is loaded; from here on they race
print("ready", flush=True)
sys.stdin.readline()
try:
    print(registry.promote(release, reviewer=reviewer).to_release)
except RegistryError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("releases", [(1, 2), (1, 1)])
def test_of_two_promotions_at_once_one_wins_and_the_other_hears_who(workspace: Path, releases: tuple[int, int]) -> None:
    reviewers = ("Ada", "Grace")
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PROMOTE, str(workspace), str(release), reviewer],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for release, reviewer in zip(releases, reviewers, strict=True)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    answers = [""] * 2
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for i, process in enumerate(both):
        answers[i] = process.communicate(timeout=60)[0].strip()

    registry = open_registry(workspace)
    (winner,) = registry.history()
    (loser,) = (answer for answer in answers if not answer.isdecimal())
    assert [answer for answer in answers if answer.isdecimal()] == [str(winner.to_release)]
    assert winner.reviewer in loser
    assert f"{winner.at:%Y-%m-%d %H:%M:%S} UTC" in loser
    assert loser.startswith(
        "StaleDecisionError" if releases == (1, 2) else "RegistryError Release 1 is the champion al"
    )
    # No half state: history, alias and folders tell the same.
    assert registry.champion() == winner.to_release
    assert [r.number for r in registry.releases() if "champion" in r.aliases] == [winner.to_release]
    lines = (workspace / "releases" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["to"] for line in lines] == [winner.to_release]
