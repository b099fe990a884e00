"""Ends of episodes that outcomes tell of: which of them counts, what contradicts it, and that none is silent."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datasets.contract import Contract
from datasets.freezing import freeze_snapshot
from datasets.ingest import IngestConfig
from datasets.lake import Lake, open_lake
from datasets.outcome_account import OutcomeAccount
from datasets.outcomes import END_STATUSES, STATUSES, outcomes_status_sql
from datasets.quarantine_replay import replay_quarantine
from datasets.snapshot import open_snapshot
from datasets.snapshot_config import SnapshotConfig
from tests.datasets.builders import NOON, ask, counts_of, lake_at, reasons_of, take_in, tiny, write_rows
from tests.datasets.test_episodes import episodes_of, transitions_of
from tests.datasets.test_outcome_ingest import awaiting_row, outcome_row, outcomes_in, steps_in, waiting
from tests.datasets.test_outcomes import LATER, Seen, awaiting, decision, minute, outcome, seen

pytestmark = pytest.mark.usefixtures("quick_suite")

FINAL = {"cpu": 0.9, "zone": "b", "busy": None, "load": None}


def end(at: float, *, how: str = "terminated", name: str = "d", line: int = 1, cpu: float | None = None) -> Any:
    """A stored outcome that tells of an end and brings no reward."""
    final = None if cpu is None else {"cpu": cpu}
    return outcome(0, at, name, line) | {"reward": None, how: True, "final_observation": final}


def open_step(**changes: Any) -> dict[str, Any]:
    return decision(terminated=False, **changes)


def end_statuses(lake: Seen) -> list[str | None]:
    rows = lake._rows(outcomes_status_sql("steps", "outcomes", lake.contract))
    return [row["end_status"] for row in sorted(rows, key=lambda row: row["source_line"])]


@pytest.mark.parametrize("how", ["terminated", "truncated"])
def test_an_outcome_ends_the_episode_of_its_decision(how: str) -> None:
    with seen(awaiting(), [open_step()], [end(5, how=how)]) as lake:
        found = lake.episodes(minute(61))["e"]
        assert (found[how], found["complete"], found["damage"]) == (True, True, None)
        assert end_statuses(lake) == ["counted"]
        assert lake.statuses() == ["no reward"]


def test_an_end_that_has_not_happened_yet_is_not_seen() -> None:
    rewarded = open_step(reward=-1.0)  # nothing is awaited
    with seen(awaiting(), [rewarded], [end(20)]) as lake:
        assert [lake.episodes(minute(n))["e"]["complete"] for n in (19, 20)] == [False, True]


def test_both_ends_of_the_time_until_idleness_belong_to_it() -> None:
    outcomes = [end(-1, line=1), end(0, line=2), end(60, line=3), end(60.01, line=4)]
    with seen(awaiting(attribution_window="3h"), [open_step()], outcomes) as lake:
        assert end_statuses(lake) == ["early", "counted", "repeated", "late"]
    with seen(awaiting(attribution_window="3h"), [open_step()], outcomes[3:]) as lake:
        assert end_statuses(lake) == ["late"]
        assert lake.episodes()["e"]["terminated"] is False


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("step", "outcomes", "statuses", "ended"),
    [
        pytest.param({}, [end(1), end(2, line=2)], ["counted", "repeated"], "terminated", id="the same again"),
        pytest.param(
            {}, [end(1), end(2, how="truncated", line=2)], ["counted", "contradicting"], "terminated", id="another end"
        ),
        pytest.param(
            {},
            [end(1, how="truncated", line=1), end(1, line=2)],
            ["contradicting", "counted"],
            "terminated",
            id="at one time",
        ),
        pytest.param(
            {},
            [end(1, how="truncated", cpu=0.1), end(2, how="truncated", cpu=0.2, line=2)],
            ["counted", "contradicting"],
            "truncated",
            id="another final observation",
        ),
        pytest.param({"terminated": True}, [end(1)], ["repeated"], "terminated", id="as logged"),
        pytest.param(
            {"truncated": True}, [end(1), end(2, line=2)], ["contradicting"] * 2, "truncated", id="not as logged"
        ),
    ],
)
def test_the_first_end_holds_and_what_contradicts_it_damages_the_episode(
    step: dict[str, Any], outcomes: list[Any], statuses: list[str], ended: str, turned: bool
) -> None:
    steps = [decision(**{"terminated": False, **step})]
    with seen(awaiting(), steps, outcomes[::-1] if turned else outcomes) as lake:
        found = lake.episodes()["e"]
        assert end_statuses(lake) == statuses
        assert found[ended] is True
        told = "how 1 of its steps ended is told in contradicting ways" if "contradicting" in statuses else None
        assert found["damage"] == told
        assert len(lake.rewards()) == (told is None)


def test_an_end_before_the_last_step_damages_the_episode() -> None:
    steps = [open_step(), open_step(name="b", at=1, step=1)]
    with seen(awaiting(), steps, [end(2)]) as lake:
        assert lake.episodes()["e"]["damage"] == "it goes on after its end"


def test_a_final_observation_may_come_after_the_end_itself() -> None:
    outcomes = [end(1, how="truncated"), end(2, how="truncated", cpu=0.3, line=2)]
    with seen(awaiting(), [open_step()], outcomes) as lake:
        assert end_statuses(lake) == ["counted", "repeated"]
        assert lake.episodes()["e"]["damage"] is None


# --- the same by plain Python

NAMES = [f"d{n}" for n in range(6)]


@given(
    steps=st.lists(
        st.tuples(st.sampled_from([None, "terminated", "truncated"]), st.sampled_from([None, 0.1])),
        min_size=len(NAMES),
        max_size=len(NAMES),
    ),
    told=st.lists(
        st.tuples(
            st.sampled_from([*NAMES, "nobody"]),
            st.integers(-1, 4).map(lambda quarter: 20 * quarter),
            st.sampled_from([None, "terminated", "truncated"]),
            st.sampled_from([None, 0.1, 0.2]),
            st.sampled_from([None, -1.0, -2.0]),
        ),
        max_size=18,
    ),
)
@example(steps=[(None, None)] * 5 + [("truncated", 0.1)], told=[("d5", 0, "truncated", 0.2, None)])
@settings(max_examples=20, deadline=None)
def test_ends_by_sql_are_those_by_plain_python(steps: list[Any], told: list[Any]) -> None:
    rows = [
        open_step(name=name, episode_id=name)
        | ({how: True} if how else {})
        | ({"final_observation": {"cpu": cpu}} if cpu is not None and how == "truncated" else {})
        for name, (how, cpu) in zip(NAMES, steps, strict=True)
    ]
    brought = []
    for line, (name, at, how, cpu, reward) in enumerate(told):
        row = (
            end(at, how=how, name=name, line=line, cpu=cpu if how == "truncated" else None)
            if how
            else outcome(0, at, name, line)
        )
        brought.append(row | {"reward": reward if how or reward else -3.0})
    with seen(awaiting(), rows, brought) as lake:
        statuses, found = end_statuses(lake), lake.episodes()
        assert Counter(lake.statuses()).keys() <= set(STATUSES)
        assert {s for s in statuses if s} <= set(END_STATUSES)
        assert [s is not None for s in statuses] == [how is not None for _, _, how, _, _ in told]
    for name, (own, own_cpu) in zip(NAMES, steps, strict=True):
        mine = sorted(
            (at, how == "truncated", -1 if cpu is None or how != "truncated" else cpu, line)
            for line, (whose, at, how, cpu, _) in enumerate(told)
            if whose == name and how and 0 <= at <= 60
        )
        hows = {"truncated" if cut else "terminated" for _, cut, _, _ in mine}
        cpus = {cpu for _, _, cpu, _ in mine if cpu >= 0}
        holds = own or ("truncated" if mine and mine[0][1] else "terminated" if mine else None)
        contradicted = len(hows | ({own} if own else set())) > 1 or len(cpus) > 1
        contradicted |= own == "truncated" and own_cpu is not None and bool(cpus - {own_cpu})
        episode = found[name]
        assert [how for how in ("terminated", "truncated") if episode[how]] == ([holds] if holds else [])
        assert (episode["damage"] is not None) == contradicted
        assert ("contradicting" in [statuses[line] for *_, line in mine]) == contradicted
        assert [statuses[line] for *_, line in mine].count("counted") == (mine != [] and own is None)


# --- on their way into the lake


def test_ends_come_with_rewards_and_without_and_reach_transitions_and_snapshot(tmp_path: Path) -> None:
    lake = lake_at(tmp_path, waiting())
    steps_in(
        lake,
        "s.jsonl",
        *[awaiting_row(i, terminated=False) for i in range(3)],
        *[awaiting_row(i, episode_id="f", decision_id=f"f{i}", terminated=False) for i in range(2)],
    )
    report = outcomes_in(
        lake,
        "o.jsonl",
        outcome_row("d0"),
        {**outcome_row("d2", "10:30"), "terminated": True, "final_observation": FINAL},
        {**outcome_row("f1", "10:20", None), "truncated": True, "final_observation": FINAL},
    )

    assert counts_of(report) == {"in": 3, "lake": 3}
    assert report.account == OutcomeAccount(n_counted=2, n_no_reward=1, n_end_counted=2)
    # Behind a terminated step nothing follows, so its final observation means nothing.
    assert ask(lake, "SELECT decision_id, final_observation.cpu FROM {outcomes} ORDER BY 1") == [
        ("d0", None),
        ("d2", None),
        ("f1", 0.9),
    ]
    rows = {row["decision_id"]: row for row in transitions_of(lake)}
    assert [rows[name]["ends_terminated"] for name in ("d1", "d2", "f0", "f1")] == [False, True, False, False]
    assert [rows[name]["ends_truncated"] for name in ("d1", "d2", "f0", "f1")] == [False, False, False, True]
    assert rows["f1"]["next_observation"] == FINAL
    assert rows["d2"]["next_observation"] is None
    path, _ = freeze_snapshot(lake, SnapshotConfig(), tmp_path / "snapshots", as_of=NOON)
    replay, _ = open_snapshot(path)
    assert sorted(zip(replay.terminated.tolist(), replay.truncated.tolist(), strict=True)) == [
        (False, False),
        (False, False),
        (False, False),
        (False, True),
        (True, False),
    ]
    (cut,) = replay.truncated.nonzero()[0]
    assert replay.observations.columns["cpu"][replay.next_row[cut]] == 0.9


def test_an_end_is_told_by_a_later_file_once_and_again(tmp_path: Path) -> None:
    lake = lake_at(tmp_path, waiting())
    steps_in(lake, "s.jsonl", *[awaiting_row(i, terminated=False) for i in range(3)])
    ended = {**outcome_row("d2", "10:30", None), "terminated": True}
    assert outcomes_in(lake, "a.jsonl", ended).account == OutcomeAccount(n_no_reward=1, n_end_counted=1)
    again = {**outcome_row("d2", "10:40"), "terminated": True}
    assert outcomes_in(lake, "b.jsonl", again).account == OutcomeAccount(n_counted=1, n_end_repeated=1)
    assert episodes_of(lake)["e"]["damage"] is None
    other = {**outcome_row("d2", "10:50", None), "truncated": True}
    report = outcomes_in(lake, "c.jsonl", other)
    assert report.account == OutcomeAccount(n_no_reward=1, n_end_contradicting=1)
    assert episodes_of(lake)["e"]["damage"] == "how 1 of its steps ended is told in contradicting ways"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"reward": None}, "reward is missing, and it tells of no end of an episode"),
        ({"reward": None, "terminated": False}, "reward is missing, and it tells of no end of an episode"),
        ({"terminated": True, "truncated": True}, "terminated and truncated are both true"),
        ({"terminated": "perhaps"}, 'terminated is "perhaps", not true or false'),
        (
            {"truncated": True, "final_observation": {"cpu": 7}},
            "final_observation.cpu is 7.0, above the contract's max 1.0",
        ),
        ({"truncated": True, "final_observation": {"zone": "a"}}, "final_observation.cpu is missing"),
    ],
)
def test_an_end_that_cannot_be_right_is_in_quarantine_with_its_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    lake = lake_at(tmp_path, waiting())
    steps_in(lake, "s.jsonl", awaiting_row(terminated=False))
    report = outcomes_in(lake, "o.jsonl", {**outcome_row(), **changes}, outcome_row("d1"))

    assert counts_of(report) == {"in": 2, "lake": 1, "quarantined": 1}
    assert reasons_of(lake) == [reason]
    assert episodes_of(lake)["e"]["damage"] == "1 of its rows are in quarantine"


def test_ends_stand_under_names_of_their_own(tmp_path: Path) -> None:
    lake = lake_at(tmp_path, waiting(columns={"truncated": "end.cut", "final_observation": "end.last"}))
    steps_in(lake, "s.jsonl", awaiting_row(terminated=False))
    outcomes_in(lake, "o.jsonl", {**outcome_row(reward=None), "end": {"cut": True, "last": FINAL}})

    assert ask(lake, "SELECT truncated, terminated, final_observation.cpu FROM {outcomes}") == [(True, False, 0.9)]


def test_an_outcome_table_grows_with_its_contract(tmp_path: Path) -> None:
    lake = lake_at(tmp_path, waiting())
    steps_in(lake, "s.jsonl", awaiting_row(terminated=False))
    outcomes_in(lake, "o.jsonl", {**outcome_row("d0", reward=None), "truncated": True, "final_observation": FINAL})
    grown = tiny(outcomes=waiting().to_json()["outcomes"], features={"load2": {"type": "numeric", "nullable": True}})
    lake = open_lake(lake.root, grown)
    outcomes_in(
        lake,
        "o2.jsonl",
        {**outcome_row("d9", reward=None), "truncated": True, "final_observation": {**FINAL, "load2": 3}},
    )
    assert ask(lake, "SELECT final_observation.load2 FROM {outcomes} ORDER BY decision_id") == [(None,), (3.0,)]
    assert transitions_of(lake)[0]["next_observation"]["load2"] is None


def test_an_empty_lake_takes_another_contract_and_one_with_outcomes_does_not(tmp_path: Path) -> None:
    other = tiny(
        features={"cpu": {"type": "categorical", "min": None, "max": None}}, outcomes={"attribution_window": "1h"}
    )
    lake = lake_at(tmp_path / "a", waiting())
    assert open_lake(lake.root, other).contract == other
    filled: Lake = lake_at(tmp_path / "b", waiting())
    outcomes_in(filled, "o.jsonl", outcome_row())
    with pytest.raises(Exception, match="no longer fits the lake"):
        open_lake(filled.root, other)


def test_a_hashed_feature_is_hashed_in_the_final_observation_of_an_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OFFLINE_DQN_PRIVACY_KEY", "00" * 32)
    contract: Contract = tiny(
        features={"zone": {"values": None}},
        outcomes={"attribution_window": "1h", "columns": {"final_observation": "last"}},
        privacy={"hash": ["observation.zone"]},
    )
    lake = lake_at(tmp_path, contract)
    good = {**outcome_row("d0", reward=None), "truncated": True, "last": {**FINAL, "zone": "secret"}}
    bad = {**outcome_row("d1", reward="x"), "truncated": True, "last": {**FINAL, "zone": "secret"}}
    take_in(lake, write_rows(tmp_path / "o.jsonl", [good, bad]), kind="outcomes")

    ((zone,),) = ask(lake, "SELECT final_observation.zone FROM {outcomes}")
    ((raw,),) = ask(lake, "SELECT raw FROM {quarantine}")
    assert "secret" not in f"{zone}{raw}"
    assert zone in raw  # equal values stay equal


def test_an_idle_episode_whose_end_came_too_late_stays_as_idleness_ended_it() -> None:
    with seen(awaiting(attribution_window="2h"), [open_step()], [end(90) | {"reward": -1.0}]) as lake:
        assert lake.statuses() == ["counted"]
        assert end_statuses(lake) == ["late"]
        assert lake.episodes(LATER + timedelta(days=1))["e"]["terminated"] is False


def test_an_end_in_quarantine_counts_once_it_is_replayed_under_a_wider_contract(tmp_path: Path) -> None:
    lake = lake_at(tmp_path, waiting())
    steps_in(lake, "s.jsonl", awaiting_row(terminated=False))
    hot = {**outcome_row(reward=None), "truncated": True, "final_observation": {**FINAL, "cpu": 1.5}}
    outcomes_in(lake, "o.jsonl", hot)
    assert episodes_of(lake)["e"]["damage"] == "1 of its rows are in quarantine"

    wide = open_lake(lake.root, tiny(outcomes=waiting().to_json()["outcomes"], features={"cpu": {"max": 2.0}}))
    (report,) = replay_quarantine(wide, IngestConfig(), as_of=NOON, at=NOON)
    assert counts_of(report) == {"in": 1, "lake": 1}  # type: ignore[arg-type]  # it has a batch, too
    found = episodes_of(wide)["e"]
    assert (found["damage"], found["truncated"]) == (None, True)
    assert transitions_of(wide)[0]["next_observation"]["cpu"] == 1.5
