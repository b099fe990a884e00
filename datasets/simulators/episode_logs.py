"""A simulated night as a log file: JSON Lines, one decision per line, in the order of time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from datasets.simulators.service import ACTIONS, ZONES
from datasets.simulators.simulation import SimulatedNight

_COUNTS = ("replicas", "pending")


def write_logs(night: SimulatedNight, directory: Path) -> Path:
    """Write the night to `directory`/night-NNNN.jsonl under the canonical column names, replacing an earlier one.

    The file appears whole or not at all. Decision ids are unique between nights, not between two simulations of the
    same night.

    Returns:
        The path of the file.

    Raises:
        OSError: if the directory or file cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"night-{night.night:04d}.jsonl"
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, separators=(",", ":")) + "\n" for row in log_rows(night))
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return path


def log_rows(night: SimulatedNight) -> Iterator[dict[str, Any]]:
    """The decisions of a night by time, then episode; `final_observation` only on an episode's last step."""
    episodes = night.episodes
    n_steps = episodes.actions.shape[1]
    observations = _as_json(night)
    actions, rewards, probs = (x.tolist() for x in (episodes.actions, episodes.rewards, episodes.behavior_prob))
    steps = np.arange(n_steps)
    times = night.starts[:, None] + (steps * night.step_s).astype("timedelta64[s]")  # (n, H)
    texts = np.datetime_as_string(times, unit="s").tolist()
    hours = night.starts.astype("datetime64[h]").astype(np.int64) % 24
    ids = [f"n{night.night:04d}-h{hour:02d}-e{episode:05d}" for episode, hour in enumerate(hours)]
    for flat in np.argsort(times, axis=None, kind="stable").tolist():
        episode, step = divmod(flat, n_steps)
        last = step == n_steps - 1
        row = {
            "episode_id": ids[episode],
            "step": step,
            "timestamp": f"{texts[episode][step]}+00:00",
            "decision_id": f"{ids[episode]}-s{step:02d}",
            "policy_version": night.policy_version,
            "observation": observations[episode][step],
            "action": ACTIONS[actions[episode][step]],
            "behavior_prob": probs[episode][step],
            "reward": rewards[episode][step],
            "terminated": False,
            "truncated": last,
        }
        if last:
            row["final_observation"] = observations[episode][n_steps]
        yield row


def _as_json(night: SimulatedNight) -> list[list[dict[str, Any]]]:
    """The observation before each decision and after the last, [episode][step], labels in place of codes."""
    columns: dict[str, list[list[Any]]] = {}
    for name, values in night.episodes.observations.items():
        if name == "zone":
            columns[name] = np.array(ZONES)[values].tolist()
        else:
            columns[name] = (values.astype(np.int64) if name in _COUNTS else values).tolist()
    n_episodes, n_observations = night.episodes.observations["cpu"].shape
    return [
        [{name: rows[episode][step] for name, rows in columns.items()} for step in range(n_observations)]
        for episode in range(n_episodes)
    ]
