"""The suite that a contract implies, run on small Parquet files of canonical steps."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from datasets.contract import Contract, contract_from_text
from datasets.duck import literal
from datasets.nights import BatchFacts
from datasets.validation import (
    BatchSummary,
    ExpectationRecord,
    SuiteError,
    ValidateConfig,
    ValidationResult,
    validate_outcomes,
    validate_steps,
)

CONTRACT = """
name = "autoscaler"
gamma = 0.99
[features.cpu]
type = "numeric"
min = 0.0
max = 1.0
unit = "ratio"
[features.request-rate]
type = "numeric"
nullable = true
[features.zone]
type = "categorical"
values = ["a", "b"]
[features.weekend]
type = "boolean"
[features.embedding]
type = "vector"
length = 2
[actions]
names = ["down", "hold", "up"]
[reward]
min = -10.0
max = 0.0
"""

CLEAN: dict[str, str] = {
    "episode_id": "'e-' || (i // 5)",
    "step": "(i % 5)::INTEGER",
    "timestamp": "TIMESTAMPTZ '2024-05-01 00:00:00+00' + to_seconds(i)",
    "observation": "{'cpu': 0.5, 'request-rate': 3.0, 'zone': 'a', 'weekend': true, 'embedding': [0.0, 1.0]}",
    "action": "'hold'",
    "reward": "-1.0::DOUBLE",
    "terminated": "i % 5 = 4",
    "truncated": "false",
    "behavior_prob": "0.5::DOUBLE",
}


@pytest.fixture(scope="module")
def contract() -> Contract:
    return contract_from_text(CONTRACT, "contract.toml")


def write_steps(path: Path, n_rows: int = 20, **changed: str | None) -> Path:
    """A file of clean steps with some columns' SQL changed (None: the column is left out)."""
    columns = {name: sql for name, sql in (CLEAN | changed).items() if sql is not None}
    select = ", ".join(f'{sql} AS "{name}"' for name, sql in columns.items())
    connection = duckdb.connect()
    connection.execute(f"COPY (SELECT {select} FROM range({n_rows}) t(i)) TO {literal(str(path))} (FORMAT parquet)")
    connection.close()
    return path


def observation(**changed: str) -> str:
    fields = {"cpu": "0.5", "request-rate": "3.0", "zone": "'a'", "weekend": "true", "embedding": "[0.0, 1.0]"}
    return "{" + ", ".join(f"'{name}': {sql}" for name, sql in (fields | changed).items()) + "}"


def check(
    paths: list[Path], contract: Contract, summary: BatchSummary | None = None, **limits: float
) -> ValidationResult:
    return validate_steps(paths, contract, summary=summary, config=ValidateConfig(**limits))


def only_failure(result: ValidationResult) -> ExpectationRecord:
    assert not result.success
    assert len(result.failures) == 1, [record.sentence for record in result.failures]
    return result.failures[0]


def test_clean_steps_fulfil_every_expectation(tmp_path: Path, contract: Contract) -> None:
    summary = BatchSummary(n_in=21, n_lake=20, n_quarantined=1)
    result = check([write_steps(tmp_path / "a.parquet")], contract, summary)
    assert result.success
    assert result.summary() == f"All {len(result.records)} expectations hold on 20 rows."
    assert result.n_rows == 20
    assert {"action", "reward", "observation.cpu", "observation.request-rate", "quarantined share"} <= {
        record.column for record in result.records
    }
    assert all(record.sentence == "" and record.unexpected_count == 0 for record in result.records)


def test_result_survives_json(tmp_path: Path, contract: Contract) -> None:
    result = check([write_steps(tmp_path / "a.parquet", observation=observation(cpu="'nan'::DOUBLE"))], contract)
    text = json.dumps(result.to_json(), allow_nan=False)
    assert ValidationResult.from_json(json.loads(text)) == result


