"""Regions of the state space: clusters (k-means) of encoded observations, or the cells of a quantile grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datasets.contract import BooleanFeature, CategoricalFeature, Contract, NumericFeature
from datasets.coverage_config import CoverageConfig
from datasets.encoding import Encoder, fit_encoder
from datasets.observations import MISSING_CODE, Observations
from datasets.settings import SettingsError

_CENTER_TOLERANCE = 0.5
"""Standard deviations by which a region's mean must differ from the log's for a feature to describe it."""


def fit_regions(contract: Contract, sample: Observations, config: CoverageConfig) -> Clusters | Grid:
    """Regions fitted on a sample of the training split.

    Raises:
        SettingsError: the grid names a feature that has no bins, or needs more cells than it may have.
    """
    fit = _fit_clusters if config.method == "kmeans" else _fit_grid
    return fit(contract, sample, config)


# --- k-means


@dataclass(frozen=True)
class Clusters:
    """Regions around centers; `words` (R) say what is particular about each."""

    encoder: Encoder
    centers: NDArray[np.float32]
    words: tuple[str, ...]

    def assign(self, observations: Observations) -> NDArray[np.int64]:
        """(n,) number of each row's region."""
        return _nearest(self.encoder.encode(observations), self.centers)


def _nearest(encoded: NDArray[np.float32], centers: NDArray[np.float32]) -> NDArray[np.int64]:
    # |x - c|^2 without |x|^2, which is the same for every center
    return np.asarray(np.argmin((centers**2).sum(axis=1) - 2 * encoded @ centers.T, axis=1))


def _fit_clusters(contract: Contract, sample: Observations, config: CoverageConfig) -> Clusters:
    from sklearn.cluster import MiniBatchKMeans  # heavy, and only needed here
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # it has no stubs

    encoder = fit_encoder(contract, sample)
    encoded = encoder.encode(sample)
    n_clusters = min(config.regions, len(np.unique(encoded, axis=0)))
    with threadpool_limits(1):  # sums of threads differ in their last bits
        fitted = MiniBatchKMeans(n_clusters, random_state=config.seed, n_init=3, batch_size=4096).fit(encoded)
    centers = fitted.cluster_centers_.astype(np.float32)
    centers = centers[np.unique(_nearest(encoded, centers))]  # without those that no step is nearest to
    nearest = _nearest(encoded, centers)
    words = tuple(_described(contract, encoder, encoded, sample, nearest == region) for region in range(len(centers)))
    return Clusters(encoder, centers, words)


def _described(
    contract: Contract, encoder: Encoder, encoded: NDArray[np.float32], sample: Observations, inside: NDArray[np.bool_]
) -> str:
    """The features in which a region differs most from the rest, by their medians and shares."""
    shift = np.abs(encoded[inside].mean(axis=0) - encoded.mean(axis=0)) / np.maximum(encoded.std(axis=0), 1e-6)
    feature_of_column = [name for name, encoding in encoder.features.items() for _ in range(encoding.size)]
    strongest: dict[str, float] = {}
    for name, size in zip(feature_of_column, shift.tolist(), strict=True):
        strongest[name] = max(size, strongest.get(name, 0.0))
    ranked = sorted(strongest, key=lambda name: -strongest[name])[:3]
    told = [name for name in ranked if strongest[name] >= _CENTER_TOLERANCE]
    return ", ".join(_feature_words(contract, sample, name, inside) for name in told) or "nothing in particular"


def _feature_words(contract: Contract, sample: Observations, name: str, inside: NDArray[np.bool_]) -> str:
    feature, values = contract.features[name], sample.columns[name]
    if isinstance(feature, CategoricalFeature):
        counts = np.bincount(values[inside & (values != MISSING_CODE)], minlength=1)
        if not counts.sum():
            return f"{name} missing"
        label, share = int(counts.argmax()), counts.max() / inside.sum()
        return f"{name} = {sample.vocabularies[name][label]} in {share:.0%} (in all {(values == label).mean():.0%})"
    table = values if values.ndim == 2 else values[:, None]
    column = 0 if values.ndim == 1 else _strongest_component(table, inside)
    within, everywhere = table[inside, column], table[:, column]
    within, everywhere = within[~np.isnan(within)], everywhere[~np.isnan(everywhere)]
    if not len(within):
        return f"{name} missing"
    if isinstance(feature, BooleanFeature):
        return f"{name} in {within.mean():.0%} (in all {everywhere.mean():.0%})"
    unit = f" {feature.unit}" if isinstance(feature, NumericFeature) and feature.unit else ""
    said = name if values.ndim == 1 else f"{name}[{column}]"
    return f"{said} about {_said(np.median(within))}{unit} (in all {_said(np.median(everywhere))})"


