"""Retention: what is old leaves, episodes whole, and the account says so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from datasets.lake import Lake, lake_lock
from datasets.privacy import KEY_VARIABLE, SEALED
from datasets.retention import RetentionConfig, retire_rows
from datasets.rewriting import Rewrite, rewrite_rows
from datasets.settings import SettingsError, build_settings
from tests.datasets.builders import ask, episode, lake_at, reasons_of, step_row, suite_says, take_in, tiny, write_rows
from tests.datasets.test_episodes import episodes_of

pytestmark = pytest.mark.usefixtures("quick_suite")

AS_OF = datetime(2024, 5, 20, 12, tzinfo=UTC)
NOW = datetime.now(UTC)


def three_nights(folder: Path) -> Lake:
    """Nights 1, 10 and 19 of May; `over` begins in the first and ends in the second, and `bad` has a bad row."""
    lake = lake_at(folder)
    old = [*episode("old"), *episode("bad", 2), "no row at all", step_row("bad", 2, reward=99.0)]
    over = [
        step_row("over", 0, timestamp="2024-05-01T23:59:00Z"),
        step_row("over", 1, timestamp="2024-05-10T00:00:00Z", terminated=True),
    ]
    take_in(lake, write_rows(folder / "a.jsonl", [*old, *over]))
    take_in(lake, write_rows(folder / "b.jsonl", episode("new", timestamp="2024-05-19T00:00:00Z")))
    return lake


def kept(lake: Lake) -> dict[str, int]:
    return dict(ask(lake, "SELECT episode_id, count(*) FROM {steps} GROUP BY ALL ORDER BY ALL"))


def retired(lake: Lake, **config: Any) -> dict[str, int]:
    at, as_of = config.pop("at", NOW), config.pop("as_of", AS_OF)
    dry = retire_rows(lake, RetentionConfig(**config), as_of=as_of, at=at, dry_run=True)
    done = retire_rows(lake, RetentionConfig(**config), as_of=as_of, at=at)
    assert dry == done  # what is announced is what goes
    return done


def test_without_a_limit_everything_stays(tmp_path: Path) -> None:
    lake = three_nights(tmp_path)
    versions = lake.versions()

    assert retired(lake) == {"raw text": 0}
    assert lake.versions() == versions


def test_old_episodes_go_whole_and_living_ones_stay_whole(tmp_path: Path) -> None:
    lake = three_nights(tmp_path)

    assert retired(lake, steps_days=15)["steps"] == 5
    assert kept(lake) == {"new": 3, "over": 2}
    assert {name: row["damage"] for name, row in episodes_of(lake, as_of=AS_OF).items()} == {"new": None, "over": None}
    assert retired(lake, steps_days=15)["steps"] == 0


def test_the_account_of_their_batch_says_that_they_left(tmp_path: Path) -> None:
    lake = three_nights(tmp_path)
    retired(lake, steps_days=15)

    shown = 'SELECT "table", n_rows, reason, source FROM {removals} JOIN {files} USING (batch_id), (SELECT 1)'
    shown = shown.replace("source", "path")
    assert ask(lake, shown) == [("steps", 5, "older than 15 days", "a.jsonl")]
    assert ask(lake, "SELECT n_lake FROM {batches} ORDER BY settled_at") == [(7,), (3,)]


def test_a_bad_row_stays_as_long_as_the_episode_that_it_damages(tmp_path: Path) -> None:
    lake = three_nights(tmp_path)
    with lake_lock(lake):  # as if they had come in long ago
        long_ago = Rewrite("true", {"quarantined_at": "TIMESTAMPTZ '2024-05-02 00:00:00+00'"})
        rewrite_rows(lake, {"quarantine": long_ago}, reason="", at=NOW)
    take_in(lake, write_rows(tmp_path / "c.jsonl", [step_row("bad", 3, timestamp="2024-05-19T00:00:00Z")]))

    assert retired(lake, steps_days=15)["quarantine"] == 1  # the one that belongs to nothing
    assert len(reasons_of(lake)) == 1
    assert retired(lake, steps_days=1, as_of=AS_OF + timedelta(days=1))["quarantine"] == 1


def test_old_raw_text_is_emptied_and_its_reason_stays(tmp_path: Path) -> None:
    lake = three_nights(tmp_path)
    reasons = reasons_of(lake)

    assert retired(lake, quarantine_days=3) == {"raw text": 0}
    assert retired(lake, quarantine_days=3, at=NOW + timedelta(days=4)) == {"raw text": 2}
    assert ask(lake, "SELECT DISTINCT raw FROM {quarantine}") == [(None,)]
    assert reasons_of(lake) == reasons
    assert len(list((lake.root / "quarantine").glob("*.parquet"))) == 2  # no former file is left on the disk


def test_sealed_text_goes_after_the_contracts_days_whatever_is_configured(tmp_path: Path) -> None:
    lake = three_nights(tmp_path)
    with lake_lock(lake):
        sealed = Rewrite("raw = 'no row at all'", {"raw": f"'{SEALED}abc'"})
        rewrite_rows(lake, {"quarantine": sealed}, reason="", at=NOW)

    assert retired(lake, at=NOW + timedelta(days=29)) == {"raw text": 0}
    assert retired(lake, at=NOW + timedelta(days=31)) == {"raw text": 1}
    assert [raw is None for (raw,) in ask(lake, "SELECT raw FROM {quarantine} ORDER BY source_line")] == [True, False]


def test_sealed_text_of_held_batches_goes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "k" * 40)
    suite_says(monkeypatch, False)
    lake = lake_at(tmp_path, tiny(privacy={"hash": ["user"]}))
    take_in(lake, write_rows(tmp_path / "a.jsonl", [*episode("e"), '{"user": "mara", ']))
    (held,) = lake.held_path.glob("*/quarantine.parquet")
    assert pq.read_table(held)["raw"][0].as_py().startswith(SEALED)

    assert retired(lake, at=NOW + timedelta(days=29)) == {"raw text": 0}
    assert retired(lake, at=NOW + timedelta(days=31)) == {"raw text": 1}
    assert pq.read_table(held)["raw"].to_pylist() == [None]


def test_late_rows_of_a_night_that_left_find_no_repeat_and_their_file_is_still_known(tmp_path: Path) -> None:
    lake = three_nights(tmp_path)
    retired(lake, steps_days=15)

    assert take_in(lake, tmp_path / "a.jsonl").unchanged == ("a.jsonl",)


def test_impossible_limits_are_refused() -> None:
    with pytest.raises(SettingsError, match="steps_days"):
        build_settings(RetentionConfig, {"steps_days": 0}, "offline_dqn.toml")
