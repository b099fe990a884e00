from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from reports.draws import cluster_counts


@pytest.mark.parametrize("n_clusters", [2, 3, 15, 17, 301, 4096])
def test_each_replicate_draws_as_many_as_there_are(n_clusters: int) -> None:
    counts = cluster_counts(n_clusters, 50, np.random.default_rng(0))
    np.testing.assert_array_equal(counts.sum(axis=1), n_clusters)
    assert counts.min() >= 0
    np.testing.assert_array_equal(counts, np.rint(counts))


@pytest.mark.parametrize("n_clusters", [5, 40])
def test_a_cluster_is_drawn_as_often_as_the_binomial_says(n_clusters: int) -> None:
    counts = cluster_counts(n_clusters, 60_000, np.random.default_rng(1)).astype(int)
    for cluster in (0, n_clusters - 1):
        seen = np.bincount(counts[:, cluster].clip(max=4), minlength=5)
        below = stats.binom.pmf(np.arange(4), n_clusters, 1 / n_clusters)
        expected = np.append(below, 1 - below.sum()) * len(counts)
        assert stats.chisquare(seen, expected).pvalue > 1e-4, (cluster, seen, expected)


def test_small_draws_have_every_outcome_of_the_multinomial() -> None:
    """17 clusters take the table of Poisson counts; how many are drawn not at all has a known distribution."""
    counts = cluster_counts(17, 100_000, np.random.default_rng(2))
    one_by_one = np.random.default_rng(3).multinomial(17, np.full(17, 1 / 17), size=100_000)
    seen, expected = (np.bincount((c == 0).sum(axis=1), minlength=14)[3:10] for c in (counts, one_by_one))
    assert stats.chi2_contingency([seen, expected]).pvalue > 1e-4


def test_two_clusters_compete() -> None:
    counts = cluster_counts(40, 60_000, np.random.default_rng(4))
    found = np.corrcoef(counts[:, 3], counts[:, 4])[0, 1]
    assert found == pytest.approx(-1 / 39, abs=4 / np.sqrt(60_000))
    assert np.corrcoef(counts[:, 0], counts[:, 39])[0, 1] == pytest.approx(-1 / 39, abs=4 / np.sqrt(60_000))
