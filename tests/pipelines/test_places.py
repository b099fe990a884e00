"""Paths from settings, logs and archives stay where they belong."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from datasets.logfiles import LogFileError, find_log_files
from pipelines.backup import BackupError, back_up, restore
from pipelines.config import PipelineConfig
from pipelines.workspace import Workspace
from tests.pipelines.conftest import Run


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("metrics", "prometheus_file", "../../etc/cron.d/x.prom"),
        ("metrics", "prometheus_file", "~/x.prom"),
        ("serve", "tls_key", "keys/../../key.pem"),
        ("store", "lake", "../lake"),
        ("store", "snapshots", "/srv/snapshots"),
        ("store", "releases", "a/../../releases"),
    ],
)
def test_a_path_in_the_settings_that_leaves_the_workspace_is_refused(
    fresh: Workspace, run: Run, table: str, key: str, value: str
) -> None:
    both = f'tls_certificate = "c.pem"\n{key}' if table == "serve" else key
    settings = fresh.root / "offline_dqn.toml"
    settings.write_text(f'{settings.read_text()}\n[{table}]\n{both} = "{value}"\n')

    answer = run(fresh, "releases")

    assert answer.code == 1
    assert f"{table}.{key}: " in answer.err


def test_the_collectors_folder_may_be_named_in_full() -> None:
    config = PipelineConfig.model_validate({"metrics": {"prometheus_file": "/var/lib/node_exporter/a.prom"}})
    assert config.metrics.prometheus_file == "/var/lib/node_exporter/a.prom"


def test_a_link_among_the_logs_reads_nothing_outside_them(fresh: Workspace, run: Run, tmp_path: Path) -> None:
    (tmp_path / "private.jsonl").write_text('{"password": "x"}\n')
    (fresh.logs_path / "night.jsonl").symlink_to(tmp_path / "private.jsonl")
    (fresh.logs_path / "a.jsonl").write_text("{}\n")

    answer = run(fresh, "ingest")

    assert answer.code == 1
    assert f"{fresh.logs_path / 'night.jsonl'}: a link leads out of {fresh.logs_path}" in answer.err
    assert "Nothing was taken." in answer.err


def test_links_within_the_logs_and_a_linked_folder_of_logs_are_read(tmp_path: Path) -> None:
    elsewhere = tmp_path / "disk"
    elsewhere.mkdir()
    (elsewhere / "a.jsonl").write_text("{}\n")
    (elsewhere / "b.jsonl").symlink_to(elsewhere / "a.jsonl")
    (tmp_path / "steps").symlink_to(elsewhere)

    found = find_log_files([tmp_path / "steps"])
    assert [log.path.name for log in found] == ["a.jsonl", "b.jsonl"]

    (elsewhere / "c.jsonl").symlink_to("../gone.jsonl")  # leads nowhere: there is nothing to read
    assert len(find_log_files([tmp_path / "steps"])) == 2

    (tmp_path / "gone.jsonl").write_text("{}\n")
    with pytest.raises(LogFileError, match="a link leads out of"):
        find_log_files([tmp_path / "steps"])


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_an_archive_brings_files_alone(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        entry = tarfile.TarInfo("logs")
        entry.type, entry.linkname = kind, str(tmp_path)
        archive.addfile(entry)
        inside = tarfile.TarInfo("logs/x")
        inside.size = 1
        archive.addfile(inside, io.BytesIO(b"x"))
    with pytest.raises(BackupError, match="is no plain file inside it"):
        restore(tmp_path / "bad.tar", tmp_path / "elsewhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tar"]


def test_a_backup_takes_linked_folders_along_and_ends_where_they_lead_back(fresh: Workspace, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (disk / "a.jsonl").write_text("{}\n")
    (fresh.logs_path / "more").symlink_to(disk)
    (fresh.logs_path / "round").symlink_to(fresh.root)

    back_up(fresh, tmp_path / "kept.tar")

    with tarfile.open(tmp_path / "kept.tar") as archive:
        names = archive.getnames()
    assert "logs/steps/more/a.jsonl" in names
    assert not [name for name in names if "round" in name]
