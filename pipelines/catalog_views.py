"""The views `evaluations` and `evaluation_episodes`, over the folders of the releases: a query needs no MLflow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.catalog import Added
from datasets.duck import literal
from reports.episode_columns import EPISODES, SCHEMA
from reports.evaluation_rows import evaluation_row, evaluation_table
from reports.manifest import read_manifest
from reports.records import evaluation_from_json

_EVALUATION = "evaluation.json"
_SQL_TYPES = {pa.int64(): "BIGINT", pa.float64(): "DOUBLE", pa.string(): "VARCHAR", pa.date32(): "DATE"}


def evaluation_views(releases_path: Path, releases: Sequence[int]) -> Added:
    """The two views over the releases that were judged.

    Only files that the release's manifest names are read: what else lies there was left by a crash, or by somebody.
    """
    digests: dict[int, dict[str, str]] = {}
    for release in releases:
        manifest = read_manifest(releases_path / str(release))
        if manifest is not None and (releases_path / str(release) / _EVALUATION).is_file():
            digests[release] = dict(manifest.evaluation_files)
    judged = [release for release, files in digests.items() if _EVALUATION in files]
    episodes = {
        release: path
        for release in judged
        if EPISODES in digests[release] and (path := releases_path / str(release) / EPISODES).is_file()
    }

    def rows() -> pa.Table:
        return evaluation_table(
            evaluation_row(
                release,
                evaluation_from_json(json.loads((releases_path / str(release) / _EVALUATION).read_text())),
                snapshot=_snapshot_of(releases_path / str(release)),
                n_episode_rows=pq.read_metadata(episodes[release]).num_rows if release in episodes else None,
            )
            for release in judged
        )

    made_from = {str(release): digests[release] for release in judged}
    return Added(made_from, {"evaluations": rows}, {"evaluation_episodes": _episodes_sql(list(episodes.values()))})


def _snapshot_of(folder: Path) -> str:
    path = folder / "training.json"
    return str(json.loads(path.read_text())["snapshot"]) if path.is_file() else ""


def _episodes_sql(files: Sequence[Path]) -> str:
    if files:
        listed = ", ".join(literal(str(path)) for path in files)
        return f"SELECT * FROM read_parquet([{listed}], union_by_name = true)"
    columns = ", ".join(f'NULL::{_SQL_TYPES[field.type]} AS "{field.name}"' for field in SCHEMA)
    return f"SELECT {columns} WHERE false"
