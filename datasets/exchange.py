"""Snapshots for other libraries: a Minari dataset, and a d3rlpy MDPDataset in d3rlpy's own file format.

Both are written episode by episode, beside their place and then renamed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datasets.contract import (
    BooleanFeature,
    CategoricalFeature,
    Contract,
    ImageFeature,
    NumericFeature,
    VectorFeature,
)
from datasets.encoding import Encoder, fit_encoder
from datasets.errors import OfflineDqnError
from datasets.images import channels_first, is_missing
from datasets.observations import MISSING_CODE
from datasets.replay import SPLIT_NAMES, TRAIN, Replay

if TYPE_CHECKING:
    import gymnasium

ORIGIN = "offline_dqn"
"""Key of a Minari dataset's metadata under which an export of ours says what its codes stand for."""

_D3RLPY_VERSION = "2.1"
"""Of the file format that d3rlpy 2.8 writes and reads."""


class ExchangeError(OfflineDqnError):
    """A dataset that the other library's format cannot hold, or that lacks what a log needs."""


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        path: the Minari dataset's folder, or the d3rlpy file.
        n_unknown_ends: episodes cut off without a final observation. Minari repeats the last one and marks it; d3rlpy
            takes no target from the last step.
        n_unused_finals: final observations that the format has no place for.
    """

    format: str
    path: Path
    n_episodes: int
    n_steps: int
    n_unknown_ends: int
    n_unused_finals: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "path": str(self.path)}


def export_minari(replay: Replay, target: Path, *, splits: Sequence[int], snapshot: str) -> Export:
    """Writes the episodes of some splits as a Minari dataset that `minari.MinariDataset(target / "data")` opens.

    Observations are raw, as a Dict space of the contract's features: numbers and vectors as float64 boxes (NaN where
    missing), booleans and categories as Discrete codes, the last of which is "missing", an image as a uint8 box of
    (height, width, channels), black where missing. `infos` holds `behavior_prob` (NaN where not logged) and
    `available_actions`, one entry per observation, `final_observation_logged`, and of an image that may be missing
    `<feature>_missing`. Of actions that are bins it has the bin, not the number. The
    contract, labels and snapshot stand in the metadata under "offline_dqn". An episode that ends without a logged
    observation behind its last step repeats the last one, because the format wants one there: behind a terminated step
    nothing reads it, and behind a truncated one `final_observation_logged` says that it is not to be learned from.

    Args:
        target: folder of the dataset; its name becomes part of the dataset's id.
        snapshot: digest, for the metadata.

    Raises:
        ExchangeError: the target exists, no episode is in these splits, or Minari is not installed.
    """
    check_installed("minari", "h5py")
    from minari import __version__ as minari_version
    from minari.dataset.minari_storage import MinariStorage

    chosen = _chosen(replay, target, splits)
    beside = target.with_name(f".{target.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    (beside / "data").mkdir(parents=True)
    labels = _labels(replay)
    storage = MinariStorage.new(
        beside / "data",
        observation_space=_observation_space(replay.contract, labels),
        action_space=_spaces().Discrete(replay.n_actions),
    )
    origin = {
        "snapshot": snapshot,
        "splits": [SPLIT_NAMES[split] for split in splits],
        "contract": replay.contract.to_json(),
        "labels": {name: list(values) for name, values in labels.items()},
    }
    storage.update_metadata(
        {
            "dataset_id": f"{_id_part(replay.contract.name)}/{_id_part(target.name)}-v0",
            "minari_version": minari_version,
            "description": f"Snapshot {snapshot[:16]} of the decision problem '{replay.contract.name}'",
            ORIGIN: json.dumps(origin),
        }
    )
    counts = _Counts()
    storage.update_episodes(_minari_episodes(replay, chosen, labels, counts))
    beside.replace(target)
    return Export("minari", target, len(chosen), counts.n_steps, counts.n_unknown_ends, 0)


def export_d3rlpy(replay: Replay, target: Path, *, splits: Sequence[int], ignore_masks: bool = False) -> Export:
    """Writes the episodes of some splits as a d3rlpy MDPDataset.

    `ReplayBuffer.load(file, InfiniteBuffer())` reads it, but counts only the actions that it sees; where some were
    never logged, pass their number: `ReplayBuffer(InfiniteBuffer(), episodes=load(Episode, file), action_size=A,
    action_space=ActionSpace.DISCRETE)`. Observations are encoded with statistics of `train`, as the networks here see
    them; an image that is the only feature, and never missing, as its bytes (channels, height, width), which d3rlpy
    takes for one and scales itself (`PixelObservationScaler`). The columns' and actions' names stand beside the file,
    in `<file>.columns.json`. Rows that are episodes of their own are terminated: nothing follows them. d3rlpy learns
    nothing from the last step of an episode that did not terminate, so its final observation has no place.

    Args:
        target: the file, usually .h5.
        ignore_masks: write although some actions were not available, which d3rlpy cannot know.

    Raises:
        ExchangeError: the target exists, no episode is in these splits, there are masks, or h5py is not installed.
    """
    check_installed("h5py")
    import h5py

    chosen = _chosen(replay, target, splits)
    n_masked = 0 if ignore_masks else _n_masked(replay, chosen)
    if n_masked:
        raise ExchangeError(
            f"d3rlpy knows no action masks, and in {n_masked:,} of these steps some action was not available: what it "
            "learns could take those actions. Export to Minari, which carries the masks, or pass --ignore-masks."
        )
    train = replay.of_split(TRAIN)
    if not train.n_episodes:
        raise ExchangeError("The snapshot's training split is empty, so observations cannot be encoded.")
    encoder = fit_encoder(replay.contract, train.observations)
    one_step = replay.contract.episodes.kind == "one_step"
    beside = target.with_name(f".{target.name}.new")
    target.parent.mkdir(parents=True, exist_ok=True)
    counts = _Counts()
    with h5py.File(beside, "w") as file:
        file.create_dataset("columns", data=["observations", "actions", "rewards", "terminated"])
        file.create_dataset("num_episodes", data=len(chosen))
        for i, n in enumerate(chosen):
            steps = np.arange(replay.offsets[n], replay.offsets[n + 1])
            terminated = bool(one_step or replay.terminated[steps[-1]])
            file.create_dataset(f"observations_{i}", data=_d3rlpy_observations(replay, encoder, steps))
            file.create_dataset(f"actions_{i}", data=replay.actions[steps][:, None])
            file.create_dataset(f"rewards_{i}", data=replay.rewards[steps][:, None].astype(np.float32))
            file.create_dataset(f"terminated_{i}", data=terminated)
            counts.add(replay, steps, terminated)
        file.create_dataset("version", data=_D3RLPY_VERSION)
    columns = {"columns": encoder.names, "actions": replay.contract.actions.names, "encoder": encoder.to_json()}
    target.with_name(target.name + ".columns.json").write_text(json.dumps(columns, indent=1))
    beside.replace(target)
    return Export("d3rlpy", target, len(chosen), counts.n_steps, counts.n_unknown_ends, counts.n_finals)


def _d3rlpy_observations(replay: Replay, encoder: Encoder, steps: NDArray[np.int64]) -> NDArray[Any]:
    observations = replay.observations.take(steps)
    image = replay.contract.image
    if image is None or len(replay.contract.features) > 1 or image[1].nullable:
        return encoder.encode(observations)
    name, feature = image
    return channels_first(observations.columns[name], feature.shape)


@dataclass
class _Counts:
    n_steps: int = 0
    n_unknown_ends: int = 0
    n_finals: int = 0

    def add(self, replay: Replay, steps: NDArray[np.int64], terminated: bool) -> None:
        known = bool(replay.next_row[steps[-1]] >= 0)
        self.n_steps += len(steps)
        self.n_finals += int(known)
        self.n_unknown_ends += int(not terminated and not known)


def _minari_episodes(
    replay: Replay, chosen: NDArray[np.int64], labels: dict[str, tuple[str, ...]], counts: _Counts
) -> Iterator[Any]:
    from minari.data_collector.episode_buffer import EpisodeBuffer

    one_step = replay.contract.episodes.kind == "one_step"
    for n in chosen:
        steps = np.arange(replay.offsets[n], replay.offsets[n + 1])
        last = steps[-1]
        final = replay.next_row[last]
        rows = np.append(steps, final if final >= 0 else last)
        terminated = np.array(replay.terminated[steps])
        terminated[-1] |= one_step
        counts.add(replay, steps, bool(terminated[-1]))
        logged = np.append(np.ones(len(steps), dtype=np.bool_), final >= 0)
        yield EpisodeBuffer(
            observations={name: _column(replay, name, rows, labels) for name in replay.contract.features},
            actions=np.array(replay.actions[steps]),
            rewards=np.array(replay.rewards[steps]),
            terminations=terminated,
            truncations=np.array(replay.truncated[steps]) & ~terminated,
            infos={
                "behavior_prob": np.append(replay.behavior_prob[steps], np.nan),
                "available_actions": np.array(replay.available[rows]),
                "final_observation_logged": logged,
                **_missing_images(replay, rows),
            },
        )


def _missing_images(replay: Replay, rows: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    if replay.contract.image is None or not replay.contract.image[1].nullable:
        return {}
    name, _ = replay.contract.image
    return {missing_info(name): is_missing(replay.observations.columns[name][rows])}


def missing_info(name: str) -> str:
    """Under which of Minari's infos it stands whether an image is missing: bytes have no NaN."""
    return f"{name}_missing"


