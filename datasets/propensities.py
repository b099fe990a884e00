"""Do logged probabilities average out: over the rows where an action was available, 1[A = a] / p has mean 1.

The formulas are shared by the check of a new batch, which has no more of it than what one query sums up, and by the
report, which has every row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import duckdb

from datasets.contract import Contract
from datasets.duck import literal

_LARGEST_LOG = 50.0
"""Half-widths on the log scale above this say nothing more, and would overflow."""
_LARGEST_TERM = 1e100
"""Larger inverse probabilities count as this one: their squares must stay finite."""
_N_RAREST = 30


def clustered_error(squared_residuals: float, n_clusters: int, n_rows: int) -> float:
    """Standard error of a mean over rows that are dependent within clusters.

    Args:
        squared_residuals: sum over clusters of (sum of the cluster's terms - mean times its rows) squared.
        n_clusters: at least two.
        n_rows: rows in all clusters.

    Source: Liang and Zeger 1986, Longitudinal data analysis using generalized linear models (the sandwich of a mean).
    """
    return math.sqrt(n_clusters / (n_clusters - 1) * max(squared_residuals, 0.0)) / n_rows


def log_scale_interval(average: float, error: float, n_clusters: int, level: float) -> tuple[float, float]:
    """Student t interval on the log scale of a positive mean.

    A sum of rare large terms is skewed, and falls short of its mean more often than not.
    """
    from scipy import special  # stats.t takes a second to import

    half = float(special.stdtrit(n_clusters - 1, (1 + level) / 2)) * error / average
    return average * math.exp(-half), average * math.exp(min(half, _LARGEST_LOG))


@dataclass(frozen=True)
class InverseAverage:
    """The mean of 1[A = a] / p over the rows where an action was available.

    Attributes:
        n_effective: how many equally probable taken rows the taken ones are worth.
        average: None where no row was taken.
        error: its standard error by cluster; None with fewer than two clusters.
        rarest: what the 30 taken rows of the smallest probabilities add to the average. A log may as well lack as
            many of them, which an interval from the rows that are there cannot know.
    """

    action: str
    n_available: int
    n_taken: int
    n_clusters: int
    n_effective: float
    average: float | None
    error: float | None
    rarest: float = 0.0

    def interval(self, level: float) -> tuple[float, float] | None:
        """The interval of the average; None where there is none."""
        if self.average is None or self.error is None:
            return None
        return log_scale_interval(self.average, self.error, self.n_clusters, level)


def inverse_averages(
    connection: duckdb.DuckDBPyConnection, steps: str, contract: Contract
) -> tuple[InverseAverage, ...] | None:
    """The averages of every action, in the contract's order, from the rows whose probability is known.

    One pass over four columns; what is kept per cluster is a few numbers.

    Args:
        steps: SQL relation of canonical steps.

    Returns:
        None where the log says nothing: no probability is known, no row offered a choice, or every choice was made
        with probability 1 (a deterministic logger).
    """
    names = contract.actions.names
    listed = "[" + ", ".join(literal(name) for name in names) + "]"
    # Rows of a one-step log are clusters of their own: nothing to group.
    alone = contract.episodes.kind == "one_step" and contract.episodes.cluster is None
    known = f"""SELECT action AS a, behavior_prob AS p, available_actions AS m,
            least(1.0 / behavior_prob, {_LARGEST_TERM}) AS w{"" if alone else ", hash(cluster) AS c"}
        FROM {steps} WHERE behavior_prob > 0.0 AND behavior_prob <= 1.0"""
    choice = f"CASE WHEN m IS NULL THEN {len(names)} ELSE len(m) END > 1"
    scanned = connection.execute(
        f"""SELECT a, count(*) FILTER ({choice} AND p < 1.0), count(m),
            list_sum(max(w, {_N_RAREST}) FILTER (m IS NULL OR list_contains(m, a))) FROM ({known}) GROUP BY a"""
    ).fetchall()
    if not any(n_uncertain for _, n_uncertain, _, _ in scanned):
        return None
    rarest = {action: float(largest or 0.0) for action, _, _, largest in scanned}
    masked = any(n_masked for _, _, n_masked, _ in scanned)
    found = connection.execute(_sums_sql(known, listed, alone=alone, masked=masked)).fetchall()
    by_action = {
        action: _average(action, rarest.get(action, 0.0), *(float(s or 0.0) for s in sums)) for action, *sums in found
    }
    return tuple(by_action.get(name) or InverseAverage(name, 0, 0, 0, 0.0, None, None) for name in names)


def _sums_sql(known: str, listed: str, *, alone: bool, masked: bool) -> str:
    """Per action: rows available, clusters, squared rows per cluster; rows taken; sums over clusters of their terms s,
    of s squared, of s times rows available; sum of squared terms."""
    by = "a" if alone else "c, a"
    taken = f"""SELECT {by}, count(*) AS k, sum(w) AS s, sum(w * w) AS q FROM ({known})
        WHERE m IS NULL OR list_contains(m, a) GROUP BY {by}"""
    if alone:
        free = f"SELECT unnest(coalesce(m, {listed})) AS a FROM ({known})"
        available = (
            f"SELECT a, count(*) AS n, count(*) AS clusters, count(*) AS nn FROM ({free}) GROUP BY a"
            if masked
            else f"SELECT unnest({listed}) AS a, n, n AS clusters, n AS nn FROM (SELECT count(*) AS n FROM ({known}))"
        )
        return f"""SELECT f.a, n, clusters, nn, k, s, q AS ss, s AS sn, q FROM ({available}) f
            LEFT JOIN ({taken}) t ON t.a = f.a"""
    if masked:
        free = f"SELECT c, unnest(coalesce(m, {listed})) AS a FROM ({known})"
        rows = f"SELECT c, a, count(*) AS n FROM ({free}) GROUP BY c, a"
        available = "SELECT a, sum(n) AS n, count(*) AS clusters, sum(n::DOUBLE * n) AS nn FROM available GROUP BY a"
        joined = "taken JOIN available USING (c, a)"
    else:
        # Whatever was taken, a row is available to every action.
        rows = "SELECT c, sum(k) AS n FROM taken GROUP BY c"
        available = f"""SELECT unnest({listed}) AS a, * FROM (
            SELECT sum(n) AS n, count(*) AS clusters, sum(n::DOUBLE * n) AS nn FROM available)"""
        joined = "taken JOIN available USING (c)"
    return f"""WITH taken AS MATERIALIZED ({taken}),
        available AS MATERIALIZED ({rows}),
        sums AS (SELECT a, sum(k) AS k, sum(s) AS s, sum(s * s) AS ss, sum(s * n) AS sn, sum(q) AS q
            FROM {joined} GROUP BY a)
        SELECT f.a, n, clusters, nn, k, s, ss, sn, q FROM ({available}) f LEFT JOIN sums ON sums.a = f.a"""


def _average(
    action: str,
    rarest: float,
    n: float,
    clusters: float,
    nn: float,
    k: float,
    s: float,
    ss: float,
    sn: float,
    q: float,
) -> InverseAverage:
    if not k:
        return InverseAverage(action, int(n), 0, int(clusters), 0.0, None, None)
    mean = s / n
    # Sum over clusters of (s - mean n) squared, multiplied out.
    error = clustered_error(ss - 2 * mean * sn + mean**2 * nn, int(clusters), int(n)) if clusters > 1 else None
    return InverseAverage(action, int(n), int(k), int(clusters), s * s / q, mean, error, rarest / n)
