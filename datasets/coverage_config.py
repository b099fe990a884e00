"""How the state space is cut into regions to say where a log has been."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from datasets.settings import Settings


class CoverageConfig(Settings):
    """How the state space is cut into regions. Measured when a snapshot is made; it plays no part in its digest."""

    method: Literal["kmeans", "grid"] = "kmeans"
    """Clusters of encoded observations, or the cells of a grid over some features."""
    regions: int = Field(32, ge=2, le=1000)
    """Clusters; a grid has at most so many cells."""
    features: tuple[str, ...] = ()
    """Features of the grid; empty: the first ones of the contract that fit (vectors cannot)."""
    bins: int = Field(4, ge=2)
    """Quantile bins of a numeric feature of the grid."""
    thin_below: int = Field(30, ge=1)
    """An action that was logged in fewer `train` steps of a region, though available there, is thin in it."""
    sample: int = Field(100_000, ge=100)
    """Steps of `train` on which regions are fitted, evenly spaced."""
    seed: int = Field(0, ge=0)
    """Of k-means."""
