"""Outcomes: which of them make the reward of which decision, and what becomes of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.contract import Contract
from datasets.duck import duck
from datasets.episodes import episodes_sql, lost_rows_sql, transitions_sql
from datasets.outcomes import STATUSES, outcomes_status_sql
from datasets.settings import SettingsError
from datasets.tables import table_columns
from tests.datasets.builders import tiny

TEN = datetime(2024, 5, 1, 10, tzinfo=UTC)
LATER = TEN + timedelta(days=1)
"""Every window has closed and every episode has been idle for longer than the timeout."""


def minute(n: float) -> datetime:
    return TEN + timedelta(minutes=n)


def awaiting(combine: str = "sum", **changes: Any) -> Contract:
    """The tiny contract whose rewards arrive within the hour; -5 where none does."""
    return tiny(outcomes={"attribution_window": "1h", "combine": combine, "default": -5.0, **changes})


def decision(name: str | None = "d", at: float = 0, *, step: int = 0, **changes: Any) -> dict[str, Any]:
    """A stored step of episode e that awaits its outcomes; the first and last one."""
    timestamp = minute(at)
    return {
        "episode_id": "e",
        "step": step,
        "timestamp": timestamp,
        "observation": {"cpu": 0.5},
        "action": "hold",
        "reward": None,
        "terminated": True,
        "truncated": False,
        "cluster": "e",
        "decision_id": name,
        "source": "steps.jsonl",
        "source_line": step + 1,
        "log_date": timestamp.date(),
        **changes,
    }


def outcome(reward: float, at: float, name: str | None = "d", line: int = 1) -> dict[str, Any]:
    """A stored outcome."""
    brought = {"reward": reward, "terminated": False, "truncated": False}
    return {"decision_id": name, "timestamp": minute(at), **brought, "source": "o.jsonl", "source_line": line}


def bad_row(kind: str, *, episode: str | None = None, decision_id: str | None = None, reason: str = "bad") -> Any:
    """A quarantined row."""
    place = {"source": "bad.jsonl", "source_line": 7}
    return {"kind": kind, "episode_id": episode, "decision_id": decision_id, "reason": reason, **place}


@dataclass(frozen=True)
class Seen:
    """A hand-written lake as the queries see it."""

    connection: duckdb.DuckDBPyConnection
    contract: Contract

    def episodes(self, as_of: datetime = LATER) -> dict[str, dict[str, Any]]:
        sql = episodes_sql("steps", "outcomes", "quarantine", self.contract, as_of)
        return {row["episode_id"]: row for row in self._rows(sql)}

    def rewards(self, as_of: datetime = LATER) -> dict[tuple[str, int], float]:
        """Settled reward of each transition, by episode and position."""
        episodes = f"({episodes_sql('steps', 'outcomes', 'quarantine', self.contract, as_of)})"
        rows = self._rows(transitions_sql("steps", "outcomes", episodes, self.contract))
        return {(row["episode_id"], row["position"]): row["reward"] for row in rows}

    def statuses(self) -> list[str]:
        """Status of each outcome, by its line."""
        assert self.contract.outcomes is not None
        sql = outcomes_status_sql("steps", "outcomes", self.contract)
        return [row["status"] for row in sorted(self._rows(sql), key=lambda row: row["source_line"])]

    def lost(self) -> list[str | None]:
        return [r["episode_id"] for r in self._rows(lost_rows_sql("steps", "outcomes", "quarantine", self.contract))]

    def _rows(self, sql: str) -> list[dict[str, Any]]:
        return self.connection.sql(sql).to_arrow_table().to_pylist()  # type: ignore[no-any-return]  # Arrow's


@contextmanager
def seen(
    contract: Contract,
    steps: Iterable[Mapping[str, Any]],
    outcomes: Iterable[Mapping[str, Any]] = (),
    quarantine: Iterable[Mapping[str, Any]] = (),
) -> Iterator[Seen]:
    """The queries' answers to tables with just these rows, in this order."""
    columns = table_columns(contract)
    with duck() as connection:
        for table, rows in (("steps", steps), ("outcomes", outcomes), ("quarantine", quarantine)):
            listed = ", ".join(f"{name} {type_}" for name, type_ in columns[table].items())
            connection.execute(f"CREATE TABLE {table} ({listed})")
            _insert(connection, table, list(rows))
        yield Seen(connection, contract)


def _insert(connection: duckdb.DuckDBPyConnection, table: str, rows: list[Mapping[str, Any]]) -> None:
    if rows:
        # A table gets the columns of its first row, so that one names them all.
        named = dict.fromkeys(name for row in rows for name in row)
        connection.register("rows", pa.Table.from_pylist([{**named, **row} for row in rows]))
        connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM rows")
        connection.unregister("rows")