@pytest.mark.parametrize(
    ("changed", "column", "n_unexpected", "words"),
    [
        ({"episode_id": "nullif('e', if(i = 3, 'e', ''))"}, "episode_id", 1, "is never missing"),
        ({"action": "if(i < 2, 'sideways', 'hold')"}, "action", 2, "is one of down, hold, up"),
        ({"reward": "if(i = 0, 0.5, -1.0)::DOUBLE"}, "reward", 1, "lies in [-10, 0]: not so in 1 of 20 rows (5.00%)"),
        ({"reward": "if(i = 0, NULL, -1.0)::DOUBLE"}, "reward", 1, "is never missing"),
        ({"behavior_prob": "if(i = 0, 0.0, 1.0)::DOUBLE"}, "behavior_prob", 1, "lies in (0, 1]"),
        ({"behavior_prob": "if(i = 0, NULL, 1.0)::DOUBLE"}, "behavior_prob", 1, "behavior.propensity = 'estimated'"),
        ({"truncated": "i = 4"}, "terminated and truncated", 1, "are never both true"),
        ({"observation": observation(cpu="i / 10.0")}, "observation.cpu", 9, "lies in [0, 1] ratio"),
        ({"observation": observation(cpu="if(i = 0, NULL, 0.5)")}, "observation.cpu", 1, "is never missing"),
        ({"observation": observation(zone="if(i < 12, 'eu-1', 'a')")}, "observation.zone", 12, "renamed"),
        (
            {"observation": observation(embedding="if(i = 0, [1.0], [1.0, 2.0])")},
            "length of observation.embedding",
            1,
            "is 2",
        ),
        (
            {"observation": observation(embedding="if(i = 0, ['inf'::DOUBLE, 0.0], [1.0, 2.0])")},
            "components of observation.embedding that are no finite number",
            1,
            "for example 1",
        ),
    ],
)
def test_one_broken_rule_is_one_failure_in_words(
    tmp_path: Path, contract: Contract, changed: dict[str, str], column: str, n_unexpected: int, words: str
) -> None:
    failure = only_failure(check([write_steps(tmp_path / "a.parquet", 20, **changed)], contract))
    assert (failure.column, failure.unexpected_count) == (column, n_unexpected)
    assert words in failure.sentence


def test_failure_gives_at_most_five_examples(tmp_path: Path, contract: Contract) -> None:
    failure = only_failure(check([write_steps(tmp_path / "a.parquet", action="'sideways' || i")], contract))
    assert len(failure.examples) == 5
    assert set(failure.examples) <= {f"sideways{i}" for i in range(20)}
    assert failure.observed_value == 1.0


@pytest.mark.parametrize("value", ["'inf'::DOUBLE", "'-inf'::DOUBLE", "'nan'::DOUBLE"])
def test_feature_without_a_range_must_still_be_finite(tmp_path: Path, contract: Contract, value: str) -> None:
    path = write_steps(tmp_path / "a.parquet", observation=observation(**{"request-rate": f"if(i = 7, {value}, 1.0)"}))
    failure = only_failure(check([path], contract))
    assert failure.column == "observation.request-rate"
    assert "is a finite number" in failure.sentence


def test_nullable_feature_may_be_missing_up_to_its_share(tmp_path: Path, contract: Contract) -> None:
    path = write_steps(tmp_path / "a.parquet", observation=observation(**{"request-rate": "if(i < 4, NULL, 3.0)"}))
    assert check([path], contract, max_null_share=0.2).success
    failure = only_failure(check([path], contract, max_null_share=0.1))
    assert "is missing in at most 10.00% of the rows: not so in 4 of 20 rows (20.00%)" in failure.sentence


def test_estimated_propensities_may_be_missing_but_not_wrong(tmp_path: Path) -> None:
    estimated = contract_from_text(CONTRACT + '[behavior]\npropensity = "estimated"\n', "contract.toml")
    assert check([write_steps(tmp_path / "a.parquet", behavior_prob="NULL::DOUBLE")], estimated).success
    assert check([write_steps(tmp_path / "b.parquet", behavior_prob=None)], estimated).success
    wrong = write_steps(tmp_path / "c.parquet", behavior_prob="if(i = 0, 1.5, NULL)::DOUBLE")
    assert only_failure(check([wrong], estimated)).column == "behavior_prob"


def test_one_step_logs_may_lack_timestamps(tmp_path: Path) -> None:
    one_step = contract_from_text(CONTRACT + '[episodes]\nkind = "one_step"\n', "contract.toml")
    assert check([write_steps(tmp_path / "a.parquet", timestamp="NULL::TIMESTAMPTZ")], one_step).success


def test_older_file_without_a_newer_nullable_feature_counts_as_missing(tmp_path: Path, contract: Contract) -> None:
    old = "{'cpu': 0.5, 'zone': 'a', 'weekend': true, 'embedding': [0.0, 1.0]}"
    path = write_steps(tmp_path / "old's.parquet", observation=old)
    assert only_failure(check([path], contract)).column == "observation.request-rate"
    assert check([path], contract, max_null_share=1.0).success
    assert check([path, write_steps(tmp_path / "new.parquet")], contract, max_null_share=0.5).success


