"""The published schema of evaluation.json: current, and true of what evaluations write."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from reports import schema
from reports.records import Evaluation, evaluation_to_json
from reports.schema import evaluation_schema
from tests.reports import report_samples

PUBLISHED = Path(__file__).parents[2] / "docs" / "evaluation.schema.json"
SAMPLES = {name: getattr(report_samples, f"{name}_evaluation")() for name in ("passed", "refused", "narrow")}


def validate(plain: Any) -> None:
    jsonschema.Draft202012Validator(evaluation_schema()).validate(plain)


def test_the_published_schema_is_the_one_that_the_records_make() -> None:
    assert json.loads(PUBLISHED.read_text(encoding="utf-8")) == evaluation_schema(), (
        "docs/evaluation.schema.json is not current: make schema"
    )


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(evaluation_schema())


@pytest.mark.parametrize("name", SAMPLES)
def test_evaluations_are_as_it_says(name: str) -> None:
    evaluation: Evaluation = SAMPLES[name]
    validate(json.loads(json.dumps(evaluation_to_json(evaluation))))


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (["counts", "n_episodes"], "many"),
        (["counts", "n_episodes"], None),
        (["baseline_source"], "guess"),
        (["estimates", 0, "surprise"], 1),
        (["decision", "checks", 0, "passed"], "yes"),
    ],
)
def test_a_wrong_value_is_told(path: list[Any], wrong: Any) -> None:
    plain = json.loads(json.dumps(evaluation_to_json(SAMPLES["passed"])))
    inside = plain
    for step in path[:-1]:
        inside = inside[step]
    inside[path[-1]] = wrong

    with pytest.raises(jsonschema.ValidationError):
        validate(plain)


def test_a_missing_field_is_told() -> None:
    plain = evaluation_to_json(SAMPLES["passed"])
    del plain["estimand"]

    with pytest.raises(jsonschema.ValidationError, match="'estimand' is a required property"):
        validate(plain)


def test_every_record_and_its_fields_are_described_in_the_words_of_the_source() -> None:
    definitions = evaluation_schema()["$defs"]

    assert definitions["Interval"]["description"] == "A two-sided confidence interval, in the unit of what it bounds."
    level = definitions["Interval"]["properties"]["level"]
    assert level == {"type": "number", "description": "Two-sided confidence level, such as 0.95."}
    assert "freshness" not in definitions["Evaluation"]["required"]
    assert all(d["description"] for d in definitions.values())


def test_a_record_that_json_cannot_hold_is_an_error() -> None:
    @dataclass(frozen=True)
    class Odd:
        """Odd."""

        when: complex

    with pytest.raises(TypeError, match=r"cannot hold a <class 'complex'>"):
        schema._schema_of(Odd.__dataclass_fields__["when"].type and complex, {})