THREE = (outcome(-1, 10, line=1), outcome(-3, 20, line=2), outcome(-2, 30, line=3))


@pytest.mark.parametrize(
    ("outcomes", "rewards", "statuses"),
    [
        pytest.param(THREE, {"sum": -6, "last": -2, "max": -1}, ["counted"] * 3, id="in the window"),
        # Both ends belong to the window.
        pytest.param(
            (outcome(-1, 0, line=1), outcome(-3, 60, line=2)),
            {"sum": -4, "last": -3, "max": -1},
            ["counted"] * 2,
            id="at its ends",
        ),
        pytest.param(
            (*THREE, outcome(0, -1, line=4)),
            {"sum": -6, "last": -2, "max": -1},
            [*["counted"] * 3, "early"],
            id="early",
        ),
        pytest.param(
            (*THREE, outcome(0, 60.01, line=4)),
            {"sum": -6, "last": -2, "max": -1},
            [*["counted"] * 3, "late"],
            id="late",
        ),
        pytest.param(
            (*THREE, outcome(-3, 20, line=4), outcome(-3, 20, line=5)),
            {"sum": -6, "last": -2, "max": -1},
            [*["counted"] * 3, "duplicate", "duplicate"],
            id="duplicate",
        ),
        # The same reward at another time, or another reward at the same time, is an outcome of its own.
        pytest.param(
            (*THREE, outcome(-2, 31, line=4), outcome(-1.5, 30, line=5)),
            {"sum": -9.5, "last": -2, "max": -1},
            ["counted"] * 5,
            id="no duplicate",
        ),
        pytest.param(
            (outcome(-4, 30, line=1), outcome(-3, 30, line=2), outcome(-9, 29, line=3)),
            {"sum": -16, "last": -3, "max": -3},
            ["counted"] * 3,
            id="two at the last time: the larger",
        ),
        pytest.param(
            (*THREE, outcome(0, 20, "nobody", line=4)),
            {"sum": -6, "last": -2, "max": -1},
            [*["counted"] * 3, "dangling"],
            id="dangling",
        ),
        pytest.param((), {"sum": -5, "last": -5, "max": -5}, [], id="none: the default"),
        pytest.param(
            (outcome(0, -1, line=1), outcome(0, 61, line=2)),
            {"sum": -5, "last": -5, "max": -5},
            ["early", "late"],
            id="none that counts: the default",
        ),
    ],
)
@pytest.mark.parametrize("combine", ["sum", "last", "max"])
@pytest.mark.parametrize("turned", [False, True])
def test_the_outcomes_in_the_window_make_the_reward(
    outcomes: tuple[dict[str, Any], ...], rewards: dict[str, float], statuses: list[str], combine: str, turned: bool
) -> None:

    wide = awaiting(combine)
    wide = wide.model_copy(update={"reward": wide.reward.model_copy(update={"min": -100.0})})
    with seen(wide, [decision()], reversed(outcomes) if turned else outcomes) as lake:
        assert lake.rewards() == {("e", 0): rewards[combine]}
        assert lake.episodes()["e"]["return"] == rewards[combine]
        assert lake.statuses() == statuses


def test_a_step_with_a_reward_of_its_own_is_settled_by_it() -> None:
    outcomes = [outcome(-1, 10)]
    with seen(awaiting(), [decision(reward=-2.0)], outcomes) as lake:
        assert lake.rewards(minute(1)) == {("e", 0): -2.0}  # nothing is awaited, so its episode is complete at once
        assert lake.statuses() == ["already rewarded"]


@pytest.mark.parametrize("combine", ["sum", "last", "max"])
def test_a_window_is_open_up_to_its_last_instant(combine: str) -> None:
    with seen(awaiting(combine), [decision()], [outcome(-1, 10)]) as lake:
        at_its_end, after = lake.episodes(minute(60))["e"], lake.episodes(minute(60) + timedelta(microseconds=1))["e"]

        assert (at_its_end["complete"], at_its_end["n_awaited"], at_its_end["return"]) == (False, 1, None)
        assert (after["complete"], after["n_awaited"], after["return"]) == (True, 0, -1.0)
        assert lake.rewards(minute(60)) == {}


def test_an_episode_waits_for_its_last_window_only() -> None:
    steps = [decision("a", 0, terminated=False), decision("b", 50, step=1)]
    with seen(awaiting(), steps, [outcome(-1, 10, "a"), outcome(-2, 60, "b", line=2)]) as lake:
        assert [lake.episodes(minute(n))["e"]["n_awaited"] for n in (55, 60, 61, 110, 111)] == [2, 2, 1, 1, 0]
        assert lake.rewards(minute(111)) == {("e", 0): -1.0, ("e", 1): -2.0}


