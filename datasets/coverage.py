"""Where in its state space a log has been, and what it tried there: counts by region and action.

A policy that acts where the log never did what the policy does rests on extrapolation. Regions are clusters (k-means)
of encoded observations, or the cells of a quantile grid; they are fitted on `train` alone, and every step is counted.
An image counts by its mean brightness.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datasets.contract import Contract, NumericFeature
from datasets.coverage_config import CoverageConfig
from datasets.images import mean_brightness
from datasets.observations import Observations
from datasets.regions import Clusters, Grid, fit_regions
from datasets.replay import SPLIT_NAMES, TRAIN, Replay
from datasets.snapshot_bucket import COVERAGE_SUMMARY, COVERAGE_TABLE
from datasets.snapshot_writer import rows_per_block

_BLOCK_STEPS = 50_000


_SCHEMA = pa.schema(
    [
        ("snapshot", pa.string()),
        ("split", pa.string()),
        ("region", pa.int32()),
        ("region_where", pa.string()),
        ("action", pa.string()),
        ("n_steps", pa.int64()),
        ("n_episodes", pa.int64()),
        ("n_available", pa.int64()),
        ("region_episodes", pa.int64()),
        ("thin", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Coverage:
    """R regions, A actions, S splits.

    Attributes:
        regions: (R) what is particular about each, in words and the features' units.
        actions: (A) labels.
        n_steps, n_episodes: (S, R, A) int64 in which the action was logged in the region.
        n_available: (S, R, A) int64 steps in the region at which the action was available.
        region_episodes: (S, R) int64 episodes that came by.
        thin_below: train steps below which an available action is thin.
    """

    regions: tuple[str, ...]
    actions: tuple[str, ...]
    n_steps: NDArray[np.int64]
    n_episodes: NDArray[np.int64]
    n_available: NDArray[np.int64]
    region_episodes: NDArray[np.int64]
    thin_below: int

    @property
    def thin(self) -> NDArray[np.bool_]:
        """(R, A) available in the region, and logged there in too few train steps."""
        thin: NDArray[np.bool_] = (self.n_available.sum(axis=0) > 0) & (self.n_steps[TRAIN] < self.thin_below)
        return thin

    @property
    def covered_share(self) -> float:
        """Share of the pairs of region and available action that are not thin."""
        possible = self.n_available.sum(axis=0) > 0
        return float(1 - self.thin.sum() / max(1, possible.sum()))

    @property
    def visited_share(self) -> float:
        """Share of the regions with any logged step: of interest for a grid; a cluster has steps by its making."""
        return float((self.n_steps.sum(axis=(0, 2)) > 0).mean())

    def thin_step_share(self, split: int) -> float | None:
        """Share of a split's steps that lie in regions where some available action is thin; None without steps."""
        by_region = self.n_steps[split].sum(axis=1)
        return float(by_region[self.thin.any(axis=1)].sum() / by_region.sum()) if by_region.sum() else None

    def to_json(self) -> dict[str, Any]:
        """The shares, and the regions with thin actions, those with the most steps first."""
        by_region = self.n_steps.sum(axis=(0, 2))
        visited = [r for r in np.argsort(-by_region, kind="stable").tolist() if by_region[r]]
        return {
            "n_regions": len(self.regions),
            "n_visited": len(visited),
            "visited_share": self.visited_share,
            "covered_share": self.covered_share,
            "thin_below": self.thin_below,
            "thin_step_share": {name: self.thin_step_share(s) for s, name in enumerate(SPLIT_NAMES)},
            "regions": [
                {
                    "region": r,
                    "where": self.regions[r],
                    "n_steps": int(by_region[r]),
                    "n_episodes": int(self.region_episodes[:, r].sum()),
                    "train_steps": dict(zip(self.actions, self.n_steps[TRAIN, r].tolist(), strict=True)),
                    "thin": [self.actions[a] for a in np.flatnonzero(self.thin[r])],
                }
                for r in visited
            ],
        }

    def to_table(self, snapshot: str) -> pa.Table:
        """One row per split, region and action; `snapshot` stands in each, for queries over several.

        `n_available` and `region_episodes` are those of the region in that split, `thin` is judged on `train`.
        """
        rows = list(itertools.product(range(len(SPLIT_NAMES)), range(len(self.regions)), range(len(self.actions))))
        return pa.table(
            {
                "snapshot": [snapshot] * len(rows),
                "split": [SPLIT_NAMES[s] for s, _, _ in rows],
                "region": [r for _, r, _ in rows],
                "region_where": [self.regions[r] for _, r, _ in rows],
                "action": [self.actions[a] for _, _, a in rows],
                "n_steps": self.n_steps.ravel(),
                "n_episodes": self.n_episodes.ravel(),
                "n_available": self.n_available.ravel(),
                "region_episodes": np.repeat(self.region_episodes.ravel(), len(self.actions)),
                "thin": np.tile(self.thin.ravel(), len(SPLIT_NAMES)),
            },
            schema=_SCHEMA,
        )


