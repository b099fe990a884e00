"""Splits: the latest nights as judge, and that nothing that has trained ever judges."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.contract import Contract
from datasets.freezing import freeze_snapshot, read_episodes
from datasets.lake import Lake
from datasets.replay import GATE, SELECT, TRAIN, Replay
from datasets.snapshot import SnapshotError, SnapshotSummary, open_snapshot
from datasets.snapshot_config import SnapshotConfig
from datasets.splits import gate_share, last_night_over, split_of
from tests.datasets.builders import lake_at, step_row, take_in, tiny, write_rows

pytestmark = pytest.mark.usefixtures("quick_suite")

LATEST = SnapshotConfig(gate="latest_nights", gate_nights=2, train_share=0.6, select_share=0.2)


def night(day: int, n: int = 12) -> list[dict[str, Any]]:
    return [
        step_row(f"n{day}-{i}", 0, timestamp=f"2024-05-{day:02d}T10:{i:02d}:00Z", terminated=True) for i in range(n)
    ]


def lake_of_nights(folder: Path, *days: int, contract: Contract | None = None) -> Lake:
    lake = lake_at(folder, contract)
    take_in(lake, write_rows(folder / "nights.jsonl", [row for day in days for row in night(day)]))
    return lake


def frozen(lake: Lake, day: int, config: SnapshotConfig = LATEST, **options: Any) -> tuple[Replay, SnapshotSummary]:
    as_of = datetime(2024, 5, day, 12, tzinfo=UTC)
    path, _ = freeze_snapshot(lake, config, lake.root.parent / "snapshots", as_of=as_of, **options)
    return open_snapshot(path)


def days_of(replay: Replay, *splits: int) -> set[int]:
    return {night.astype(date).day for night in replay.nights[np.isin(replay.split, splits)]}


def test_the_latest_nights_judge_and_nothing_of_them_trains(tmp_path: Path) -> None:
    replay, summary = frozen(lake_of_nights(tmp_path, 1, 2, 3, 4), 5)

    assert days_of(replay, GATE) == {3, 4}
    assert days_of(replay, TRAIN, SELECT) == {1, 2}
    assert {TRAIN, SELECT} <= set(replay.split)
    assert summary.gate_since == "2024-05-03"
    assert summary.n_too_new == 0


def test_tonight_is_left_out_until_it_is_over(tmp_path: Path) -> None:
    lake = lake_of_nights(tmp_path, 1, 2, 3, 4, 5)
    replay, summary = frozen(lake, 5)

    assert days_of(replay, GATE) == {3, 4}
    assert days_of(replay, TRAIN, SELECT) == {1, 2}
    assert summary.n_too_new == 12
    whole, _ = frozen(lake, 5, whole_nights=True)  # simulated logs: the night of the newest timestamp is over
    assert days_of(whole, GATE) == {4, 5}


def test_a_night_with_an_open_episode_does_not_judge_yet(tmp_path: Path) -> None:
    lake = lake_of_nights(tmp_path, 1, 2, 3, 4)
    still_on = [step_row("long", k, timestamp=f"2024-05-0{4 + k}T11:59:00Z") for k in range(2)]
    take_in(lake, write_rows(tmp_path / "long.jsonl", still_on))
    replay, summary = frozen(lake, 5)

    assert days_of(replay, GATE) == {3}
    assert (summary.n_open, summary.n_too_new) == (1, 12)


def test_as_nights_pass_episodes_go_from_gate_to_train_and_never_back(tmp_path: Path) -> None:
    lake = lake_of_nights(tmp_path, 1, 2, 3, 4, 5, 6)
    trained: set[str] = set()
    for day in (4, 5, 6, 7):
        replay, _ = frozen(lake, day)
        assert not trained & set(replay.episode_ids[replay.split == GATE])
        trained |= set(replay.episode_ids[replay.split != GATE])
    assert len(trained) == 4 * 12


@pytest.mark.parametrize("change", [{"day": 5}, {"gate_nights": 4}])
def test_nights_that_have_trained_cannot_judge(tmp_path: Path, change: dict[str, int]) -> None:
    lake = lake_of_nights(tmp_path, 1, 2, 3, 4, 5, 6)
    frozen(lake, 7)
    config = LATEST.model_copy(update={k: v for k, v in change.items() if k != "day"})

    with pytest.raises(SnapshotError, match=r"cannot judge: those up to 2024-05-04 have been trained or selected on"):
        frozen(lake, change.get("day", 7), config)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"salt": "other"}, "salt was 'tiny' and is 'other'"),
        ({"train_share": 0.4}, "train_share was 0.6 and is 0.4"),
        ({"gate": "hash"}, "gate was 'latest_nights' and is 'hash'"),
    ],
)
def test_splits_never_change_in_a_workspace(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    lake = lake_of_nights(tmp_path, 1, 2, 3, 4)
    frozen(lake, 5)
    with pytest.raises(SnapshotError, match=f"never change.*{said}.*delete the folder"):
        frozen(lake, 5, LATEST.model_copy(update=config))
    frozen(lake, 5)


def test_an_unreadable_ledger_is_an_error_not_a_blank_one(tmp_path: Path) -> None:
    lake = lake_of_nights(tmp_path, 1, 2, 3, 4)
    frozen(lake, 5)
    (tmp_path / "snapshots" / "splits.json").write_text("{}")
    with pytest.raises(SnapshotError, match=r"splits\.json says how episodes are split, and cannot be read"):
        frozen(lake, 5)


def test_too_few_nights_are_refused_with_their_counts(tmp_path: Path) -> None:
    lake = lake_of_nights(tmp_path, 3, 4)
    with pytest.raises(SnapshotError, match="03 to 2024-05-04 judge, and they hold 24 episodes, those before 0"):
        frozen(lake, 5)


def test_reading_without_freezing_leaves_no_night_out(tmp_path: Path) -> None:
    lake = lake_of_nights(tmp_path, 1, 2)
    replay = read_episodes(lake, LATEST, as_of=datetime(2024, 5, 2, 12, tzinfo=UTC))
    assert replay is not None
    assert replay.n_episodes == 24
    assert replay.digest == ""


def test_all_of_the_hash_trains_or_selects_where_nights_judge() -> None:
    splits = [split_of(f"c{i}", "salt", LATEST) for i in range(4000)]
    assert [splits.count(s) / 4000 for s in (TRAIN, SELECT, GATE)] == pytest.approx([0.75, 0.25, 0], abs=0.02)


def test_a_night_is_over_when_its_last_episode_can_have_no_further_step() -> None:
    contract = tiny()  # timeout 1 h
    midnight = datetime(2024, 5, 3, tzinfo=UTC)
    assert last_night_over(contract, midnight + timedelta(minutes=59), whole_nights=False) == date(2024, 5, 1)
    assert last_night_over(contract, midnight + timedelta(minutes=60), whole_nights=False) == date(2024, 5, 2)


def test_share_that_judges() -> None:
    assert gate_share(SnapshotConfig(), 10) == pytest.approx(0.4)
    assert [gate_share(LATEST, n) for n in (1, 8)] == [1.0, 0.25]
