from __future__ import annotations

import numpy as np

from drift import cells as cells_module
from drift.cells import cells_of
from drift.windows import DriftColumn, DriftWindow


def window(clusters: list[int] | np.ndarray, days: list[int] | np.ndarray) -> DriftWindow:
    n = len(clusters)
    column = DriftColumn("numeric", np.zeros(n))
    nights = np.datetime64("1970-01-01") + np.asarray(days)
    return DriftWindow({"x": column}, np.arange(n), np.asarray(clusters), nights)


def test_a_cell_is_a_cluster_in_a_night() -> None:
    found = cells_of(window([7, 7, 9, 7, 9], [3, 3, 3, 4, 4]))
    assert found.nights.tolist() == [3, 3, 4, 4]
    assert found.clusters.tolist() == [0, 1, 0, 1]
    assert found.of_episode.tolist() == [0, 0, 1, 2, 3]
    assert (found.n_cells, found.n_clusters, found.clusters_per_code) == (4, 2, 1.0)
    assert found.night_codes.tolist() == [0, 0, 1, 1]


def test_too_many_clusters_are_bundled_and_none_is_lost(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(cells_module, "MAX_CELLS", 500)
    n = 4_000
    found = cells_of(window(np.arange(n), np.arange(n) % 5))
    assert found.n_clusters == n
    assert found.n_cells <= 5 * 100
    assert found.clusters_per_code == 40.0
    assert np.bincount(found.of_episode).sum() == n
    assert (found.nights[found.of_episode] == np.arange(n) % 5).all()  # bundles never join nights


def test_some_nights_alone_keep_their_clusters() -> None:
    found = cells_of(window([0, 1, 2, 3], [3, 3, 4, 4]))
    kept = found.of_seasons(found.nights == 4)
    assert (kept.nights.tolist(), kept.clusters.tolist(), kept.n_clusters) == ([4, 4], [0, 1], 2)
