"""Snapshots for Minari and d3rlpy, checked by those libraries themselves, and Minari datasets as logs."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

minari = pytest.importorskip("minari", reason="the extra `exchange` is not installed")

from gymnasium import spaces  # noqa: E402
from minari.data_collector.episode_buffer import EpisodeBuffer  # noqa: E402
from minari.dataset.minari_storage import MinariStorage  # noqa: E402

from datasets.contract import contract_from_json, contract_from_text  # noqa: E402
from datasets.encoding import fit_encoder  # noqa: E402
from datasets.exchange import ExchangeError, export_d3rlpy, export_minari  # noqa: E402
from datasets.freezing import read_episodes  # noqa: E402
from datasets.minari_logs import import_minari  # noqa: E402
from datasets.replay import GATE, SELECT, TRAIN, Replay  # noqa: E402
from datasets.snapshot_config import SnapshotConfig  # noqa: E402
from tests.datasets.builders import NOON, ask, episode, lake_at, step_row, take_in, tiny, write_rows  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_suite")

EVERY = (TRAIN, SELECT, GATE)


def replay_of(folder: Path, rows: list[dict[str, Any]], **contract: Any) -> Replay:
    lake = lake_at(folder, tiny(**contract))
    take_in(lake, write_rows(folder / "log.jsonl", rows))
    replay = read_episodes(lake, SnapshotConfig(train_share=0.98, select_share=0.01), as_of=NOON)
    assert replay is not None
    return replay


ROWS = [
    *episode("a", observation={"zone": "b"}),
    step_row("b", 0, truncated=True, final_observation={"cpu": 0.75, "zone": None, "busy": None}, reward=-3.5),
    step_row("c", 0, available_actions=["hold", "up"], observation={"zone": "never seen", "load": None}),
    step_row("c", 1, truncated=True, behavior_prob=0.25),
]


def test_minari_reads_what_was_logged(tmp_path: Path) -> None:
    replay = replay_of(tmp_path, ROWS)
    done = export_minari(replay, tmp_path / "out", splits=EVERY, snapshot="d" * 64)

    dataset = minari.MinariDataset(str(tmp_path / "out" / "data"))
    assert (dataset.total_episodes, dataset.total_steps) == (done.n_episodes, done.n_steps) == (3, 6)
    assert dataset.action_space == spaces.Discrete(3)
    assert dataset.observation_space["cpu"] == spaces.Box(0.0, 1.0, (1,), np.float64)
    by_length = {len(e.rewards): e for e in dataset.iterate_episodes()}
    whole, cut, unknown = by_length[3], by_length[1], by_length[2]
    assert whole.observations["cpu"].tolist() == [[0.5]] * 4
    assert whole.observations["zone"].tolist() == [1] * 4
    assert (whole.terminations.tolist(), whole.truncations.tolist()) == ([False, False, True], [False] * 3)
    assert cut.rewards.tolist() == [-3.5]
    assert cut.observations["cpu"].tolist() == [[0.5], [0.75]]
    assert cut.observations["zone"].tolist() == [0, 3]  # a, b, never seen, missing
    assert cut.observations["busy"].tolist() == [1, 2]
    assert cut.infos["final_observation_logged"].tolist() == [True, True]
    assert unknown.infos["final_observation_logged"].tolist() == [True, True, False]
    assert unknown.infos["available_actions"].tolist() == [[False, True, True], [True] * 3, [True] * 3]
    np.testing.assert_array_equal(unknown.infos["behavior_prob"], [0.5, 0.25, np.nan])
    np.testing.assert_array_equal(unknown.observations["load"][0], [np.nan, np.nan])
    assert done.n_unknown_ends == 1


def test_bins_come_back_as_actions_with_their_labels(tmp_path: Path) -> None:
    rows = [step_row(name, action=value, truncated=True) for name, value in (("a", 3), ("b", 70.0))]
    replay = replay_of(tmp_path, rows, actions={"names": None, "safe": 3, "bins": [0, 10, 50, 100]})
    export_minari(replay, tmp_path / "out", splits=EVERY, snapshot="d" * 64)

    logs = import_minari(tmp_path / "out", tmp_path / "logs", first_day=date(2024, 1, 1))

    assert (logs.contract.actions.bins, logs.contract.actions.safe) == (None, "[0, 10)")
    assert logs.contract.actions.names == ("[0, 10)", "[10, 50)", "[50, 100]")
    take_in(lake_at(tmp_path / "again", logs.contract), logs.path)
    again = lake_at(tmp_path / "again", logs.contract)
    assert sorted(ask(again, "SELECT action FROM {steps}")) == [("[0, 10)",), ("[50, 100]",)]


def test_an_export_comes_back_as_the_same_episodes(tmp_path: Path) -> None:
    replay = replay_of(tmp_path, ROWS)
    export_minari(replay, tmp_path / "out", splits=EVERY, snapshot="d" * 64)
    logs = import_minari(tmp_path / "out", tmp_path / "logs", first_day=date(2024, 1, 1))

    lake = lake_at(tmp_path / "back", logs.contract)
    report = take_in(lake, logs.path, as_of="newest")
    assert report.batch is not None
    assert (report.batch.counts.n_in, report.batch.counts.n_lake) == (6, 6)
    back = read_episodes(lake, SnapshotConfig(), as_of=datetime(2024, 1, 2, tzinfo=UTC))
    assert back is not None
    assert back.contract.features == replay.contract.features
    for name in ("actions", "rewards", "terminated", "truncated", "next_row", "behavior_prob", "available", "offsets"):
        np.testing.assert_array_equal(getattr(back, name), getattr(replay, name), err_msg=name)
    for name in ("cpu", "busy", "load"):
        np.testing.assert_array_equal(back.observations.columns[name], replay.observations.columns[name])
    assert back.observations.labels("zone").tolist() == replay.observations.labels("zone").tolist()
    assert take_in(lake, logs.path, as_of="newest").batch is None  # exactly once


PIXELS = {"name": "pixels", "gamma": 0.9, "actions": {"names": ["down", "hold"]}}


def images_of(folder: Path, frames: list[Any], *, nullable: bool) -> Replay:
    """One episode a frame, the frame (2, 3, 1) being the only feature."""
    feature = {"type": "image", "shape": [2, 3, 1], "nullable": nullable}
    contract = contract_from_json({**PIXELS, "features": {"frame": feature}}, "test")
    rows = [{**step_row(f"e{n}", 0, terminated=True), "observation": {"frame": f}} for n, f in enumerate(frames)]
    lake = lake_at(folder, contract)
    take_in(lake, write_rows(folder / "log.jsonl", rows))
    replay = read_episodes(lake, SnapshotConfig(train_share=0.98, select_share=0.01), as_of=NOON)
    assert replay is not None
    return replay


def test_images_come_back_as_the_same_bytes_and_missing_ones_as_missing(tmp_path: Path) -> None:
    replay = images_of(tmp_path, [list(range(250, 256)), None], nullable=True)
    export_minari(replay, tmp_path / "out", splits=EVERY, snapshot="d" * 64)

    dataset = minari.MinariDataset(str(tmp_path / "out" / "data"))
    assert dataset.observation_space["frame"] == spaces.Box(0, 255, (2, 3, 1), np.uint8)
    first = next(e for e in dataset.iterate_episodes() if e.observations["frame"].any())
    assert first.observations["frame"][0, :, :, 0].tolist() == [[250, 251, 252], [253, 254, 255]]
    logs = import_minari(tmp_path / "out", tmp_path / "logs", first_day=date(2024, 1, 1))
    assert logs.contract.features == replay.contract.features
    again = lake_at(tmp_path / "again", logs.contract)
    take_in(again, logs.path)
    assert sorted(ask(again, "SELECT observation.frame FROM {steps}"), key=str) == [(None,), (list(range(250, 256)),)]


@pytest.mark.parametrize(("shape", "wanted"), [((3, 8, 9), (8, 9, 3)), ((8, 9, 3), (8, 9, 3)), ((8, 9), (8, 9, 1))])
def test_a_box_of_bytes_is_an_image_wherever_its_channels_stand(
    shape: tuple[int, ...], wanted: tuple[int, ...], tmp_path: Path
) -> None:
    frames = np.arange(4 * np.prod(shape)).reshape(4, *shape).astype(np.uint8)
    made = minari_dataset(tmp_path / "set", spaces.Box(0, 255, shape, np.uint8), [buffer(frames, 3)])

    logs = import_minari(made, tmp_path / "logs", first_day=date(2024, 1, 1))

    name, feature = logs.contract.image or ("", None)
    assert (name, feature and feature.shape) == ("x", wanted)
    lake = lake_at(tmp_path, logs.contract)
    take_in(lake, logs.path)
    rows_first = np.moveaxis(frames, 1, 3) if shape[0] == 3 else frames
    assert ask(lake, "SELECT observation.x FROM {steps} WHERE step = 2") == [(rows_first[2].ravel().tolist(),)]


def test_d3rlpy_gets_an_image_as_bytes_and_with_anything_else_encoded(tmp_path: Path) -> None:
    import h5py

    replay = images_of(tmp_path / "a", [list(range(6))], nullable=False)
    export_d3rlpy(replay, tmp_path / "bytes.h5", splits=EVERY)
    export_d3rlpy(images_of(tmp_path / "b", [[255] * 6, None], nullable=True), tmp_path / "b.h5", splits=EVERY)

    with h5py.File(tmp_path / "bytes.h5") as file:
        found = file["observations_0"]
        assert (found.dtype, found.shape) == (np.uint8, (1, 1, 2, 3))
        assert found[0].tolist() == [[[0, 1, 2], [3, 4, 5]]]
    with h5py.File(tmp_path / "b.h5") as file:
        rows = sorted(file[f"observations_{n}"][0].tolist() for n in range(2))
    assert rows == [[0.0] * 6 + [1.0], [1.0] * 6 + [0.0]]


def test_only_the_chosen_splits_leave(tmp_path: Path) -> None:
    replay = replay_of(tmp_path, [row for i in range(40) for row in episode(f"e{i}")])
    split = np.array([TRAIN, GATE] * 20, dtype=np.int8)
    halved = Replay(**{**replay.__dict__, "split": split})
    assert export_minari(halved, tmp_path / "out", splits=[TRAIN], snapshot="d").n_episodes == 20
    with pytest.raises(ExchangeError, match=r"No episode of the snapshot is in select; nothing was written"):
        export_minari(halved, tmp_path / "none", splits=[SELECT], snapshot="d")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    replay = replay_of(tmp_path, ROWS)
    export_minari(replay, tmp_path / "out", splits=EVERY, snapshot="d")
    for export in (export_minari, export_d3rlpy):
        options = {"snapshot": "d"} if export is export_minari else {}
        with pytest.raises(ExchangeError, match="out exists already; nothing was written"):
            export(replay, tmp_path / "out", splits=EVERY, **options)  # type: ignore[operator]


def test_masks_are_not_lost_in_silence(tmp_path: Path) -> None:
    replay = replay_of(tmp_path, ROWS)
    with pytest.raises(ExchangeError, match="d3rlpy knows no action masks, and in 1 of these steps"):
        export_d3rlpy(replay, tmp_path / "out.h5", splits=EVERY)
    assert export_d3rlpy(replay, tmp_path / "out.h5", splits=EVERY, ignore_masks=True).n_steps == 6


_READ_BACK = """
import json, sys
import d3rlpy
from d3rlpy.dataset import Episode, InfiniteBuffer, ReplayBuffer, load
assert len(ReplayBuffer.load(sys.argv[1], InfiniteBuffer()).episodes) == 2  # those with a target
buffer = ReplayBuffer(
    InfiniteBuffer(), episodes=load(Episode, sys.argv[1]), action_space=d3rlpy.ActionSpace.DISCRETE, action_size=3
)
info = buffer.dataset_info
episodes = [
    {"observations": e.observations.tolist(), "actions": e.actions.tolist(), "rewards": e.rewards.tolist(),
     "terminated": bool(e.terminated), "transitions": e.transition_count} for e in load(Episode, sys.argv[1])
]
algo = d3rlpy.algos.DiscreteCQLConfig(batch_size=4).create(device="cpu:0")
algo.build_with_dataset(buffer)
algo.update(buffer.sample_transition_batch(4))
print(json.dumps({"episodes": episodes, "shape": info.observation_signature.shape[0], "n_actions": info.action_size}))
"""


def d3rlpy_python() -> str:
    """d3rlpy pins another gymnasium than ours, so it lives in an environment of its own."""
    found = os.environ.get("D3RLPY_PYTHON", "")
    if not found:
        pytest.skip("D3RLPY_PYTHON names no interpreter that has d3rlpy")
    return found


def test_d3rlpy_reads_and_learns_from_what_was_logged(tmp_path: Path) -> None:
    python = d3rlpy_python()
    replay = replay_of(tmp_path, ROWS)
    done = export_d3rlpy(replay, tmp_path / "out.h5", splits=EVERY, ignore_masks=True)
    run = subprocess.run(
        [python, "-c", _READ_BACK, str(done.path)],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": ""},
    )
    found = json.loads(run.stdout.splitlines()[-1])

    encoder = fit_encoder(replay.contract, replay.of_split(TRAIN).observations)
    encoded = encoder.encode(replay.observations)
    assert found["shape"] == [encoder.size]
    assert found["n_actions"] == 3
    for n, read in enumerate(found["episodes"]):
        steps = slice(int(replay.offsets[n]), int(replay.offsets[n + 1]))
        np.testing.assert_allclose(read["observations"], encoded[steps], rtol=1e-6)
        assert read["actions"] == replay.actions[steps][:, None].tolist()
        np.testing.assert_allclose(read["rewards"], replay.rewards[steps][:, None])
        assert read["terminated"] == bool(replay.terminated[steps][-1])
        assert read["transitions"] == len(replay.actions[steps]) - (0 if read["terminated"] else 1)


def test_rows_that_are_episodes_of_their_own_terminate(tmp_path: Path) -> None:
    import h5py

    rows = [{**step_row(None, 0, truncated=False, terminated=False), "decision_id": f"d{i}"} for i in range(5)]
    replay = replay_of(tmp_path, rows, episodes={"kind": "one_step"})
    export_d3rlpy(replay, tmp_path / "out.h5", splits=EVERY)
    with h5py.File(tmp_path / "out.h5") as file:
        assert [bool(file[f"terminated_{i}"][()]) for i in range(5)] == [True] * 5
    described = json.loads((tmp_path / "out.h5.columns.json").read_text())
    assert described["columns"][0] == "cpu"


# --- datasets of others


def minari_dataset(
    folder: Path, observation_space: Any, buffers: list[EpisodeBuffer], action_space: Any = None
) -> Path:
    (folder / "data").mkdir(parents=True)
    storage = MinariStorage.new(folder / "data", observation_space, action_space or spaces.Discrete(2, start=5))
    storage.update_metadata({"dataset_id": "some/thing-v0", "minari_version": minari.__version__})
    storage.update_episodes(buffers)
    return folder


def buffer(observations: Any, n: int, *, terminated: bool = True, truncated: bool = False) -> Any:
    ends = np.arange(n) == n - 1
    return EpisodeBuffer(
        observations=observations, actions=5 + np.arange(n) % 2, rewards=np.arange(n, dtype=float),
        terminations=ends & terminated, truncations=ends & truncated,
    )  # fmt: skip


def test_spaces_become_features_and_the_log_is_ingested(tmp_path: Path) -> None:
    space = spaces.Dict(
        {
            "pos": spaces.Box(-1, 1, (2,), np.float32), "long": spaces.Box(0, 9, (20,)), "kind": spaces.Discrete(3),
            "flags": spaces.MultiBinary(2), "inner": spaces.Dict({"t": spaces.Box(0, 1, (1,))}),
        }
    )  # fmt: skip

    def observations(n: int) -> dict[str, Any]:
        t = np.arange(n + 1)
        return {
            "pos": np.stack([t, -t], axis=1).astype(np.float32), "long": np.ones((n + 1, 20), np.float32),
            "kind": t % 3, "flags": np.stack([t % 2, 1 - t % 2], axis=1).astype(np.int8),
            "inner": {"t": t[:, None].astype(np.float32)},
        }  # fmt: skip

    made = minari_dataset(
        tmp_path / "set", space,
        [buffer(observations(3), 3), buffer(observations(2), 2, terminated=False, truncated=True),
         buffer(observations(2), 2, terminated=False)],
    )  # fmt: skip
    logs = import_minari(made, tmp_path / "logs", first_day=date(2024, 1, 1))

    kinds = {name: feature.type for name, feature in logs.contract.features.items()}
    assert kinds == {
        "pos0": "numeric", "pos1": "numeric", "long": "vector", "kind": "categorical", "flags0": "boolean",
        "flags1": "boolean", "inner_t": "numeric",
    }  # fmt: skip
    assert logs.contract.actions.names == ("5", "6")
    assert logs.contract.behavior.propensity == "estimated"
    assert (logs.n_episodes, logs.n_steps, logs.n_cut) == (3, 7, 1)
    assert contract_from_text(logs.contract_text, "again") == logs.contract
    lake = lake_at(tmp_path, logs.contract)
    report = take_in(lake, logs.path, as_of="newest")
    assert report.batch is not None
    assert report.batch.counts.n_lake == 7
    replay = read_episodes(lake, SnapshotConfig(), as_of=datetime(2024, 1, 1, 1, tzinfo=UTC))
    assert replay is not None
    assert replay.next_row.tolist() == [1, 2, -1, 4, 7, 6, 8]
    assert replay.observations.columns["pos1"].tolist() == [0, -1, -2, 0, -1, 0, -1, -2, -2]
    assert replay.actions.tolist() == [0, 1, 0, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("observation_space", "action_space", "said"),
    [
        (spaces.Box(0, 1, (8, 8, 3)), None, r"the observation is a Box.*\(8, 8, 3\).* no feature"),
        (
            spaces.Dict(
                {"front": spaces.Box(0, 255, (4, 4, 3), np.uint8), "back": spaces.Box(0, 255, (4, 4), np.uint8)}
            ),
            None,
            "the images (front, back|back, front), and an observation holds one at most",
        ),
        (spaces.Dict({"a": spaces.Text(5)}), None, r"observation\['a'\] is a Text"),
        (spaces.Box(0, 1, (2,)), spaces.Box(0, 1, (1,)), "learns from Discrete actions only"),
    ],
)
def test_what_no_contract_describes_is_named(
    tmp_path: Path, observation_space: Any, action_space: Any, said: str
) -> None:
    def sample(space: Any) -> Any:
        return {k: [v.sample() for _ in range(2)] for k, v in space.items()} if isinstance(space, spaces.Dict) else (
            np.stack([space.sample() for _ in range(2)])
        )  # fmt: skip

    one = EpisodeBuffer(
        observations=sample(observation_space), actions=np.zeros((1, 1)) if action_space else np.array([5]),
        rewards=[0.0], terminations=[True], truncations=[False],
    )  # fmt: skip
    made = minari_dataset(tmp_path / "set", observation_space, [one], action_space)
    with pytest.raises(ExchangeError, match=said):
        import_minari(made, tmp_path / "logs", first_day=date(2024, 1, 1))
    assert not (tmp_path / "logs").exists()


def test_a_folder_that_is_no_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExchangeError, match=r"nowhere is no Minari dataset that can be read"):
        import_minari(tmp_path / "nowhere", tmp_path / "logs", first_day=date(2024, 1, 1))