def _said(number: float) -> str:
    return f"{number:.3g}" if abs(number) < 1000 or abs(number) >= 1e9 else f"{number:.0f}"


def _strongest_component(table: NDArray[np.float64], inside: NDArray[np.bool_]) -> int:
    """The component of a vector (rows, L) whose mean inside differs most from that of all, in standard deviations."""
    known = table[~np.isnan(table[:, 0])]  # a vector is missing as a whole
    within = table[inside & ~np.isnan(table[:, 0])]
    if not len(within):
        return 0
    return int((np.abs(within.mean(axis=0) - known.mean(axis=0)) / np.maximum(known.std(axis=0), 1e-12)).argmax())


# --- grid


@dataclass(frozen=True)
class _Axis:
    """One feature of a grid.

    Attributes:
        edges: inner edges of a number's bins; labels: of a categorical or boolean one, those unseen in a bin of theirs.
        nullable: whether a last bin takes what is missing.
    """

    name: str
    edges: tuple[float, ...]
    labels: tuple[str, ...]
    nullable: bool

    @property
    def words(self) -> list[str]:
        if self.labels:
            words = [f"{self.name} = {label}" for label in self.labels] + [f"{self.name} unseen"]
        else:
            shown = [_said(edge) for edge in self.edges]
            between = [f"{self.name} from {low} to {high}" for low, high in itertools.pairwise(shown)]
            words = [f"{self.name} below {shown[0]}", *between, f"{self.name} from {shown[-1]}"]
        return words + ([f"{self.name} missing"] if self.nullable else [])

    def bins(self, observations: Observations) -> NDArray[np.int64]:
        values = observations.columns[self.name]
        missing_bin = len(self.words) - 1
        if self.labels:
            places = {label: place for place, label in enumerate(self.labels)}
            vocabulary = observations.vocabularies[self.name]
            place_of_code = [places.get(label, len(self.labels)) for label in vocabulary]
            bins: NDArray[np.int64] = np.array([*place_of_code, missing_bin], dtype=np.int64)[values]
            return bins  # MISSING_CODE picked the last
        return np.where(np.isnan(values), missing_bin, np.searchsorted(np.array(self.edges), values, side="right"))


@dataclass(frozen=True)
class Grid:
    """Cells of a grid; `words` (R) give the bins of each."""

    axes: tuple[_Axis, ...]
    words: tuple[str, ...]

    def assign(self, observations: Observations) -> NDArray[np.int64]:
        """(n,) number of each row's region."""
        cell = np.zeros(len(observations), dtype=np.int64)
        for axis in self.axes:
            cell = cell * len(axis.words) + axis.bins(observations)
        return cell


def _fit_grid(contract: Contract, sample: Observations, config: CoverageConfig) -> Grid:
    unknown = [name for name in config.features if name not in contract.features]
    if unknown:
        raise SettingsError(f"snapshot.coverage.features: '{unknown[0]}' is no feature of the contract.")
    axes: list[_Axis] = []
    n_cells = 1
    for name in config.features or tuple(contract.features):
        axis = _axis(contract, sample, name, config.bins)
        if axis is None and config.features:
            raise SettingsError(f"snapshot.coverage.features: '{name}' is constant or a vector; no grid can cut it.")
        if axis is not None and (config.features or n_cells * len(axis.words) <= config.regions):
            axes.append(axis)
            n_cells *= len(axis.words)
    if n_cells > config.regions:
        raise SettingsError(
            f"snapshot.coverage.features make {n_cells} cells, more than snapshot.coverage.regions = {config.regions}. "
            "Name fewer features, lower snapshot.coverage.bins, or raise the regions."
        )
    words = tuple(", ".join(parts) for parts in itertools.product(*(axis.words for axis in axes)))
    return Grid(tuple(axes), words)


def _axis(contract: Contract, sample: Observations, name: str, n_bins: int) -> _Axis | None:
    feature, values = contract.features[name], sample.columns[name]
    if values.ndim == 2:
        return None
    if isinstance(feature, CategoricalFeature):
        present: Sequence[int] = np.unique(values[values != MISSING_CODE]).tolist()
        labels = feature.values or tuple(sample.vocabularies[name][code] for code in present)
        nullable = feature.nullable or bool((values == MISSING_CODE).any())
        return _Axis(name, (), tuple(labels), nullable) if labels else None
    known = values[~np.isnan(values)]
    nullable = feature.nullable or len(known) < len(values)
    if not len(known):
        return None
    cuts = [0.5] if isinstance(feature, BooleanFeature) else np.quantile(known, np.arange(1, n_bins) / n_bins)
    edges = tuple(edge for edge in np.unique(cuts).tolist() if edge > known.min())
    return _Axis(name, edges, (), nullable) if edges else None