def test_an_idle_episode_is_complete_when_it_has_ended_and_no_window_is_open() -> None:
    contract = awaiting(attribution_window="3h")
    with seen(contract, [decision(terminated=False)]) as lake:
        assert [lake.episodes(minute(n))["e"]["complete"] for n in (60, 179, 181)] == [False, False, True]


def test_combined_rewards_outside_the_contracts_range_damage_the_episode_once_the_window_has_closed() -> None:
    with seen(awaiting("sum"), [decision()], [outcome(-6, 10), outcome(-7, 20, line=2)]) as lake:
        assert lake.episodes(minute(30))["e"]["damage"] is None
        assert lake.episodes()["e"]["damage"] == "the outcomes of 1 steps make rewards outside the contract's range"
        assert lake.rewards() == {}
    with seen(awaiting("last"), [decision()], [outcome(-6, 10), outcome(-7, 20, line=2)]) as lake:
        assert lake.rewards() == {("e", 0): -7.0}
    with seen(awaiting("sum"), [decision()], [outcome(-60, 10), outcome(59, 20, line=2)]) as lake:
        assert lake.rewards() == {("e", 0): -1.0}  # single outcomes may lie anywhere


def test_a_sum_beyond_all_numbers_damages_the_episode_where_the_contract_has_no_range() -> None:
    contract = tiny(outcomes={"attribution_window": "1h"}, reward=None)
    with seen(contract, [decision()], [outcome(1.7e308, 10), outcome(1.7e308, 20, line=2)]) as lake:
        assert "outside the contract's range" in lake.episodes()["e"]["damage"]


def test_a_quarantined_outcome_damages_the_episode_that_awaits_it() -> None:
    steps = [decision("a"), decision("b", episode_id="f"), decision("c", episode_id="g", reward=-1.0)]
    lost = [bad_row("outcomes", decision_id=name) for name in ("a", "c", "nobody", None)]
    with seen(awaiting(), steps, [], lost) as lake:
        damage = {name: row["damage"] for name, row in lake.episodes().items()}

        assert damage == {"e": "1 of its rows are in quarantine", "f": None, "g": None}
        assert sorted(lake.lost(), key=str) == [None, "e"]  # the one that names no decision may belong to any episode


def test_a_rejected_outcome_that_was_read_again_is_no_longer_missing() -> None:
    lost = [bad_row("outcomes", decision_id="d", reason="rejected by somebody; bad")]
    again = outcome(-1, 10) | {"source": "bad.jsonl", "source_line": 7}
    with seen(awaiting(), [decision()], [], lost) as lake:
        assert lake.episodes()["e"]["damage"] == "1 of its rows are in quarantine"
    with seen(awaiting(), [decision()], [again], lost) as lake:
        assert lake.rewards() == {("e", 0): -1.0}


def test_rows_of_both_kinds_in_quarantine_are_told_apart() -> None:
    lost = [bad_row("steps", episode="e", decision_id="d"), bad_row("steps", decision_id="d")]
    with seen(awaiting(), [decision()], [], lost) as lake:
        assert sorted(lake.lost(), key=str) == [None, "e"]


def test_a_one_step_log_awaits_its_outcomes_too() -> None:
    contract = tiny(episodes={"kind": "one_step"}, outcomes={"attribution_window": "1h", "default": -5.0})
    steps = [decision("a", episode_id="a"), decision("b", episode_id="b")]
    with seen(contract, steps, [outcome(-1, 10, "a")]) as lake:
        assert {name: row["complete"] for name, row in lake.episodes(minute(30)).items()} == {"a": False, "b": False}
        assert lake.rewards() == {("a", 0): -1.0, ("b", 0): -5.0}


def test_a_default_outside_the_range_of_rewards_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"outcomes\.default is 1\.0, outside the rewards from -10\.0 to 0\.0"):
        awaiting(default=1.0)


def test_without_outcome_rules_the_reward_is_the_steps_own() -> None:
    with seen(tiny(), [decision(reward=-2.0)], [outcome(-1, 10)]) as lake:
        assert lake.rewards() == {("e", 0): -2.0}
        assert lake.episodes()["e"]["n_awaited"] == 0


def test_steps_that_took_the_default_are_counted() -> None:
    steps = [decision("a", terminated=False), decision("b", 1, step=1, terminated=False), decision("c", 2, step=2)]
    with seen(awaiting(), steps, [outcome(-1, 10, "a")]) as lake:
        assert lake.episodes(minute(61))["e"]["n_defaulted"] == 0
        assert lake.episodes(minute(62))["e"]["n_defaulted"] == 1
        assert lake.episodes()["e"]["n_defaulted"] == 2


