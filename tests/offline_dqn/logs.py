"""Logs as long as wanted whose every step is known by its reward, in memory or as files that are mapped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datasets.contract import Contract
from datasets.observations import Observations
from datasets.replay import STEP_ARRAYS, Replay
from tests.offline_dqn.worlds import make_replay


def numbered_replay(n_episodes: int, *, longest: int = 30, seed: int = 0, features: int = 3) -> Replay:
    """Ragged episodes of noise; the reward of step t is t. Every third is cut, half of these with an observation."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, size=n_episodes)
    total, last = int(lengths.sum()), np.cumsum(lengths) - 1
    contract = Contract.model_validate(
        {
            "name": "numbered",
            "gamma": 0.9,
            "features": {
                **{f"x{i}": {"type": "numeric", "nullable": True} for i in range(features)},
                "zone": {"type": "categorical"},
            },
            "actions": {"names": ["a", "b", "c"]},
        }
    )
    next_row = np.arange(1, total + 1)
    next_row[last] = -1
    followed = last[2::6]
    next_row[followed] = total + np.arange(len(followed))
    terminated = np.zeros(total, dtype=bool)
    terminated[last] = np.arange(n_episodes) % 3 != 2
    n_rows = total + len(followed)
    columns: dict[str, NDArray[Any]] = {
        f"x{i}": 10.0**i * rng.standard_normal(n_rows) + 100.0 * i for i in range(features)
    }
    columns["x0"][:: max(2, n_rows // 7)] = np.nan
    columns["zone"] = rng.integers(-1, 3, size=n_rows).astype(np.int32)
    actions = rng.integers(3, size=total)
    available = rng.random((n_rows, 3)) < 0.8
    available[np.arange(total), actions] = True
    available[:, 0] = True
    replay = make_replay(
        contract,
        Observations(columns, {"zone": ("n", "s", "w")}),
        actions,
        np.arange(total, dtype=np.float64),
        lengths,
        terminated=terminated,
        available=available,
        next_row=next_row,
    )
    nights = np.datetime64("2024-05-01") + np.arange(n_episodes) * 30 // max(1, n_episodes)
    return replace(replay, nights=nights, split=rng.choice(3, size=n_episodes, p=[0.7, 0.15, 0.15]).astype(np.int8))


def mapped(replay: Replay, folder: Path) -> Replay:
    """The same with its arrays in files that are mapped, as `open_snapshot` does."""

    def on_disk(name: str, values: NDArray[Any]) -> NDArray[Any]:
        np.save(folder / f"{name}.npy", values)
        found: NDArray[Any] = np.load(folder / f"{name}.npy", mmap_mode="r")
        return found

    columns = {name: on_disk(f"observation.{name}", v) for name, v in replay.observations.columns.items()}
    arrays: dict[str, Any] = {name: on_disk(name, getattr(replay, name)) for name in STEP_ARRAYS}
    return replace(replay, observations=Observations(columns, replay.observations.vocabularies), **arrays)
