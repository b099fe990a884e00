"""The quarantine: rows by reason, as they were written, and replayed into the lake exactly once."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets import batches, journal, lake
from datasets.contract import Contract
from datasets.episodes import episodes_sql
from datasets.ingest import IngestConfig
from datasets.lake import Lake
from datasets.quarantine import list_reasons, show_rows
from datasets.quarantine_replay import ReplayReport, replay_quarantine
from tests.datasets.builders import (
    NOON,
    ask,
    counts_of,
    episode,
    lake_at,
    reasons_of,
    step_keys,
    step_row,
    take_in,
    tiny,
    write_rows,
)

pytestmark = pytest.mark.usefixtures("quick_suite")

AT = datetime(2024, 6, 1, tzinfo=UTC)

HOT: Mapping[str, Any] = {"observation": {"cpu": 1.5}}
"""What breaks the tiny contract, whose cpu ends at 1, and fits the wider one."""

WIDE = tiny(features={"cpu": {"max": 2.0}})


def replay(opened: Lake, **options: Any) -> list[ReplayReport]:
    return replay_quarantine(opened, IngestConfig(), as_of=NOON, at=AT, **options)


def account(report: ReplayReport) -> dict[str, int]:
    assert report.batch is not None
    report.batch.counts.check()
    return {name[2:]: n for name, n in vars(report.batch.counts).items() if n}


def damage_of(opened: Lake) -> dict[str, str | None]:
    tables = [opened.scan(table) for table in ("steps", "outcomes", "quarantine")]
    query = episodes_sql(*tables, opened.contract, NOON)
    return dict(ask(opened, f"SELECT episode_id, damage FROM ({query.replace('{', '{{').replace('}', '}}')})"))


def test_reasons_are_grouped_without_their_numbers(tmp_path: Path) -> None:
    opened = lake_at(tmp_path)
    rows = [*episode("e"), step_row("f", 0, **HOT), step_row("f", 1, observation={"cpu": 3.25}), "no json"]
    take_in(opened, write_rows(tmp_path / "a.jsonl", rows))

    first, second = list_reasons(opened)

    assert (first.n_rows, first.reason) == (2, "observation.cpu is #, above the contract's max #")
    assert (second.n_rows, second.example) == (1, "a.jsonl:6")
    assert first.first_at == first.last_at
    assert list_reasons(opened, batch="nope") == []


def test_raw_text_is_shown_as_it_was_written(tmp_path: Path) -> None:
    opened = lake_at(tmp_path)
    take_in(opened, write_rows(tmp_path / "a.jsonl", [*episode("e"), '{"not": "json', step_row("f", 0, **HOT)]))

    (hot,) = show_rows(opened, reason="observation.cpu is #")
    (broken,) = show_rows(opened, reason="the line")

    assert '"cpu": 1.5' in str(hot.raw)
    assert (broken.raw, broken.source, broken.source_line) == ('{"not": "json', "a.jsonl", 4)
    assert len(show_rows(opened, limit=1)) == 1
    assert show_rows(opened, reason="50% of %s") == []


def test_what_fits_the_mended_contract_moves_into_the_lake_once(tmp_path: Path) -> None:
    rows = [step_row("e", 0), step_row("e", 1, **HOT), step_row("e", 2), "no json"]
    opened = lake_at(tmp_path)
    take_in(opened, write_rows(tmp_path / "a.jsonl", rows))
    assert "1 of its rows are in quarantine" in str(damage_of(opened)["e"])

    opened = lake_at(tmp_path, WIDE)
    (report,) = replay(opened)

    assert account(report) == {"in": 1, "lake": 1}
    assert (report.n_tried, report.n_left, report.n_passed_over) == (1, 0, 1)
    assert step_keys(opened) == [("e", 0), ("e", 1), ("e", 2)]
    assert ask(opened, "SELECT source, source_line FROM {steps} WHERE step = 1") == [("a.jsonl", 2)]
    assert reasons_of(opened) == ["the line is not valid JSON"]
    assert damage_of(opened) == {"e": None}
    assert ask(opened, "SELECT n_rows, reason FROM {removals}")[0][0] == 1
    (again,) = replay(opened)
    assert again.batch is None
    assert len(step_keys(opened)) == 3


def test_what_still_does_not_fit_stays_with_its_reason(tmp_path: Path) -> None:
    opened = lake_at(tmp_path)
    rows = [*episode("e"), step_row("f", 0, **HOT), step_row("f", 1, reward=5.0)]
    take_in(opened, write_rows(tmp_path / "a.jsonl", rows))
    before = ask(opened, "SELECT * FROM {quarantine} WHERE source_line = 5")

    opened = lake_at(tmp_path, WIDE)
    (report,) = replay(opened)

    assert account(report) == {"in": 2, "lake": 1, "quarantined": 1}
    assert ask(opened, "SELECT * FROM {quarantine}") == before


def test_only_chosen_rows_are_judged(tmp_path: Path) -> None:
    opened = lake_at(tmp_path)
    first = take_in(opened, write_rows(tmp_path / "a.jsonl", [*episode("e"), step_row("f", 0, **HOT)]))
    take_in(opened, write_rows(tmp_path / "b.jsonl", [*episode("g"), step_row("h", 0, **HOT)]))
    opened = lake_at(tmp_path, WIDE)
    assert first.batch is not None

    assert replay(opened, reason="nothing like it") == []
    (report,) = replay(opened, batch=first.batch.batch_id)

    assert report.n_tried == 1
    assert ("f", 0) in step_keys(opened)
    assert ("h", 0) not in step_keys(opened)


def test_a_row_that_came_in_another_way_is_a_duplicate_and_leaves(tmp_path: Path) -> None:
    opened = lake_at(tmp_path)
    take_in(opened, write_rows(tmp_path / "a.jsonl", [*episode("e"), step_row("f", 0, **HOT)]))
    opened = lake_at(tmp_path, WIDE)
    take_in(opened, write_rows(tmp_path / "b.jsonl", [step_row("f", 0, **HOT)]))

    (report,) = replay(opened)

    assert account(report) == {"in": 1, "duplicates": 1}
    assert reasons_of(opened) == []
    assert step_keys(opened).count(("f", 0)) == 1


def test_a_conflict_stays(tmp_path: Path) -> None:
    opened = lake_at(tmp_path)
    take_in(opened, write_rows(tmp_path / "a.jsonl", [*episode("e"), step_row("e", 1, reward=-2.0)]))

    (report,) = replay(opened)

    assert (report.batch, report.n_tried, report.n_left) == (None, 1, 1)
    assert len(reasons_of(opened)) == 1


def test_rows_of_csv_files_find_their_header(tmp_path: Path) -> None:
    contract = tiny(features={"zone": None, "busy": None, "load": None})
    wide = tiny(features={"zone": None, "busy": None, "load": None, "cpu": {"max": 2.0}})
    head = "episode_id,step,timestamp,cpu,action,reward,terminated,behavior_prob,note"
    body = [
        'e,0,2024-05-01T10:00:00Z,0.5,hold,-1,false,0.5,"a, ""b"""',
        'e,1,2024-05-01T10:01:00Z,1.5,hold,-1,true,0.5,"x\ny"',
    ]
    (tmp_path / "a.csv").write_text("\n".join([head, *body, "too,short"]) + "\n")
    opened = lake_at(tmp_path, contract)
    assert counts_of(take_in(opened, tmp_path / "a.csv")) == {"in": 3, "lake": 1, "quarantined": 2}

    opened = lake_at(tmp_path, wide)
    (report,) = replay(opened)

    assert account(report) == {"in": 1, "lake": 1}
    assert ask(opened, "SELECT step, observation.cpu, source_line FROM {steps} ORDER BY 1") == [
        (0, 0.5, 2),
        (1, 1.5, 3),
    ]


