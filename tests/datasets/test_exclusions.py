"""Exclusions: rules that keep rows from training and evaluation, while the rows stay and are counted."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from datasets.compaction import LakeConfig, compact
from datasets.contract import Contract
from datasets.episodes import episodes_sql
from datasets.exclusions import (
    Exclusion,
    ExclusionError,
    Meant,
    count_meant,
    exclude,
    exclusion_history,
    lift,
    read_exclusions,
)
from datasets.freezing import freeze_snapshot, read_episodes
from datasets.journal import StagedFile
from datasets.lake import Lake
from datasets.parts import stage_records
from datasets.snapshot import SnapshotSummary, open_snapshot
from datasets.snapshot_config import SnapshotConfig
from tests.datasets.builders import NOON, ask, episode, lake_at, step_keys, step_row, take_in, tiny, write_rows

pytestmark = pytest.mark.usefixtures("quick_suite")

AT = datetime(2024, 6, 1, tzinfo=UTC)
CONFIG = SnapshotConfig(salt="s", train_share=0.5, select_share=0.2)
AWAITED: dict[str, Any] = {"outcomes": {"attribution_window": "20m", "default": 0.0}}


def taken_out(lake: Lake, note: str = "poisoned", **meant: str) -> Exclusion:
    rule, is_new = exclude(lake, Meant(**meant), by="Ada", note=note, at=AT)
    assert is_new
    return rule


def excluded_of(lake: Lake) -> dict[str, str | None]:
    tables = [lake.scan(table) for table in ("steps", "outcomes", "quarantine")]
    query = episodes_sql(*tables, lake.contract, NOON, read_exclusions(lake))
    return dict(ask(lake, f"SELECT episode_id, excluded FROM ({query.replace('{', '{{').replace('}', '}}')})"))


def frozen(lake: Lake) -> tuple[set[str], SnapshotSummary]:
    path, _ = freeze_snapshot(lake, CONFIG, lake.root.parent / "snapshots", as_of=NOON)
    replay, summary = open_snapshot(path)
    return set(replay.episode_ids), summary


def two_sources(folder: Path, contract: Contract | None = None) -> Lake:
    """Four episodes of collector a, two of collector b, and one, "both", of which each has a part."""
    lake = lake_at(folder, contract)
    good = [row for i in range(4) for row in episode(f"a{i}")]
    bad = [row for i in range(2) for row in episode(f"b{i}")]
    take_in(lake, write_rows(folder / "logs" / "a-1.jsonl", [*good, step_row("both", 0), step_row("both", 1)]))
    take_in(lake, write_rows(folder / "logs" / "b-1.jsonl", [*bad, step_row("both", 2)]))
    return lake


def test_episodes_of_a_source_are_left_out_whole_and_their_rows_stay(tmp_path: Path) -> None:
    lake = two_sources(tmp_path)
    before = step_keys(lake)
    rule = taken_out(lake, source="logs/b-*")

    episodes, summary = frozen(lake)

    assert episodes == {"a0", "a1", "a2", "a3"}
    assert excluded_of(lake) == {**dict.fromkeys(episodes), "b0": "x1", "b1": "x1", "both": "x1"}
    assert (summary.n_excluded, summary.n_damaged, summary.damaged_share) == (3, 0, 0.0)
    assert summary.excluded == {"x1: source logs/b-* (by Ada, poisoned)": 3}
    assert (rule.name, rule.n_rows) == ("x1", 7)
    assert step_keys(lake) == before
    live = read_episodes(lake, CONFIG, as_of=NOON)
    assert live is not None
    assert set(live.episode_ids) == episodes


def test_rows_that_come_later_from_that_source_are_excluded_too(tmp_path: Path) -> None:
    lake = two_sources(tmp_path)
    taken_out(lake, source="logs/b-*")
    take_in(lake, write_rows(tmp_path / "logs" / "b-2.jsonl", episode("late")))

    assert excluded_of(lake)["late"] == "x1"


def test_without_a_rule_the_digest_is_as_ever_and_lifting_brings_it_back(tmp_path: Path) -> None:
    lake = two_sources(tmp_path)
    _, before = frozen(lake)
    taken_out(lake, source="logs/b-1.jsonl")
    _, without = frozen(lake)
    lifted = lift(lake, "x1", by="Grace", note="it was the clock", at=AT)
    episodes, after = frozen(lake)

    assert without.digest != before.digest == after.digest
    assert lifted.name == "x1"
    assert "b0" in episodes
    assert read_exclusions(lake) == []
    assert [(row["action"], row["reviewer"]) for row in exclusion_history(lake)] == [
        ("exclude", "Ada"),
        ("lift", "Grace"),
    ]
    assert taken_out(lake, source="logs/b-1.jsonl").name == "x2"  # a name is never given twice


def test_a_condition_speaks_of_the_columns_of_steps(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)
    rows = [*episode("low"), *episode("high", observation={"cpu": 0.9}), step_row("one", 0, action="up")]
    take_in(lake, write_rows(tmp_path / "a.jsonl", rows))
    taken_out(lake, where="observation.cpu > 0.8")
    taken_out(lake, where="action = 'up' AND timestamp < TIMESTAMPTZ '2024-05-01 10:01:00+00'")

    assert excluded_of(lake) == {"low": None, "high": "x1", "one": "x2"}


def test_everything_given_must_hold_and_several_rules_may_mean_one_episode(tmp_path: Path) -> None:
    lake = two_sources(tmp_path)
    batch = ask(lake, "SELECT batch_id FROM {batches} ORDER BY commit_number DESC LIMIT 1")[0][0]
    taken_out(lake, source="logs/b-1.jsonl", where="episode_id = 'b0'")
    taken_out(lake, batch=batch)

    assert excluded_of(lake)["b0"] == "x1, x2"
    assert excluded_of(lake)["b1"] == "x2"
    assert frozen(lake)[1].n_excluded == 3  # each once, though two rules mean one of them


def test_quarantined_rows_of_an_excluded_source_are_not_charged_as_damage(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)
    take_in(lake, write_rows(tmp_path / "a.jsonl", [*episode("a"), step_row("mixed", 0), step_row("mixed", 1)]))
    take_in(lake, write_rows(tmp_path / "b.jsonl", ["no json", step_row("mixed", 2, reward=99), *episode("b")]))
    _, before = frozen(lake)
    taken_out(lake, source="b.jsonl")
    episodes, after = frozen(lake)

    assert (before.n_damaged, before.n_unplaced) == (1, 1)
    assert (after.n_damaged, after.n_unplaced, after.n_excluded) == (0, 0, 2)
    assert episodes == {"a"}


def test_an_outcome_of_an_excluded_source_means_the_episode_of_its_decision(tmp_path: Path) -> None:
    lake = lake_at(tmp_path, tiny(AWAITED))
    rows = [step_row(name, 0, decision_id=f"d-{name}", reward=None, terminated=True) for name in ("e", "f")]
    take_in(lake, write_rows(tmp_path / "steps.jsonl", rows))
    for name in ("e", "f"):
        outcome = {"decision_id": f"d-{name}", "reward": -2.0, "timestamp": "2024-05-01T10:05:00Z"}
        take_in(lake, write_rows(tmp_path / f"of-{name}.jsonl", [outcome]), kind="outcomes")
    taken_out(lake, source="of-f.jsonl")

    assert excluded_of(lake) == {"e": None, "f": "x1"}


@pytest.mark.parametrize(
    ("meant", "said"),
    [
        ({}, r"Which rows\? Name a source, a batch or a condition"),
        ({"source": "logs/c-*"}, r"No row of the lake is meant by source logs/c-\*.*logs/[ab]-1.*--coming"),
        ({"where": "observation.cpuu > 1"}, r"'cpuu' is no feature; did you mean 'cpu'"),
        ({"where": "cpu > 1"}, r"'cpu' is no column here"),
        ({"where": "reward < (SELECT 1)"}, r"holds a subquery"),
        ({"where": "random() < 0.5"}, r"calls random, which answers otherwise each time"),
        ({"where": "timestamp < now()"}, r"calls now, which"),
        ({"where": "action = 'upp'"}, r"'upp' is no action; did you mean 'up'"),
    ],
)
def test_a_rule_that_cannot_be_meant_so_is_refused(tmp_path: Path, meant: dict[str, str], said: str) -> None:
    lake = two_sources(tmp_path)
    with pytest.raises(ExclusionError, match=said):
        exclude(lake, Meant(**meant), by="Ada", note="why", at=AT)
    assert read_exclusions(lake) == []


def test_somebody_answers_for_it_and_says_why(tmp_path: Path) -> None:
    lake = two_sources(tmp_path)
    with pytest.raises(ExclusionError, match="Name somebody"):
        exclude(lake, Meant("logs/b-1.jsonl"), by=" ", note="why", at=AT)
    with pytest.raises(ExclusionError, match="Why\\?"):
        exclude(lake, Meant("logs/b-1.jsonl"), by="Ada", note="", at=AT)
    with pytest.raises(ExclusionError, match=r"No exclusion 'x9' stands; those that do: none"):
        lift(lake, "x9", by="Ada", note="why", at=AT)


def test_the_same_rule_twice_is_one_and_a_dry_run_is_none(tmp_path: Path) -> None:
    lake = two_sources(tmp_path)
    would, _ = exclude(lake, Meant("logs/b-1.jsonl"), by="Ada", note="why", at=AT, dry_run=True)
    assert (would.n_rows, read_exclusions(lake)) == (7, [])

    taken_out(lake, source="logs/b-1.jsonl")
    again, is_new = exclude(lake, Meant("logs/b-1.jsonl"), by="Grace", note="me too", at=AT)

    assert (again.by, is_new) == ("Ada", False)
    assert exclude(lake, Meant("logs/z"), by="Ada", note="why", at=AT, coming=True)[0].n_rows == 0
    assert sum(count_meant(lake, Meant("logs/b-1.jsonl")).values()) == 7


def test_a_killed_exclusion_is_finished_by_whoever_opens_the_lake_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = two_sources(tmp_path)

    def dies(_: Lake) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Lake, "finish_commit", dies)
        with pytest.raises(KeyboardInterrupt):
            lake.commit({"exclusions": _one_rule(lake)})
    reopened = lake_at(tmp_path)

    assert [rule.name for rule in read_exclusions(reopened)] == ["x1"]
    assert excluded_of(reopened)["b0"] == "x1"


def _one_rule(lake: Lake) -> list[StagedFile]:
    row: dict[str, object] = {"exclusion_id": "x1", "action": "exclude", "source": "logs/b-1.jsonl", "batch_id": None}
    row |= {"condition": None, "reviewer": "Ada", "note": "n", "settled_at": AT, "n_rows": 7, "commit_number": 3}
    return stage_records(lake, "exclusions", [row], lake.staging_path / "x", batch_id="x1")


def test_merging_the_files_of_the_lake_keeps_every_rule(tmp_path: Path) -> None:
    lake = two_sources(tmp_path)
    for name in ("b0", "b1", "both"):
        taken_out(lake, where=f"episode_id = '{name}'")
    compact(lake, LakeConfig(compact_above=2))

    assert [rule.name for rule in read_exclusions(lake)] == ["x1", "x2", "x3"]
    assert excluded_of(lake)["both"] == "x3"
