"""Where a lake may lie: on a read-only mount, on a disk that fills up. Mounts are real, in a namespace of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.datasets.builders import episode, lake_at, take_in, write_rows

ROOT = Path(__file__).parents[2]

_MAY_MOUNT = (
    shutil.which("unshare") is not None
    and subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode == 0
)

mounts = pytest.mark.skipif(not _MAY_MOUNT, reason="this system lets no user mount anything")


def in_namespace(mount: str, code: str, *arguments: Path) -> str:
    """What Python code prints after a mount that only it sees; `$1`, `$2` ... are the arguments, as in sys.argv."""
    script = f'set -e; {mount}; exec {sys.executable} -c "$CODE" "$@"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *map(str, arguments)],
        env={"CODE": code, "PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


READ_ONLY = 'mount --bind "$1" "$1"; mount -o remount,ro,bind "$1"'


@mounts
@pytest.mark.usefixtures("quick_suite")
def test_a_read_only_lake_answers_and_takes_nothing_in(tmp_path: Path) -> None:
    folder = tmp_path / "workspace"
    lake = lake_at(folder)
    take_in(lake, write_rows(folder / "a.jsonl", [*episode("e"), "bad"]))
    (lake.root / "_lock").unlink()  # as on a copy
    code = """
import sys
from pathlib import Path
from datasets.batches import list_batches
from datasets.catalog import current_catalog, query_catalog
from datasets.errors import OfflineDqnError
from tests.datasets.builders import NOON, lake_at, take_in
folder = Path(sys.argv[1])
lake = lake_at(folder)
print([b.counts.n_in for b in list_batches(lake)])
with current_catalog(lake, folder / "lake.duckdb", as_of=NOON, releases=[]) as path:
    print(query_catalog(path, "SELECT count(*), any_value(n_steps) FROM episodes", folders=[folder / "lake"]).rows)
try:
    take_in(lake, folder / "a.jsonl")
except OfflineDqnError as error:
    print(type(error).__name__, error)
"""
    counts, rows, refusal = in_namespace(READ_ONLY, code, folder).splitlines()

    assert (counts, rows) == ("[4]", "((1, 3),)")
    assert refusal.startswith(f"ReadOnlyError The lake {folder}/lake cannot be changed here: Read-only file system (")
    assert "It can be asked; to change it, mount it writable" in refusal
    assert not (folder / "lake.duckdb").exists()


@mounts
@pytest.mark.usefixtures("quick_suite")
def test_an_unfinished_commit_on_a_read_only_mount_is_not_passed_over(tmp_path: Path) -> None:
    lake = lake_at(tmp_path / "w")
    lake.journal_path.write_text("{}")
    code = """
import sys
from pathlib import Path
from tests.datasets.builders import lake_at
try:
    lake_at(Path(sys.argv[1]))
except Exception as error:
    print(type(error).__name__, error)
"""
    said = in_namespace(READ_ONLY, code, tmp_path / "w")

    assert said.startswith(
        f"ReadOnlyError A commit of the lake {lake.root} was cut off, and finishing it is not possible"
    )


FULL = """
import json, os, sys
from pathlib import Path
import pytest
from datasets import lake as lake_module
from datasets.catalog import CatalogError, refresh_catalog
from datasets.errors import OfflineDqnError
from tests.datasets.builders import NOON, episode, lake_at, step_keys, suite_says, take_in, write_rows

suite_says(pytest.MonkeyPatch(), True)
folder, logs = Path(sys.argv[1]), Path(sys.argv[2])
lake, said, n_rows = lake_at(folder), [], []

def leave(n_bytes):
    (folder / "ballast").unlink(missing_ok=True)
    disk = os.statvfs(folder)
    with (folder / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - n_bytes)

def try_to_take(path):
    try:
        report = take_in(lake_at(folder), path)
        said.extend(cause for _, cause in report.damaged)
        return report.batch is not None
    except OfflineDqnError as error:
        said.append(str(error))
        return False

# The disk is full from the start, a little less each time,
log = write_rows(logs / "long.jsonl", [row for i in range(100) for row in episode(f"a-long-name-{i}")])
for n_bytes in [*range(0, 65_536, 8_192), *range(65_536, 4_000_000, 65_536)]:
    leave(n_bytes)
    done = try_to_take(log)
    n_rows.append(len(step_keys(lake)))
    if done:
        break
# or it fills up once the rows are staged, when the commit begins.
real = lake_module.write_journal
for n_bytes in range(0, 65_536, 4_096):
    (folder / "ballast").unlink()
    log = write_rows(logs / f"{n_bytes}.jsonl", episode(f"e{n_bytes}"))
    with pytest.MonkeyPatch().context() as patch:
        patch.setattr(lake_module, "write_journal", lambda *a, **k: (leave(n_bytes), real(*a, **k)))
        done = try_to_take(log)
    if lake.journal_path.exists():
        try:
            lake_at(folder)
        except OfflineDqnError as error:
            said.append(str(error))
leave(0)
try:
    refresh_catalog(lake, folder / "lake.duckdb", as_of=NOON, releases=[])
except CatalogError as error:
    said.append(str(error))
(folder / "ballast").unlink()
take_in(lake_at(folder), logs)
refresh_catalog(lake, folder / "lake.duckdb", as_of=NOON, releases=[])
print(json.dumps({
    "said": said, "n_rows": n_rows, "rows": len(step_keys(lake)), "distinct": len(set(step_keys(lake))),
    "left": sorted(path.name for path in [*folder.iterdir(), *lake.root.iterdir()]),
}))
"""


@mounts
def test_a_disk_that_fills_up_anywhere_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    found = json.loads(in_namespace('mount -t tmpfs -o size=16m tmpfs "$1"', FULL, tmp_path / "w", tmp_path / "logs"))

    said = found["said"]
    assert all("could not be" in text and "No space left" in text for text in said), said
    assert sum("Nothing of the batch is in it" in text for text in said) > 4
    assert sum("is whole in its journal" in text for text in said) > 2
    assert set(found["n_rows"]) == {0, 300}
    assert (found["rows"], found["distinct"]) == (348, 348)
    assert not {"_staging", "_journal.json"} & set(found["left"])
