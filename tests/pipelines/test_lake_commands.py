"""A workspace whose lake is taken to a bucket, and another machine that shares it: by the commands alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.store_config import StoreConfig
from tests.datasets.builders import CONTRACT, episode, suite_says, write_rows
from tests.pipelines.conftest import Run


def _toml(values: dict[str, Any], folder: str = "") -> str:
    """The contract as its file has it."""
    plain = "".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items() if not isinstance(v, dict))
    head = f"[{folder}]\n{plain}" if folder else plain
    tables = [_toml(v, f"{folder}.{k}".strip(".")) for k, v in values.items() if isinstance(v, dict)]
    return "\n".join([head, *tables])


def _write_workspace(root: Path, settings: str = "") -> Path:
    root.mkdir()
    (root / "contract.toml").write_text(_toml(CONTRACT))
    (root / "offline_dqn.toml").write_text(f'{settings}\n[ingest]\nas_of = "newest"\n')
    return root


def _rows(run: Run, root: Path) -> int:
    return int(run(root, "query", "SELECT count(*) AS n FROM steps", "--json").json["rows"][0]["n"])


def test_a_lake_is_taken_to_a_bucket_and_shared_by_commands_alone(
    tmp_path: Path, bucket_address: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite_says(monkeypatch, True)
    shared = f'[store]\nlake = "{bucket_address}"\n'
    one, two = _write_workspace(tmp_path / "one"), _write_workspace(tmp_path / "two", shared)
    write_rows(one / "logs" / "steps" / "a.jsonl", [row for name in "abcdefghij" for row in episode(name)])
    assert run(one, "ingest").code == 0
    refused = run(one, "lake", "upload")
    assert refused.code == 1
    assert '[store] lake is "lake", a folder. Name the bucket there first' in " ".join(refused.err.split())

    _write_settings(one, shared)
    told = run(one, "query", "SELECT 1")
    assert told.code == 1
    assert "holds a lake of its own, and [store] lake names" in " ".join(told.err.split())
    done = run(one, "lake", "upload", "--json").json
    assert (done["address"], done["commit"]) == (bucket_address, 1)

    assert _rows(run, one) == _rows(run, two) == 30
    write_rows(two / "logs" / "steps" / "b.jsonl", [row for name in "kajlbm" for row in episode(name)])
    assert run(two, "ingest").code == 0
    assert _rows(run, one) == 39
    shown = run(one, "lake", "show", "--json").json
    assert (shown["lake"], shown["copy"], shown["commit"]) == (bucket_address, str(one / "lake"), 2)
    assert bucket_address in run(one, "lake", "show").out


def test_a_store_that_does_not_answer_ends_a_command_with_one_message(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tests-secret")
    monkeypatch.setattr("datasets.object_store._PATIENCE_S", 0.2)
    root = _write_workspace(tmp_path / "one", '[store]\nlake = "s3://away/lake"\n')

    told = run(root, "query", "SELECT 1")
    assert told.code == 1
    assert "the store at http://127.0.0.1:9 does not answer" in " ".join(told.err.split())
    assert "tests-secret" not in told.out + told.err


def _write_settings(root: Path, settings: str) -> None:
    (root / "offline_dqn.toml").write_text(f'{settings}\n[ingest]\nas_of = "newest"\n')


@pytest.mark.parametrize("place", ["lake", "lake/snapshots"])
def test_nothing_else_lies_in_the_folder_of_the_copy(place: str) -> None:
    with pytest.raises(ValueError, match="snapshots and the copy of the lake cannot share a place"):
        StoreConfig(lake="s3://bucket/lake", snapshots=place)
    StoreConfig(lake="s3://bucket/lake")


def test_an_altered_file_is_given_up_by_a_command_and_accounted_for(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite_says(monkeypatch, True)
    root = _write_workspace(tmp_path / "one")
    write_rows(root / "logs" / "steps" / "a.jsonl", [row for name in "abc" for row in episode(name)])
    assert run(root, "ingest").code == 0
    assert "No file of the lake is altered" in run(root, "lake", "give-up", "--note", "no copy").out
    file = next(
        path for path in (root / "lake" / "steps").rglob("*.parquet") if path.parent.name.startswith("log_date")
    )
    file.write_bytes(file.read_bytes()[:-9])

    nameless = run(root, "lake", "give-up")
    assert (nameless.code, "why is there no good copy?" in nameless.err) == (1, True)
    would = run(root, "lake", "give-up", "--dry-run", "--json").json
    done = run(root, "lake", "give-up", "--note", "no copy", "--reviewer", "Ada", "--json")
    assert done.code == 0, done.err
    assert {**done.json, "dry_run": True} == would
    assert (done.json["files"], done.json["n_rows"]) == ([file.relative_to(root / "lake").as_posix()], {"steps": 9})
    account = run(root, "query", "SELECT n_lake, n_removed FROM batches", "--json").json["rows"]
    assert (_rows(run, root), account) == (0, [{"n_lake": 9, "n_removed": 9}])
