"""Imports run one way, heavy libraries stay at their edge, and what acts loads little. Read from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("datasets", "drift", "offline_dqn", "reports", "pipelines")

MAY_IMPORT = {
    "datasets": set[str](),
    "drift": {"datasets"},
    "offline_dqn": {"datasets"},
    "reports": {"datasets", "drift", "offline_dqn"},
    "pipelines": {"datasets", "drift", "offline_dqn", "reports"},
}
"""The arrow `datasets <- drift, offline_dqn <- reports <- pipelines`."""

EDGES = {
    "prefect": ("pipelines/",),
    "prefect_dask": ("pipelines/dask_workers.py",),
    "dask": ("pipelines/dask_workers.py",),
    "distributed": ("pipelines/dask_workers.py",),
    "prefect_ray": ("pipelines/ray_workers.py",),
    "ray": ("pipelines/ray_workers.py",),
    "cloudpickle": ("pipelines/pieces.py",),
    "torch": ("offline_dqn/", "reports/"),
    "mlflow": ("reports/registry.py", "reports/tracking.py"),
    "great_expectations": ("datasets/duckdb_datasource.py", "datasets/docs_page.py"),
    "sqlalchemy": ("datasets/duckdb_datasource.py",),
    "duckdb_engine": ("datasets/duckdb_datasource.py",),
    "deltalake": ("datasets/lake.py", "datasets/lake_shape.py", "datasets/journal.py", "datasets/history.py"),
    "gymnasium": ("datasets/simulators/", "datasets/exchange.py", "datasets/minari_logs.py"),
    "jinja2": ("reports/render.py",),
    "pandas": (),
}
"""Where each heavy library may be imported."""

LATE = {"mlflow", "deltalake"}
"""Libraries that are imported inside functions only: importing the module that uses them stays quick."""


@cache
def imports_of(path: Path) -> tuple[tuple[str, bool, int], ...]:
    """Top-level package of every import, whether it stands at module level, and its line."""
    return tuple(_imports_of(ast.parse(path.read_text(encoding="utf-8")), path))


def _imports_of(tree: ast.Module, path: Path) -> Iterator[tuple[str, bool, int]]:
    inside = {
        id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports name their package"
            names = [node.module or ""]
        else:
            continue
        for name in names:
            yield name.split(".")[0], id(node) not in inside, node.lineno


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_imports_run_one_way() -> None:
    broken = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules()
        for name, _, line in imports_of(path)
        if name in PACKAGES and name != (package := path.relative_to(ROOT).parts[0]) and name not in MAY_IMPORT[package]
    ]
    assert broken == []


def test_nothing_that_is_shipped_imports_tests() -> None:
    assert [path for path in modules() if "tests" in {name for name, _, _ in imports_of(path)}] == []


@pytest.mark.parametrize("library", sorted(EDGES))
def test_a_heavy_library_stays_at_its_edge(library: str) -> None:
    strays = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in modules()
        for name, _, line in imports_of(path)
        if name == library and not str(path.relative_to(ROOT)).startswith(EDGES[library] or ("nowhere",))
    ]
    assert strays == []


@pytest.mark.parametrize("library", sorted(LATE))
def test_a_slow_library_is_imported_late(library: str) -> None:
    early = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in modules()
        for name, at_top, line in imports_of(path)
        if name == library and at_top
    ]
    assert early == []


def test_packages_are_empty_of_imports() -> None:
    for package in PACKAGES:
        assert list(imports_of(ROOT / package / "__init__.py")) == []


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("offline_dqn", {"torch", "mlflow", "prefect", "great_expectations", "deltalake"}),
        ("offline_dqn.policy", {"torch", "mlflow", "prefect", "great_expectations", "deltalake", "pandas"}),
        ("drift.detection", {"torch", "mlflow", "prefect", "great_expectations", "deltalake"}),
        ("datasets.catalog", {"torch", "mlflow", "prefect", "great_expectations", "deltalake"}),
        ("datasets.ingest", {"torch", "mlflow", "prefect", "great_expectations"}),
        (
            "pipelines.serving.server",
            {"torch", "mlflow", "prefect", "great_expectations", "pandas", "scipy", "sklearn", "jinja2", "onnx"},
        ),
    ],
)
def test_importing_it_loads_nothing_heavy(module: str, unwanted: set[str]) -> None:
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)

    assert set(found.stdout.split()) & unwanted == set()
