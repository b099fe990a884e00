"""What computes: versions of our own code and of the libraries, and the kernels chosen for this processor."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from offline_dqn.devices import kernels_here

_PACKAGES = ("datasets", "drift", "offline_dqn", "reports")
_LIBRARIES = ("numpy", "scipy", "torch", "scikit-learn")


@cache
def made_by() -> Mapping[str, str]:
    """Versions of the code that judges and of the libraries that compute; `source` is a digest of our own modules, and
    `processor` names the kernels that numpy and torch chose for this machine: others round differently."""
    root = Path(__file__).resolve().parents[1]
    source = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            source.update(str(path.relative_to(root)).encode() + path.read_bytes())
    libraries = {name: _version(name) for name in ("offline-dqn", *_LIBRARIES)}
    return {**libraries, "source": source.hexdigest()[:16], "processor": kernels_here()}


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
