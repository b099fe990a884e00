"""Image features: from the log over lake and snapshot to the encoder, and what is refused on the way."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from datasets.compatibility import lake_incompatibilities, policy_incompatibilities
from datasets.contract import Contract, contract_from_json
from datasets.coverage import read_coverage
from datasets.encoding import Encoder, fit_encoder
from datasets.freezing import freeze_snapshot
from datasets.images import mean_brightness
from datasets.lake import Lake
from datasets.observations import ObservationError, observations_from_records
from datasets.redaction import redact_snapshot
from datasets.replay import Replay
from datasets.settings import SettingsError
from datasets.snapshot import open_snapshot
from datasets.snapshot_config import SnapshotConfig
from datasets.snapshot_writer import rows_per_block
from datasets.validation import ValidateConfig, validate_steps
from drift.windows import window_from_replay
from tests.datasets.builders import (
    CONTRACT,
    NOON,
    ask,
    counts_of,
    episode,
    lake_at,
    reasons_of,
    step_row,
    take_in,
    tiny,
    write_rows,
)
from tests.datasets.test_fast_read import exactly, staged

SHAPE = (2, 3, 2)  # height, width, channels
FRAME = np.arange(12).reshape(SHAPE) * 20


def seen(shape: tuple[int, ...] = SHAPE, **changes: Any) -> Contract:
    """The tiny contract with other features, an image in their middle."""
    image = {"frame": {"type": "image", "shape": list(shape), **changes}}
    return with_features({"cpu": {"type": "numeric"}, **image, "busy": {"type": "boolean"}})


def with_features(features: dict[str, Any]) -> Contract:
    return contract_from_json({**CONTRACT, "features": features}, "test")


def row(frame: Any, name: str = "e", step: int = 0, **changes: Any) -> dict[str, Any]:
    made = step_row(name, step, **changes)
    return {**made, "observation": {"cpu": 0.5, "frame": frame, "busy": True}}


def lake_of(folder: Path, contract: Contract, *rows: dict[str, Any]) -> Lake:
    lake = lake_at(folder, contract)
    take_in(lake, write_rows(folder / "log.jsonl", rows))
    return lake


def frozen(lake: Lake) -> tuple[Path, Replay]:
    path, _ = freeze_snapshot(lake, SnapshotConfig(), lake.root.parent / "snapshots", as_of=NOON)
    return path, open_snapshot(path)[0]


# --- the contract


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ({"type": "image"}, "features.frame.shape: missing."),
        ({"type": "image", "shape": [2, 3]}, "features.frame.shape"),
        ({"type": "image", "shape": [2, 0, 1]}, "features.frame.shape.1: Input should be greater than 0 (found 0)"),
        ({"type": "image", "shape": [2, 3, 1], "length": 6}, "features.frame.length: unknown key"),
    ],
)
def test_refusal_names_the_key_and_the_cause(feature: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        tiny(features={"frame": feature})
    assert message in str(caught.value)


def test_an_observation_holds_one_image_at_most() -> None:
    image = {"type": "image", "shape": [2, 3, 1]}
    with pytest.raises(SettingsError, match="front, back are images, and an observation holds one at most"):
        tiny(features={"front": image, "back": image})


def test_another_shape_is_no_change_that_a_lake_or_a_policy_survives() -> None:
    difference = "features.frame: shape was 2 x 3 x 2 and is 3 x 2 x 2"
    assert lake_incompatibilities(seen(), seen((3, 2, 2))) == [difference]
    assert policy_incompatibilities(seen(), seen((3, 2, 2))) == [difference]
    assert lake_incompatibilities(seen(), seen(nullable=True)) == []


# --- from the log to the encoder


@pytest.mark.usefixtures("quick_suite")
def test_an_image_comes_through_lake_and_snapshot_as_bytes(tmp_path: Path) -> None:
    brighter = FRAME + 3
    final = {"cpu": 1, "frame": brighter.tolist(), "busy": True}
    rows = [
        row(FRAME.ravel().tolist(), "a", 0),
        row(FRAME.astype(float).tolist(), "a", 1),  # nested, and whole numbers with a point
        row(FRAME.tolist(), "b", 0, truncated=True, final_observation=final),
    ]
    rows[1]["terminated"] = True
    lake = lake_of(tmp_path, seen(), *rows)

    flat = FRAME.ravel().tolist()
    assert ask(lake, "SELECT observation.frame FROM {steps}") == [(flat,)] * 3
    path, replay = frozen(lake)
    images = replay.observations.columns["frame"]
    assert isinstance(images, np.memmap)
    assert images.dtype == np.uint8
    assert images[:3].tolist() == [[*flat, 0]] * 3
    assert images[replay.next_row[2]].tolist() == [*brighter.ravel().tolist(), 0]
    assert read_coverage(path) is not None


def test_the_image_stands_first_with_its_channels_before_its_rows() -> None:
    contract = seen()
    observations = observations_from_records(
        contract, [{"cpu": c, "frame": (FRAME + c).tolist(), "busy": True} for c in (0, 2)]
    )
    encoder = fit_encoder(contract, observations)

    assert encoder.names[:4] == ("frame[0,0,0]", "frame[0,1,0]", "frame[0,2,0]", "frame[1,0,0]")
    assert encoder.names[6] == "frame[0,0,1]"
    assert encoder.names[12:] == ("cpu", "busy")
    assert encoder.image_shape == SHAPE
    encoded = encoder.encode(observations)
    assert encoded.dtype == np.float32
    wanted = np.moveaxis(FRAME, 2, 0).ravel() / 255
    np.testing.assert_allclose(encoded[0], [*wanted, -1, 0], rtol=1e-6)
    np.testing.assert_allclose(encoded[1, :12], np.moveaxis(FRAME + 2, 2, 0).ravel() / 255, rtol=1e-6)
    again = Encoder.from_json(json.loads(json.dumps(encoder.to_json())))
    assert again == encoder


def test_a_missing_image_is_black_and_flagged_where_training_had_missing_ones() -> None:
    contract = seen(nullable=True)
    whole: dict[str, Any] = {"cpu": 0, "frame": np.full(SHAPE, 255).tolist(), "busy": True}
    hole: dict[str, Any] = {**whole, "frame": None}
    aware = fit_encoder(contract, observations_from_records(contract, [whole, hole]))
    shy = fit_encoder(contract, observations_from_records(contract, [whole]))

    assert aware.names[11:] == ("frame[1,2,1]", "frame is missing", "cpu", "busy")
    both = observations_from_records(contract, [whole, hole])
    assert aware.encode(both)[:, :13].tolist() == [[1] * 12 + [0], [0] * 12 + [1]]
    assert not shy.encode(both)[1, :12].any()
    assert shy.size == aware.size - 1


@pytest.mark.usefixtures("quick_suite")
def test_rows_before_the_image_was_added_have_it_missing(tmp_path: Path) -> None:
    before = with_features({"cpu": {"type": "numeric"}, "busy": {"type": "boolean"}})
    take_in(lake_at(tmp_path, before), write_rows(tmp_path / "a.jsonl", episode("a")))
    lake = lake_at(tmp_path, seen(nullable=True))
    take_in(lake, write_rows(tmp_path / "b.jsonl", [row([7] * 12, "b", terminated=True)]))

    _, replay = frozen(lake)

    assert replay.observations.columns["frame"].tolist() == [[0] * 12 + [1]] * 3 + [[7] * 12 + [0]]
    brightness = window_from_replay(replay).columns["observation.frame.brightness"]
    assert brightness.kind == "numeric"
    np.testing.assert_array_equal(brightness.values, [math.nan] * 3 + [7.0])


@pytest.mark.usefixtures("quick_suite")
def test_an_erased_episode_leaves_the_other_images(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, seen(), *(row([n] * 12, f"e{n}", terminated=True) for n in range(4)))
    path, _ = frozen(lake)

    left = redact_snapshot(path, {"e2"})

    assert left is not None
    assert open_snapshot(left)[0].observations.columns["frame"][:, 0].tolist() == [0, 1, 3]


def test_brightness_is_the_mean_of_the_numbers_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: NDArray[np.uint8] = np.array([[0, 255, 0], [10, 20, 0], [0, 0, 1]], dtype=np.uint8)
    for block in (1, 6, 1000):
        monkeypatch.setattr("datasets.images._BLOCK_BYTES", block)
        np.testing.assert_array_equal(mean_brightness(rows), [127.5, 15.0, math.nan])


def test_large_images_make_small_blocks() -> None:
    assert rows_per_block(seen((84, 84, 4))) == 32_000_000 // (4 * 84 * 84 * 4 + 8 * (2 + 16))
    assert rows_per_block(tiny()) == 100_000


# --- what is refused

BAD: list[tuple[Any, str]] = [
    ([1, 2, 3], "has 3 numbers instead of 12 (2 x 3 x 2)"),
    ([0] * 11 + [256], "holds something else than whole numbers from 0 to 255"),
    ([0] * 11 + [-1], "holds something else than whole numbers from 0 to 255"),
    ([0] * 11 + [0.5], "holds something else than whole numbers from 0 to 255"),
    (np.moveaxis(FRAME, 2, 0).tolist(), "no image of 2 x 3 x 2 numbers"),
    (FRAME.reshape(6, 2).tolist(), "no image of 2 x 3 x 2 numbers"),
    ([[[0, 0], [0, 0]], [[0, 0]]], "no image of 2 x 3 x 2 numbers"),
    ([0] * 11 + [None], "no image of 2 x 3 x 2 numbers"),
    ([0] * 11 + ["1"], "no image of 2 x 3 x 2 numbers"),
    ([0] * 11 + [True], "no image of 2 x 3 x 2 numbers"),
    ("black", 'is "black", no image of 2 x 3 x 2 numbers, as one list or nested as rows, columns and channels'),
    (3, "no image of 2 x 3 x 2 numbers"),
    (None, "is missing"),
]


@pytest.mark.usefixtures("quick_suite")
def test_what_is_no_image_is_in_quarantine_with_the_reason(tmp_path: Path) -> None:
    lake = lake_at(tmp_path, seen())
    log = write_rows(tmp_path / "log.jsonl", [row(frame, f"e{n}") for n, (frame, _) in enumerate(BAD)])
    report = take_in(lake, log)

    assert counts_of(report) == {"in": len(BAD), "quarantined": len(BAD)}
    for reason, (frame, wanted) in zip(reasons_of(lake), BAD, strict=True):
        assert reason.startswith("observation.frame "), frame
        assert wanted in reason, frame


@pytest.mark.parametrize("frame", [frame for frame, _ in BAD])
def test_what_the_lake_refuses_nobody_may_act_on(frame: Any) -> None:
    with pytest.raises(ObservationError, match=r"frame (wants|holds|is missing)"):
        observations_from_records(seen(), [{"cpu": 0, "frame": frame, "busy": True}])


MUTATIONS = [
    *[("7", new) for new in ("7.5", "null", "{}", "-7", '"7"', "true")],
    *[("255", new) for new in ("256", "2.55e2", "NaN", "1e999", "9" * 40)],
    *[("[", new) for new in ("[[", "[ ", "")],
    (", ", " ,\t"),
]


@pytest.mark.parametrize("shape", [(2, 3, 2), (2, 3, 1), (1, 1, 1), (3, 1, 1)])
def test_both_readers_take_the_same_images(
    shape: tuple[int, int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.texts.IN_PLACE_BYTES", 0)
    chance, contract = random.Random(str(shape)), seen(shape, nullable=True)
    lines = []
    for n in range(150):
        image = np.array([chance.choice([0, 7, 255]) for _ in range(math.prod(shape))])
        frame = chance.choice(
            [
                image.ravel().tolist(),
                image.reshape(shape).tolist(),
                image.reshape(shape).astype(float).tolist(),
                image.reshape(shape[:2] if shape[2] == 1 else shape).tolist(),
                image.reshape(shape[::-1]).tolist(),
                image.tolist()[:-1],
                None,
            ]
        )
        text = json.dumps(row(frame, f"e{n}"))
        for _ in range(chance.choice([0, 0, 1, 2])):
            old, new = chance.choice(MUTATIONS)
            text = text.replace(old, new, 1) if chance.random() < 0.5 else text.replace(old, new)
        lines.append(text)
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(lines) + "\n")

    fast = staged(contract, tmp_path / "fast", [log])
    exact = exactly(monkeypatch, contract, tmp_path / "exact", [log])

    assert fast[0] == exact[0]
    assert fast[1] == exact[1]
    assert len(fast[0]) > 20
    assert all(len(good["observation"]["frame"] or image) == len(image) for good in fast[0])


@pytest.mark.usefixtures("quick_suite")
def test_csv_and_parquet_logs_have_the_same_rules(tmp_path: Path) -> None:
    columns = {
        "episode_id": ["p", "q", "r"],
        "step": [0] * 3,
        "timestamp": ["2024-05-01T10:00:00Z"] * 3,
        "cpu": [0.5] * 3,
        "frame": [[1] * 12, [2] * 11, [3] * 12],
        "busy": [True] * 3,
        "action": ["hold"] * 3,
        "reward": [-1.0] * 3,
        "terminated": [True] * 3,
        "behavior_prob": [0.5] * 3,
    }
    pq.write_table(
        pa.table({**columns, "frame": pa.array(columns["frame"], pa.list_(pa.uint8()))}), tmp_path / "b.parquet"
    )
    (tmp_path / "a.csv").write_text(
        "episode_id,step,timestamp,cpu,frame,busy,action,reward,terminated,behavior_prob\n"
        f's,0,2024-05-01T10:00:00Z,0.5,"{FRAME.tolist()}",true,hold,-1,true,0.5\n'
        't,0,2024-05-01T10:00:00Z,0.5,"[1, 2",true,hold,-1,true,0.5\n'
    )  # fmt: skip
    lake = lake_at(tmp_path, seen())

    take_in(lake, tmp_path / "a.csv", tmp_path / "b.parquet")

    stored = ask(lake, "SELECT episode_id, observation.frame FROM {steps} ORDER BY 1")
    assert stored == [("p", [1] * 12), ("r", [3] * 12), ("s", FRAME.ravel().tolist())]
    csv, parquet = reasons_of(lake)
    assert csv.startswith('observation.frame is "[1, 2", no image of 2 x 3 x 2 numbers')
    assert parquet == "observation.frame has 11 numbers instead of 12 (2 x 3 x 2)"


def test_the_suite_sees_wrong_lengths_and_numbers_out_of_range(tmp_path: Path) -> None:
    frames = [[0] * 12, [0] * 11, [0] * 11 + [300]]
    observations = pa.array(
        [{"cpu": 0.5, "frame": frame, "busy": True} for frame in frames],
        pa.struct([("cpu", pa.float64()), ("frame", pa.list_(pa.int16())), ("busy", pa.bool_())]),
    )
    rows = pa.Table.from_pylist([step_row("e")] * 3).drop_columns(["observation"])
    pq.write_table(rows.append_column("observation", observations), tmp_path / "a.parquet")

    result = validate_steps([tmp_path / "a.parquet"], seen(), summary=None, config=ValidateConfig())

    failed = {record.column: record for record in result.failures if "frame" in record.column}
    assert failed["numbers of observation.frame"].says == "are 12 (2 x 3 x 2)"
    assert failed["numbers of observation.frame"].unexpected_count == 1
    assert failed["numbers of observation.frame that are not from 0 to 255"].examples == (1,)
    assert len(failed) == 2
