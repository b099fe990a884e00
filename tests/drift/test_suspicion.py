"""Shifts that few sources or episodes bring alone are suspicious; those of all are not, however they come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from drift.config import DriftConfig
from drift.detection import measure_drift
from drift.few_groups import Grouping
from drift.records import DriftReport, Suspicion
from drift.suspicion import confined_shifts
from drift.windows import DriftColumn, DriftWindow
from tests.drift.worlds import window_of_nights

CONFIG = DriftConfig(n_replicates=1000)
N_SOURCES = 10


def changed(window: DriftWindow, name: str, change: Callable[[DriftColumn], DriftColumn]) -> DriftWindow:
    return replace(window, columns={**window.columns, name: change(window.columns[name])})


def poisoned(window: DriftWindow, members: np.ndarray, how: str) -> DriftWindow:
    """A label that is new, a value that is missing, or one that is moved, in some episodes alone."""
    rows = members[window.episode_of_row]
    if how == "label":
        known = ("a", "b", "c", "d")
        return changed(
            window, "zone", lambda c: replace(c, values=np.where(rows, 4, c.values), vocabulary=(*known, "evil"))
        )
    if how == "missing":
        return changed(window, "x0", lambda c: replace(c, values=np.where(rows, np.nan, c.values)))
    return changed(window, "x0", lambda c: replace(c, values=c.values + float(how) * rows))


def sources_of(window: DriftWindow) -> np.ndarray:
    return np.array([f"host-{i % N_SOURCES}" for i in range(window.n_episodes)])


def windows(seed: int, shift: float = 0.0, night_sd: float = 0.0) -> tuple[DriftWindow, DriftWindow]:
    rng = np.random.default_rng([seed, 5])
    reference = window_of_nights(rng, n_nights=4, episodes_per_night=150, night_sd=night_sd)
    live = window_of_nights(rng, n_nights=1, episodes_per_night=300, first_night=4, shift=shift, night_sd=night_sd)
    return reference, live


def looked_into(
    reference: DriftWindow, live: DriftWindow, *, known: bool = False, versions: np.ndarray | None = None
) -> tuple[DriftReport, tuple[Suspicion, ...]]:
    report = measure_drift(reference, live, CONFIG)
    groups = [Grouping("few sources", sources_of(live), (sources_of(reference) if known else None,))]
    if versions is not None:
        groups.append(Grouping("one policy version", versions, (None,)))
    names = np.array([f"e{i}" for i in range(live.n_episodes)])
    found = confined_shifts(
        reference, live, report, CONFIG, groups=groups, episodes=names, rng=np.random.default_rng(1)
    )
    return report, found


SEEDS = range(5)


@pytest.mark.parametrize("how", ["label", "missing", "3"])
def test_one_poisoned_source_of_ten_is_named(how: str) -> None:
    n_drifted = 0
    for seed in SEEDS:
        reference, live = windows(seed)
        report, found = looked_into(reference, poisoned(live, sources_of(live) == "host-3", how))
        n_drifted += report.status == "drifted"
        assert [(one.kind, one.where) for one in found] == [("few sources", ("host-3",))] * len(found)
        assert len(found) == (report.status == "drifted")
    assert n_drifted >= 4


@pytest.mark.parametrize("how", ["label", "missing"])
def test_one_poisoned_episode_of_twenty_is_found_and_named(how: str) -> None:
    for seed in SEEDS:
        reference, live = windows(seed)
        members = np.random.default_rng(seed).random(live.n_episodes) < 0.05
        _, (one,) = looked_into(reference, poisoned(live, members, how))

        assert one.kind == "few episodes"
        truly = {f"e{i}" for i in np.flatnonzero(members)}
        assert len(truly & set(one.where)) == len(truly)
        assert one.share < 0.10
        assert "live episodes (" in one.sentence
        assert " such as the reference hardly holds: e" in one.sentence


@pytest.mark.parametrize(("shift", "night_sd"), [(0.0, 0.0), (0.25, 0.0), (0.4, 0.0), (1.0, 0.0), (0.0, 0.3)])
def test_a_shift_of_all_a_shock_and_an_unchanged_night_are_not_suspicious(shift: float, night_sd: float) -> None:
    for seed in range(8):
        report, found = looked_into(*windows(seed, shift, night_sd))
        assert found == (), report.sentence


def test_a_wider_spread_and_a_tail_in_some_rows_of_all_episodes_are_not_suspicious() -> None:
    for seed in SEEDS:
        reference, live = windows(seed)
        wider = changed(live, "x0", lambda c: replace(c, values=1.5 * c.values))
        hit = 3.0 * (np.random.default_rng(seed).random(live.n_rows) < 0.1)
        tailed = changed(live, "x0", lambda c: replace(c, values=c.values + hit))  # noqa: B023  # at once
        for window in (wider, tailed):
            report, found = looked_into(reference, window)
            assert (report.status, found) == ("drifted", ())


@pytest.mark.parametrize("known", [False, True])
def test_sources_that_always_differ_do_not_make_a_shift_of_all_suspicious(known: bool) -> None:
    """Leaving the two highest of ten out hides a rise of all ten; they must be left out of the reference, too."""
    n_drifted = 0
    for seed in SEEDS:
        level = 0.6 * np.random.default_rng([seed, 9]).standard_normal(N_SOURCES)
        reference, live = windows(seed, shift=0.3)

        def uneven(window: DriftWindow) -> DriftWindow:
            added = level[np.arange(window.n_episodes) % N_SOURCES][window.episode_of_row]  # noqa: B023  # at once
            return changed(window, "x0", lambda c: replace(c, values=c.values + added))

        report, found = looked_into(uneven(reference), uneven(live), known=known)
        n_drifted += report.status == "drifted"
        assert found == ()
    assert n_drifted >= 3


def test_a_poisoned_source_is_found_among_sources_that_the_reference_knows() -> None:
    reference, live = windows(0)
    _, (one,) = looked_into(reference, poisoned(live, sources_of(live) == "host-7", "missing"), known=True)
    assert (one.kind, one.column, one.where, one.share) == ("few sources", "x0", ("host-7",), 0.1)
    assert one.sentence.startswith(
        "the shift of x0 is confined to the source host-7, with 30 of 300 live episodes (10.0%); without them its PSI "
        "falls from "
    )


def test_a_policy_version_of_its_own_is_named_and_columns_that_move_with_it_are_told_together() -> None:
    reference, live = windows(0)
    own = np.arange(live.n_episodes) % 9 == 0
    both = poisoned(poisoned(live, own, "missing"), own, "label")
    _, (one,) = looked_into(reference, both, versions=np.where(own, "7", ""))

    assert (one.kind, one.where) == ("one policy version", ("7",))
    assert one.sentence.startswith("the shift of zone (and of x0) is confined to the policy version 7, ")


def test_a_third_of_the_episodes_is_how_the_world_is_now() -> None:
    reference, live = windows(0)
    _, found = looked_into(reference, poisoned(live, np.arange(live.n_episodes) % 3 == 0, "label"))
    assert found == ()


def test_labels_of_other_episodes_are_refused() -> None:
    reference, live = windows(0)
    report = measure_drift(reference, live, CONFIG)
    with pytest.raises(ValueError, match="wants one label per episode, found 7 for 300 episodes"):
        confined_shifts(
            reference, live, report, CONFIG, groups=[], episodes=np.array(["e"] * 7), rng=np.random.default_rng(1)
        )
