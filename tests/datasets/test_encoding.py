"""Encoding: standardised, one-hot, finite, and the same after a round trip."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.encoding import Encoder, fit_encoder, fit_encoder_to_blocks
from datasets.observations import Observations, observations_from_records
from tests.datasets.builders import tiny

WIDE = tiny(features={"cpu": {"min": None, "max": None, "nullable": True}, "zone": {"values": None}})
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
RECORDS = st.lists(
    st.fixed_dictionaries(
        {
            "cpu": st.none() | NUMBERS,
            "zone": st.none() | st.sampled_from("abc"),
            "busy": st.none() | st.booleans(),
            "load": st.none() | st.lists(NUMBERS, min_size=2, max_size=2),
        }
    ),
    min_size=1,
    max_size=12,
)


def of(records: list[dict[str, Any]]) -> Observations:
    return observations_from_records(WIDE, records)


def test_numbers_are_standardised_and_labels_one_hot() -> None:
    records = [{"cpu": c, "zone": z, "busy": b, "load": [c, 5.0]} for c, z, b in [(0.0, "a", True), (2.0, "b", False)]]
    encoder = fit_encoder(WIDE, of(records))

    assert encoder.names == ("cpu", "zone=a", "zone=b", "zone=(unseen)", "busy", "load[0]", "load[1]")
    # cpu: mean 1, deviation 1; load[1] is constant: scale 1
    assert encoder.encode(of(records)).tolist() == [[-1, 1, 0, 0, 1, -1, 0], [1, 0, 1, 0, -1, 1, 0]]
    assert encoder.encode(of([{"cpu": 3.0, "zone": "z", "busy": True, "load": [1.0, 7.0]}])).tolist() == [
        [2, 0, 0, 1, 1, 0, 2]
    ]


def test_missing_values_are_the_mean_and_shown_only_where_training_had_them() -> None:
    whole = [
        {"cpu": 0.0, "zone": "a", "busy": True, "load": [0, 0]},
        {"cpu": 2.0, "zone": "a", "busy": True, "load": [0, 0]},
    ]
    holes: list[dict[str, Any]] = [{"cpu": None, "zone": None, "busy": None, "load": None}]
    shy = fit_encoder(WIDE, of(whole))
    aware = fit_encoder(WIDE, of(whole + holes))

    assert not any("missing" in name for name in shy.names)
    assert not shy.encode(of(holes)).any()
    assert [name for name in aware.names if "missing" in name] == [
        f"{n} is missing" for n in ("cpu", "zone", "busy", "load")
    ]
    assert aware.encode(of(holes)).sum() == 4
    assert aware.features["cpu"].mean == (1.0,)


def test_declared_labels_have_their_slots_though_nobody_showed_them() -> None:
    records = [{"cpu": 0.5, "zone": "b"}]
    encoder = fit_encoder(tiny(), observations_from_records(tiny(), records))

    assert encoder.features["zone"].labels == ("a", "b")


def test_codes_of_another_vocabulary_are_matched_by_label() -> None:
    encoder = fit_encoder(WIDE, of([{"zone": "a"}, {"zone": "c"}]))
    start = encoder.names.index("zone=a")
    encoded = encoder.encode(of([{"zone": "c"}]))[:, start : start + 3]  # "c" has code 0 here and 1 there

    assert encoded.tolist() == [[0, 1, 0]]


@given(RECORDS, RECORDS)
def test_encoding_is_finite_bounded_and_as_wide_as_it_says(
    train: list[dict[str, Any]], live: list[dict[str, Any]]
) -> None:
    encoder = fit_encoder(WIDE, of(train))
    encoded = encoder.encode(of(live))

    assert encoded.shape == (len(live), encoder.size)
    assert encoded.dtype == np.float32
    assert len(encoder.names) == len(set(encoder.names)) == encoder.size
    assert np.isfinite(encoded).all()
    assert np.abs(encoded).max() <= 10


@given(RECORDS, RECORDS)
def test_encoder_survives_json(train: list[dict[str, Any]], live: list[dict[str, Any]]) -> None:
    encoder = fit_encoder(WIDE, of(train))
    again = Encoder.from_json(json.loads(json.dumps(encoder.to_json())))

    assert again == encoder
    np.testing.assert_array_equal(again.encode(of(live)), encoder.encode(of(live)))


@given(RECORDS)
def test_each_row_is_encoded_by_itself(records: list[dict[str, Any]]) -> None:
    encoder = fit_encoder(WIDE, of(records))
    together = encoder.encode(of(records))

    for row, record in enumerate(records):
        np.testing.assert_array_equal(encoder.encode(of([record]))[0], together[row])


def test_nothing_cannot_be_fitted_and_lost_features_are_named() -> None:
    with pytest.raises(ValueError, match="an encoder needs at least one observation"):
        fit_encoder(WIDE, of([]))
    encoder = fit_encoder(WIDE, of([{}]))
    with pytest.raises(ValueError, match="observations lack the features zone, busy, load"):
        encoder.encode(Observations({"cpu": np.zeros(1)}, {}))


@given(RECORDS, st.lists(st.integers(0, 12), max_size=4))
def test_blocks_give_the_encoder_of_all_rows_to_rounding(records: list[dict[str, Any]], cuts: list[int]) -> None:
    rows = of([{**r, "cpu": r["cpu"] and round(r["cpu"] % 1e6, 3), "load": r["load"] and [1e8, 0.1]} for r in records])
    bounds = [0, *sorted(min(cut, len(records)) for cut in cuts), len(records)]
    blocks = [rows.take(np.arange(start, stop)) for start, stop in pairwise(bounds)]
    wanted, found = fit_encoder(WIDE, rows), fit_encoder_to_blocks(WIDE, iter(blocks))

    assert found.names == wanted.names
    for name, encoding in wanted.features.items():
        np.testing.assert_allclose(found.features[name].mean, encoding.mean, rtol=1e-12, atol=1e-9)
        np.testing.assert_allclose(found.features[name].scale, encoding.scale, rtol=1e-9)


def test_one_block_gives_the_same_bits_and_huge_values_merge_without_overflow() -> None:
    values = np.array([1.0, -3.0, 2e200, np.nan, 5e-3, 1e160])
    rows = Observations(
        {"cpu": values, "zone": np.zeros(6, np.int32), "busy": values % 2, "load": np.stack([values, -values], axis=1)},
        {"zone": ("a",)},
    )
    wanted = fit_encoder(WIDE, rows)
    parts = [rows.take(np.array(chosen)) for chosen in ([0, 1], [3], [2, 4], [5])]
    found = fit_encoder_to_blocks(WIDE, parts)

    assert fit_encoder_to_blocks(WIDE, [rows]) == wanted
    assert wanted.features["cpu"].scale == pytest.approx((np.std(values[[0, 1, 2, 4, 5]] / 1e200) * 1e200,))
    for name in ("cpu", "busy", "load"):
        np.testing.assert_allclose(found.features[name].mean, wanted.features[name].mean, rtol=1e-12)
        np.testing.assert_allclose(found.features[name].scale, wanted.features[name].scale, rtol=1e-12)