def test_no_steps_at_all_fail(tmp_path: Path, contract: Contract) -> None:
    for paths in ([], [write_steps(tmp_path / "empty.parquet", n_rows=0)]):
        failure = only_failure(check(paths, contract))
        assert failure.sentence.startswith("Expected that there is at least 1 step: found 0. Look whether")


def test_batch_of_repeats_alone_may_be_empty(contract: Contract) -> None:
    summary = BatchSummary(n_in=20, n_lake=0, n_quarantined=0, n_duplicates=19, n_pending=1)
    assert check([], contract, summary).success


def test_too_many_quarantined_rows_fail_the_batch(tmp_path: Path, contract: Contract) -> None:
    path = write_steps(tmp_path / "a.parquet")
    summary = BatchSummary(n_in=35, n_lake=20, n_quarantined=5, n_duplicates=10)
    assert check([path], contract, summary, max_quarantined_share=0.2).success
    failure = only_failure(check([path], contract, summary, max_quarantined_share=0.1))
    assert failure.column == "quarantined share"
    assert "is at most 10.00% of the new rows: found 0.2. 5 of 25 new rows broke the contract" in failure.sentence


def test_rows_without_account_fail_the_batch(tmp_path: Path, contract: Contract) -> None:
    summary = BatchSummary(n_in=22, n_lake=20, n_quarantined=0)
    assert "found 2" in only_failure(check([write_steps(tmp_path / "a.parquet")], contract, summary)).sentence


def test_file_that_cannot_be_read_is_an_error_and_no_verdict(tmp_path: Path, contract: Contract) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 no parquet")
    with pytest.raises(SuiteError, match=r"The rows cannot be read: .*broken"):
        check([broken], contract)
    with pytest.raises(SuiteError, match=r"gone\.parquet does not exist \(1 of 2 files do not\)"):
        check([write_steps(tmp_path / "a.parquet"), tmp_path / "gone.parquet"], contract)


def test_suite_process_that_was_killed_is_started_anew(tmp_path: Path, contract: Contract) -> None:
    from datasets import suite_process

    path = write_steps(tmp_path / "a.parquet")
    assert check([path], contract).success
    process: Any = suite_process._process
    process._process.kill()
    process._process.wait()
    assert check([path], contract).success


