"""Readings of `gate` in a workspace: entered before it is read, finished after a kill, refused beyond the budget."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it ships no types

from datasets.durable import write_durably
from datasets.snapshot import open_snapshot
from offline_dqn.devices import threads
from pipelines import readings, stages
from pipelines.replaying import replay_decision
from pipelines.training import StageError, train
from pipelines.workspace import Workspace, open_workspace
from reports.crossfit import NothingToFitError
from reports.episode_columns import EPISODES
from reports.evaluation import evaluate_candidate
from reports.ledger import YEAR, ErrorSpentError
from reports.manifest import read_manifest
from reports.records import Evaluation
from tests.pipelines.conftest import Run, edit


class Killed(BaseException):
    """Stands for a process that is gone at this point: nothing catches it, nothing after it runs."""


def killed(*_: object, **__: object) -> None:
    raise Killed


@pytest.fixture(scope="module")
def with_candidate(first_night: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first night with a second candidate that has not met `gate`: the same settings with another seed."""
    root = tmp_path_factory.mktemp("readings") / "workspace"
    shutil.copytree(first_night, root)
    edit(root / "offline_dqn.toml", "[train]\nn_updates = 800", "[train]\nseed = 5\nn_updates = 40")
    assert train(open_workspace(root)).release == 2
    return root


@pytest.fixture
def waiting(with_candidate: Path, tmp_path: Path) -> Workspace:
    shutil.copytree(with_candidate, tmp_path / "waiting")
    return open_workspace(tmp_path / "waiting")


def n_spent(workspace: Workspace) -> int:
    return len(readings.ledger_of(workspace).readings())


def test_the_ledger_names_what_was_read(first_night: Path, run: Run) -> None:
    answer = run(first_night, "ledger", "--json")
    (reading,) = answer.json["readings"]

    assert (reading["releases"], reading["alpha"], reading["verdict"]) == ([1], 0.05, "passed")
    assert reading["nights"] == ["2026-01-05"]
    assert reading["n_episodes"] > 900
    assert len(reading["snapshot"]) == len(reading["evaluations"]["1"]) == 64
    assert answer.json["budget"]["spent"] == 0.05
    assert answer.json["budget"]["n_left"] == 3  # .20 a year at .05 a reading
    shown = run(first_night, "ledger").out
    assert "0.05 of 0.2, spent by 1 reading of gate" in shown
    assert "3 more now" in run(first_night, "releases").out
    report = (first_night / "releases" / "1" / "report.html").read_text()
    assert "spends 0.05; with it the 1 reading of the year before has spent 0.05 of 0.2" in report


def test_too_few_episodes_refuse_before_anything_is_read_or_spent(
    waiting: Workspace, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(waiting.root / "offline_dqn.toml", "alpha = 0.05", "alpha = 0.05\nmin_episodes = 5000")
    monkeypatch.setattr("pipelines.readings.evaluate_candidate", killed)

    answer = run(waiting, "evaluate", 2)

    assert answer.code == 1
    n_gate = readings.set_up(waiting, 2).terms.n_episodes
    assert f"Not enough data to judge release 2: {n_gate:,} gate episodes, at least 5,000 decide" in answer.err
    assert "nothing was read and nothing spent. Wait for more nights" in answer.err
    assert n_spent(waiting) == 1


def test_a_misspelt_setting_is_told_even_where_the_decision_is_known(waiting: Workspace, run: Run) -> None:
    edit(waiting.root / "offline_dqn.toml", "alpha = 0.05", "alhpa = 0.05")

    answer = run(waiting, "evaluate", 1)

    assert answer.code == 1
    assert "gate.alhpa" in answer.err
    assert "did you mean 'alpha'" in answer.err


@pytest.mark.parametrize("where", ["before the entry", "while it is read", "before the record", "before the verdict"])
def test_a_kill_gives_no_free_look_and_costs_none(
    waiting: Workspace, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    places = {
        "before the entry": ("pipelines.stages.check_writable", 1),
        "while it is read": ("pipelines.readings.evaluate_candidate", 2),
        "before the record": ("reports.registry.Registry.record_evaluation", 2),
        "before the verdict": ("reports.ledger.Ledger.decide", 2),
    }
    target, n_entered = places[where]
    with monkeypatch.context() as patch:
        patch.setattr(target, killed)
        with pytest.raises(Killed):
            stages.evaluate(waiting, 2)
    assert n_spent(waiting) == n_entered

    outcome = stages.evaluate(open_workspace(waiting.root), 2)
    repeated = stages.evaluate(open_workspace(waiting.root), 2)

    own = readings.ledger_of(waiting).readings()[-1]
    assert (n_spent(waiting), own.releases) == (2, (2,))
    assert own.verdict == ("passed" if outcome.passed else "refused")
    assert own.evaluations == {2: readings.digest_of((waiting.release_path(2) / "evaluation.json").read_bytes())}
    assert repeated.repeated
    assert repeated.evaluation == outcome.evaluation


def test_a_kill_while_the_table_of_episodes_is_written_leaves_a_reading_that_goes_on(
    waiting: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_half(path: Path, content: bytes) -> None:
        if path.name == EPISODES:
            path.write_bytes(content[: len(content) // 2])
            raise Killed
        write_durably(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("reports.registry.write_durably", write_half)
        with pytest.raises(Killed):
            stages.evaluate(waiting, 2)

    outcome = stages.evaluate(open_workspace(waiting.root), 2)

    assert not outcome.repeated  # what was half written stood for nothing
    assert n_spent(waiting) == 2
    assert pq.read_table(waiting.release_path(2) / EPISODES).num_rows == outcome.evaluation.counts.n_episodes
    assert replay_decision(waiting, 2).same


def test_a_gate_that_nothing_can_be_fitted_beside_spends_one_reading_however_often_it_is_tried(
    waiting: Workspace, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_cluster(*_: object, **__: object) -> None:
        raise NothingToFitError("The snapshot holds one cluster of gate episodes and nothing beside it.")

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.readings.evaluate_candidate", one_cluster)
        answers = [run(waiting, "evaluate", 2) for _ in range(2)]

    assert [answer.code for answer in answers] == [1, 1]
    assert "one cluster of gate episodes" in answers[0].err
    assert n_spent(waiting) == 2
    assert readings.ledger_of(waiting).readings()[-1].verdict is None
    stages.evaluate(open_workspace(waiting.root), 2)  # with something to fit on, the same reading goes on
    assert n_spent(waiting) == 2


def test_a_reading_that_was_killed_is_not_resumed_under_other_settings(
    waiting: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.readings.evaluate_candidate", killed)
        with pytest.raises(Killed):
            stages.evaluate(waiting, 2)
    edit(waiting.root / "offline_dqn.toml", "alpha = 0.05", "alpha = 0.05\nmin_episodes = 3")

    stages.evaluate(open_workspace(waiting.root), 2)

    found = readings.ledger_of(waiting).readings()
    assert [reading.verdict is None for reading in found] == [False, True, False]


def test_a_year_that_is_spent_refuses_before_gate_is_read(
    waiting: Workspace, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(waiting.root / "offline_dqn.toml", "alpha = 0.05", "alpha = 0.05\nyearly_error = 0.09")
    monkeypatch.setattr("pipelines.readings.evaluate_candidate", killed)

    (spent,) = readings.ledger_of(waiting).readings()
    possible = f"{spent.entered_at + YEAR:%Y-%m-%d}"  # by our clock, which is later than that of the simulated log

    answer = run(waiting, "evaluate", 2)

    assert answer.code == 1
    assert "Release 2 was not judged and `gate` was not read: 1 reading since 2026-01-0" in answer.err
    assert f"One becomes possible again on {possible}" in answer.err
    assert "with gate.alpha at most 0.04 one more would fit" in answer.err
    assert n_spent(waiting) == 1
    assert run(waiting, "evaluate", 1).code == 0  # a repeat spends nothing
    assert f"the next from {possible}" in run(waiting, "ledger").out
    with pytest.raises(ErrorSpentError):
        stages.evaluate(open_workspace(waiting.root), 2)


def test_a_report_that_cannot_be_written_is_told_before_gate_is_read(waiting: Workspace, run: Run) -> None:
    folder = waiting.release_path(2)
    (folder / "report.html").mkdir()

    in_the_way = run(waiting, "evaluate", 2)

    assert in_the_way.code == 1
    assert "The report cannot be written" in in_the_way.err
    assert "no error was spent" in in_the_way.err
    (folder / "report.html").rmdir()
    folder.chmod(0o555)
    try:
        if not os.access(folder, os.W_OK):  # it is writable to root whatever its mode
            assert f"Make {folder} writable" in run(waiting, "evaluate", 2).err
    finally:
        folder.chmod(0o755)
    assert n_spent(waiting) == 1


@pytest.mark.parametrize(("gone", "what"), [(1, "the champion"), (0, "version 0, the rules of [baseline]")])
def test_a_baseline_that_is_gone_is_told_and_spends_nothing(waiting: Workspace, gone: int, what: str) -> None:
    shutil.rmtree(waiting.release_path(gone))

    with pytest.raises(StageError) as refused:
        stages.evaluate(waiting, 2)

    assert f"Nothing can be compared with {what}: There is no release {gone}" in str(refused.value)
    assert "Restore " in str(refused.value)
    assert n_spent(waiting) == 1


def test_no_episode_in_gate_spends_nothing(waiting: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    real = open_snapshot

    def without_gate(path: Path) -> object:
        replay, summary = real(path)
        return replay.of_split(0, 1), summary

    monkeypatch.setattr("pipelines.readings.open_snapshot", without_gate)

    with pytest.raises(StageError, match=r"Release 2 cannot be evaluated on the snapshot of .*the gate split is empty"):
        stages.evaluate(waiting, 2)
    assert n_spent(waiting) == 1


def test_a_lost_ledger_stops_the_next_reading(waiting: Workspace, run: Run) -> None:
    (waiting.releases_path / "ledger.jsonl").unlink()

    answer = run(waiting, "evaluate", 2)

    assert answer.code == 1
    assert "ledger.jsonl does not know how release 1 met `gate`" in answer.err
    assert json.loads(run(waiting, "evaluate", 1, "--json").out)["repeated"]


def test_a_replayed_decision_has_the_same_bits_and_spends_nothing(workspace: Workspace, run: Run) -> None:
    before = (workspace.releases_path / "ledger.jsonl").read_bytes()

    answer = run(workspace, "evaluate", 1, "--replay", "--json")

    assert answer.code == 0
    assert (answer.json["same"], answer.json["differences"], answer.json["altered"]) == (True, [], "")
    assert (answer.json["first_byte"], answer.json["changed"]) == (None, [])
    # It was judged before it became champion; the replay uses the baseline of then and says that today's is another.
    assert answer.json["changed_since"] == [{"path": "champion", "before": None, "after": 1}]
    assert (workspace.releases_path / "ledger.jsonl").read_bytes() == before


@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_replay_has_the_same_bits_whatever_the_number_of_threads(workspace: Workspace, n_threads: int) -> None:
    with threads(n_threads), threadpool_limits(limits=n_threads):
        replayed = replay_decision(workspace, 1)

    assert replayed.same, replayed.differences


def add_twin(workspace: Workspace) -> int:
    """Release 1 registered once more, as a training repeated on the same snapshot would."""
    (workspace.releases_path / "history.jsonl").unlink()  # nobody is champion, as when release 1 was judged
    manifest = read_manifest(workspace.release_path(1))
    assert manifest is not None
    staged = workspace.registry.new_staging()
    for name in manifest.files:
        shutil.copy(workspace.release_path(1) / name, staged / name)
    return workspace.registry.register(staged, tags={})


def test_a_copy_of_a_policy_takes_the_verdict_and_leaves_the_other_its_own(
    workspace: Workspace, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = add_twin(workspace)
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.readings.evaluate_candidate", killed)  # nothing is judged a second time
        outcome = stages.evaluate(workspace, twin)

    (reading,) = readings.ledger_of(workspace).readings()
    assert (reading.releases, reading.verdict, outcome.passed) == ((1, twin), "passed", True)
    assert set(reading.evaluations) == {1, twin}
    decision = outcome.evaluation.decision
    assert decision is not None
    assert f"release {twin} earns at least" in decision.reason
    table = pq.read_table(workspace.release_path(twin) / "evaluation_episodes.parquet")
    assert set(table["release"].to_pylist()) == {twin}
    for release in (1, twin):
        answer = run(workspace, "evaluate", release, "--replay", "--json")
        assert (answer.code, answer.json["same"], answer.json["altered"]) == (0, True, ""), f"release {release}"


def test_a_copy_whose_first_verdict_is_lost_cannot_get_another(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = add_twin(workspace)
    shutil.rmtree(workspace.release_path(1))

    def refusing(*given: object, **named: object) -> Evaluation:
        found = evaluate_candidate(*given, **named)  # type: ignore[arg-type]  # as it was called
        assert found.decision is not None
        return replace(found, decision=replace(found.decision, passed=False))

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.readings.evaluate_candidate", refusing)
        with pytest.raises(StageError, match=r"of release 1, 2, ended with 'passed', and judged again release 2 would"):
            stages.evaluate(workspace, twin)
    assert not (workspace.release_path(twin) / "evaluation.json").exists()
    assert stages.evaluate(open_workspace(workspace.root), twin).passed  # judged to the same end, it stands
    assert n_spent(workspace) == 1


def test_a_changed_byte_of_an_evaluation_is_named(workspace: Workspace, run: Run) -> None:
    path = workspace.release_path(1) / "evaluation.json"
    text = path.read_text()
    found = re.search(r'"value": -?\d+\.\d\d', text)
    assert found is not None
    place = found.end() - 1
    path.write_text(f"{text[:place]}{(int(text[place]) + 1) % 10}{text[place + 1 :]}")

    shown = run(workspace, "evaluate", 1, "--replay")
    answer = run(workspace, "evaluate", 1, "--replay", "--json")

    assert (shown.code, answer.code) == (3, 3)
    assert answer.json["first_byte"] == place
    assert [difference["path"] for difference in answer.json["differences"]] == ["estimates[0].value"]
    assert f"byte {place:,}" in shown.out
    assert "evaluation.json is not what was recorded" in shown.out


def test_inputs_that_changed_are_named(workspace: Workspace, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(workspace.root / "offline_dqn.toml", "alpha = 0.05", "alpha = 0.04\nmargin = 0.5")
    monkeypatch.setattr(readings, "made_by", lambda: {"source": "other"})

    answer = run(workspace, "evaluate", 1, "--replay", "--json")

    assert (answer.code, answer.json["same"]) == (0, True)  # settings are those of then, and the other code agrees
    found = {d["path"]: (d["before"], d["after"]) for d in answer.json["changed_since"]}
    assert found == {"champion": (None, 1), "gate.margin": (0.0, 0.5), "gate.alpha": (0.05, 0.04)}
    assert "made by.source" in [d["path"] for d in answer.json["changed"]]


def test_a_reading_of_another_version_is_a_message(workspace: Workspace, run: Run) -> None:
    path = workspace.releases_path / "ledger.jsonl"
    path.write_text(path.read_text().replace('"seed":', '"sown":'))

    answer = run(workspace, "evaluate", 1, "--replay")

    assert answer.code == 1
    assert "was entered by another version of offline-dqn, which did not record 'seed'" in answer.err


def test_what_cannot_be_replayed_says_why(waiting: Workspace, run: Run) -> None:
    never = run(waiting, "evaluate", 2, "--replay")
    assert (never.code, "Release 2 has no recorded decision" in never.err) == (1, True)

    array = next(waiting.snapshots_path.glob("*/rewards.npy"))
    content = bytearray(array.read_bytes())
    content[-1] ^= 1
    array.write_bytes(content)
    changed = run(waiting, "evaluate", 1, "--replay")

    assert (changed.code, "rewards.npy" in changed.err) == (1, True)
