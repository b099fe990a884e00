"""The privacy key: hashes that Python and DuckDB agree on, sealed text, and a key that appears nowhere."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.duck import duck
from datasets.privacy import (
    KEY_VARIABLE,
    SEALED,
    PrivacyError,
    PrivacyKey,
    hash_sql,
    install_key,
    key_for,
    privacy_key,
)
from tests.datasets.builders import tiny

SECRET = "0123456789abcdef" * 4
KEY = PrivacyKey(SECRET.encode())
HIDING = tiny(privacy={"hash": ["user_id"]})


def test_a_hash_is_plain_hmac_sha256() -> None:
    expected = hmac.new(SECRET.encode(), "Zoë".encode(), hashlib.sha256).hexdigest()
    assert KEY.hash("Zoë") == expected


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=200), min_size=1), st.binary(min_size=32))
def test_duckdb_makes_the_same_hash(values: list[str], secret: bytes) -> None:
    key = PrivacyKey(secret)
    with duck() as connection:
        install_key(connection, key)
        rows = connection.execute(
            f"SELECT {hash_sql('v')} FROM (SELECT unnest(?::VARCHAR[]) AS v)", [values]
        ).fetchall()
    assert [row[0] for row in rows] == [key.hash(value) for value in values]


def test_null_stays_null_and_a_hash_from_redacted_text_is_not_hashed_again() -> None:
    with duck() as connection:
        install_key(connection, KEY)
        query = (
            f"SELECT {hash_sql('v')} FROM (VALUES (NULL::VARCHAR), ('hmac:' || repeat('a', 64)), ('hmac:short')) t(v)"
        )
        assert connection.execute(query).fetchall() == [(None,), ("a" * 64,), (KEY.hash("hmac:short"),)]


def test_an_error_of_a_query_that_hashes_does_not_hold_the_key() -> None:
    with duck() as connection:
        install_key(connection, KEY)
        for query in (
            f"SELECT {hash_sql('u')}, nope FROM (SELECT 'a' AS u)",
            f"SELECT ({hash_sql('u')})::INT FROM (SELECT 'a' AS u)",
        ):
            with pytest.raises(duckdb.Error) as error:
                connection.execute(query).fetchall()
            assert SECRET[:16] not in str(error.value)
    assert SECRET not in repr(KEY)


@given(st.text())
def test_sealed_text_opens_again(text: str) -> None:
    sealed = KEY.seal(text)
    assert sealed.startswith(SEALED)
    assert KEY.seal(sealed) == sealed
    if not text.startswith(SEALED):
        assert KEY.unseal(sealed) == text


def test_the_same_text_is_sealed_differently_each_time() -> None:
    assert KEY.seal("a@b.c") != KEY.seal("a@b.c")


def test_sealed_text_that_was_changed_or_sealed_under_another_key_is_refused() -> None:
    sealed = KEY.seal("a@b.c")
    other = PrivacyKey(b"x" * 32)
    flipped = sealed[:-4] + ("AAAA" if sealed[-4:] != "AAAA" else "BBBB")
    for key, text in ((other, sealed), (KEY, flipped), (KEY, SEALED + "%%%"), (KEY, SEALED)):
        with pytest.raises(PrivacyError, match=f"another key than the one in {KEY_VARIABLE}, or was changed since"):
            key.unseal(text)


def test_a_missing_or_short_key_is_an_error_that_says_how_to_make_one() -> None:
    with pytest.raises(PrivacyError, match=rf"{KEY_VARIABLE}, whose key does it, is not set.*secrets.token_hex\(32\)"):
        privacy_key({})
    with pytest.raises(PrivacyError, match="holds 6 bytes, and at least 32 are wanted") as error:
        privacy_key({KEY_VARIABLE: "secret"})
    assert "secret " not in str(error.value)


def test_a_contract_that_hides_nothing_needs_no_key(tmp_path: Path) -> None:
    assert key_for(tiny(), tmp_path, {}) is None
    assert list(tmp_path.iterdir()) == []


def test_a_lake_refuses_another_key_than_its_own(tmp_path: Path) -> None:
    key = key_for(HIDING, tmp_path, {KEY_VARIABLE: SECRET})
    assert key == KEY
    assert key_for(HIDING, tmp_path, {KEY_VARIABLE: f" {SECRET}\n"}) == KEY
    with pytest.raises(PrivacyError, match=r"is not the one that the lake .* was written under"):
        key_for(HIDING, tmp_path, {KEY_VARIABLE: "y" * 40})
    stored = json.loads((tmp_path / "_privacy.json").read_text())
    assert SECRET not in json.dumps(stored)
    assert hashlib.sha256(SECRET.encode()).hexdigest() not in json.dumps(stored)


def test_an_unreadable_key_check_is_no_licence_to_split_subjects(tmp_path: Path) -> None:
    (tmp_path / "_privacy.json").write_text("")
    with pytest.raises(PrivacyError, match="does not say which key"):
        key_for(HIDING, tmp_path, {KEY_VARIABLE: SECRET})