def _column(replay: Replay, name: str, rows: NDArray[np.int64], labels: dict[str, tuple[str, ...]]) -> NDArray[Any]:
    feature, values = replay.contract.features[name], replay.observations.columns[name][rows]
    if isinstance(feature, CategoricalFeature):
        places = {label: place for place, label in enumerate(labels[name])}
        vocabulary = replay.observations.vocabularies[name]
        codes = np.array([*(places[label] for label in vocabulary), len(places)], dtype=np.int64)
        coded: NDArray[Any] = codes[values]
        assert MISSING_CODE == -1  # which has picked the last, "missing"
        return coded
    if isinstance(feature, ImageFeature):
        pictures: NDArray[Any] = values[:, :-1].reshape(-1, *feature.shape)
        return pictures
    if isinstance(feature, BooleanFeature):
        return np.where(np.isnan(values), 2, values).astype(np.int64)
    return values if values.ndim == 2 else values[:, None]


def _labels(replay: Replay) -> dict[str, tuple[str, ...]]:
    """Labels of each categorical feature: those of the contract, then others that the log holds."""
    found: dict[str, tuple[str, ...]] = {}
    for name, feature in replay.contract.features.items():
        if isinstance(feature, CategoricalFeature):
            known = feature.values or ()
            found[name] = (*known, *(v for v in replay.observations.vocabularies[name] if v not in known))
    return found


