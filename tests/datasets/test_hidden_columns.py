"""What a contract hides: hashed or gone, in every table and file of a lake, whatever the row looked like."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets import ingest, texts
from datasets.compatibility import lake_incompatibilities
from datasets.contract import Contract
from datasets.duck import duck
from datasets.lake import Lake
from datasets.privacy import KEY_VARIABLE, SEALED, PrivacyError, PrivacyKey
from tests.datasets.builders import ask, counts_of, episode, lake_at, step_row, suite_says, take_in, tiny, write_rows

SECRET = "f" * 40
KEY = PrivacyKey(SECRET.encode())


@pytest.fixture(autouse=True)
def _key_in_the_environment(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("quick_suite")
    monkeypatch.setenv(KEY_VARIABLE, SECRET)


def hiding(**tables: Any) -> Contract:
    tables = {"features": {"zone": {"values": None}}, **tables}
    return tiny(
        columns={"episode_id": "session"},
        privacy={"hash": ["session", "who.id", "observation.zone"], "drop": ["mail"]},
        **tables,
    )


def person(step: int, /, **changes: Any) -> dict[str, Any]:
    row = step_row("", step, episode_id=None, session="plain-session", who={"id": "plain-person"}, mail="plain-mail")
    row["observation"]["zone"] = "plain-zone"
    return {**row, **changes}


BAD = [
    person(3, action="jump"),
    person(4, who=[{"ID": "plain-person"}], reward="x"),
    person(5, session={"plain-session": 1}),
    json.dumps(person(6))[:-5],
    json.dumps(person(7, action="jump")).replace('"mail"', '"mail": "plain-mail", "mail"'),
    '"plain-mail"',
]


def everything_in(folder: Path) -> str:
    """All that lies in a folder, Parquet decoded."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        found.append(path.name)
        if path.suffix == ".parquet" and "_delta_log" not in path.parts:
            with duck() as connection:
                found.append(str(connection.execute(f"SELECT * FROM read_parquet('{path}')").fetchall()))
        else:
            found.append(path.read_bytes().decode("utf-8", "backslashreplace"))
    return "\n".join(found)


def assert_nothing_plain(lake: Lake) -> None:
    text = everything_in(lake.root)
    for plain in ("plain-session", "plain-person", "plain-mail", "plain-zone", SECRET):
        assert plain not in text, text[max(0, text.index(plain) - 300) :][:600]


@pytest.mark.parametrize("in_place", [False, True])
def test_good_rows_hold_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_place: bool) -> None:
    if in_place:
        monkeypatch.setattr(texts, "IN_PLACE_BYTES", 0)
    lake = lake_at(tmp_path, hiding())
    take_in(lake, write_rows(tmp_path / "a.jsonl", [person(0), person(1, who=None), person(2)]))

    ids = "SELECT DISTINCT episode_id, cluster, observation.zone, keys.session FROM {steps}"
    assert ask(lake, ids) == [(KEY.hash("plain-session"),) * 2 + (KEY.hash("plain-zone"), KEY.hash("plain-session"))]
    people = ask(lake, 'SELECT keys."who.id" FROM {steps} ORDER BY step')
    assert people == [(KEY.hash("plain-person"),), (None,), (KEY.hash("plain-person"),)]
    assert_nothing_plain(lake)


def test_quarantined_text_is_redacted_or_sealed_and_reasons_name_no_hidden_value(tmp_path: Path) -> None:
    lake = lake_at(tmp_path, hiding())
    report = take_in(lake, write_rows(tmp_path / "a.jsonl", [person(0), *BAD]))

    assert counts_of(report) == {"in": 7, "lake": 1, "quarantined": 6}
    assert_nothing_plain(lake)
    texts_of = dict(ask(lake, "SELECT source_line, raw FROM {quarantine}"))
    assert texts_of[5].startswith(SEALED)
    assert KEY.unseal(texts_of[5]) == BAD[3]
    assert json.loads(texts_of[2])["who"] == {"id": f"hmac:{KEY.hash('plain-person')}"}
    assert "mail" not in texts_of[2]


