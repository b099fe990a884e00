"""What answers a question or acts loads little, so it starts fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.workspace import Workspace
from tests.pipelines.conftest import Run

HEAVY = {"torch", "mlflow", "prefect", "great_expectations", "scipy", "sklearn", "gymnasium", "sqlalchemy"}

PROBE = """
import sys
from pipelines.cli import app, quiet_libraries
quiet_libraries()
try:
    app(sys.argv[1:])
except SystemExit as end:
    print(end.code, *{name.split(".")[0] for name in sys.modules}, file=sys.stderr)
"""

OBSERVATION = {"cpu": 0.9, "request_rate": 90.0, "replicas": 2, "pending": 0, "p95_ms": 300, "hour": 3.0, "zone": "a"}


@pytest.mark.parametrize(
    ("arguments", "also"),
    [
        (["--help"], {"duckdb", "numpy", "pyarrow", "deltalake"}),
        (["query", "--help"], {"duckdb", "numpy", "pyarrow", "deltalake"}),
        (["query", "SELECT count(*) FROM steps"], set()),
        (["act", "1", "OBSERVATIONS"], {"deltalake"}),
        (["act", "0", "OBSERVATIONS"], {"deltalake"}),
        (["nights"], {"deltalake"}),
        (["batches", "list"], set()),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_light_command_loads_nothing_heavy(
    arguments: list[str], also: set[str], workspace: Workspace, tmp_path: Path
) -> None:
    observations = tmp_path / "observations.jsonl"
    observations.write_text(json.dumps(OBSERVATION))
    where = [] if "--help" in arguments else ["--workspace", str(workspace.root)]
    shown = [str(observations) if text == "OBSERVATIONS" else text for text in arguments]

    found = subprocess.run([sys.executable, "-c", PROBE, *shown, *where], capture_output=True, text=True, check=True)

    code, *loaded = found.stderr.split()
    assert code == "0"
    assert set(loaded) & (HEAVY | also) == set()


def test_a_command_that_needs_more_than_the_base_install_says_what_to_install(
    fresh: Workspace, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as where it is not installed
    answer = run(fresh, "releases")
    assert (answer.code, answer.out) == (1, "")
    assert "needs 'mlflow'" in answer.err
    assert 'pip install ".[pipeline]"' in answer.err


def test_the_engine_of_policies_leaves_nothing_in_the_home_folder(tmp_path: Path) -> None:
    """It would send home what it runs, and number the device there."""
    environment = {k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "CI")}
    code = "import offline_dqn.onnx_policy"
    subprocess.run([sys.executable, "-c", code], check=True, env={**environment, "HOME": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []
