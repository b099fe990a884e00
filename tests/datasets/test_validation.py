"""The suite that a contract implies, run on small Parquet files of canonical steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest

from datasets.contract import Contract, contract_from_text
from datasets.duck import literal
from datasets.validation import (
    BatchSummary,
    ExpectationRecord,
    SuiteError,
    ValidateConfig,
    ValidationResult,
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
    assert result.summary() == f"All {len(result.records)} expectations hold on 20 steps."
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
        ({"reward": "if(i = 0, 0.5, -1.0)::DOUBLE"}, "reward", 1, "lies in [-10, 0]: not so in 1 of 20 steps (5.00%)"),
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
    assert "is missing in at most 10.00% of the steps: not so in 4 of 20 steps (20.00%)" in failure.sentence


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
    with pytest.raises(SuiteError, match=r"The steps cannot be read: .*broken"):
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