def test_conflicts_are_redacted(tmp_path: Path) -> None:
    lake = lake_at(tmp_path, hiding())
    rows = [person(0), person(0, reward=-2.0)]
    assert counts_of(take_in(lake, write_rows(tmp_path / "a.jsonl", rows))) == {"in": 2, "lake": 1, "quarantined": 1}
    assert_nothing_plain(lake)


def test_a_held_batch_holds_nothing_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite_says(monkeypatch, False)
    lake = lake_at(tmp_path, hiding())
    assert counts_of(take_in(lake, write_rows(tmp_path / "a.jsonl", [person(0), *BAD]))) == {"in": 7, "held": 7}
    assert_nothing_plain(lake)


def test_csv_and_parquet_are_redacted_too(tmp_path: Path) -> None:
    contract = tiny(features={"zone": None, "busy": None, "load": None}, privacy={"hash": ["user"], "drop": ["mail"]})
    rows = [
        {**step_row("e", i, observation=None), "cpu": c, "user": "plain-person", "mail": "plain-mail"}
        for i, c in enumerate((0.5, 7.0))
    ]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
        file.write("plain-mail,only\n")
    pq.write_table(pa.Table.from_pylist([{**row, "episode_id": "p"} for row in rows]), tmp_path / "b.parquet")
    lake = lake_at(tmp_path, contract)

    report = take_in(lake, tmp_path / "a.csv", tmp_path / "b.parquet")

    assert counts_of(report) == {"in": 5, "lake": 2, "quarantined": 3}
    assert ask(lake, 'SELECT DISTINCT keys."user" FROM {steps}') == [(KEY.hash("plain-person"),)]
    assert_nothing_plain(lake)


def test_nothing_plain_lies_on_the_disk_while_rows_are_staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    write = ingest.write_parts

    def look_and_write(*args: Any, **kwargs: Any) -> Any:
        seen.append(everything_in(tmp_path / "lake"))
        return write(*args, **kwargs)

    monkeypatch.setattr(ingest, "write_parts", look_and_write)
    take_in(lake_at(tmp_path, hiding()), write_rows(tmp_path / "a.jsonl", [person(0), *BAD]))
    assert "plain-" not in seen[0]


def test_without_the_key_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = lake_at(tmp_path, hiding())
    log = write_rows(tmp_path / "a.jsonl", [person(0)])
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(PrivacyError, match=f"{KEY_VARIABLE}, whose key does it, is not set"):
        take_in(lake, log)
    assert lake.commit_number() == 0


def test_another_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = lake_at(tmp_path, hiding())
    take_in(lake, write_rows(tmp_path / "a.jsonl", [person(0)]))
    monkeypatch.setenv(KEY_VARIABLE, "g" * 40)
    with pytest.raises(PrivacyError, match="the same subject would get two hashes"):
        take_in(lake, write_rows(tmp_path / "b.jsonl", [person(1)]))


def test_a_hashed_column_added_later_is_null_in_history(tmp_path: Path) -> None:
    take_in(lake_at(tmp_path), write_rows(tmp_path / "a.jsonl", episode("e")))
    first = tiny(privacy={"hash": ["user"]})
    take_in(lake_at(tmp_path, first), write_rows(tmp_path / "b.jsonl", episode("f", user="u")))
    second = tiny(privacy={"hash": ["user", "team"]})
    lake = lake_at(tmp_path, second)
    take_in(lake, write_rows(tmp_path / "c.jsonl", episode("g", user="u", team="t")))

    keys = 'SELECT episode_id, keys."user" IS NULL, keys.team IS NULL FROM {steps} GROUP BY ALL ORDER BY 1'
    assert ask(lake, keys) == [("e", True, True), ("f", False, True), ("g", False, False)]


def test_columns_cannot_stop_being_hashed_nor_ids_change() -> None:
    hashed = tiny(privacy={"hash": ["user"]})
    (lost,) = lake_incompatibilities(hashed, tiny())
    assert "privacy.hash lost 'user', by which the rows of a subject are found; keep it" in lost
    (changed,) = lake_incompatibilities(tiny(), tiny(privacy={"hash": ["episode_id"]}))
    assert "episode_id is hashed now and was not" in changed
    assert lake_incompatibilities(tiny(), tiny(privacy={"drop": ["mail"]})) == []
