"""Erasure: nothing of a subject is left, the rest is as it was, and what was erased does not come back."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from datasets import erasure, history, journal
from datasets.batches import list_batches, reject_batch, release_batch
from datasets.erasure import Erasure, ErasureError, erase_subject, finish_erasure, named_subject
from datasets.freezing import freeze_snapshot
from datasets.ingest import IngestConfig
from datasets.lake import Lake
from datasets.privacy import KEY_VARIABLE, PrivacyKey
from datasets.quarantine_replay import replay_quarantine
from datasets.snapshot import ErasedSnapshotError, open_snapshot
from datasets.snapshot_config import SnapshotConfig
from tests.datasets.builders import (
    NOON,
    ask,
    counts_of,
    episode,
    lake_at,
    step_keys,
    step_row,
    suite_says,
    take_in,
    tiny,
    write_rows,
)
from tests.datasets.test_hidden_columns import everything_in

AT = datetime(2024, 6, 1, tzinfo=UTC)
SECRET = "f" * 40
KEY = PrivacyKey(SECRET.encode())


@pytest.fixture(autouse=True)
def _quick(quick_suite: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    monkeypatch.setenv(KEY_VARIABLE, SECRET)


def erase_episode(lake: Lake, name: str, **options: Any) -> Erasure:
    subject = named_subject(lake.contract, None, episode=name, named=None)
    return erase_subject(lake, subject, None, lake.root.parent / "snapshots", at=AT, **options)


def erase_user(lake: Lake, user: str, **options: Any) -> Erasure:
    subject = named_subject(lake.contract, KEY, episode=None, named=f"user={user}")
    return erase_subject(lake, subject, KEY, lake.root.parent / "snapshots", at=AT, **options)


LATE = tiny(outcomes={"attribution_window": "1h"})


def filled(folder: Path, contract: Any = None) -> Lake:
    lake = lake_at(folder, contract)
    gone = [*episode("gone-one"), step_row("gone-one", 3, action="jump")]
    broken = '{"episode_id": "gone-one", "step'
    other = '{"episode_id": "gone-one-too", "step'
    take_in(lake, write_rows(folder / "a.jsonl", [*episode("stays"), *gone, broken, other]))
    return lake


def test_every_row_of_an_episode_leaves_and_the_others_stay(tmp_path: Path) -> None:
    lake = filled(tmp_path)
    before = ask(lake, "SELECT * FROM {steps} WHERE episode_id = 'stays' ORDER BY ALL")

    done = erase_episode(lake, "gone-one")

    assert done.n_rows == {"steps": 3, "outcomes": 0, "quarantine": 2, "held": 0}
    assert (done.episodes, done.sources) == (("gone-one",), ("a.jsonl",))
    assert ask(lake, "SELECT * FROM {steps} ORDER BY ALL") == before
    assert ask(lake, "SELECT count(*) FROM {quarantine}") == [(1,)]
    assert "gone-one" not in everything_in(lake.root).replace("gone-one-too", "")
    assert ask(lake, 'SELECT "table", n_rows, reason FROM {removals} ORDER BY 1') == [
        ("quarantine", 2, "erased"),
        ("steps", 3, "erased"),
    ]


def test_a_dry_run_only_says_what_would_go(tmp_path: Path) -> None:
    lake = filled(tmp_path)
    before = [(path, path.stat().st_mtime_ns) for path in sorted(lake.root.rglob("*")) if path.name != "_lock"]
    assert erase_episode(lake, "gone-one", dry_run=True).n_rows["steps"] == 3
    assert [(path, path.stat().st_mtime_ns) for path in sorted(lake.root.rglob("*")) if path.name != "_lock"] == before


def test_what_was_erased_is_refused_and_counted(tmp_path: Path) -> None:
    lake = filled(tmp_path)
    erase_episode(lake, "gone-one")

    rows = [*episode("gone-one"), step_row("gone-one", 3, action="jump"), *episode("new")]
    report = take_in(lake, write_rows(tmp_path / "b.jsonl", rows))

    assert counts_of(report) == {"in": 7, "lake": 3, "erased": 4}
    assert {name for name, _ in step_keys(lake)} == {"stays", "new"}
    assert counts_of(take_in(lake, write_rows(tmp_path / "c.jsonl", episode("stays"))))["duplicates"] == 3


def test_outcomes_go_by_the_decisions_of_the_erased_steps(tmp_path: Path) -> None:
    lake = lake_at(tmp_path, LATE)
    steps = [step_row(e, i, decision_id=f"{e}-{i}", reward=None) for e in ("gone", "stays") for i in range(3)]
    outcome = {"decision_id": "gone-1", "timestamp": "2024-05-01T10:05:00Z", "reward": -1.0}
    take_in(lake, write_rows(tmp_path / "a.jsonl", steps))
    outcomes = [outcome, {**outcome, "decision_id": "stays-1"}, {**outcome, "decision_id": "gone-2", "reward": "x"}]
    bring(lake, write_rows(tmp_path / "o.jsonl", outcomes))

    done = erase_episode(lake, "gone")

    assert done.n_rows == {"steps": 3, "outcomes": 1, "quarantine": 1, "held": 0}
    report = bring(lake, write_rows(tmp_path / "p.jsonl", [{**outcome, "reward": -2.0}]))
    assert counts_of(report) == {"in": 1, "erased": 1}
    assert ask(lake, "SELECT decision_id FROM {outcomes}") == [("stays-1",)]


def test_outcomes_of_quarantined_steps_go_and_those_of_others_stay(tmp_path: Path) -> None:
    lake = lake_at(tmp_path, LATE)
    bad = {"action": "jump", "reward": None}
    steps = [
        step_row("gone", 0, decision_id="d-gone", **bad),
        step_row("gone", 1, decision_id="d-stays", **bad),
        step_row("stays", 0, decision_id="d-stays", reward=None),
    ]
    outcome = {"timestamp": "2024-05-01T10:05:00Z", "reward": -1.0}
    take_in(lake, write_rows(tmp_path / "a.jsonl", steps))
    bring(lake, write_rows(tmp_path / "o.jsonl", [{**outcome, "decision_id": d} for d in ("d-gone", "d-stays")]))

    assert erase_episode(lake, "gone").n_rows == {"steps": 0, "outcomes": 1, "quarantine": 2, "held": 0}
    assert ask(lake, "SELECT decision_id FROM {outcomes}") == [("d-stays",)]


def bring(lake: Lake, path: Path) -> Any:
    from datasets.ingest import IngestConfig, ingest_logs
    from datasets.validation import ValidateConfig

    return ingest_logs(
        lake, [path], IngestConfig(), ValidateConfig(), kind="outcomes", as_of=NOON, base=lake.root.parent
    )


def test_a_key_takes_its_episodes_whole_and_sealed_text_too(tmp_path: Path) -> None:
    lake = lake_at(tmp_path, tiny(privacy={"hash": ["user"]}))
    rows = [
        *episode("first", user="mara"),
        step_row("second", 0),  # before they had signed in
        step_row("second", 1, user="mara"),
        *episode("other", user="maraike"),
        step_row("third", 0, user="mara", action="jump"),
        '{"user": "mara", "x',
        '{"user": "maraike", "x',
    ]
    take_in(lake, write_rows(tmp_path / "a.jsonl", rows))

    done = erase_user(lake, "mara")

    assert done.n_rows == {"steps": 5, "outcomes": 0, "quarantine": 2, "held": 0}
    assert {name for name, _ in step_keys(lake)} == {"other"}
    assert ask(lake, "SELECT source_line FROM {quarantine}") == [(11,)]
    assert KEY.hash("mara") not in everything_in(lake.root)
    again = [
        step_row("fourth", 0),
        step_row("fourth", 1, user="mara"),
        step_row("fifth", 0, user="mara", action="jump"),
    ]
    assert counts_of(take_in(lake, write_rows(tmp_path / "b.jsonl", again))) == {"in": 3, "erased": 3}


def test_a_hashed_episode_may_be_named_as_in_the_log_or_as_in_the_lake(tmp_path: Path) -> None:
    contract = tiny(privacy={"hash": ["episode_id"]})
    for folder, name in (("log", "plain-id"), ("lake", KEY.hash("plain-id"))):
        lake = lake_at(tmp_path / folder, contract)
        take_in(lake, write_rows(tmp_path / folder / "a.jsonl", [*episode("plain-id"), *episode("other")]))
        subject = named_subject(contract, KEY, episode=name, named=None)
        done = erase_subject(lake, subject, KEY, tmp_path / "snapshots", at=AT)
        assert done.n_rows["steps"] == 3
        assert KEY.hash("plain-id") not in everything_in(lake.root)


def test_held_batches_are_thinned_and_their_account_stays_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        suite_says(patch, False)
        lake = filled(tmp_path)

    done = erase_episode(lake, "gone-one")

    assert done.n_rows["held"] == 5
    (batch,) = list_batches(lake)
    batch.counts.check()
    assert (batch.counts.n_held, batch.counts.n_erased) == (4, 5)
    assert "gone-one" not in everything_in(lake.root).replace("gone-one-too", "")
    released = release_batch(lake, batch.batch_id, by="me", at=AT)
    released.counts.check()
    assert {name for name, _ in step_keys(lake)} == {"stays"}


def test_snapshots_are_redacted(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)
    rows = [row for n in range(20) for row in episode(f"e-{n:02d}")]
    take_in(lake, write_rows(tmp_path / "a.jsonl", rows))
    path, _ = freeze_snapshot(lake, SnapshotConfig(), tmp_path / "snapshots", as_of=NOON)

    done = erase_episode(lake, "e-07")

    successor = done.snapshots[path.name]
    assert successor is not None
    replay, summary = open_snapshot(tmp_path / "snapshots" / successor)
    assert (summary.n_erased, "e-07" in replay.episode_ids) == (1, False)
    with pytest.raises(ErasedSnapshotError, match="not replayable: erased"):
        open_snapshot(path)


@pytest.mark.parametrize(
    ("home", "place"),
    [
        (erasure, "remember_erased"),
        (erasure, "rewrite_held"),
        (erasure, "rewrite_rows"),
        (journal, "commit_table"),
        (history, "vacuum"),
        (erasure, "_redact_snapshots"),
    ],
)
@pytest.mark.parametrize("again", ["erase", "finish"])
def test_cut_off_anywhere_it_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Any, place: str, again: str
) -> None:
    lake = filled(tmp_path)

    def cut_off(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(home, place, cut_off)
        with pytest.raises(KeyboardInterrupt):
            erase_episode(lake, "gone-one")
    lake = lake_at(tmp_path)
    if again == "finish":
        assert finish_erasure(lake, tmp_path / "snapshots")
        assert not finish_erasure(lake, tmp_path / "snapshots")
    else:
        erase_episode(lake, "another")

    assert {name for name, _ in step_keys(lake)} == {"stays"}
    assert "gone-one" not in everything_in(lake.root).replace("gone-one-too", "")
    report = take_in(lake, write_rows(tmp_path / "b.jsonl", [*episode("gone-one"), *episode("new")]))
    assert counts_of(report) == {"in": 6, "lake": 3, "erased": 3}


def test_what_is_remembered_names_nobody(tmp_path: Path) -> None:
    lake = filled(tmp_path)
    erase_episode(lake, "gone-one")
    erase_episode(lake, "never-was-there")
    known = json.loads((lake.root / "erased.json").read_text())["hashes"]["episode"]
    assert len(known) == 2
    assert not [h for h in known if "gone" in h]
    assert counts_of(take_in(lake, write_rows(tmp_path / "b.jsonl", episode("never-was-there")))) == {
        "in": 3,
        "erased": 3,
    }


def test_a_subject_must_be_named_by_what_can_be_found() -> None:
    contract = tiny(privacy={"hash": ["user"]})
    with pytest.raises(ErasureError, match="one of them"):
        named_subject(contract, KEY, episode=None, named=None)
    with pytest.raises(ErasureError, match=r"'mail' is no key .* hashes \(user\)"):
        named_subject(contract, KEY, episode=None, named="mail=x")
    with pytest.raises(ErasureError, match=r"its privacy\.hash is empty"):
        named_subject(tiny(), None, episode=None, named="user=x")


def test_rows_of_rejected_batches_are_found_by_their_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = lake_at(tmp_path, tiny(privacy={"hash": ["user"]}))
    with monkeypatch.context() as patch:
        suite_says(patch, False)
        rows = [*episode("first", user="mara"), *episode("other", user="noor")]
        report = take_in(lake, write_rows(tmp_path / "a.jsonl", rows))
    assert report.batch is not None
    reject_batch(lake, report.batch.batch_id, by="me", at=AT)

    assert erase_user(lake, "mara").n_rows == {"steps": 0, "outcomes": 0, "quarantine": 3, "held": 0}
    assert KEY.hash("mara") not in everything_in(lake.root)
    assert ask(lake, "SELECT count(*) FROM {quarantine}") == [(3,)]


def test_former_versions_of_a_table_without_the_subject_go_too(tmp_path: Path) -> None:
    lake = lake_at(tmp_path)
    take_in(lake, write_rows(tmp_path / "a.jsonl", [*episode("stays"), step_row("gone-one", action="jump")]))
    mended = lake_at(tmp_path, tiny(actions={"names": ["down", "hold", "up", "jump"]}))
    (replayed,) = replay_quarantine(mended, IngestConfig(), as_of=NOON, at=AT)
    assert replayed.batch.counts.n_lake == 1

    assert erase_episode(mended, "gone-one").n_rows["quarantine"] == 0
    assert "gone-one" not in everything_in(mended.root)