@pytest.mark.parametrize(("combine", "reward"), [("sum", 5.0), ("last", 3.0), ("max", 3.0)])
def test_the_worked_example_of_the_page_is_right(combine: str, reward: float) -> None:
    contract = tiny(outcomes={"attribution_window": "1h", "combine": combine, "default": 0.0}, reward=None)
    told = [("d1", -1, 5), ("d1", 20, 2), ("d1", 20, 2), ("d1", 60, 3), ("d1", 61, 9), ("d7", 30, 1)]
    rows = [outcome(reward, at, name, line) for line, (name, at, reward) in enumerate(told)]
    with seen(contract, [decision("d1")], rows) as lake:
        assert lake.statuses() == ["early", "counted", "duplicate", "counted", "late", "dangling"]
        assert lake.episodes(minute(60))["e"]["n_awaited"] == 1
        assert lake.rewards() == {("e", 0): reward}


# --- the same by plain Python

WINDOW = timedelta(hours=1)
NAMES = [f"d{n}" for n in range(6)]


def settled(step: Mapping[str, Any], outcomes: Iterable[Mapping[str, Any]], combine: str, as_of: datetime) -> Any:
    """The reward of a step, None while its outcomes may still come."""
    if step["reward"] is not None:
        return step["reward"]
    if as_of <= step["timestamp"] + WINDOW:
        return None
    found = {
        (o["timestamp"], o["reward"])
        for o in outcomes
        if o["decision_id"] == step["decision_id"] and step["timestamp"] <= o["timestamp"] <= step["timestamp"] + WINDOW
    }
    if not found:
        return -5.0
    rewards = [reward for _, reward in sorted(found)]
    return {"sum": sum(rewards), "last": rewards[-1], "max": max(rewards)}[combine]


def status(outcome: Mapping[str, Any], earlier: Iterable[Mapping[str, Any]], steps: Iterable[Mapping[str, Any]]) -> str:
    key = ("decision_id", "timestamp", "reward")
    if any(all(outcome[k] == other[k] for k in key) for other in earlier):
        return "duplicate"
    step = next((s for s in steps if s["decision_id"] == outcome["decision_id"]), None)
    if step is None:
        return "dangling"
    if step["reward"] is not None:
        return "already rewarded"
    if outcome["timestamp"] < step["timestamp"]:
        return "early"
    return "late" if outcome["timestamp"] > step["timestamp"] + WINDOW else "counted"


STEPS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from("ef"), st.integers(0, 90), st.sampled_from([None, None, -1.0])),
    max_size=5,
    unique_by=lambda step: step[0],
)
OUTCOMES = st.lists(
    st.tuples(st.sampled_from([*NAMES, "x"]), st.integers(-5, 160), st.sampled_from([0.0, -0.1, -0.2, -0.7])),
    max_size=12,
)


@given(STEPS, OUTCOMES, st.sampled_from(["sum", "last", "max"]), st.integers(0, 300), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_result_is_that_of_plain_python_whatever_the_order_of_arrival(
    drawn_steps: list[Any], drawn_outcomes: list[Any], combine: str, now: int, random: Any
) -> None:
    steps: list[dict[str, Any]] = []
    for name, episode, at, reward in sorted(drawn_steps, key=lambda step: step[2]):
        n = sum(step["episode_id"] == episode for step in steps)
        steps.append(decision(name, at, step=n, episode_id=episode, cluster=episode, reward=reward, terminated=False))
    outcomes = [outcome(reward, at, name, line) for line, (name, at, reward) in enumerate(drawn_outcomes)]
    as_of = minute(now)
    rewards = {(step["episode_id"], step["step"]): settled(step, outcomes, combine, as_of) for step in reversed(steps)}
    shuffled_steps, shuffled_outcomes = random.sample(steps, len(steps)), random.sample(outcomes, len(outcomes))
    with seen(awaiting(combine), shuffled_steps, shuffled_outcomes) as lake:
        for name, episode in lake.episodes(as_of).items():
            own = [reward for (e, _), reward in sorted(rewards.items()) if e == name]
            end = max(step["timestamp"] for step in steps if step["episode_id"] == name)
            assert episode["n_awaited"] == own.count(None)
            assert episode["complete"] == (as_of >= end + timedelta(hours=1) and None not in own)
            assert episode["return"] == (None if None in own else pytest.approx(sum(own)))
            assert episode["damage"] is None
            assert not episode["complete"] or own == [  # to the bit, so that snapshots have equal digests
                reward for (e, _), reward in sorted(lake.rewards(as_of).items()) if e == name
            ]
        assert {step["episode_id"] for step in steps} == set(lake.episodes(as_of))
        expected = Counter(status(o, outcomes[:n], steps) for n, o in enumerate(outcomes))
        assert Counter(lake.statuses()) == expected
        assert set(expected) <= set(STATUSES)
