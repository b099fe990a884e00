"""From log rows to canonical steps or reasons, in every format and for every way a row can be wrong."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from datasets.canonical import canonical_sql
from datasets.consumed import History, look_for_unread
from datasets.contract import Contract
from datasets.duck import duck
from datasets.layouts import step_layout, unmapped_columns
from datasets.logfiles import LINE, PROBLEM, RAW, find_log_files, read_chunks
from datasets.settings import SettingsError
from tests.datasets.builders import merged, step_row, tiny, write_rows

ESTIMATED = tiny(behavior={"propensity": "estimated"})


def judged(contract: Contract, path: Path) -> list[dict[str, Any]]:
    """Canonical rows of a file, good and bad, in its order."""
    (log,) = find_log_files([path])
    unread = look_for_unread(log, History())
    assert unread is not None
    rows: list[dict[str, Any]] = []
    with duck() as connection:
        for chunk in read_chunks(log, unread):
            columns = (
                None if log.format == "jsonl" else [c for c in chunk.column_names if c not in {LINE, RAW, PROBLEM}]
            )
            sql = canonical_sql(step_layout(contract, textual=log.format == "csv"), columns)
            connection.register("chunk", chunk)
            # A time that is refused may be none that Python has.
            shown = f"SELECT * REPLACE (CASE WHEN reason IS NULL THEN timestamp END AS timestamp) FROM ({sql})"
            rows += connection.sql(shown).to_arrow_table().to_pylist()
    return rows


def reasons(
    folder: Path, rows: Iterable[Mapping[str, Any] | str], contract: Contract | None = None
) -> list[str | None]:
    return [row["reason"] for row in judged(contract or tiny(), write_rows(folder / "log.jsonl", rows))]


def reason(folder: Path, row: Mapping[str, Any] | str, contract: Contract | None = None) -> str | None:
    (only,) = reasons(folder, [row], contract)
    return only


def written_raw(field: str, text: str) -> str:
    """A good row with one field written as the given JSON text."""
    row, n_replaced = re.subn(rf'"{field}": [^,}}]+', lambda _: f'"{field}": {text}', json.dumps(step_row()))
    assert n_replaced == 1
    return row


def test_a_row_that_fits_becomes_the_step_that_was_logged(tmp_path: Path) -> None:
    (row,) = judged(tiny(), write_rows(tmp_path / "a.jsonl", [step_row(decision_id=7, policy_version="v1")]))

    assert row["reason"] is None
    assert row["raw"] is None
    assert row["timestamp"] == datetime(2024, 5, 1, 10, tzinfo=UTC)
    assert row["observation"] == {"cpu": 0.5, "zone": "a", "busy": True, "load": [0.0, 1.0]}
    assert (row["episode_id"], row["step"], row["action"], row["reward"]) == ("e", 0, "hold", -1.0)
    assert (row["terminated"], row["truncated"], row["final_observation"]) == (False, False, None)
    assert (row["behavior_prob"], row["behavior_probs"], row["available_actions"]) == (0.5, None, None)
    assert (row["cluster"], row["decision_id"], row["policy_version"]) == ("e", "7", "v1")


BAD_ROWS: list[tuple[Mapping[str, Any] | str, str]] = [
    ("nonsense", "the line is not valid JSON"),
    ('{"episode_id": "e", "step": 0', "the line is not valid JSON"),
    (r'{"episode_id": "\ud800"}', "the line is not valid JSON"),
    ("[1, 2]", "the line is no JSON object"),
    ("3", "the line is no JSON object"),
    (written_raw("reward", '-1.0, "reward": -2.0'), "the JSON object has a key twice"),
    (written_raw("cpu", '0.5, "cpu": 0.6'), "the JSON object has a key twice"),
    (step_row(episode_id=None), "episode_id is missing"),
    (step_row(episode_id=""), "episode_id is empty"),
    (step_row(episode_id=["e"]), 'episode_id is ["e"], not a label'),
    (step_row(timestamp=None), "timestamp is missing"),
    (step_row(timestamp="2024-05-01 10:00:00"), 'timestamp "2024-05-01 10:00:00" has no time zone; set time.zone'),
    (
        step_row(timestamp="2024-13-01T10:00:00Z"),
        'timestamp is "2024-13-01T10:00:00Z", not a time of the form ISO 8601',
    ),
    (step_row(timestamp=1714557600), "timestamp 1714557600 has no time zone"),
    (step_row(timestamp="infinity"), 'timestamp "infinity" has no time zone'),
    (step_row(timestamp="20240-05-01T10:00:00Z"), ", outside the years 1 to 9999; is time.format right?"),
    (step_row(timestamp="0000-05-01T10:00:00Z"), "outside the years 1 to 9999"),
    (step_row(observation=None), "observation.cpu is missing"),
    (step_row(observation=5), "observation.cpu is missing"),
    (step_row(observation={"cpu": None}), "observation.cpu is missing"),
    (step_row(observation={"cpu": "0.5"}), 'observation.cpu is "0.5", not a number'),
    (step_row(observation={"cpu": True}), "observation.cpu is true, not a number"),
    (step_row(observation={"cpu": 1.5}), "observation.cpu is 1.5, above the contract's max 1.0"),
    (step_row(observation={"cpu": -0.5}), "observation.cpu is -0.5, below the contract's min 0.0"),
    (written_raw("cpu", "NaN"), "observation.cpu is NaN, not finite"),
    (written_raw("cpu", "1e400"), "observation.cpu is 1e400, not finite"),
    (written_raw("cpu", "-Infinity"), "observation.cpu is -Infinity, not finite"),
    (step_row(observation={"zone": {"x": 1}}), 'observation.zone is {"x":1}, not a label'),
    (step_row(observation={"busy": 1}), "observation.busy is 1, not true or false"),
    (step_row(observation={"load": [1.0]}), "observation.load has 1 numbers instead of 2"),
    (step_row(observation={"load": [1.0, None]}), "observation.load is [1.0,null], not a list of numbers"),
    (step_row(observation={"load": [1.0, "2"]}), 'observation.load is [1.0,"2"], not a list of numbers'),
    (step_row(observation={"load": 3}), "observation.load is 3, not a list of numbers"),
    (json.dumps(step_row()).replace("[0.0, 1.0]", "[0.0, NaN]"), "observation.load has a number that is not finite"),
    (step_row(action=None), "action is missing"),
    (step_row(action="jump"), 'action is "jump", none of the contract’s actions (down, hold, up)'),
    (step_row(action="Hold"), 'action is "Hold", none of the contract’s actions'),
    (step_row(action=1), "action is 1, none of the contract’s actions"),
    (step_row(reward=None), "reward is missing"),
    (step_row(reward="-1"), 'reward is "-1", not a number'),
    (step_row(reward=-11), "reward is -11.0, below the contract's min -10.0"),
    (step_row(reward=0.1), "reward is 0.1, above the contract's max 0.0"),
    (written_raw("reward", "NaN"), "reward is NaN, not finite"),
    (written_raw("reward", "-1e400"), "reward is -1e400, not finite"),
    (step_row(step=-1), "step is -1.0, below"),
    (step_row(step=1.7), "step is 1.7, not a whole number"),
    (step_row(step="1"), 'step is "1", not a number'),
    (step_row(step=2**31), "step is 2147483648.0, above"),
    (step_row(terminated="yes"), 'terminated is "yes", not true or false'),
    (step_row(terminated=1), "terminated is 1, not true or false"),
    (step_row(terminated=True, truncated=True), "terminated and truncated are both true"),
    (step_row(behavior_prob=None), "behavior_prob is missing"),
    (step_row(behavior_prob=0), "behavior_prob is 0.0, and the probability of a logged action is above 0"),
    (step_row(behavior_prob=-0.1), "behavior_prob is -0.1, and the probability"),
    (step_row(behavior_prob=1.5), "behavior_prob is 1.5, above"),
    (written_raw("behavior_prob", "NaN"), "behavior_prob is NaN, not finite"),
    (step_row(behavior_prob="0.5"), 'behavior_prob is "0.5", not a number'),
    (step_row(available_actions="hold"), 'available_actions is "hold", not a list of labels'),
    (step_row(available_actions=["hold", "jump"]), 'available_actions ["hold","jump"] names an action that is not in'),
    (step_row(available_actions=["up"]), 'action hold is not among the available actions ["up"]'),
    (step_row(available_actions=[]), "action hold is not among the available actions []"),
    (step_row(available_actions=["hold", None]), 'available_actions is ["hold",null], not a list of labels'),
    (step_row(behavior_probs=[0.5, 0.5]), "behavior_probs has 2 entries for 3 actions"),
    (step_row(behavior_probs=[0.5, 0.5, 0.5]), "behavior_probs [0.5,0.5,0.5] are no probabilities that sum to 1"),
    (step_row(behavior_probs=[-0.5, 0.5, 1.0]), "are no probabilities that sum to 1"),
    (step_row(behavior_probs=[0.1, 0.6, 0.3]), "behavior_probs and behavior_prob disagree on the logged action"),
    (
        step_row(behavior_probs=[0.5, 0.0, 0.5], behavior_prob=None),
        "behavior_probs [0.5,0.0,0.5] give the logged action no",
    ),
    (step_row(behavior_probs=[0.5, None, 0.5]), "behavior_probs is [0.5,null,0.5], not a list of numbers"),
    (step_row(decision_id={"a": 1}), 'decision_id is {"a":1}, not a label'),
    (step_row(truncated=True, final_observation={"zone": "a"}), "final_observation.cpu is missing"),
    (step_row(truncated=True, final_observation={"cpu": 7}), "final_observation.cpu is 7.0, above"),
]


def test_each_way_to_be_wrong_has_its_reason_and_keeps_the_raw_text(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [row for row, _ in BAD_ROWS])
    rows = judged(tiny(), path)

    assert len(rows) == len(BAD_ROWS)
    for found, (row, wanted), line in zip(rows, BAD_ROWS, path.read_text().splitlines(), strict=True):
        assert found["reason"] is not None, row
        assert wanted in found["reason"]
        assert found["raw"] == line


def test_a_row_with_several_faults_names_all(tmp_path: Path) -> None:
    found = reason(tmp_path, step_row(reward=1, action="jump", step=-1))

    assert found is not None
    assert [part.split(" is ")[0] for part in found.split("; ")] == ["step", "action", "reward"]


def test_nulls_count_as_missing_and_missing_flags_as_false(tmp_path: Path) -> None:
    row = step_row() | {"terminated": None, "step": None, "available_actions": None, "decision_id": None}
    row["observation"] = {"cpu": 0.5, "zone": None, "busy": None}
    (found,) = judged(tiny(), write_rows(tmp_path / "a.jsonl", [row]))

    assert found["reason"] is None
    assert (found["step"], found["terminated"]) == (None, False)
    assert found["observation"] == {"cpu": 0.5, "zone": None, "busy": None, "load": None}


def test_values_at_the_limits_fit(tmp_path: Path) -> None:
    rows = [
        step_row(observation={"cpu": 0}, reward=-10, behavior_prob=1),
        step_row(observation={"cpu": 1}, reward=0, step=2**31 - 1),
        step_row(step=3.0),
        step_row(observation={"zone": "never seen"}),
    ]
    assert reasons(tmp_path, rows) == [None] * 4


def test_numbers_match_labels_by_their_text(tmp_path: Path) -> None:
    contract = tiny(actions={"names": ["0", "1"], "safe": None})
    (row,) = judged(contract, write_rows(tmp_path / "a.jsonl", [step_row(episode_id=17, action=1)]))

    assert (row["reason"], row["episode_id"], row["action"]) == (None, "17", "1")


def test_the_list_of_probabilities_alone_is_enough(tmp_path: Path) -> None:
    row = step_row(behavior_prob=None, behavior_probs=[0.2, 0.7, 0.1])
    (found,) = judged(tiny(), write_rows(tmp_path / "a.jsonl", [row]))

    assert (found["reason"], found["behavior_prob"], found["behavior_probs"]) == (None, 0.7, [0.2, 0.7, 0.1])


def test_propensity_may_lack_where_it_is_estimated_but_not_be_wrong(tmp_path: Path) -> None:
    assert reason(tmp_path, step_row(behavior_prob=None), ESTIMATED) is None
    assert reason(tmp_path, step_row(behavior_prob=0), ESTIMATED) is not None


def test_final_observation_counts_on_a_truncated_step_only(tmp_path: Path) -> None:
    final = {"cpu": 0.25, "zone": "b"}
    rows = judged(
        tiny(),
        write_rows(
            tmp_path / "a.jsonl",
            [
                step_row(truncated=True, final_observation=final),
                step_row(terminated=True, final_observation=final),
                step_row(final_observation={"cpu": "garbage"}),
                step_row(truncated=True),
            ],
        ),
    )
    assert [row["reason"] for row in rows] == [None] * 4
    assert rows[0]["final_observation"] == {"cpu": 0.25, "zone": "b", "busy": None, "load": None}
    assert [row["final_observation"] for row in rows[1:]] == [None] * 3


def test_columns_are_mapped_also_into_nested_fields(tmp_path: Path) -> None:
    contract = tiny(columns={"observation.cpu": "metrics.host.cpu", "reward": "score", "final_observation": "last"})
    row = step_row(observation={"cpu": None}, reward=None) | {"metrics": {"host": {"cpu": 0.25}}, "score": -3}
    row |= {"truncated": True, "last": {"cpu": 0.75}}
    (found,) = judged(contract, write_rows(tmp_path / "a.jsonl", [row]))

    assert found["reason"] is None
    assert (found["observation"]["cpu"], found["reward"]) == (0.25, -3.0)
    assert found["final_observation"]["cpu"] == 0.75


def test_a_key_that_stands_twice_in_a_mapped_object_is_found(tmp_path: Path) -> None:
    contract = tiny(columns={"observation.cpu": "metrics.host.cpu"})
    row = json.dumps(step_row())[:-1] + ', "metrics": {"host": {"cpu": 0.1, "cpu": 0.2}}}'

    assert reason(tmp_path, row, contract) == "the JSON object has a key twice"


def test_features_may_stand_as_columns_of_their_own(tmp_path: Path) -> None:
    row = step_row(observation=None) | {"cpu": 0.25}
    (found,) = judged(tiny(), write_rows(tmp_path / "a.jsonl", [row]))

    assert (found["reason"], found["observation"]["cpu"]) == (None, 0.25)


@pytest.mark.parametrize("name", ["reward", "Reward", "action", "decision_id"])
def test_a_feature_named_like_a_step_column_is_read_from_the_observation_only(tmp_path: Path, name: str) -> None:
    contract = tiny(features={name: {"type": "numeric", "nullable": True}})
    rows = [step_row(), step_row(observation={name: 4})]
    found = judged(contract, write_rows(tmp_path / "a.jsonl", rows))

    assert [row["reason"] for row in found] == [None, None]
    assert [row["observation"][name] for row in found] == [None, 4.0]


def test_contradicting_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"reads 'reward\.x' inside 'reward' and also 'reward' itself"):
        reason(tmp_path, step_row(), tiny(columns={"observation.cpu": "reward.x"}))
    with pytest.raises(SettingsError, match="differ in case only"):
        reason(tmp_path, step_row(), tiny(columns={"observation.cpu": "R", "reward": "r"}))


def test_unmapped_columns_are_those_that_nothing_reads() -> None:
    contract = tiny(columns={"observation.cpu": "metrics.cpu"})

    assert unmapped_columns(
        step_layout(contract, textual=False), ["reward", "metrics", "observation", "note", "x"]
    ) == ["note", "x"]


def test_names_with_quotes_are_only_names(tmp_path: Path) -> None:
    evil = "hold'); DROP TABLE rows; --"
    contract = tiny(
        actions={"names": ["down", "hold", evil, 'say "x"']}, columns={"reward": "re'ward", "decision_id": "id -- x"}
    )
    rows = [step_row(action=evil, reward=None) | {"re'ward": -2}, step_row(action='say "x"') | {"re'ward": -2}]
    found = judged(contract, write_rows(tmp_path / "a.jsonl", rows))

    assert [row["reason"] for row in found] == [None, None]
    assert [row["action"] for row in found] == [evil, 'say "x"']


def test_feature_names_with_dashes_and_keywords(tmp_path: Path) -> None:
    contract = tiny(features={n: {"type": "numeric", "nullable": True} for n in ("request-rate", "select", "order")})
    row = step_row(observation={"request-rate": 1, "select": 2, "order": 3})
    (found,) = judged(contract, write_rows(tmp_path / "a.jsonl", [row]))

    assert found["reason"] is None
    assert [found["observation"][n] for n in ("request-rate", "select", "order")] == [1, 2, 3]


# --- time


@pytest.mark.parametrize(
    ("time", "value", "wanted"),
    [
        ({}, "2024-05-01T10:00:00+02:00", "2024-05-01T08:00:00+00:00"),
        ({}, "2024-05-01T10:00:00.123456Z", "2024-05-01T10:00:00.123456+00:00"),
        ({}, "2024-05-01 10:00-0330", "2024-05-01T13:30:00+00:00"),
        ({"zone": "Europe/Berlin"}, "2024-05-01T10:00:00", "2024-05-01T08:00:00+00:00"),
        ({"zone": "Europe/Berlin"}, "2024-05-01T10:00:00Z", "2024-05-01T10:00:00+00:00"),
        ({"zone": "UTC"}, "2024-05-01", "2024-05-01T00:00:00+00:00"),
        ({"format": "epoch_s"}, 1714557600, "2024-05-01T10:00:00+00:00"),
        ({"format": "epoch_s"}, 1714557600.25, "2024-05-01T10:00:00.250000+00:00"),
        ({"format": "epoch_ms"}, 1714557600123, "2024-05-01T10:00:00.123000+00:00"),
        ({"format": "%Y-%m", "zone": "UTC"}, "2024-05", "2024-05-01T00:00:00+00:00"),
        ({"format": "%d/%m/%Y %H:%M", "zone": "Asia/Kolkata"}, "01/05/2024 10:00", "2024-05-01T04:30:00+00:00"),
        ({"format": "%Y-%m-%d %H:%M %z"}, "2024-05-01 10:00 +0200", "2024-05-01T08:00:00+00:00"),
    ],
)
def test_times_are_instants(tmp_path: Path, time: dict[str, Any], value: object, wanted: str) -> None:
    (row,) = judged(tiny(time=time), write_rows(tmp_path / "a.jsonl", [step_row(timestamp=value)]))

    assert row["reason"] is None
    assert row["timestamp"].isoformat() == wanted


@pytest.mark.parametrize(
    ("time", "value", "wanted"),
    [
        ({"format": "%Y-%m"}, "2024-05", 'timestamp "2024-05" has no time zone; set time.zone in the contract'),
        ({"format": "%Y-%m", "zone": "UTC"}, "05.2024", 'timestamp is "05.2024", not a time of the form %Y-%m'),
        ({"format": "epoch_s"}, "1714557600", 'timestamp is "1714557600", not a time of the form epoch_s'),
        ({"format": "epoch_s"}, 1714557600123, "outside the years 1 to 9999; is time.format right?"),
        ({"format": "epoch_ms"}, 1e300, "not a time of the form epoch_ms"),
        ({"format": "epoch_s"}, "2024-05-01T10:00:00Z", "not a time of the form epoch_s"),
        ({"zone": "UTC"}, "infinity", "not a time of the form ISO 8601"),
        ({"zone": "UTC"}, "yesterday", 'timestamp is "yesterday", not a time of the form ISO 8601'),
    ],
)
def test_what_is_no_instant_is_refused(tmp_path: Path, time: dict[str, Any], value: object, wanted: str) -> None:
    found = reason(tmp_path, step_row(timestamp=value), tiny(time=time))

    assert found is not None
    assert wanted in found


# --- one step


def test_one_step_rows_need_neither_id_nor_time_and_end(tmp_path: Path) -> None:
    contract = tiny(episodes={"kind": "one_step"})
    row = step_row(episode_id=None, timestamp=None, step=None, terminated=None, truncated=None)
    one, two = judged(contract, write_rows(tmp_path / "a.jsonl", [row, row]))

    assert (one["reason"], one["step"], one["timestamp"], one["terminated"]) == (None, 0, None, True)
    assert one["episode_id"] is two["episode_id"] is None  # their place in the file will name them
    assert one["cluster"] == one["episode_id"]


def test_one_step_rows_are_named_by_their_decision_where_it_is_logged(tmp_path: Path) -> None:
    contract = tiny(episodes={"kind": "one_step"})
    (row,) = judged(contract, write_rows(tmp_path / "a.jsonl", [step_row(episode_id=None, decision_id="d-1")]))

    assert row["episode_id"] == "d-1"


def test_cluster_comes_from_its_column_and_is_required(tmp_path: Path) -> None:
    contract = tiny(episodes={"cluster": "service"})
    rows = judged(contract, write_rows(tmp_path / "a.jsonl", [step_row(service="s"), step_row(), step_row(service=[])]))

    assert rows[0]["cluster"] == "s"
    assert [row["reason"] for row in rows] == [None, "cluster is missing", "service is [], not a label"]


# --- CSV, Parquet, Arrow

FLAT = {
    "episode_id": "e",
    "step": 0,
    "timestamp": "2024-05-01T10:00:00Z",
    "cpu": 0.5,
    "zone": "a",
    "busy": "true",
    "load": "[0.0, 1.0]",
    "action": "hold",
    "reward": -1.0,
    "terminated": "false",
    "behavior_prob": 0.5,
}


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_csv_is_read_by_value(tmp_path: Path) -> None:
    (row,) = judged(tiny(), write_csv(tmp_path / "a.csv", [FLAT]))

    assert row["reason"] is None
    assert row["observation"] == {"cpu": 0.5, "zone": "a", "busy": True, "load": [0.0, 1.0]}
    assert (row["step"], row["reward"], row["terminated"], row["behavior_prob"]) == (0, -1.0, False, 0.5)


BAD_CSV: list[tuple[dict[str, Any], str]] = [
    ({"cpu": "half"}, 'observation.cpu is "half", not a number'),
    ({"cpu": ""}, "observation.cpu is missing"),
    ({"cpu": "nan"}, 'observation.cpu is "nan", not finite'),
    ({"cpu": "1e400"}, 'observation.cpu is "1e400", not finite'),
    ({"step": "1.7"}, "step is 1.7, not a whole number"),
    ({"busy": "perhaps"}, 'observation.busy is "perhaps", not true or false'),
    ({"load": "0 1"}, 'observation.load is "0 1", not a list of numbers'),
    ({"load": "[1]"}, "observation.load has 1 numbers instead of 2"),
    ({"action": "jump"}, 'action is "jump", none of'),
    ({"behavior_prob": "0"}, "behavior_prob is 0.0, and the probability"),
    ({"timestamp": "2024-05-01"}, 'timestamp "2024-05-01" has no time zone'),
]


def test_csv_values_have_the_same_rules(tmp_path: Path) -> None:
    rows = judged(tiny(), write_csv(tmp_path / "a.csv", [FLAT | changes for changes, _ in BAD_CSV]))

    for row, (changes, wanted) in zip(rows, BAD_CSV, strict=True):
        assert row["reason"] is not None, changes
        assert wanted in row["reason"]


def test_csv_without_a_required_column_says_so_for_each_row(tmp_path: Path) -> None:
    rows = [{k: v for k, v in FLAT.items() if k != "reward"}] * 2

    assert [r["reason"] for r in judged(tiny(), write_csv(tmp_path / "a.csv", rows))] == ["reward is missing"] * 2


def test_csv_columns_named_like_our_own_do_no_harm(tmp_path: Path) -> None:
    row = FLAT | {
        "problem": "disk",
        "raw": "x",
        "reason": "y",
        "__line": "77",
        "__raw": "z",
        "document": "d",
        "chunk": 1,
    }
    (found,) = judged(tiny(), write_csv(tmp_path / "a.csv", [row]))

    assert (found["reason"], found["source_line"]) == (None, 2)


def test_csv_columns_with_dots_reach_the_observation(tmp_path: Path) -> None:
    row = {k: v for k, v in FLAT.items() if k != "cpu"} | {"observation.cpu": 0.25}
    (found,) = judged(tiny(), write_csv(tmp_path / "a.csv", [row]))

    assert (found["reason"], found["observation"]["cpu"]) == (None, 0.25)


def typed_table(n: int = 2, **changes: pa.Array) -> pa.Table:
    stamp = datetime(2024, 5, 1, 10, tzinfo=UTC)
    columns = {
        "episode_id": pa.array(["e"] * n),
        "step": pa.array(range(n), pa.uint8()),
        "timestamp": pa.array([stamp] * n, pa.timestamp("ns", "UTC")),
        "observation": pa.array([{"cpu": 0.5, "zone": "a", "busy": True, "load": [0.0, 1.0]}] * n),
        "action": pa.array(["hold"] * n).dictionary_encode(),
        "reward": pa.array([-1] * n, pa.int32()),
        "terminated": pa.array([False] * n),
        "behavior_prob": pa.array([0.5] * n, pa.float32()),
    }
    return pa.table(columns | changes)


def written(path: Path, table: pa.Table) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(table, path)
    else:
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table)
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.feather", "a.arrow"])
def test_typed_files_are_read_with_their_types(tmp_path: Path, name: str) -> None:
    rows = judged(tiny(), written(tmp_path / name, typed_table()))

    assert [row["reason"] for row in rows] == [None, None]
    assert [row["step"] for row in rows] == [0, 1]
    assert [row["source_line"] for row in rows] == [1, 2]
    assert rows[0]["timestamp"] == datetime(2024, 5, 1, 10, tzinfo=UTC)
    assert rows[0]["observation"] == {"cpu": 0.5, "zone": "a", "busy": True, "load": [0.0, 1.0]}


@pytest.mark.parametrize(
    ("column", "values", "wanted"),
    [
        ("reward", pa.array(["-1", "-2"]), 'reward is "-1", not a number'),
        ("reward", pa.array([float("nan"), -1.0]), "reward is NaN, not finite"),
        ("reward", pa.array([None, -1.0]), "reward is missing"),
        ("step", pa.array([0.5, 1.0]), "step is 0.5, not a whole number"),
        ("timestamp", pa.array([datetime(2024, 5, 1)] * 2, pa.timestamp("us")), "has no time zone"),
        ("timestamp", pa.array([date(2024, 5, 1)] * 2), "has no time zone"),
        ("terminated", pa.array([0, 1]), "terminated is 0, not true or false"),
        ("action", pa.array([b"hold", b"up"]), None),
        ("available_actions", pa.array([["hold", None], ["hold"]]), "not a list of labels"),
        ("behavior_probs", pa.array([[0.5, float("nan"), 0.5], [0.0, 0.5, 0.5]]), "are no probabilities that sum to 1"),
    ],
)
def test_typed_values_have_the_same_rules(tmp_path: Path, column: str, values: pa.Array, wanted: str | None) -> None:
    table = typed_table()
    table = table.drop_columns([column]) if column in table.column_names else table
    row = judged(tiny(), written(tmp_path / "a.parquet", table.append_column(column, values)))[0]

    if wanted is None:  # whatever becomes of it, it is judged
        assert row["reason"] is None or column in row["reason"]
    else:
        assert row["reason"] is not None
        assert wanted in row["reason"]
        assert json.loads(row["raw"].replace("NaN", "null"))["episode_id"] == "e"


def test_typed_naive_times_take_the_zone_of_the_contract(tmp_path: Path) -> None:
    naive = pa.array([datetime(2024, 5, 1, 10)] * 2, pa.timestamp("ms"))
    rows = judged(tiny(time={"zone": "Europe/Berlin"}), written(tmp_path / "a.parquet", typed_table(timestamp=naive)))

    assert rows[0]["timestamp"] == datetime(2024, 5, 1, 8, tzinfo=UTC)


def test_typed_columns_that_differ_in_case_are_not_taken_for_each_other(tmp_path: Path) -> None:
    table = typed_table().drop_columns(["reward"])
    for name in ("Reward", "reward"):
        table = table.append_column(name, pa.array([-2.0, -2.0]))
    rows = judged(tiny(), written(tmp_path / "a.parquet", table))

    assert [row["reason"] for row in rows] == ["reward is missing"] * 2


def test_empty_typed_file_has_no_rows(tmp_path: Path) -> None:
    assert judged(tiny(), written(tmp_path / "a.parquet", typed_table().slice(0, 0))) == []


def test_formats_agree_row_for_row(tmp_path: Path) -> None:
    row = {k: v for k, v in step_row().items() if k != "observation"} | {"observation.cpu": 0.5}
    one = judged(
        tiny(), write_rows(tmp_path / "a.jsonl", [step_row(observation={"zone": None, "busy": None, "load": None})])
    )
    two = judged(tiny(), write_csv(tmp_path / "a.csv", [row]))
    three = judged(tiny(), written(tmp_path / "a.parquet", pa.Table.from_pylist([merged(row, {})])))
    for rows in (one, two, three):
        rows[0].pop("source_line")

    assert one == two == three
