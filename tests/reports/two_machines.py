"""Two machines whose releases lie in one bucket: folders of their own, MLflow databases of their own."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datasets.bucket_folder import follow_bucket
from reports.registry import JUDGED_AGAINST, Gate, Registry

AT = datetime(2024, 5, 1, 3, 0, tzinfo=UTC)


def machine(folder: Path, database: Path, address: str) -> Registry:
    """The registry of a machine that has seen nothing of the bucket yet."""
    folder.mkdir(parents=True)
    shutil.copy(database, folder / "mlflow.db")
    return opened(folder, address)


def opened(folder: Path, address: str) -> Registry:
    follow_bucket(folder / "copy", address, kind="releases", problem="autoscaler")
    return Registry(folder / "mlflow.db", folder / "copy", "autoscaler")


def add_release(registry: Registry, gate: Gate = "passed", content: str = "{}", against: str = "none, 0, 1, 2") -> int:
    with registry.staging() as staged:
        (staged / "policy.json").write_text(content)
        (staged / "training.json").write_text(json.dumps({"history": [], "config": {}}))
        judged: dict[str, Any] = {JUDGED_AGAINST: against} if gate in ("passed", "refused") else {}
        return registry.register(staged, gate=gate, tags={"snapshot": "abc", **judged}, at=AT)
