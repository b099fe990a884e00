"""Reviewing from a shell: the newest nights, a stale comparison, a rejection, a changed byte."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from datasets.replay import GATE
from datasets.snapshot import open_snapshot
from drift.windows import window_from_replay
from pipelines import live_nights, readings, stages
from pipelines.acting import load_release
from pipelines.training import train
from pipelines.workspace import Workspace, open_workspace
from reports.gate import GateConfig, decide
from reports.records import Freshness, evaluation_from_json
from tests.pipelines.conftest import Run, edit


@pytest.fixture
def demoted(workspace: Workspace) -> Workspace:
    """Release 1 passed and can be promoted again: the rules act."""
    workspace.registry.rollback(reviewer="Ada")
    return workspace


def freshness_of(workspace: Workspace) -> Freshness:
    return live_nights.freshness_of_release(workspace, readings.snapshot_of(workspace, 1))


def test_without_newer_nights_freshness_passes_and_says_so(first_night: Path) -> None:
    workspace = open_workspace(first_night)
    text = (workspace.release_path(1) / "evaluation.json").read_text()
    (check,) = (c for c in json.loads(text)["decision"]["checks"] if c["name"] == "freshness")

    assert check["passed"]
    assert check["meaning"].startswith("There is nothing newer to compare: no night is over that began after the snap")
    assert freshness_of(workspace).status == "no newer nights"


def test_a_verdict_under_other_constraints_is_stale(demoted: Workspace, run: Run) -> None:
    contract = demoted.root / "contract.toml"
    before = contract.read_text()
    contract.write_text(before + '[constraints.later]\nbreached = "next_observation.cpu > 0.9"\nlimit = 0.5\n')

    refused = run(demoted, "promote", 1, "--reviewer", "Ada", "--override", "--note", "it is urgent")

    assert refused.code == 3
    assert "what the contract says of constraints has changed since the gate judged it" in " ".join(refused.err.split())
    assert demoted.registry.champion() == 0
    contract.write_text(before)
    assert run(demoted, "promote", 1, "--reviewer", "Ada").code == 0


def test_a_reading_that_was_cut_off_stands_for_nothing(demoted: Workspace, run: Run) -> None:
    contract = demoted.root / "contract.toml"
    before = contract.read_text()
    contract.write_text(before + '[constraints.later]\nbreached = "next_observation.cpu > 0.9"\nlimit = 0.5\n')
    changed = open_workspace(demoted.root)
    bench = readings.set_up(changed, 1)
    ledger = readings.ledger_of(changed)
    opened = ledger.begin(bench.terms, bench.gate, readings.spent_at(changed))  # `evaluate 1 --again`, killed here

    assert stages.evaluate(changed, 1).repeated  # ... and a plain `evaluate 1` afterwards
    refused = run(demoted, "promote", 1, "--reviewer", "Ada")

    assert refused.code == 3
    assert "what the contract says of constraints has changed since the gate judged it" in " ".join(refused.err.split())
    assert [(r.number, r.verdict) for r in ledger.readings()] == [(1, "passed"), (opened.number, None)]
    assert run(demoted, "evaluate", 1, "--replay", "--json").json["same"]
    contract.write_text(before)
    assert run(demoted, "promote", 1, "--reviewer", "Ada").code == 0


def test_without_its_reading_a_release_is_not_promoted(demoted: Workspace, run: Run) -> None:
    path = demoted.releases_path / "ledger.jsonl"
    whole = path.read_text()
    assert whole.count("\n") == 2  # begun, decided

    def refusal(ledger: str | None) -> str:
        path.unlink() if ledger is None else path.write_text(ledger)
        answer = run(demoted, "promote", 1, "--reviewer", "Ada")
        assert (answer.code, demoted.registry.champion()) == (3, 0)
        return " ".join(answer.err.split())

    assert "the error ledger has no reading that ended with its recorded evaluation" in refusal(None)
    assert "`offline-dqn evaluate 1` finishes a reading that was cut off" in refusal(whole.splitlines()[0] + "\n")
    assert "which did not record the contract's rules" in refusal(whole.replace('"rules":', '"laws":'))
    path.write_text(whole.splitlines()[0] + "\n")
    assert run(demoted, "evaluate", 1).code == 0  # finishes it
    assert run(demoted, "promote", 1, "--reviewer", "Ada").code == 0


def test_a_night_like_the_others_is_fresh_and_a_changed_one_is_not(demoted: Workspace, run: Run) -> None:
    stages.simulate(demoted, n_episodes=20)
    stages.ingest(demoted)
    few = freshness_of(open_workspace(demoted.root))
    assert (few.status, few.n_episodes) == ("not enough data", 20)
    assert "Not enough new data to tell: 20 episodes of 2026-01-06" in few.sentence

    stages.simulate(demoted, n_episodes=600)
    stages.ingest(demoted)
    same = freshness_of(open_workspace(demoted.root))
    assert (same.status, same.nights, same.optimistic) == ("like the gate", ("2026-01-07",), True)
    assert same.psi is not None
    assert same.threshold is not None
    assert same.psi < same.threshold

    stages.simulate(demoted, n_episodes=600, traffic=1.6)
    stages.ingest(demoted)
    changed = freshness_of(open_workspace(demoted.root))
    assert (changed.status, changed.nights) == ("differs", ("2026-01-08",))
    assert "observation.request_rate" in changed.sentence
    assert changed.psi is not None
    assert changed.threshold is not None
    assert changed.psi > changed.threshold

    refused = run(demoted, "promote", 1, "--reviewer", "Ada", "--json")
    assert (refused.code, refused.out) == (3, "")
    assert "Release 1 cannot be promoted: The newest nights differ from the gate episodes: 600 episodes" in refused.err
    assert "`offline-dqn nightly` trains and judges a successor" in refused.err
    assert demoted.registry.champion() == 0
    unsaid = run(demoted, "promote", 1, "--reviewer", "Ada", "--override")
    assert (unsaid.code, "--override takes a --note" in unsaid.err) == (3, True)
    done = run(demoted, "promote", 1, "--reviewer", "Ada", "--override", "--note", "sale on", "--json").json
    assert done["note"].startswith("sale on (although: The newest nights differ from the gate episodes")


def test_while_outcomes_are_held_a_promotion_says_why_all_the_same(
    demoted: Workspace, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = SimpleNamespace(batch_id="b-7", status="held", kind="outcomes")
    monkeypatch.setattr("pipelines.stages.list_batches", lambda _: [held])
    monkeypatch.setattr("pipelines.live_nights.list_batches", lambda _: [held])

    refused = run(demoted, "promote", 1, "--reviewer", "Ada")
    assert (refused.code, demoted.registry.champion()) == (3, 0)
    assert "batch b-7 of outcomes is held, so rewards of the newest nights are missing" in " ".join(refused.err.split())

    done = run(demoted, "promote", 1, "--reviewer", "Ada", "--override", "--note", "known", "--json").json
    assert done["note"] == (
        "known (although: Not enough new data to tell: batch b-7 of outcomes is held, so rewards are missing.)"
    )


def test_weights_of_long_episodes_stay_numbers(first_night: Path) -> None:
    workspace = open_workspace(first_night)
    replay, _ = open_snapshot(readings.snapshot_of(workspace, 1))
    gate = replay.of_split(GATE)
    policy = load_release(workspace, 1, gate.contract)
    plain = live_nights.weights_to(policy, gate)
    tiny = replace(gate, behavior_prob=gate.behavior_prob * 1e-60)  # products of ratios up to 1e360 and beyond

    weights = live_nights.weights_to(policy, tiny)

    assert plain.max() == weights.max() == 1.0
    assert np.isfinite(weights).all()
    assert weights[tiny.offsets[:-1]].max() < 1e-200  # the last steps of long episodes have all the weight
    assert window_from_replay(tiny, weights).effective_episodes < gate.n_episodes
    unknown = replace(gate, behavior_prob=np.full(gate.n_steps, np.nan))
    assert live_nights.weights_to(policy, unknown) is None


def test_the_gate_refuses_what_the_world_has_moved_away_from(first_night: Path) -> None:
    recorded = json.loads((first_night / "releases" / "1" / "evaluation.json").read_text())
    recorded["freshness"] |= {"status": "differs", "sentence": "It differs.", "psi": 0.4, "threshold": 0.05}
    evaluation = evaluation_from_json(recorded)

    decision = decide(evaluation, GateConfig(**evaluation.config["gate"]))  # type: ignore[arg-type]  # as it was dumped

    assert [(c.name, c.value, c.bound, c.meaning) for c in decision.failed_checks] == [
        ("freshness", 0.4, 0.05, "It differs.")
    ]
    assert decision.certified_share == 0


def test_the_choices_of_a_new_policy_are_no_change_of_the_world(workspace: Workspace) -> None:
    # Release 1 acts in the newest night, the rules wrote its gate episodes; the traffic is the same.
    stages.simulate(workspace, n_episodes=1500)
    stages.ingest(workspace)

    fresh = freshness_of(open_workspace(workspace.root))

    assert fresh.status == "like the gate", fresh.sentence


def test_a_rejected_release_is_promoted_only_with_a_reason(demoted: Workspace, run: Run) -> None:
    said = run(demoted, "reject", 1, "--reviewer", "Ada", "--note", "scales down at noon", "--json")
    assert (said.code, said.json["action"], said.json["release"]) == (0, "reject", 1)
    assert "rejected by Ada" in run(demoted, "releases").out

    refused = run(demoted, "promote", 1, "--reviewer", "Grace")
    assert (refused.code, "was rejected by Ada" in refused.err) == (3, True)
    done = run(demoted, "promote", 1, "--reviewer", "Grace", "--override", "--note", "looked again", "--json")
    assert (done.code, done.json["note"]) == (0, "looked again")
    assert run(demoted, "reject", 1, "--reviewer", "Ada", "--note", " ").code == 1


def test_a_stale_decision_is_made_again_for_another_reading(demoted: Workspace, run: Run) -> None:
    edit(demoted.root / "offline_dqn.toml", "[train]\nn_updates = 800", "[train]\nseed = 5\nn_updates = 40")
    assert train(open_workspace(demoted.root)).release == 2
    stages.evaluate(open_workspace(demoted.root), 2)  # against the rules
    assert run(demoted, "evaluate", 2, "--again").code == 1  # nothing has changed
    demoted.registry.promote(1, reviewer="Ada")

    repeated = run(demoted, "evaluate", 2, "--json")
    assert "it was compared with release 0, and release 1 is the champion since" in repeated.json["stale"]
    assert "the decision no longer stands" in run(demoted, "evaluate", 2).err

    again = run(demoted, "evaluate", 2, "--again", "--json").json
    assert again["evaluation"]["baseline_name"] == "release 1, the champion"
    assert (again["repeated"], again["stale"]) == (False, "")
    found = readings.ledger_of(demoted).readings()
    assert [(r.releases, r.terms.inputs["champion"]) for r in found] == [((1,), None), ((2,), 0), ((2,), 1)]
    assert run(demoted, "evaluate", 2, "--replay", "--json").json["same"]


@pytest.mark.parametrize("name", ["policy.safetensors", "evaluation.json", "report.html"])
def test_a_changed_byte_neither_acts_nor_comes_back(workspace: Workspace, run: Run, name: str) -> None:
    observations = workspace.root / "observations.jsonl"
    observations.write_text("")
    assert run(workspace, "act", 1, observations).code == 0
    workspace.registry.promote(0, reviewer="Ada")
    path = workspace.release_path(1) / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    answers = [
        run(workspace, "act", 1, observations),
        run(workspace, "promote", 1, "--reviewer", "Ada"),
        run(workspace, "rollback", "--to", 1),
    ]

    assert [answer.code for answer in answers] == [1, 1, 1]
    assert all(f"Release 1 is not what was registered: {name} is altered" in answer.err for answer in answers)
    assert workspace.registry.champion() == 0


def test_a_champion_whose_folder_is_gone_can_still_be_left(workspace: Workspace, run: Run) -> None:
    shutil.rmtree(workspace.release_path(1))

    assert run(workspace, "rollback", "--reviewer", "Ada").code == 0
    assert workspace.registry.champion() == 0