def test_user_sees_nothing_of_the_suite_even_with_torch_loaded(tmp_path: Path) -> None:
    path = write_steps(tmp_path / "a.parquet")
    program = f"""
import torch, duckdb
from datasets.contract import contract_from_text
from datasets.validation import ValidateConfig, validate_steps
contract = contract_from_text({CONTRACT!r}, "contract.toml")
assert validate_steps([{str(path)!r}], contract, summary=None, config=ValidateConfig()).success
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- severities, recent nights, outcomes


NIGHT = datetime(2024, 5, 1, 1, tzinfo=UTC)


def with_probabilities(path: Path, average: float, **changed: str) -> Path:
    """Steps of which half are 'hold', with probabilities whose inverse averages to `average`."""
    columns = {
        "action": "if(hash(i) % 2 = 0, 'hold', 'up')",
        "behavior_prob": f"{0.5 / average}::DOUBLE",
        "cluster": "'e-' || (i // 5)",
        "available_actions": "NULL::VARCHAR[]",
    }
    return write_steps(path, 2000, **(columns | changed))


def beside_recent(path: Path, contract: Contract, **settings: Any) -> ValidationResult:
    summary = BatchSummary(n_in=2000, n_lake=2000, n_quarantined=0)
    config = ValidateConfig.model_validate(settings)
    return validate_steps([path], contract, summary=summary, config=config, recent=[], as_of=NIGHT)


def test_impossible_probabilities_hold_and_hidden_masks_warn(tmp_path: Path, contract: Contract) -> None:
    assert beside_recent(with_probabilities(tmp_path / "a.parquet", 1.0), contract).success
    failure = only_failure(beside_recent(with_probabilities(tmp_path / "b.parquet", 1.5), contract))
    assert "No policy can have written that" in failure.sentence
    low = beside_recent(with_probabilities(tmp_path / "c.parquet", 0.6), contract)
    assert low.success
    assert [w.severity for w in low.warnings] == ["warn"]
    assert low.summary().startswith("Expected that the most that 1[action = ")


def test_severity_decides_whether_the_batch_is_held(tmp_path: Path, contract: Contract) -> None:
    path = with_probabilities(tmp_path / "a.parquet", 1.5)
    assert beside_recent(path, contract, severity={"propensity_high": "warn"}).success
    off = beside_recent(path, contract, severity={"propensity_high": "off"})
    assert (off.warnings, off.failures) == ((), ())


def test_what_was_not_judged_is_said_and_the_facts_are_kept(tmp_path: Path, contract: Contract) -> None:
    result = beside_recent(with_probabilities(tmp_path / "a.parquet", 1.0), contract)
    assert any("high volume" in s and s.endswith("not enough nights yet: 0 known, 7 needed") for s in result.not_judged)
    assert result.facts is not None
    (night,) = BatchFacts.from_json(result.facts).nights
    assert (night.n_rows, sum(night.actions.values())) == (2000, 2000)
    assert ValidationResult.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_expectations_that_hold_with_exceptions_still_count_them(tmp_path: Path, contract: Contract) -> None:
    path = write_steps(tmp_path / "a.parquet", observation=observation(**{"request-rate": "if(i < 2, NULL, 3.0)"}))
    record = next(r for r in check([path], contract).records if r.column == "observation.request-rate")
    assert (record.success, record.unexpected_count, record.observed_value) == (True, 2, 0.1)


def test_rewards_may_be_awaited_where_outcomes_come_later(tmp_path: Path) -> None:
    later = contract_from_text(CONTRACT + '[outcomes]\nattribution_window = "1h"\n', "contract.toml")
    path = write_steps(tmp_path / "a.parquet", reward="if(i = 0, NULL, -1.0)::DOUBLE")
    assert check([path], later).success


def write_outcomes(path: Path, **changed: str) -> Path:
    columns = {
        "decision_id": "'d' || i",
        "timestamp": "TIMESTAMPTZ '2024-05-01 00:00:00+00' + to_seconds(i)",
        "reward": "1.0::DOUBLE",
    }
    select = ", ".join(f"{sql} AS {name}" for name, sql in (columns | changed).items())
    with duckdb.connect() as connection:
        connection.execute(f"COPY (SELECT {select} FROM range(20) t(i)) TO {literal(str(path))} (FORMAT parquet)")
    return path


def outcomes(path: Path, n_quarantined: int = 0) -> ValidationResult:
    summary = BatchSummary(n_in=20 + n_quarantined, n_lake=20, n_quarantined=n_quarantined)
    return validate_outcomes([path], summary=summary, config=ValidateConfig(), as_of=NIGHT)


def test_outcomes_have_a_suite_of_their_own(tmp_path: Path) -> None:
    result = outcomes(write_outcomes(tmp_path / "a.parquet"))
    assert result.success
    assert result.n_rows == 20
    assert result.facts is not None
    assert any("share quarantined" in sentence for sentence in result.not_judged)


@pytest.mark.parametrize(
    ("changed", "column", "words"),
    [
        ({"decision_id": "nullif('d' || i, 'd3')"}, "decision_id", "see `outcomes.columns.decision_id`"),
        ({"timestamp": "NULL::TIMESTAMPTZ"}, "timestamp", "not so in 20 of 20 rows"),
        ({"reward": "if(i = 0, 'inf'::DOUBLE, 1.0)"}, "reward", "is a finite number"),
    ],
)
def test_broken_outcomes_say_what_to_do(tmp_path: Path, changed: dict[str, str], column: str, words: str) -> None:
    failure = only_failure(outcomes(write_outcomes(tmp_path / "a.parquet", **changed)))
    assert failure.column == column
    assert words in failure.sentence


def test_outcomes_in_quarantine_hold_their_batch(tmp_path: Path) -> None:
    assert only_failure(outcomes(write_outcomes(tmp_path / "a.parquet"), 5)).column == "quarantined share"


def test_process_that_was_started_ahead_answers_the_first_suite(tmp_path: Path, contract: Contract) -> None:
    from datasets import suite_process

    suite_process.warm_up()
    started = suite_process._process
    suite_process.warm_up()
    assert check([write_steps(tmp_path / "a.parquet")], contract).success
    assert suite_process._process is started
