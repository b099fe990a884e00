"""Excluding a source in a workspace: what was made from it is named, and cannot be promoted or built on."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from datasets.lake import lake_lock
from datasets.redaction import redact_snapshot
from datasets.rewriting import Rewrite, rewrite_rows
from datasets.snapshot import EPISODES, open_snapshot
from pipelines import stages
from pipelines.canary import CanaryWatch, evaluate_canary
from pipelines.canary_state import read_canary
from pipelines.excluding import Aged, aged_releases, taint_of, tainted_releases
from pipelines.night_progress import begin_or_resume, write_progress
from pipelines.night_record import Ingested, record_of
from pipelines.parent import find_parent
from pipelines.training import newest_snapshot
from pipelines.workspace import Workspace, open_workspace
from tests.pipelines.conftest import Run, edit


@pytest.fixture
def poisoned(workspace: Workspace, run: Run) -> Workspace:
    """The log is excluded where it comes from zone b; release 1, the champion, has learned from all of it."""
    zones = [zone for (zone,) in workspace.query("SELECT DISTINCT observation.zone FROM steps ORDER BY 1").rows]
    assert len(zones) > 1
    condition = f"observation.zone = '{zones[0]}'"
    answer = run(workspace, "exclude", "--where", condition, "--note", "its collector lied", "--reviewer", "Ada")
    assert answer.code == 0, answer.err
    assert "release 1, the champion: " in answer.err
    return workspace


def test_the_next_snapshot_lacks_those_episodes_and_the_lake_keeps_them(poisoned: Workspace) -> None:
    _, before = open_snapshot(newest_snapshot(poisoned))
    ((n_lake, n_out),) = poisoned.query("SELECT count(*), count(excluded) FROM episodes").rows
    _, after = stages.snapshot(poisoned)

    assert n_out > 0
    assert after.n_excluded == n_out
    assert after.n_episodes + after.n_excluded + after.n_damaged + after.n_open == n_lake
    assert before.n_excluded == 0
    (rule,) = poisoned.query("SELECT exclusion_id, action, reviewer FROM exclusions").rows
    assert rule == ("x1", "exclude", "Ada")


def test_releases_that_rest_on_it_are_named_and_lifting_clears_them(poisoned: Workspace, run: Run) -> None:
    (tainted,) = tainted_releases(poisoned)
    listed = run(poisoned, "exclude", "list", "--json").json["exclusions"]

    assert (tainted.release, tainted.is_champion, tainted.rules) == (1, True, ("x1",))
    assert sum(tainted.episodes.values()) > 0
    assert set(tainted.episodes) <= {"train", "select", "gate"}
    assert [rule["releases"] for rule in listed] == [[1]]
    assert taint_of(poisoned, 0) is None
    assert run(poisoned, "exclude", "lift", "x1", "--note", "it was the clock").code == 0
    assert tainted_releases(poisoned) == []
    assert "Nothing is excluded" in run(poisoned, "exclude", "list").out


def test_what_rests_on_it_is_not_promoted_unless_somebody_says_why(poisoned: Workspace, run: Run) -> None:
    poisoned.registry.rollback(reviewer="Ada")
    refused = run(poisoned, "promote", 1, "--reviewer", "Ada")
    overridden = run(poisoned, "promote", 1, "--reviewer", "Ada", "--override", "--note", "harmless")

    assert refused.code == 3
    assert "that judged it are excluded since, by x1" in " ".join(refused.err.split())
    assert overridden.code == 0
    assert "(although " in poisoned.registry.history()[-1].note


def test_going_back_to_it_is_a_warning_and_no_refusal(poisoned: Workspace, run: Run) -> None:
    poisoned.registry.promote(0, reviewer="Ada")
    answer = run(poisoned, "rollback", "--to", 1)

    assert answer.code == 0
    assert "are excluded since, by x1" in " ".join(answer.err.split())


def test_an_erasure_hides_no_release_from_an_exclusion(poisoned: Workspace, run: Run) -> None:
    (before,) = tainted_releases(poisoned)
    snapshot = poisoned.snapshots_path / before.snapshot
    meant = {e for (e,) in poisoned.query("SELECT episode_id FROM episodes WHERE excluded IS NOT NULL").rows}
    held = pq.read_table(snapshot / EPISODES, columns=["episode_id"])["episode_id"].to_pylist()
    redact_snapshot(snapshot, {next(e for e in held if e in meant)})
    (after,) = tainted_releases(poisoned)
    poisoned.registry.rollback(reviewer="Ada")

    assert sum(after.episodes.values()) == sum(before.episodes.values()) - 1
    assert (after.release, after.snapshot, after.rules) == (1, before.snapshot, ("x1",))
    assert run(poisoned, "promote", 1, "--reviewer", "Ada").code == 3


@pytest.mark.parametrize("erased", [False, True])
def test_where_the_snapshot_is_gone_nobody_can_tell_and_a_person_decides(
    poisoned: Workspace, run: Run, erased: bool
) -> None:
    (before,) = tainted_releases(poisoned)
    snapshot = poisoned.snapshots_path / before.snapshot
    if erased:
        held = pq.read_table(snapshot / EPISODES, columns=["episode_id"])["episode_id"].to_pylist()
        assert redact_snapshot(snapshot, set(held)) is None
    else:
        shutil.rmtree(snapshot)
    poisoned.registry.rollback(reviewer="Ada")
    listed = run(poisoned, "exclude", "list", "--json")
    refused = run(poisoned, "promote", 1, "--reviewer", "Ada")
    overridden = run(poisoned, "promote", 1, "--reviewer", "Ada", "--override", "--note", "harmless")

    why = f"left nothing of its snapshot {snapshot.name}" if erased else f"its snapshot {snapshot.name} is gone"
    assert refused.code == 3
    assert "by x1, cannot be told" in " ".join(refused.err.split())
    assert why in " ".join(refused.err.split())
    assert [rule["releases"] for rule in listed.json["exclusions"]] == [[]]
    assert "cannot be told" in " ".join(listed.err.split())
    assert overridden.code == 0, overridden.err
    assert "cannot be told" in poisoned.registry.history()[-1].note


def test_a_rollback_that_happened_ends_well_whatever_cannot_be_read_after_it(
    poisoned: Workspace, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_self: Workspace) -> None:
        raise OSError("the store does not answer")

    poisoned.registry.promote(0, reviewer="Ada")
    with monkeypatch.context() as patched:
        patched.setattr(Workspace, "open_lake", away)
        answer = run(poisoned, "rollback", "--to", 1, "--json")

    assert (answer.code, answer.json["to"]) == (0, 1)
    assert "whether it rests on exclusions cannot be told: the store" in " ".join(answer.err.split())
    assert poisoned.registry.champion() == 1


NOW = datetime(2026, 2, 1, tzinfo=UTC)


def test_a_canary_that_runs_is_named_and_its_next_look_ends_it(workspace: Workspace, run: Run) -> None:
    workspace.registry.rollback(0, reviewer="Ada")
    at = ("--as-of", "2026-02-01")
    assert run(workspace, "canary", "start", 1, "--share", 0.05, "--reviewer", "Ada", *at).code == 0
    watch = CanaryWatch(workspace)
    before = watch.evaluate(NOW)
    exclusion = ("exclude", "--where", "reward < -1", "--note", "its collector lied")
    would = run(workspace, *exclusion, "--dry-run")
    done = run(workspace, *exclusion)
    after = watch.evaluate(NOW)

    assert before is not None
    assert before.canary.running
    assert "the server's next look would end it" in " ".join(would.err.split())
    assert "canary 1 tries release 1 on a share of 0.05" in " ".join(done.err.split())
    assert after is not None
    assert after.canary.ending == "overtaken"
    assert "that judged it are excluded since, by x1" in after.canary.reason
    assert read_canary(workspace) is None


def test_a_canary_started_in_spite_of_an_exclusion_ends_by_another_one_only(poisoned: Workspace, run: Run) -> None:
    poisoned.registry.rollback(0, reviewer="Ada")
    why = ("--override", "harmless", "--reviewer", "Ada", "--as-of", "2026-02-01")
    assert run(poisoned, "canary", "start", 1, "--share", 0.05, *why).code == 0
    first = evaluate_canary(poisoned, NOW)
    assert run(poisoned, "exclude", "--where", "reward < -1", "--note", "so did another", "--json").json["canary"] == 1
    second = evaluate_canary(poisoned, NOW)

    assert first is not None
    assert first.canary.running
    assert first.canary.despite_excluded == ("x1",)
    assert second is not None
    assert second.canary.ending == "overtaken"


def test_training_does_not_begin_with_a_network_that_it_taught(poisoned: Workspace) -> None:
    edit(poisoned.root / "offline_dqn.toml", "n_updates = 800", "n_updates = 40\nwarm_start = true")
    path, _ = stages.snapshot(poisoned)
    parent = find_parent(open_workspace(poisoned.root), *open_snapshot(path))

    assert parent is not None
    assert parent.refused.endswith("are excluded since, by x1")


def test_every_night_says_that_its_champion_rests_on_it(poisoned: Workspace) -> None:
    record = record_of(poisoned, Ingested(None, "nothing new", 0, 0), None, None, seconds={})
    assert any("release 1, the champion: " in warning for warning in record.warnings)


def test_a_night_that_died_before_an_exclusion_begins_anew(workspace: Workspace, run: Run) -> None:
    write_progress(workspace, begin_or_resume(workspace, force_train=True))
    assert run(workspace, "exclude", "--where", "reward < -1", "--note", "n").code == 0

    assert "exclusions differ" in begin_or_resume(workspace, force_train=True).why_afresh


def test_a_second_time_changes_nothing_and_a_wrong_name_is_explained(workspace: Workspace, run: Run) -> None:
    command = ("exclude", "--source", "logs/steps/*", "--note", "all of it")
    first, second = run(workspace, *command, "--json").json, run(workspace, *command, "--json").json
    unknown = run(workspace, "exclude", "--source", "logs/stepz/*", "--note", "n")

    assert (first["new"], second["new"]) == (True, False)
    assert first["rows"]["steps"] == first["n_rows"] > 0
    assert unknown.code == 1
    assert "No row of the lake is meant by source logs/stepz/*" in " ".join(unknown.err.split())


def test_options_before_a_subcommand_are_no_silent_mistake(workspace: Workspace, run: Run) -> None:
    answer = run(None, "exclude", "--workspace", str(workspace.root), "list")
    assert answer.code == 2
    assert "options go behind the command" in " ".join(answer.err.split())


def test_what_has_aged_out_of_the_lake_no_rule_means_and_that_is_said(workspace: Workspace, run: Run) -> None:
    table = newest_snapshot(workspace) / EPISODES
    held = set(pq.read_table(table, columns=["episode_id"])["episode_id"].to_pylist())
    gone = min(held)
    lake = workspace.open_lake()
    with lake_lock(lake):  # as retention does it
        rewrite_rows(lake, {"steps": Rewrite(f"episode_id = '{gone}'")}, reason="older than 1 days", at=NOW)
    rule = ("exclude", "--where", f"episode_id IN ('{gone}', '{max(held)}')", "--note", "its collector lied")
    told = run(workspace, *rule, "--dry-run", "--json").json
    answer = run(workspace, *rule)

    assert told["aged"] == [{"release": 1, "n_aged": 1, "n_episodes": len(held)}]
    assert [sum(release["episodes"].values()) for release in told["releases"]] == [1]
    said = " ".join(answer.err.split())
    assert f"release 1: 1 of the {len(held):,} episodes of its snapshot have left the lake since, so whether" in said

    # More releases: of the same snapshot, of one that holds nothing which has left, and of one that is gone.
    other = table.parent.with_name("another")
    shutil.copytree(table.parent, other)
    rows = pq.read_table(table)
    pq.write_table(rows.filter(pc.field("episode_id") != gone), other / EPISODES)
    for release, snapshot in (2, table.parent.name), (3, "another"), (4, "gone"):
        path = shutil.copytree(workspace.release_path(1), workspace.release_path(release)) / "training.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "snapshot": snapshot}))
    assert aged_releases(workspace) == [Aged(1, 1, len(held)), Aged(2, 1, len(held))]
    pq.write_table(rows.filter(pc.field("episode_id") == gone), other / EPISODES)
    assert aged_releases(workspace)[2:] == [Aged(3, 1, 1)]


def test_a_dry_run_says_what_would_be_and_leaves_the_lake_alone(workspace: Workspace, run: Run) -> None:
    before = workspace.open_lake().commit_number()
    answer = run(workspace, "exclude", "--where", "reward < -1", "--note", "n", "--dry-run")

    assert answer.code == 0
    assert "Would be excluded" in answer.out
    assert open_workspace(Path(workspace.root)).open_lake().commit_number() == before