def write_coverage(folder: Path, replay: Replay, config: CoverageConfig, digest: str) -> None:
    """Measures a snapshot's coverage and puts it beside its arrays; without a training split there is none."""
    if not (replay.split == TRAIN).any():
        return
    coverage = measure_coverage(replay, config)
    pq.write_table(coverage.to_table(digest[:16]), folder / COVERAGE_TABLE, compression="zstd")
    written = {"config": config.model_dump(mode="json"), **coverage.to_json()}
    (folder / COVERAGE_SUMMARY).write_text(json.dumps(written, indent=1))


def measure_coverage(replay: Replay, config: CoverageConfig) -> Coverage:
    """Fits regions on a sample of `train` and counts every step; the arrays are read in blocks.

    Raises:
        ValueError: the training split is empty.
        SettingsError: the grid names a feature that has no bins, or needs more cells than it may have.
    """
    regions = train_regions(replay, config)
    n_splits, n_regions, n_actions = len(SPLIT_NAMES), len(regions.words), replay.n_actions
    n_pairs = n_regions * n_actions
    n_steps, n_episodes = (np.zeros(n_splits * n_pairs, dtype=np.int64) for _ in range(2))
    n_available = np.zeros((n_splits * n_regions, n_actions), dtype=np.int64)
    region_episodes = np.zeros(n_splits * n_regions, dtype=np.int64)
    of_pair, of_region = _Distinct(n_pairs), _Distinct(n_regions)
    for steps, blocks in replay.step_blocks(_block_steps(replay.contract)):
        episode = np.searchsorted(replay.offsets, steps, side="right") - 1
        region = regions.assign(blocks.observations.take(steps))
        pair = region * n_actions + blocks.actions[steps]
        split = replay.split[episode].astype(np.int64)
        n_steps += np.bincount(split * n_pairs + pair, minlength=n_splits * n_pairs)
        available = blocks.available[steps]
        for action in range(n_actions):
            at = (split * n_regions + region)[available[:, action]]
            n_available[:, action] += np.bincount(at, minlength=n_splits * n_regions)
        visitors, pair = of_pair.new(episode, pair)
        n_episodes += np.bincount(replay.split[visitors] * np.int64(n_pairs) + pair, minlength=n_splits * n_pairs)
        visitors, region = of_region.new(episode, region)
        at = replay.split[visitors] * np.int64(n_regions) + region
        region_episodes += np.bincount(at, minlength=n_splits * n_regions)
    shape = (n_splits, n_regions, n_actions)
    return Coverage(
        regions.words,
        tuple(replay.contract.actions.names),
        n_steps.reshape(shape),
        n_episodes.reshape(shape),
        n_available.reshape(shape),
        region_episodes.reshape(shape[:2]),
        config.thin_below,
    )


@dataclass(frozen=True)
class TrainRegions:
    """Regions fitted on the training split, for any observations of the same contract; `words` say what each is."""

    contract: Contract
    words: tuple[str, ...]
    _fitted: Clusters | Grid

    def assign(self, observations: Observations) -> NDArray[np.int64]:
        """(n,) number of each row's region."""
        return self._fitted.assign(_dimmed(self.contract, observations))


