"""Redaction of raw rows: what is named never survives, whatever shape the row has."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.duck import duck
from datasets.privacy import SEALED, PrivacyKey, hash_sql, install_key
from datasets.raw_text import Redaction
from tests.datasets.builders import tiny

KEY = PrivacyKey(b"k" * 32)
REDACTION = Redaction(tiny(privacy={"drop": ["user_email", "who.name"], "hash": ["user_id", "who.phone"]}), KEY)


def hashed(text: str) -> str:
    return f"hmac:{KEY.hash(text)}"


def redacted(text: str) -> Any:
    found = REDACTION.redact_json(text)
    assert found is not None
    return json.loads(found)


def test_dropped_values_go_and_hashed_ones_are_replaced() -> None:
    line = {"user_email": "a@b.c", "user_id": "u1", "cpu": 1.5, "who": {"name": "Zoë", "phone": 12, "age": 3}}
    assert redacted(json.dumps(line)) == {
        "user_id": hashed("u1"),
        "cpu": 1.5,
        "who": {"phone": hashed("12"), "age": 3},
    }


def test_what_is_not_named_stays_as_it_was_written() -> None:
    assert REDACTION.redact_json('{"a": 1.50, "b": 1e400, "c": "é", "d": [null, true]}') == (
        '{"a":1.50,"b":1e400,"c":"é","d":[null,true]}'
    )


@pytest.mark.parametrize(
    "line",
    [
        '{"user_email": "a@b.c", "user_email": "a@b.c"}',
        '{"User_Email": "a@b.c"}',
        '{"us\\u0065r_email": "a@b.c"}',
        '{"who": [{"name": "a@b.c"}, [{"NAME": "a@b.c"}]]}',
        '{"who.name": "a@b.c"}',
        '{"who": "{\\"name\\": \\"a@b.c\\"}"}',
        '{"who": {"name": {"deep": ["a@b.c"]}}}',
        '{"user_id": ["a@b.c"]}',
        '{"user_id": {"x": "a@b.c"}}',
    ],
)
def test_a_named_value_is_found_in_every_shape(line: str) -> None:
    found = REDACTION.redact_json(line)
    assert found is not None
    assert "a@b.c" not in found


def test_repeated_keys_stay_visible() -> None:
    assert REDACTION.redact_json('{"user_id":"a","user_id":"b"}') == (
        f'{{"user_id":"{hashed("a")}","user_id":"{hashed("b")}"}}'
    )


@pytest.mark.parametrize(
    "line",
    [
        '{"user_email": "a@b.c"',
        '["a@b.c"]',
        '"a@b.c"',
        "",
        '{"who": "{name: a@b.c}"}',
        '{"a":' * 5000,
        '{"x": "\\xff"}',
    ],
)
def test_text_that_cannot_be_taken_apart_is_sealed(line: str) -> None:
    assert REDACTION.redact_json(line) is None
    sealed = REDACTION.json_line(line)
    assert sealed.startswith(SEALED)
    assert KEY.unseal(sealed) == line


def test_redacting_twice_changes_nothing() -> None:
    once = REDACTION.json_line('{"user_id": "u1", "user_email": "x"}')
    assert REDACTION.json_line(once) == once


def test_a_csv_record_keeps_its_columns() -> None:
    header = ["user_id", "user_email", "who.name", "cpu", "user_email__column_5"]
    assert REDACTION.redact_csv('u1,a@b.c,"Zoë, the\nfirst",1.50,b@c.d', header) == f"{hashed('u1')},,,1.50,"
    assert REDACTION.redact_csv(",,,,", header) == ",,,,"


def test_a_csv_record_that_does_not_fit_its_header_is_sealed() -> None:
    for record in ("u1,a@b.c", 'u1,"open', "u1,a\nu2,b"):
        assert REDACTION.redact_csv(record, ["user_id", "user_email", "cpu"]) is None
        assert REDACTION.csv_record(record, ["user_id", "user_email", "cpu"]).startswith(SEALED)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["a", "who", "name", "phone", "user_id"]), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["a", "who", "user_id", "user_email", "USER_EMAIL"]), values))
def test_a_redacted_line_is_json_without_what_is_dropped(line: dict[str, Any]) -> None:
    found = REDACTION.redact_json(json.dumps(line))
    if found is not None:
        assert not [key for key in json.loads(found) if key.lower() == "user_email"]


@pytest.mark.parametrize(
    "value", ["u1", "Zoë", 7, -0, 123456789012345678901234567890, 1.5, 1e5, True, [1, "a"], {"a": 1}]
)
def test_the_hash_of_a_value_is_the_one_that_duckdb_makes_of_it(value: Any) -> None:
    line = json.dumps({"user_id": value})
    with duck() as connection:
        install_key(connection, KEY)
        row = connection.execute(f"SELECT {hash_sql('v')} FROM (SELECT ?::JSON->>'$.user_id' AS v)", [line]).fetchone()
    assert row is not None
    assert redacted(line)["user_id"] == f"hmac:{row[0]}"
