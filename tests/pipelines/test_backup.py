"""A workspace as one file: whole or not at all, at rest while it is written, and the same workspace when restored."""

from __future__ import annotations

import io
import os
import sqlite3
import tarfile
from pathlib import Path

import pytest

from datasets.locking import LockedError, exclusive_lock
from pipelines import backup
from pipelines.backup import BackupError, back_up, check, restore
from pipelines.workspace import Workspace, open_workspace
from tests.pipelines.conftest import Run

CONTENT = "SELECT count(*), bit_xor(hash(COLUMNS(*))) FROM {}"


def answers(workspace: Workspace) -> list[object]:
    tables = ("steps", "transitions", "episodes", "outcomes", "quarantine", "batches", "releases")
    return [workspace.query(CONTENT.format(table)).rows for table in tables]


def test_a_restored_workspace_answers_gates_and_acts_as_the_old_one(
    workspace: Workspace, run: Run, tmp_path: Path
) -> None:
    made = run(workspace, "backup", str(tmp_path / "kept.tar"), "--json").json
    before = answers(workspace)
    restored = run(None, "restore", str(tmp_path / "kept.tar"), str(tmp_path / "elsewhere"), "--json").json
    opened = open_workspace(tmp_path / "elsewhere")

    assert (made["n_files"], made["n_bytes"]) == (restored["n_files"], restored["n_bytes"])
    assert answers(opened) == before
    assert [(r.number, r.gate, r.aliases, r.damage) for r in opened.registry.releases()] == [
        (r.number, r.gate, r.aliases, r.damage) for r in workspace.registry.releases()
    ]
    assert run(opened, "evaluate", "1", "--replay").code == 0
    assert run(opened, "rollback").code == 0


def test_what_is_made_anew_is_left_out_and_comes_back(workspace: Workspace, tmp_path: Path) -> None:
    workspace.query("SELECT 1")  # the catalog
    (workspace.root / "checkpoints" / "one").mkdir(parents=True, exist_ok=True)
    (workspace.root / "checkpoints" / "one" / "big").write_bytes(b"x" * 1000)
    back_up(workspace, tmp_path / "kept.tar")
    with tarfile.open(tmp_path / "kept.tar") as archive:
        names = archive.getnames()
    restore(tmp_path / "kept.tar", tmp_path / "elsewhere")

    assert {Path(name).parts[0] for name in names} & backup.DERIVED == set()
    assert not [name for name in names if name.endswith((".lock", "_lock", ".part", "-wal", "-shm"))]
    assert open_workspace(tmp_path / "elsewhere").query("SELECT count(*) > 0 FROM steps").rows == ((True,),)


def test_no_backup_is_made_while_a_night_runs(fresh: Workspace, tmp_path: Path) -> None:
    with exclusive_lock(fresh.root / ".lock", "the night", wait_s=0), pytest.raises(LockedError, match="is in use by"):
        back_up(fresh, tmp_path / "kept.tar")
    assert list(tmp_path.glob("*.tar*")) == []


def test_a_disk_that_is_not_mounted_is_told_and_the_one_below_not_filled(fresh: Workspace, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match=r"backups does not exist, and is not made.*mkdir -p"):
        back_up(fresh, tmp_path / "backups" / "kept.tar")
    assert not (tmp_path / "backups").exists()


def test_nothing_is_overwritten(fresh: Workspace, tmp_path: Path) -> None:
    back_up(fresh, tmp_path / "kept.tar")
    with pytest.raises(BackupError, match="exists already"):
        back_up(fresh, tmp_path / "kept.tar")
    with pytest.raises(BackupError, match="lies in the workspace itself"):
        back_up(fresh, fresh.root / "kept.tar")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").write_text("dear")
    with pytest.raises(BackupError, match="is not empty"):
        restore(tmp_path / "kept.tar", tmp_path / "full")
    assert (tmp_path / "full" / "letter").read_text() == "dear"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_an_archive_that_was_cut_off_restores_nothing(fresh: Workspace, tmp_path: Path, share: float) -> None:
    archive = tmp_path / "kept.tar"
    back_up(fresh, archive)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content.rstrip(b"\0")) * share)])
    with pytest.raises(BackupError, match=r"(cannot be read as a backup|holds no whole backup).*use another backup"):
        restore(archive, tmp_path / "elsewhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "kept.tar"]


def test_a_changed_byte_is_found_wherever_it_is(fresh: Workspace, tmp_path: Path) -> None:
    archive = tmp_path / "kept.tar"
    back_up(fresh, archive)
    content = bytearray(archive.read_bytes())
    content[content.index(b"[constraints.slo]") + 3] ^= 1
    archive.write_bytes(content)
    with pytest.raises(BackupError, match=r"contract\.toml differ or are missing"):
        check(archive)
    with pytest.raises(BackupError, match="is not what was backed up"):
        restore(archive, tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside"])
def test_an_entry_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))
    with pytest.raises(BackupError, match="is no plain file inside it"):
        restore(tmp_path / "bad.tar", tmp_path / "elsewhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tar"]


def test_a_full_disk_leaves_nothing(fresh: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(OSError, match="No space left"):
        back_up(fresh, tmp_path / "kept.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["fresh"]


def test_a_log_that_grows_is_taken_as_it_is_at_that_moment(fresh: Workspace, tmp_path: Path) -> None:
    log = fresh.logs_path / "open.jsonl"
    log.write_bytes(b'{"a": 1}\n{"a": 2}')
    back_up(fresh, tmp_path / "kept.tar")
    restore(tmp_path / "kept.tar", tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / log.relative_to(fresh.root)).read_bytes() == b'{"a": 1}\n{"a": 2}'


def test_a_database_in_use_is_copied_as_of_its_last_transaction(workspace: Workspace, tmp_path: Path) -> None:
    held = sqlite3.connect(workspace.root / "mlflow.db")
    held.execute("PRAGMA journal_mode=WAL")
    held.execute("CREATE TABLE beside (x)")
    held.execute("INSERT INTO beside VALUES (7)")
    held.commit()
    held.execute("INSERT INTO beside VALUES (8)")  # not committed
    back_up(workspace, tmp_path / "kept.tar")
    held.close()
    restore(tmp_path / "kept.tar", tmp_path / "elsewhere")
    copy = sqlite3.connect(tmp_path / "elsewhere" / "mlflow.db")
    assert copy.execute("SELECT x FROM beside").fetchall() == [(7,)]
    copy.close()


def test_the_command_wants_a_folder_or_a_check(fresh: Workspace, run: Run, tmp_path: Path) -> None:
    archive = str(tmp_path / "kept.tar")
    assert run(fresh, "backup", archive).code == 0
    neither, both = run(None, "restore", archive), run(None, "restore", archive, str(tmp_path / "new"), "--check")
    checked = run(None, "restore", archive, "--check")
    missing = run(None, "restore", str(tmp_path / "nothing.tar"), "--check")

    assert (neither.code, both.code, checked.code, missing.code) == (2, 2, 0, 1)
    assert "every digest as backed up" in checked.out
    assert "does not exist" in missing.err
    assert os.listdir(tmp_path).count("new") == 0  # noqa: PTH208  # names alone