def test_rows_of_typed_files_are_judged_again_too(tmp_path: Path) -> None:
    contract: Mapping[str, Any] = {
        "features": {"zone": None, "busy": None, "load": None},
        "columns": {"observation.cpu": "m.cpu"},
    }
    rows = [{**step_row("e", i), "m.cpu": cpu} for i, cpu in enumerate([0.5, 1.5])]
    for row in rows:
        row["timestamp"] = datetime.fromisoformat(row["timestamp"])
        del row["observation"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    opened = lake_at(tmp_path, tiny(contract))
    take_in(opened, tmp_path / "a.parquet")

    opened = lake_at(tmp_path, tiny(contract, **{"features": {**contract["features"], "cpu": {"max": 2.0}}}))
    (report,) = replay(opened)

    assert account(report) == {"in": 1, "lake": 1}
    assert ask(opened, "SELECT timestamp, observation.cpu FROM {steps} WHERE step = 1") == [(rows[1]["timestamp"], 1.5)]


def test_a_row_without_a_name_keeps_the_place_that_names_it(tmp_path: Path) -> None:
    one_step: Mapping[str, Any] = {"episodes": {"kind": "one_step"}}
    rows = [step_row("e", 0, episode_id=None, step=None, **changes) for changes in ({}, HOT)]
    log = write_rows(tmp_path / "a.jsonl", rows)
    opened = lake_at(tmp_path, tiny(one_step))
    take_in(opened, log)

    wide = tiny(one_step, features={"cpu": {"max": 2.0}})
    opened = lake_at(tmp_path, wide)
    replay(opened)

    whole = lake_at(tmp_path / "whole", wide)
    take_in(whole, write_rows(tmp_path / "whole" / "a.jsonl", rows))
    named = "SELECT episode_id, cluster, source_line FROM {steps} ORDER BY ALL"
    assert ask(opened, named) == ask(whole, named)


def test_a_row_that_was_sent_again_correctly_no_longer_damages_its_episode(tmp_path: Path) -> None:
    opened = lake_at(tmp_path)
    rows = [step_row("e", 0), step_row("e", 1, reward=5.0), step_row("e", 2), step_row("f", 0), step_row("f", -1)]
    take_in(opened, write_rows(tmp_path / "a.jsonl", rows))
    assert "in quarantine" in str(damage_of(opened)["e"])

    take_in(opened, write_rows(tmp_path / "b.jsonl", [step_row("e", 1)]))

    assert damage_of(opened)["e"] is None
    assert "in quarantine" in str(damage_of(opened)["f"])  # nobody knows which step that was


@pytest.mark.parametrize("place", ["write_journal", "commit_table", "end_journal"])
def test_killed_anywhere_each_row_is_in_one_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    take_in(lake_at(tmp_path), write_rows(tmp_path / "a.jsonl", [*episode("e"), step_row("f", 0, **HOT), "no json"]))
    opened = lake_at(tmp_path, WIDE)

    def cut_off(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(journal if place == "commit_table" else lake, place, cut_off)
        with pytest.raises(KeyboardInterrupt):
            replay(opened)
    opened = lake_at(tmp_path, WIDE)
    replay(opened)

    assert step_keys(opened) == [("e", 0), ("e", 1), ("e", 2), ("f", 0)]
    assert reasons_of(opened) == ["the line is not valid JSON"]
    assert len([b for b in batches.list_batches(opened) if b.n_files == 0]) == 1


def hiding(**features: Any) -> Contract:
    return tiny(privacy={"hash": ["user"], "drop": ["mail"]}, features=features)


def test_a_redacted_row_is_replayed_with_the_hash_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFLINE_DQN_PRIVACY_KEY", "k" * 32)
    rows = [step_row("e", 0, user="u1", mail="a@b.c"), step_row("e", 1, user="u1", mail="a@b.c", **HOT)]
    take_in(lake_at(tmp_path, hiding()), write_rows(tmp_path / "a.jsonl", rows))

    opened = lake_at(tmp_path, hiding(cpu={"max": 2.0}))
    replay(opened)

    assert ask(opened, 'SELECT count(*), count(DISTINCT keys."user") FROM {steps}') == [(2, 1)]


def test_two_at_once_take_each_row_in_once(tmp_path: Path) -> None:
    rows = [*episode("e"), *[step_row(f"f-{n}", 0, **HOT) for n in range(20)]]
    take_in(lake_at(tmp_path), write_rows(tmp_path / "a.jsonl", rows))
    opened = lake_at(tmp_path, WIDE)

    with ThreadPoolExecutor(3) as pool:
        reports = [report for done in pool.map(lambda _: replay(opened), range(3)) for report in done]

    assert sum(account(report)["lake"] for report in reports if report.batch) == 20
    assert len(step_keys(opened)) == len(set(step_keys(opened))) == 23
    assert reasons_of(opened) == []
