"""A Minari dataset as a log: Parquet files that the ingest takes like any other, and a contract made of its spaces."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datasets.contract import Contract, contract_from_json, contract_from_text
from datasets.exchange import ORIGIN, ExchangeError, check_installed, missing_info

_STEPS_PER_FILE_GROUP = 100_000
_GROUP_BYTES = 64_000_000
"""Of images that wait to be written; fewer steps than the above then make a group."""
_MOST_NUMBERS = 16
"""Components of a box that become features of their own; a longer one is one vector."""
_MOST_CHANNELS = 4
"""Of an image whose channels stand first."""


@dataclass(frozen=True)
class MinariLogs:
    """What was read from a Minari dataset.

    Attributes:
        contract: derived from its spaces, or the one under which it was exported.
        contract_text: the same as TOML.
        path: the log.
        n_cut: episodes that end without a flag; they count as truncated.
        n_unknown_ends: truncated episodes whose final observation was never logged.
    """

    contract: Contract
    contract_text: str
    path: Path
    n_episodes: int
    n_steps: int
    n_cut: int
    n_unknown_ends: int


def import_minari(dataset: Path, folder: Path, *, first_day: date) -> MinariLogs:
    """Writes the episodes of a Minari dataset into `folder` as one Parquet log.

    Minari knows no clock: steps are given times a second apart, one episode after the other from `first_day` on.
    `infos["behavior_prob"]` and `infos["available_actions"]` are taken where every episode has them.

    Args:
        dataset: its folder, with or without `data`.
        folder: where the log goes; made if there is none.

    Raises:
        ExchangeError: it is no Minari dataset, is empty, or has a space that no contract describes.
    """
    check_installed("minari", "h5py")
    from minari import MinariDataset

    place = dataset / "data" if (dataset / "data").is_dir() else dataset
    try:
        opened = MinariDataset(str(place))
    except (ValueError, AssertionError, KeyError, OSError) as error:
        raise ExchangeError(f"{dataset} is no Minari dataset that can be read: {error}.") from error
    if not opened.total_episodes:
        raise ExchangeError(f"{dataset} holds no episode.")
    origin = opened.storage.metadata.get(ORIGIN)
    described = _description(origin, dataset) if origin else None
    ours = described["contract"]["features"] if described else {}
    vectors = {name for name, feature in ours.items() if feature["type"] == "vector"}
    features = _features(opened.observation_space, vectors)
    _refuse_two_images(features, dataset)
    infos = _infos_of_all(opened, features)
    actions = _action_labels(opened.action_space, described, dataset)
    if described:
        features = {name: f.with_labels(described["labels"].get(name)) for name, f in features.items()}
        text = _exported_toml(described["contract"])
    else:
        text = _derived_toml(opened.spec.dataset_id, features, actions, "behavior_prob" in infos)
    contract = contract_from_text(text, f"the contract of {dataset}")
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", opened.spec.dataset_id)
    target = folder / f"{name}.parquet"
    writer = _LogWriter(target, features, actions, infos, name, first_day)
    for episode in opened.iterate_episodes():
        writer.add(episode)
    writer.close()
    return MinariLogs(contract, text, target, writer.n_episodes, writer.n_steps, writer.n_cut, writer.n_unknown_ends)


# --- spaces


@dataclass(frozen=True)
class _Feature:
    """A feature and how its values are read from an episode's observations.

    Attributes:
        path: keys into nested dictionaries.
        component: of the last axis; None takes all of it.
        kind: "numeric", "vector", "categorical", "boolean" or "image".
        size: length of a vector; codes of a category, the last of which is "missing" where there are labels.
        shape: (height, width, channels) of an image.
        channels_first: whether the dataset has its channels before its rows.
    """

    path: tuple[str, ...]
    component: int | None
    kind: str
    size: int
    first_code: int = 0
    labels: tuple[str, ...] | None = None
    shape: tuple[int, ...] = ()
    channels_first: bool = False

    def with_labels(self, labels: list[str] | None) -> _Feature:
        """As exported by us: codes stand for labels, and three codes without labels for a boolean."""
        if self.kind != "categorical":
            return self
        kind = "boolean" if labels is None else "categorical"
        return _Feature(self.path, self.component, kind, self.size, 0, tuple(labels or ()))

    def values(self, observations: Any) -> list[Any]:
        """One value per observation; None where missing."""
        for key in self.path:
            observations = observations[key]
        found = np.asarray(observations)
        if self.channels_first:
            found = np.moveaxis(found, 1, 3)
        found = found.reshape(len(found), -1)
        if self.kind == "image":
            return list(found)
        if self.kind == "vector":
            return [None if np.isnan(row).any() else row.tolist() for row in found.astype(np.float64)]
        column = found[:, self.component or 0]
        if self.kind == "numeric":
            return [None if np.isnan(v) else float(v) for v in column.astype(np.float64)]
        codes = column.astype(np.int64) - self.first_code
        if self.kind == "boolean":
            return [None if code == 2 else bool(code) for code in codes]
        names = self.labels if self.labels is not None else [str(self.first_code + i) for i in range(self.size)]
        return [names[code] if code < len(names) else None for code in codes]

    @property
    def arrow_type(self) -> pa.DataType:
        types = {
            "numeric": pa.float64(),
            "vector": pa.list_(pa.float64()),
            "boolean": pa.bool_(),
            "image": pa.list_(pa.uint8()),
        }
        return types.get(self.kind, pa.string())


def _features(space: Any, vectors: Set[str], path: tuple[str, ...] = ()) -> dict[str, _Feature]:
    """Features by name; a box named in `vectors` stays whole however short it is."""
    from gymnasium import spaces

    name = re.sub(r"[^A-Za-z0-9_-]", "_", "_".join(path)) or "x"
    name = name if re.match(r"[A-Za-z_]", name) else f"x{name}"
    if isinstance(space, spaces.Dict):
        nested = [_features(inner, vectors, (*path, key)).items() for key, inner in space.spaces.items()]
        found = [item for items in nested for item in items]
        twice = sorted({name for name, _ in found if [n for n, _ in found].count(name) > 1})
        if twice:
            raise ExchangeError(f"Two parts of the observation would both be the feature '{twice[0]}'.")
        return dict(found)
    if isinstance(space, spaces.Box) and len(space.shape) <= 1:
        size = int(np.prod(space.shape))
        if size == 1 and name not in vectors:
            return {name: _Feature(path, 0, "numeric", 1)}
        if size <= _MOST_NUMBERS and name not in vectors:
            return {f"{name}{i}": _Feature(path, i, "numeric", 1) for i in range(size)}
        return {name: _Feature(path, None, "vector", size)}
    if isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3):
        height, width, *channels = space.shape
        first = bool(channels) and height <= _MOST_CHANNELS < channels[0]
        shape = (width, channels[0], height) if first else (height, width, *(channels or [1]))
        return {name: _Feature(path, None, "image", int(np.prod(shape)), shape=shape, channels_first=first)}
    if isinstance(space, spaces.Discrete):
        return {name: _Feature(path, 0, "categorical", int(space.n), int(space.start))}
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return {f"{name}{i}": _Feature(path, i, "boolean", 2) for i in range(space.shape[0])}
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        sizes = [int(n) for n in space.nvec]
        starts = [int(s) for s in space.start]
        return {f"{name}{i}": _Feature(path, i, "categorical", n, starts[i]) for i, n in enumerate(sizes)}
    where = f"observation['{'.'.join(path)}']" if path else "the observation"
    raise ExchangeError(
        f"{where} is a {space}, which no feature of a contract describes. Numbers, vectors, codes, flags and images of "
        "bytes can be imported, and dictionaries of them."
    )


def _action_labels(space: Any, described: Mapping[str, Any] | None, dataset: Path) -> dict[int, str]:
    from gymnasium import spaces

    if not isinstance(space, spaces.Discrete):
        raise ExchangeError(f"The actions of {dataset} are a {space}; offline-dqn learns from Discrete actions only.")
    codes = range(int(space.start), int(space.start) + int(space.n))
    names = described["contract"]["actions"]["names"] if described else [str(code) for code in codes]
    return dict(zip(codes, names, strict=True))


def _description(origin: str, dataset: Path) -> dict[str, Any]:
    """What an export of ours says of itself. Its actions have names, though the log it came from had numbers in bins:
    the dataset holds the bins alone."""
    described: dict[str, Any] = json.loads(origin)
    actions = contract_from_json(described["contract"], f"the contract of {dataset}").actions
    described["contract"]["actions"] = {
        "names": list(actions.names),
        **({"safe": actions.safe} if actions.safe is not None else {}),
    }
    return described


def _refuse_two_images(features: Mapping[str, _Feature], dataset: Path) -> None:
    images = [name for name, feature in features.items() if feature.kind == "image"]
    if len(images) > 1:
        raise ExchangeError(
            f"{dataset} has the images {', '.join(images)}, and an observation holds one at most. Put them into one, "
            "as more channels."
        )


def _infos_of_all(opened: Any, features: Mapping[str, _Feature]) -> set[str]:
    """Which of the infos that a log can hold every episode has."""
    found = {"behavior_prob", "available_actions", "final_observation_logged"}
    found |= {missing_info(name) for name, feature in features.items() if feature.kind == "image"}
    for episode in opened.iterate_episodes():
        found &= (episode.infos or {}).keys()
        if not found:
            break
    return found


# --- the log


class _LogWriter:
    """Collects steps and writes them in groups; the file is renamed into place when it is whole."""

    def __init__(
        self,
        target: Path,
        features: Mapping[str, _Feature],
        actions: Mapping[int, str],
        infos: set[str],
        name: str,
        first_day: date,
    ) -> None:
        self._target, self._beside = target, target.with_name(f".{target.name}.part")
        self._features, self._actions, self._infos, self._name = features, actions, infos, name
        self._clock = datetime.combine(first_day, time_of_day())
        observation = pa.struct([(name, feature.arrow_type) for name, feature in features.items()])
        self._schema = pa.schema(
            [
                ("episode_id", pa.string()),
                ("step", pa.int32()),
                ("timestamp", pa.timestamp("us", tz="UTC")),
                ("observation", observation),
                ("action", pa.string()),
                ("reward", pa.float64()),
                ("terminated", pa.bool_()),
                ("truncated", pa.bool_()),
                ("final_observation", observation),
                *([("behavior_prob", pa.float64())] if "behavior_prob" in infos else []),
                *([("available_actions", pa.list_(pa.string()))] if "available_actions" in infos else []),
            ]
        )
        self._rows: list[dict[str, Any]] = []
        largest = max([feature.size for feature in features.values() if feature.kind == "image"], default=1)
        self._group = min(_STEPS_PER_FILE_GROUP, max(1, _GROUP_BYTES // largest))
        self._file = pq.ParquetWriter(self._beside, self._schema, compression="zstd")
        self.n_episodes = self.n_steps = self.n_cut = self.n_unknown_ends = 0

    def add(self, episode: Any) -> None:
        n = len(episode.rewards)
        if n == 0:
            return
        columns = {name: self._values(name, episode) for name in self._features}
        observations = [{name: values[t] for name, values in columns.items()} for t in range(n + 1)]
        terminated, truncated = np.array(episode.terminations, bool), np.array(episode.truncations, bool)
        if not terminated[-1] and not truncated[-1]:
            truncated[-1] = True
            self.n_cut += 1
        known = "final_observation_logged" not in self._infos or bool(episode.infos["final_observation_logged"][n])
        self.n_unknown_ends += int(not terminated[-1] and not known)
        final = observations[n] if truncated[-1] and not terminated[-1] and known else None
        for t in range(n):
            self._rows.append(
                {
                    "episode_id": f"{self._name}-{self.n_episodes:08d}",
                    "step": t,
                    "timestamp": self._clock + timedelta(seconds=self.n_steps + t),
                    "observation": observations[t],
                    "action": self._actions[int(episode.actions[t])],
                    "reward": float(episode.rewards[t]),
                    "terminated": bool(terminated[t]),
                    "truncated": bool(truncated[t]),
                    "final_observation": final if t == n - 1 else None,
                    **self._info(episode.infos, t),
                }
            )
        self.n_episodes += 1
        self.n_steps += n
        if len(self._rows) >= self._group:
            self._flush()

    def _values(self, name: str, episode: Any) -> list[Any]:
        values = self._features[name].values(episode.observations)
        if missing_info(name) not in self._infos:
            return values
        return [None if gone else v for v, gone in zip(values, episode.infos[missing_info(name)], strict=True)]

    def _info(self, infos: Mapping[str, NDArray[Any]] | None, t: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if infos is not None and "behavior_prob" in self._infos:
            prob = float(infos["behavior_prob"][t])
            found["behavior_prob"] = None if np.isnan(prob) else prob
        if infos is not None and "available_actions" in self._infos:
            mask = np.asarray(infos["available_actions"][t], dtype=np.bool_)
            names = list(self._actions.values())
            found["available_actions"] = None if mask.all() else [names[a] for a in np.flatnonzero(mask)]
        return found

    def _flush(self) -> None:
        self._file.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def close(self) -> None:
        self._flush()
        self._file.close()
        self._beside.replace(self._target)


# --- the contract


def _derived_toml(dataset_id: str, features: Mapping[str, _Feature], actions: Mapping[int, str], logged: bool) -> str:
    lines = [
        f"# Derived from the spaces of the Minari dataset {dataset_id}. Look through it before you ingest.",
        f"name = {json.dumps(re.sub(r'[^A-Za-z0-9_-]+', '-', dataset_id))}",
        "gamma = 0.99                   # Minari does not say; set the task's own",
        "",
    ]
    for name, feature in features.items():
        lines += [f"[features.{name}]", f'type = "{feature.kind}"']
        if feature.kind == "vector":
            lines.append(f"length = {feature.size}")
        if feature.kind == "image":
            lines.append(f"shape = {json.dumps(list(feature.shape))}")
        if feature.kind == "categorical":
            codes = [str(feature.first_code + i) for i in range(feature.size)]
            lines.append(f"values = {json.dumps(codes)}")
    lines += [
        "",
        "[actions]",
        f"names = {json.dumps(list(actions.values()))}",
        "",
        "[reward]                       # set the true range: bounds need it",
        "# min = 0.0",
        "# max = 1.0",
        "",
        "[behavior]",
        f'propensity = "{"logged" if logged else "estimated"}"',
        "",
        "[episodes]",
        'kind = "sequence"',
        'timeout = "1h"',
        'on_timeout = "truncated"',
    ]
    return "\n".join(lines) + "\n"


def _exported_toml(exported: Mapping[str, Any]) -> str:
    """The contract of an export of ours, without what speaks of the log that it once came from."""
    kept = {key: v for key, v in exported.items() if key not in {"columns", "time", "outcomes", "privacy"}}
    episodes = {key: value for key, value in exported["episodes"].items() if key != "cluster"}
    return "\n".join(_toml_lines({**kept, "episodes": episodes})) + "\n"


def _toml_lines(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[str]:
    """JSON values as TOML, tables behind the plain values of their parent."""
    plain = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    if path and plain:
        yield ""
        yield f"[{'.'.join(map(_key, path))}]"
    for key, value in plain.items():
        yield f"{_key(key)} = {json.dumps(value, ensure_ascii=False)}"
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _toml_lines(value, (*path, key))


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)
