from __future__ import annotations

from dataclasses import replace

import numpy as np

from drift.config import DriftConfig
from drift.detection import measure_drift
from drift.few_groups import Grouping
from drift.suspicion import confined_shifts
from drift.which_reference import reference_of, scalar_of
from drift.windows import DriftColumn, DriftWindow
from tests.drift.worlds import window_of_nights


def with_exogenous(window: DriftWindow, name: str, shift: float = 0.0) -> DriftWindow:
    column = window.columns[name]
    return replace(
        window, columns={**window.columns, name: replace(column, values=column.values + shift, exogenous=True)}
    )


def test_an_exogenous_column_goes_with_the_first_that_has_it_others_with_the_last() -> None:
    window = window_of_nights(np.random.default_rng(0), n_nights=1, episodes_per_night=5)
    vector = DriftColumn("vector", np.zeros((window.n_rows, 2)), exogenous=True)
    first = with_exogenous(window, "x0")
    last = replace(first, columns={**first.columns, "v": vector, "v[old]": first.columns["zone"]})
    windows = [first, last, last]
    places = {name: reference_of(name, windows) for name in ("x0", "zone", "v[1]", "v.norm", "v[2]", "v[old]", "no")}
    assert places == {"x0": 0, "zone": 2, "v[1]": 1, "v.norm": 1, "v[2]": None, "v[old]": 2, "no": None}
    part = scalar_of("v[1]", last)
    assert part is not None
    assert part.kind == "numeric"


def test_a_poisoned_exogenous_column_is_suspicious_beside_own_nights_of_other_values() -> None:
    """The own nights lie elsewhere, and hold the live values: on their bins nothing would have moved."""
    config = DriftConfig(n_replicates=1000)
    rng = np.random.default_rng([2, 5])
    gate = with_exogenous(window_of_nights(rng, n_nights=4, episodes_per_night=150), "x0")
    own = with_exogenous(window_of_nights(rng, n_nights=4, episodes_per_night=150, first_night=4), "x0", shift=3.0)
    live = window_of_nights(rng, n_nights=1, episodes_per_night=300, first_night=8)
    hosts = np.array([f"host-{i % 10}" for i in range(live.n_episodes)])
    column = live.columns["x0"]
    values = column.values + 3.0 * (hosts == "host-3")[live.episode_of_row]
    live = replace(live, columns={**live.columns, "x0": replace(column, values=values, exogenous=True)})
    report = measure_drift([gate, own], live, config)
    assert "x0" in {drifted.name for drifted in report.drifted_columns}

    found = confined_shifts(
        [gate, own], live, report, config, groups=[Grouping("few sources", hosts, (None, None))],
        episodes=hosts, rng=np.random.default_rng(1),
    )  # fmt: skip

    assert [(one.column, one.where) for one in found] == [("x0", ("host-3",))]
