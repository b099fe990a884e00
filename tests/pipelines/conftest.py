"""One small workspace that has gone through its first night, and one Prefect server, shared by the tests here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from datasets.locking import exclusive_lock
from pipelines import stages
from pipelines.cli import app, quiet_libraries
from pipelines.training import train
from pipelines.workspace import Workspace, open_workspace, write_workspace

os.environ["OMP_NUM_THREADS"] = "1"  # for the commands that run as processes of their own
quiet_libraries()

SMALL = """
[simulate]
scenario = "autoscaler"
n_episodes = 2000

[ingest]
as_of = "newest"

[snapshot]
train_share = 0.45
select_share = 0.05

[train]
n_updates = 800
hidden = [32, 32]
penalty_weights = 0.1
bcq_thresholds = []
candidates_at = 1.0
exploration = 0.7
n_threads = 1
checkpoint_every = 100

[evaluate]
n_replicates = 2000
placebo_halves = 400
n_folds = 2
fqe = { n_random_features = 100 }
deciding = { estimator = "dr" }

[gate]
alpha = 0.05
overlap = { largest_tail_index = 0.95, largest_share = 0.5, smallest_sample_size = 10 }
"""
"""The autoscaler's settings, made small; the rules of version 0 follow from the scenario. So few episodes overlap badly
now and then, and so rough a model carries no marginalized weights, which is no matter here: these tests are about what
follows from a verdict."""

CHATTER = re.compile(
    r"traceback|warning:|nanobind|leaked|prefect\b|mlflow|great.?expectations|alembic|http://|uvicorn|INFO|DEBUG"
    r"|Calculating Metrics|deprecat",
    re.IGNORECASE,
)
"""What the output of a library looks like; our own lines hold nothing of it."""


def write_small_workspace(root: Path) -> Workspace:
    """A new autoscaler workspace with the small settings."""
    write_workspace(root, "autoscaler")
    settings = root / "offline_dqn.toml"
    baseline = settings.read_text(encoding="utf-8").partition("[baseline]")[2]
    settings.write_text(f"{SMALL}\n[baseline]{baseline}", encoding="utf-8")
    return open_workspace(root)


def edit(path: Path, old: str, new: str) -> None:
    """Replaces what stands once in a file."""
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {path}"
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture(scope="session")
def first_night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after its first night: release 1 passed its gate and is champion. Not to be changed."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share one
        shared = shared.parent
    root = shared / "first-night"
    with exclusive_lock(shared / "first-night.lock", "the shared workspace", wait_s=300):
        if not root.exists():
            made = shared / "first-night.new"
            shutil.rmtree(made, ignore_errors=True)
            workspace = write_small_workspace(made)
            stages.simulate(workspace)
            stages.ingest(workspace)
            snapshot, _ = stages.snapshot(workspace)
            release = train(workspace, snapshot).release
            assert stages.evaluate(workspace, release).passed
            workspace.registry.promote(release, reviewer="Ada", note="the first one")
            made.replace(root)
    return root


@pytest.fixture
def workspace(first_night: Path, tmp_path: Path) -> Workspace:
    """A copy of the workspace after its first night, to be changed at will."""
    shutil.copytree(first_night, tmp_path / "workspace")
    return open_workspace(tmp_path / "workspace")


@pytest.fixture
def fresh(tmp_path: Path) -> Workspace:
    """A small workspace that nothing has happened in."""
    return write_small_workspace(tmp_path / "fresh")


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a temporary Prefect server; its home is a temporary folder."""
    # Prefect reads its settings when it is imported, so its home comes first.
    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        address = PREFECT_API_URL.value()
        assert address is not None
        yield address


@dataclass(frozen=True)
class Answer:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout."""
        return json.loads(self.out)


Run = Callable[..., Answer]


@pytest.fixture
def run() -> Run:
    """Runs a command in this process: `run(workspace, "ingest", "--json")`."""

    def run_command(workspace: Workspace | Path | None, *arguments: object) -> Answer:
        root = workspace.root if isinstance(workspace, Workspace) else workspace
        where = [] if root is None else ["--workspace", str(root)]
        result = CliRunner().invoke(app, [*map(str, arguments), *where], prog_name="offline-dqn")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Answer(result.exit_code, result.stdout, result.stderr)

    return run_command


def start_command(workspace: Workspace | Path, *arguments: object, **environment: str | None) -> subprocess.Popen[str]:
    """Starts a command as a process of its own; a variable of the environment that is None is taken out of it."""
    changed = {**os.environ, **environment}
    root = workspace.root if isinstance(workspace, Workspace) else workspace
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from pipelines.cli import main; main()",
            *map(str, arguments),
            "--workspace",
            str(root),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={key: value for key, value in changed.items() if value is not None},
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 240) -> Answer:
    """Waits for a started command."""
    out, err = process.communicate(timeout=timeout_s)
    return Answer(process.returncode, out, err)


def chatter(answer: Answer) -> list[str]:
    """Lines of a command's stderr that are not its own."""
    return [line for line in answer.err.splitlines() if CHATTER.search(line)]
