"""What an outcome is to the server: new, told before, impossible, or beyond its memory; the same after a restart."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datasets.contract import Contract
from pipelines.serving import log_tails
from pipelines.serving.config import ServeConfig
from pipelines.serving.decision_log import DecisionLog
from pipelines.serving.log_tails import newest_blocks, remembered
from pipelines.serving.logged_times import read_time, written_time
from pipelines.serving.open_decisions import OpenDecisions, Verdict
from pipelines.serving.outcome import Outcome, OutcomeLog
from tests.datasets.builders import tiny

TEN = datetime(2026, 3, 1, 10, tzinfo=UTC)
CONTRACT = tiny(outcomes={"attribution_window": "30m"})  # and idle for an hour
CONFIG = ServeConfig(min_free_mb=0)


def minute(n: float) -> datetime:
    return TEN + timedelta(minutes=n)


def outcome(at: float = 1, reward: float | None = -1.0, name: str = "d", **changes: Any) -> Outcome:
    return Outcome(decision_id=name, at=minute(at), reward=reward, **changes)


def memory(*told: Outcome, capacity: int = 100) -> OpenDecisions:
    found = OpenDecisions(CONTRACT, capacity=capacity)
    found.decided("d", TEN)
    for each in told:
        found.told(each)
    return found


@pytest.mark.parametrize(
    ("told", "asked", "verdict"),
    [
        ([], outcome(), "new"),
        ([], outcome(name="other"), "unknown"),
        ([], outcome(-0.01), "early"),
        ([], outcome(30), "new"),
        ([], outcome(30.01), "late"),
        ([], outcome(30.01, end="terminated"), "new"),  # its end still counts
        ([], outcome(60, None, end="terminated"), "new"),
        ([], outcome(60.01, None, end="terminated"), "late"),
        # The same content at another time is another outcome if its sender says so, and a repetition if not.
        ([outcome(1)], outcome(1), "repeated"),
        ([outcome(1)], outcome(2), "new"),
        ([outcome(1)], outcome(2, is_timed=False), "repeated"),
        ([outcome(1, is_timed=False)], outcome(2, -2.0, is_timed=False), "new"),
        ([outcome(1, end="terminated")], outcome(2, None, end="terminated"), "repeated"),
        ([outcome(1, end="terminated")], outcome(2, -3.0, end="terminated"), "new"),
        ([outcome(1, None, end="terminated")], outcome(2, None, end="truncated"), "contradicting"),
        ([outcome(1, None, end="terminated")], outcome(2, -1.0, end="truncated"), "contradicting"),
        (
            [outcome(1, None, end="truncated")],
            outcome(2, None, end="truncated", final_observation={"cpu": 0.5}),
            "new",
        ),
        (
            [outcome(1, None, end="truncated", final_observation={"cpu": 0.5})],
            outcome(2, None, end="truncated", final_observation={"cpu": 0.6}),
            "contradicting",
        ),
        (
            [outcome(1, None, end="truncated", final_observation={"cpu": 0.5})],
            outcome(2, None, end="truncated", final_observation={"cpu": 0.5, "zone": None}),
            "repeated",
        ),
        ([outcome(61, None, end="terminated")], outcome(2, None, end="truncated"), "new"),  # the first came too late
    ],
)
def test_what_an_outcome_is(told: list[Outcome], asked: Outcome, verdict: Verdict) -> None:
    assert memory(*told).judge(asked) == verdict


def test_an_end_counts_only_for_the_last_decision() -> None:
    found = memory(outcome(2, None, end="terminated"))
    found.decided("e", TEN)
    asked = [
        (outcome(name="e", end="terminated"), "not_last"),
        (outcome(name="e"), "new"),
        (outcome(61, None, name="e", end="terminated"), "late"),  # ingest ignores this end
        (outcome(3, None, end="terminated"), "repeated"),
    ]
    assert [found.judge(each, is_last=False) for each, _ in asked] == [verdict for _, verdict in asked]
    assert [found.has_ended(name) for name in ("d", "e", "nobody")] == [True, False, False]


def test_an_outcome_that_brings_nothing_cannot_be() -> None:
    with pytest.raises(ValueError, match="'d' brings neither a reward nor an end"):
        outcome(reward=None)


def test_decisions_leave_when_nothing_of_them_can_count_and_are_unknown_then() -> None:
    found = memory()
    found.decided("e", minute(60))
    assert (found.n_open, found.judge(outcome())) == (2, "new")
    found.decided("f", minute(60.1))
    assert (found.n_open, found.judge(outcome())) == (2, "unknown")


def test_a_full_memory_says_that_it_cannot_tell_until_what_it_forgot_is_over() -> None:
    found = memory(capacity=2)
    found.decided("e", minute(1))
    found.decided("f", minute(2))  # d is forgotten
    assert (found.n_open, found.judge(outcome()), found.judge(outcome(name="nobody"))) == (
        2,
        "unverified",
        "unverified",
    )
    found.decided("g", minute(62))
    assert found.judge(outcome(name="nobody")) == "unknown"


# --- after a restart

NAMED = {"decision_id": "ref.id", "timestamp": "when"}


@pytest.mark.parametrize(
    "contract",
    [
        CONTRACT,
        tiny(
            columns=NAMED,
            outcomes={"attribution_window": "30m", "columns": {**NAMED, "terminated": "over", "reward": "gain"}},
            time={"format": "epoch_ms"},
        ),
        tiny(outcomes={"attribution_window": "30m"}, time={"format": "%d.%m.%Y %H:%M:%S.%f", "zone": "Europe/Berlin"}),
    ],
    ids=["plain", "named", "strptime"],
)
@given(
    events=st.lists(
        st.tuples(
            st.integers(0, 7),
            st.integers(0, 90),
            st.sampled_from([None, -1.0, -2.5]),
            st.sampled_from([None, "terminated", "truncated"]),
        ),
        max_size=25,
    )
)
@settings(max_examples=25, deadline=None)
@example(events=[(0, 0, None, None)] * 5 + [(0, 61, None, None)])
def test_a_restarted_server_judges_as_before(
    contract: Contract, events: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("logs")
    found, lines = OpenDecisions(contract, capacity=5), OutcomeLog(contract)
    with DecisionLog(folder / "steps", CONFIG) as steps, DecisionLog(folder / "outcomes", CONFIG) as outcomes:
        for number, (who, at, reward, end) in enumerate(sorted(events, key=lambda e: e[1])):
            if reward is None and end is None:
                steps.append([step_line(contract, f"d{number}", minute(at))])
                found.decided(f"d{number}", minute(at))
                continue
            told = Outcome(f"d{who}", minute(at), reward, end)
            if found.judge(told) == "new":
                outcomes.append([lines.line(told)])
                found.told(told)
    again = remembered(contract, folder / "steps", folder / "outcomes", capacity=5)
    assert again.n_open == found.n_open
    for who in range(25):
        for asked in (
            outcome(70, name=f"d{who}"),
            outcome(70, None, f"d{who}", end="terminated"),
            outcome(20, name=f"d{who}"),
        ):
            # Made anew from the end of a log, it may not know that it saw all: then ingest tells.
            may_be = {found.judge(asked)} | ({"unverified"} if found.judge(asked) == "unknown" else set())
            assert again.judge(asked) in may_be, (who, asked)


def step_line(contract: Contract, name: str, at: datetime) -> bytes:
    when = written_time(contract, at)
    named = {"ref": {"id": name}, "when": when} if contract.columns else {"decision_id": name, "timestamp": when}
    return json.dumps(named).encode()


def test_a_memory_smaller_than_the_log_knows_that_it_forgot(tmp_path: Path) -> None:
    with DecisionLog(tmp_path / "steps", CONFIG) as steps:
        steps.append([step_line(CONTRACT, f"d{n}", minute(n / 100)) for n in range(50)])
    found = remembered(CONTRACT, tmp_path / "steps", tmp_path / "outcomes", capacity=20)
    assert (found.n_open, found.judge(outcome(name="d49")), found.judge(outcome(name="d1"))) == (
        20,
        "new",
        "unverified",
    )
    assert remembered(CONTRACT, tmp_path / "steps", tmp_path, capacity=50).judge(outcome(name="d99")) == "unknown"


def test_logs_without_a_line_remember_nothing(tmp_path: Path) -> None:
    assert remembered(CONTRACT, tmp_path / "steps", tmp_path / "outcomes", capacity=5).judge(outcome()) == "unknown"


@given(
    files=st.lists(st.lists(st.text(max_size=30), max_size=12), min_size=1, max_size=4),
    block=st.integers(1, 60),
    torn=st.binary(max_size=20).filter(lambda b: b"\n" not in b),
)
@settings(max_examples=60, deadline=None)
def test_blocks_from_the_end_hold_every_row_once_newest_first(
    files: list[list[str]], block: int, torn: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, before = tmp_path_factory.mktemp("logs"), log_tails._BLOCK
    for number, texts in enumerate(files):
        lines = b"".join(json.dumps({"t": text}).encode() + b"\n" for text in texts)
        (folder / f"served-20260301-{number:06d}.jsonl").write_bytes(lines + b"{" + torn)
    log_tails._BLOCK = block
    try:
        rows = [row for rows in newest_blocks(folder) for row in rows]
    finally:
        log_tails._BLOCK = before
    assert [row["t"] for row in rows if row.keys() == {"t"}] == [
        t for texts in reversed(files) for t in reversed(texts)
    ]


@given(
    at=st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)).map(lambda at: at.replace(tzinfo=UTC)),
    form=st.sampled_from(["iso", "epoch_s", "epoch_ms", "%Y-%m-%dT%H:%M:%S.%f%z"]),
)
def test_times_are_read_as_they_were_written(at: datetime, form: str) -> None:
    contract = tiny(time={"format": form})
    found = read_time(contract, json.loads(json.dumps(written_time(contract, at))))
    assert found is not None
    assert abs(found - at) <= timedelta(microseconds=1)


@pytest.mark.parametrize("value", [None, "yesterday", True, 1e300, {}])
def test_what_is_no_time_is_none(value: Any) -> None:
    assert read_time(CONTRACT, value) is None
