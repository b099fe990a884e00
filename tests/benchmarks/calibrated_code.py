"""Which source files an outcome of the calibration rests on: change one, and what was judged before says nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_PACKAGES = ("reports.", "offline_dqn.", "drift.", "datasets.simulators.", "tests.")
"""Beyond these nothing computes an estimate: contracts, encoders and replays only carry arrays."""

_NO_MATTER = frozenset((
    "offline_dqn.description", "offline_dqn.fqe_network", "offline_dqn.policy", "reports.calibration_line",
    "reports.certified", "reports.change_records", "reports.changes", "reports.examples", "reports.explaining",
    "reports.feature_effects", "reports.formatting", "reports.proof_records", "reports.q_calibration",
    "reports.records", "reports.return_distribution", "reports.sensitivity", "tests.benchmarks.rows",
))  # fmt: skip
"""Modules that the evaluation calls or fills and that no check of the gate rests on, and those that keep artefacts or
fit networks, which no cell does."""


def code_behind(module: str) -> tuple[Path, ...]:
    """The files that `module` rests on, itself among them, in the order of their names: what it imports, and so on."""
    found: dict[str, Path] = {}
    open_ones = [module]
    while open_ones:
        name = open_ones.pop()
        path = ROOT / f"{name.replace('.', '/')}.py"
        if name in found or name in _NO_MATTER or not name.startswith(_PACKAGES) or not path.exists():
            continue
        found[name] = path
        open_ones += _imported(path)
    return tuple(found[name] for name in sorted(found))


@cache
def _imported(path: Path) -> tuple[str, ...]:
    return tuple(_names(ast.parse(path.read_text())))


def _names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