def train_regions(replay: Replay, config: CoverageConfig) -> TrainRegions:
    """The regions that coverage would be measured over.

    Raises:
        ValueError, SettingsError: as `measure_coverage`.
    """
    sample = _gathered(replay, _train_sample(replay, config.sample))
    fitted = fit_regions(_dimmed_contract(replay.contract), sample, config)
    return TrainRegions(replay.contract, fitted.words, fitted)


class _Distinct:
    """Pairs of episode and code that were not seen before, over blocks in the order of episodes."""

    def __init__(self, n_codes: int) -> None:
        self._n_codes = n_codes
        self._last_episode, self._seen = -1, np.zeros(n_codes, dtype=np.bool_)

    def new(self, episode: NDArray[np.int64], code: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        found, codes = np.divmod(np.unique(episode * self._n_codes + code), self._n_codes)
        fresh = (found != self._last_episode) | ~self._seen[codes]
        # The last episode may go on in the next block.
        if found[-1] != self._last_episode:
            self._last_episode, self._seen = int(found[-1]), np.zeros(self._n_codes, dtype=np.bool_)
        self._seen[codes[found == self._last_episode]] = True
        return found[fresh], codes[fresh]


def _train_sample(replay: Replay, size: int) -> NDArray[np.int64]:
    """Steps of `train`, evenly spaced, at most `size`."""
    episodes = np.flatnonzero(replay.split == TRAIN)
    ends = np.cumsum(replay.lengths[episodes])
    if not len(episodes):
        raise ValueError("regions are fitted on the training split, and it is empty")
    places = np.unique(np.linspace(0, ends[-1] - 1, min(size, int(ends[-1]))).astype(np.int64))
    chosen = np.searchsorted(ends, places, side="right")
    return np.asarray(replay.offsets[episodes[chosen]] + places - (ends - replay.lengths[episodes])[chosen])


def _gathered(replay: Replay, chosen: NDArray[np.int64]) -> Observations:
    """The observations of the chosen steps (ascending), gathered block by block, an image as its brightness."""
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in replay.observations.columns}
    for steps, blocks in replay.step_blocks(_block_steps(replay.contract)):
        low, high = np.searchsorted(chosen, [steps[0], steps[-1] + 1])
        for name, values in _dimmed(replay.contract, blocks.observations.take(chosen[low:high])).columns.items():
            parts[name].append(values)
    columns = {name: np.concatenate(values) for name, values in parts.items()}
    return Observations(columns, replay.observations.vocabularies)


def _block_steps(contract: Contract) -> int:
    return _BLOCK_STEPS if contract.image is None else min(_BLOCK_STEPS, rows_per_block(contract))


def _dimmed(contract: Contract, observations: Observations) -> Observations:
    """With the mean brightness, a number, in place of the image."""
    if contract.image is None:
        return observations
    name, _ = contract.image
    columns = {**observations.columns, name: mean_brightness(observations.columns[name])}
    return Observations(columns, observations.vocabularies)


def _dimmed_contract(contract: Contract) -> Contract:
    if contract.image is None:
        return contract
    name, image = contract.image
    number = NumericFeature(type="numeric", unit="brightness", nullable=image.nullable)
    return contract.model_copy(update={"features": {**contract.features, name: number}})


def read_coverage(path: Path) -> Mapping[str, Any] | None:
    """What a snapshot's `coverage.json` says; None where nothing was measured."""
    summary = path / COVERAGE_SUMMARY
    found: Mapping[str, Any] | None = json.loads(summary.read_text()) if summary.exists() else None
    return found


def coverage_of(snapshots: Sequence[Path]) -> pa.Table:
    """The coverage of several snapshots in one table; a file that cannot be read is left to `snapshot verify`."""
    tables = [_SCHEMA.empty_table()]
    for folder in snapshots:
        with contextlib.suppress(OSError, pa.ArrowException):
            tables.append(pq.read_table(folder / COVERAGE_TABLE, schema=_SCHEMA))
    return pa.concat_tables(tables)
