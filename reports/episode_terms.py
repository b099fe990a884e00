"""`evaluation_episodes.parquet`: the terms of the deciding estimator, one row per `gate` episode.

So that every headline number can be computed again by SQL: the value is the mean of `candidate_term`, the difference
the mean of `candidate_term - baseline_term`, the mean weight the mean of `weight`, and the effective sample size
sum(weight)^2 / sum(weight^2). A term that does not exist, or is not finite, is null.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datasets.replay import Replay
from reports.episode_columns import SCHEMA
from reports.estimators import Floats, RatioSum
from reports.trial import Trial


@dataclass(frozen=True)
class EpisodeTerms:
    """Per-episode terms of what decides, (N,) each along the `gate` episodes; None where a role has none."""

    estimator: str | None
    returns: Floats
    candidate: Floats | None
    baseline: Floats | None
    version_zero: Floats | None
    weights: Floats | None


def terms_of(trial: Trial, sums: Mapping[str, RatioSum], deciding: str | None) -> EpisodeTerms:
    """The terms behind the estimates that `sums` holds by "name/role", of the deciding estimator.

    Where the log itself is the value of a role, its terms are the episodes' returns.
    """

    def mean_terms(name: str) -> Floats | None:
        found = sums.get(name)
        is_mean = found is not None and found.numerators.shape[1] == 1 and bool(np.all(found.denominators == 1.0))
        return found.terms if found is not None and is_mean else None

    own = mean_terms("on_policy/log")
    assert own is not None  # every trial has returns
    baseline = mean_terms(f"{deciding}/baseline") if "baseline" in trial.arms else own
    version_zero = (
        mean_terms(f"{deciding}/version_zero")
        if "version_zero" in trial.arms
        else own
        if trial.version_zero_is_log
        else None
    )
    weights = mean_terms("balance/candidate" if deciding == "drl" else "weight/candidate")
    return EpisodeTerms(deciding, own, mean_terms(f"{deciding}/candidate"), baseline, version_zero, weights)


def episode_table(release: int, gate: Replay, terms: EpisodeTerms) -> bytes:
    """The Parquet file of a release; `gate` holds the episodes that were judged, in the order of the terms."""
    n = gate.n_episodes

    def column(values: Floats | None) -> pa.Array:
        if values is None:
            return pa.nulls(n, pa.float64())
        return pa.array(values, mask=~np.isfinite(values))

    columns: list[Any] = [
        pa.array(np.full(n, release, dtype=np.int64)),
        pa.array(gate.episode_ids.astype(str).tolist(), pa.string()),
        pa.array(gate.clusters.astype(np.int64)),
        pa.array(gate.nights.astype("datetime64[D]")),
        pa.array(gate.lengths.astype(np.int64)),
        column(terms.returns),
        pa.array([terms.estimator] * n, pa.string()),
        column(terms.candidate),
        column(terms.baseline),
        column(terms.version_zero),
        column(terms.weights),
    ]
    return _written(pa.Table.from_arrays(columns, schema=SCHEMA))


def of_release(content: bytes, release: int) -> bytes:
    """The same file under another release's number."""
    table = pq.read_table(pa.BufferReader(content))
    number = pa.array(np.full(len(table), release, dtype=np.int64))
    return _written(table.set_column(table.schema.get_field_index("release"), SCHEMA.field("release"), number))


def without_episodes(content: bytes, erased: Collection[str]) -> bytes:
    """The same file without the rows of erased episodes; the same bytes where it holds none of them."""
    table = pq.read_table(pa.BufferReader(content))
    gone: NDArray[np.bool_] = np.isin(np.array(table["episode_id"].to_pylist(), dtype=object), list(erased))
    return _written(table.filter(pa.array(~gone))) if gone.any() else content


def _written(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())