def _observation_space(contract: Contract, labels: dict[str, tuple[str, ...]]) -> gymnasium.spaces.Dict:
    spaces = _spaces()
    found: dict[str, gymnasium.spaces.Space[Any]] = {}
    for name, feature in contract.features.items():
        if isinstance(feature, CategoricalFeature):
            found[name] = spaces.Discrete(len(labels[name]) + 1)
        elif isinstance(feature, BooleanFeature):
            found[name] = spaces.Discrete(3)
        elif isinstance(feature, NumericFeature):
            low = -np.inf if feature.min is None else feature.min
            high = np.inf if feature.max is None else feature.max
            found[name] = spaces.Box(low, high, (1,), np.float64)
        elif isinstance(feature, VectorFeature):
            found[name] = spaces.Box(-np.inf, np.inf, (feature.length,), np.float64)
        elif isinstance(feature, ImageFeature):
            found[name] = spaces.Box(0, 255, feature.shape, np.uint8)
    space: gymnasium.spaces.Dict = spaces.Dict(found)
    return space


def _spaces() -> Any:
    from gymnasium import spaces  # not in the base install

    return spaces


def _chosen(replay: Replay, target: Path, splits: Sequence[int]) -> NDArray[np.int64]:
    if target.exists():
        raise ExchangeError(f"{target} exists already; nothing was written. Name another place, or delete it first.")
    chosen = np.flatnonzero(np.isin(replay.split, splits))
    if not len(chosen):
        named = " or ".join(SPLIT_NAMES[split] for split in splits)
        raise ExchangeError(f"No episode of the snapshot is in {named}; nothing was written.")
    return chosen


def _n_masked(replay: Replay, chosen: NDArray[np.int64]) -> int:
    masked = 0
    for steps, part in replay.step_blocks(100_000):
        episode = np.searchsorted(replay.offsets, steps, side="right") - 1
        masked += int((~part.available[steps].all(axis=1) & np.isin(episode, chosen)).sum())
    return masked


def _id_part(name: str) -> str:
    """A name as Minari's ids allow it."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name).strip("-") or "snapshot"


def check_installed(*modules: str) -> None:
    """Raises an ExchangeError that names the modules which are missing, and what brings them."""
    import importlib.util

    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise ExchangeError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed. "
            "`pip install offline-dqn[exchange]` brings it."
        )
