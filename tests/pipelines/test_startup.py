"""What answers a question or acts loads little, so it starts fast."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.workspace import Workspace

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
