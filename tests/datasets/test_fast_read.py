from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import duckdb
import pytest

from datasets import staging
from datasets.consumed import History, look_for_unread
from datasets.contract import Contract
from datasets.duck import duck
from datasets.logfiles import find_log_files
from datasets.staging import Source, Stage
from tests.datasets.builders import episode, step_row, text_of, tiny
from tests.datasets.mutations import mutated_log

CONTRACTS = {
    "sequence": tiny(),
    "one_step": tiny(episodes={"kind": "one_step"}, behavior={"propensity": "estimated"}),
    "zone": tiny(time={"zone": "Europe/Berlin"}),
    "strptime": tiny(time={"format": "%Y-%m-%dT%H:%M:%SZ", "zone": "UTC"}),
    "epoch": tiny(time={"format": "epoch_s"}, columns={"timestamp": "step"}),
    "shared": tiny(columns={"decision_id": "action", "step": "observation.cpu"}, episodes={"cluster": "action"}),
    "bins": tiny(
        actions={"names": None, "safe": None, "bins": [0, 1, 1.5, 10]}, columns={"action": "step", "step": "no"}
    ),
    "outcomes": tiny(outcomes={"attribution_window": "1h"}),
}


def staged(contract: Contract, folder: Path, paths: list[Path]) -> tuple[list[Any], list[Any]]:
    """Good rows in their order, and bad ones with reason, text and place."""
    folder.mkdir()
    with duck(spill=folder / "spill") as connection:
        stage = Stage(connection, contract, "steps", folder)
        for number, log in enumerate(find_log_files(paths)):
            unread = look_for_unread(log, History())
            assert unread is not None
            stage.read(Source(number, log, unread, log.path.name))
        stage.finish_reading()
        good = connection.sql(f"SELECT * FROM {stage.rows_sql} ORDER BY ordinal").to_arrow_table().to_pylist()
        bad = connection.sql("SELECT * FROM bad ORDER BY source, source_line").to_arrow_table().to_pylist()
    return good, bad


def exactly(monkeypatch: pytest.MonkeyPatch, contract: Contract, folder: Path, paths: list[Path]) -> Any:
    """As `staged`, by the exact reader alone."""

    def broken(*_: Any, **__: Any) -> None:
        raise duckdb.InvalidInputException("not today")

    with monkeypatch.context() as patch:
        patch.setattr(staging, "read_fast", broken)
        return staged(contract, folder, paths)


@pytest.fixture(autouse=True)
def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of any size are read where they lie, where nothing else forbids it."""
    monkeypatch.setattr("datasets.texts.IN_PLACE_BYTES", 0)


@pytest.mark.parametrize("name", CONTRACTS)
def test_both_readers_take_the_same_rows_and_give_the_same_reasons(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = CONTRACTS[name]
    for seed in range(6):
        log = tmp_path / f"{seed}.jsonl"
        log.write_bytes(mutated_log(random.Random(f"{name} {seed}"), 150))
        fast = staged(contract, tmp_path / f"{seed}-fast", [log])
        exact = exactly(monkeypatch, contract, tmp_path / f"{seed}-exact", [log])
        assert fast[0] == exact[0]
        assert fast[1] == exact[1]


@pytest.mark.parametrize(
    ("contract", "changes"),
    [
        (tiny(), {}),
        (tiny(actions={"names": None, "safe": 3, "bins": [0, 10, 50, 100]}), {"action": 12}),
    ],
)
def test_a_clean_log_never_meets_the_exact_reader(
    contract: Contract, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "a.jsonl"
    log.write_text(text_of(row for i in range(50) for row in episode(f"e{i}", **changes)))

    def met(*_: Any, **__: Any) -> None:
        raise AssertionError("a clean line went to the exact reader")

    monkeypatch.setattr(Stage, "judge", met)
    good, bad = staged(contract, tmp_path / "stage", [log])
    assert len(good) == 150
    assert bad == []


def test_only_lines_in_doubt_meet_the_exact_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = text_of(row for i in range(50) for row in episode(f"e{i}")).splitlines(keepends=True)
    lines[7] = lines[7][:40] + "\n"
    lines[20] = lines[20].replace('"step": 2', '"step": 2, "step": 3')
    lines[90] = lines[90].replace("0.5", '"0.5"', 1)
    log = tmp_path / "a.jsonl"
    log.write_text("".join(lines))
    judged: list[int] = []
    real = Stage.judge

    def counted(self: Stage, chunk: Any, *args: Any, **named: Any) -> None:
        judged.append(len(chunk))
        real(self, chunk, *args, **named)

    monkeypatch.setattr(Stage, "judge", counted)

    good, bad = staged(tiny(), tmp_path / "stage", [log])

    assert sum(judged) == 3
    assert len(good) == 147
    assert [(row["source_line"], row["raw"]) for row in bad] == [(n, lines[n - 1].rstrip("\n")) for n in (8, 21, 91)]


def test_a_column_that_begins_after_the_sample_is_not_lost(tmp_path: Path) -> None:
    early = [step_row(f"e{i}") for i in range(1200)]
    late = [step_row(f"f{i}", decided_by="shield", truncated=True, final_observation={"cpu": 0.25}) for i in range(400)]
    log = tmp_path / "a.jsonl"
    for rows in ([*early, *late], [*early, late[0]]):
        log.write_text(text_of(rows))
        good, bad = staged(tiny(), tmp_path / f"stage-{len(rows)}", [log])
        assert bad == []
        assert {row["decided_by"] for row in good[:1200]} == {None}
        assert {row["decided_by"] for row in good[1200:]} == {"shield"}
        assert all(row["final_observation"]["cpu"] == 0.25 for row in good[1200:])


def test_a_log_with_one_enormous_line_is_read(tmp_path: Path) -> None:
    rows = [step_row("e"), step_row("f", note="x" * (50 << 20)), step_row("g")]
    log = tmp_path / "a.jsonl"
    log.write_text(text_of(rows))

    good, bad = staged(tiny(), tmp_path / "stage", [log])

    assert [row["episode_id"] for row in good] == ["e", "f", "g"]
    assert bad == []


@pytest.mark.parametrize(
    ("changes", "contract"),
    [
        ({"observation": {"load": [[1], 2]}}, tiny()),
        ({"observation": {"load": [{}, 1]}}, tiny()),
        ({"cpu": 0.5, "observation": {"cpu": 7.5}}, tiny()),
        *[
            ({"episode_id": number}, tiny())
            for number in (1e22, 1e16, 1e-7, 123456789012345680000.0, 1.0, "1.50", "1e5")
        ],
    ],
)
def test_a_value_unlike_those_of_the_sample_is_judged_exactly(
    changes: dict[str, Any], contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = [step_row(f"e{i}", cpu=0.5, observation={"cpu": None}) for i in range(1001)]
    log = tmp_path / "a.jsonl"
    log.write_text(text_of([*early, step_row("late", **changes)]))

    fast = staged(contract, tmp_path / "fast", [log])

    assert fast == exactly(monkeypatch, contract, tmp_path / "exact", [log])
    assert len(fast[0]) + len(fast[1]) == 1002


@pytest.mark.parametrize("blank", ["\x0c", "\x0b", "\r\r", " \t", "\r"])
def test_blank_lines_of_every_kind_are_no_rows(blank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = text_of(episode("e")).splitlines()
    log = tmp_path / "a.jsonl"
    log.write_text("\n".join([rows[0], blank, rows[1], rows[2], blank]) + "\n", newline="")

    for place in (0, 1 << 30):  # read where it lies, and copied
        monkeypatch.setattr("datasets.texts.IN_PLACE_BYTES", place)
        good, bad = staged(tiny(), tmp_path / f"stage-{place}", [log])
        assert [row["source_line"] for row in good] == [1, 3, 4]
        assert bad == []
