"""A batch beside recent nights: each expectation on small facts, and how often honest nights are held."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from datasets.across import Judged, across_expectations, lake_expectations, outcome_expectations
from datasets.contract import Contract
from datasets.duck import duck
from datasets.expectations import Expectation
from datasets.nights import BatchFacts, NightFacts
from datasets.propensities import InverseAverage, inverse_averages
from datasets.validate_config import ValidateConfig
from tests.datasets.builders import tiny

FIRST = date(2024, 5, 1)
SHARES = {"down": 0.1, "hold": 0.6, "up": 0.3}


def night(
    day: int, n_rows: int = 1000, *, nulls: int | None = None, actions: Mapping[str, int] | None = None
) -> NightFacts:
    taken = actions if actions is not None else {name: round(share * n_rows) for name, share in SHARES.items()}
    return NightFacts(
        FIRST + timedelta(days=day),
        n_rows,
        max(n_rows // 5, 1),
        {"zone": n_rows // 20 if nulls is None else nulls},
        taken,
    )


def batch(*nights: NightFacts, labels: Mapping[str, int] | None = None, n_quarantined: int = 0) -> BatchFacts:
    last = max((n.night for n in nights), default=FIRST)
    n_rows = sum(n.n_rows for n in nights)
    return BatchFacts(
        nights=nights,
        newest=datetime(last.year, last.month, last.day, 23, 50, tzinfo=UTC) if nights else None,
        labels={"zone": {"a": n_rows} if labels is None else labels},
        n_new=n_rows + n_quarantined,
        n_quarantined=n_quarantined,
    )


def after(facts: BatchFacts) -> datetime:
    return (facts.newest or datetime(2024, 5, 1, tzinfo=UTC)) + timedelta(hours=2)


def judged(
    facts: BatchFacts,
    recent: Sequence[BatchFacts],
    averages: Sequence[InverseAverage] | None = None,
    config: ValidateConfig | None = None,
    as_of: datetime | None = None,
    contract: Contract | None = None,
) -> Judged:
    limits = config or ValidateConfig()
    return across_expectations(facts, recent, averages, contract or tiny(), limits, as_of=as_of or after(facts))


def broken(expectations: Iterable[Expectation]) -> list[Expectation]:
    found = []
    for e in expectations:
        assert e.value is not None
        if not e.arguments.get("min_value", -np.inf) <= e.value <= e.arguments.get("max_value", np.inf):
            found.append(e)
    return found


def columns(expectations: Iterable[Expectation]) -> list[str]:
    return [e.column for e in expectations]


WEEK = [batch(night(day)) for day in range(10)]


def test_a_usual_night_fulfils_all() -> None:
    found = judged(batch(night(10)), WEEK)
    assert broken(found.expectations) == []
    assert found.not_judged == (
        "high propensities, low propensities: no row had a choice that was made with a known probability below 1",
    )
    assert len(found.expectations) == 7


def test_a_first_night_is_judged_by_what_needs_no_other_and_says_so() -> None:
    found = judged(batch(night(0)), [])
    assert columns(found.expectations) == ["age of the newest row in hours"]
    assert found.not_judged[0] == (
        "low volume, high volume, missing values, share quarantined, vanished actions: not enough nights yet: 0 known, "
        "7 needed"
    )
    assert "new labels: no earlier batch has labels of observation.zone" in found.not_judged


def test_half_a_night_missing_is_named_with_what_was_usual() -> None:
    (low,) = broken(judged(batch(night(10, 200)), WEEK).expectations)
    # The quieter tenth had 1000; half of it, less 3 / sqrt(200 episodes), is 393.
    assert (low.column, low.value, low.arguments) == ("number of rows of 2024-05-11", 200.0, {"min_value": 393.0})
    assert "2024-05-11: 200 rows, the nights before it 1000 to 1000" in low.remedy
    assert "Look whether every source delivered its log" in low.remedy
    assert low.severity == "warn"


def test_three_times_the_rows_are_too_many() -> None:
    (high,) = broken(judged(batch(night(10, 3000)), WEEK).expectations)
    assert high.arguments == {"max_value": 2425.0}
    assert "rows came twice" in high.remedy


def test_a_night_that_goes_on_is_not_called_small() -> None:
    facts = batch(night(10, 100))
    going_on = judged(facts, WEEK, as_of=facts.newest)
    assert broken(going_on.expectations) == []
    assert going_on.not_judged[0] == "low volume: its night is not over at as_of, more of it may come"
    assert columns(broken(judged(facts, WEEK).expectations)) == ["number of rows of 2024-05-11"]


def test_a_night_in_several_batches_counts_as_one() -> None:
    parts = [batch(night(10, 300)), batch(night(10, 300))]
    assert broken(judged(batch(night(10, 300)), [*WEEK, *parts]).expectations) == []


def test_a_back_fill_is_judged_night_by_night_on_its_own() -> None:
    nights = [night(day, 100 if day == 20 else 1000) for day in range(30)]
    (low,) = broken(judged(batch(*nights), []).expectations)
    assert low.column == "number of rows of 2024-05-21"


def test_older_nights_than_all_known_ones_are_not_judged() -> None:
    found = judged(batch(night(-40)), WEEK)
    assert broken(found.expectations) == []
    assert any(sentence.startswith("low volume, high volume") for sentence in found.not_judged)


def test_a_handful_of_episodes_may_be_any_number_of_rows() -> None:
    few = [batch(night(day, 20)) for day in range(10)]
    assert broken(judged(batch(night(10, 1)), few).expectations) == []


@pytest.mark.parametrize(("hours", "is_broken"), [(71.0, False), (73.0, True), (-0.5, False), (-2.0, True)])
def test_age_of_the_newest_row(hours: float, is_broken: bool) -> None:
    facts = batch(night(10))
    assert facts.newest is not None
    found = broken(judged(facts, WEEK, as_of=facts.newest + timedelta(hours=hours)).expectations)
    assert ("age of the newest row in hours" in columns(found)) == is_broken
    if is_broken:
        assert "ingest.as_of = 'newest'" in found[-1].remedy


def test_missing_values_that_rise_name_the_feature() -> None:
    (nulls,) = broken(judged(batch(night(10, nulls=400)), WEEK).expectations)
    assert (nulls.column, nulls.value) == ("share missing of observation.zone", 0.4)
    assert "observation.zone 40.00%, recent nights 5.00% to 5.00%" in nulls.remedy
    assert broken(judged(batch(night(10, nulls=90)), WEEK).expectations) == []


def test_a_feature_that_is_new_is_not_judged_yet() -> None:
    old = [batch(NightFacts(n.night, n.n_rows, n.n_episodes, {}, n.actions)) for b in WEEK for n in b.nights]
    found = judged(batch(night(10)), old)
    assert "missing values: observation.zone is known of 0 nights, 7 are needed" in found.not_judged


def test_a_rising_share_quarantined_warns_before_it_holds() -> None:
    (share,) = broken(judged(batch(night(10), n_quarantined=40), WEEK).expectations)
    assert share.column == "share quarantined beside recent batches"
    assert "Recent batches had 0.00% to 0.00%" in share.remedy


def test_labels_nobody_knows_are_listed() -> None:
    facts = batch(night(10), labels={"a": 900, "eu-1": 60, "eu-2": 40})
    (new,) = broken(judged(facts, WEEK).expectations)
    assert (new.column, new.value) == ("share of new labels in observation.zone", 0.1)
    assert "'eu-1' (60 rows), 'eu-2' (40 rows)" in new.remedy
    declared = batch(night(10), labels={"a": 900, "b": 100})  # never seen, but in the contract
    assert broken(judged(declared, WEEK).expectations) == []
    seen = [*WEEK, batch(night(3), labels={"eu-1": 1, "eu-2": 1})]
    assert broken(judged(facts, seen).expectations) == []


def test_an_action_that_is_gone_is_named() -> None:
    facts = batch(night(10, actions={"hold": 700, "up": 300}))
    (gone,) = broken(judged(facts, WEEK).expectations)
    assert (gone.column, gone.value) == ("number of actions that vanished", 1.0)
    assert "'down' was 10.00% or more of a usual night's steps and is in none of this batch's" in gone.remedy
    small = batch(night(10, 200, actions={"hold": 150, "up": 50}))
    assert "number of actions that vanished" not in columns(broken(judged(small, WEEK).expectations))
    rare = [*WEEK, batch(night(9, 5000, actions={"hold": 5000}))]  # not there every night
    assert broken(judged(facts, rare[1:]).expectations) == broken(judged(facts, rare).expectations)


MONTH = [batch(night(day)) for day in range(28)]
BAD_TINY = BatchFacts((), None, {}, n_new=2, n_quarantined=2)


@pytest.mark.parametrize(
    "stray",
    [
        BAD_TINY,
        batch(night(20, 1), n_quarantined=1),
        batch(night(20, 1000), n_quarantined=4000),  # large, but one night of 28
        batch(night(-5, 1000), n_quarantined=4000),  # more than 28 nights ago
    ],
    ids=["none of it kept", "tiny", "one large", "long ago"],
)
@pytest.mark.parametrize("at_end", [False, True])
def test_one_bad_batch_does_not_hide_a_share_quarantined(stray: BatchFacts, at_end: bool) -> None:
    bad = batch(night(28, 400), n_quarantined=600)
    (share,) = broken(judged(bad, [*MONTH, stray] if at_end else [stray, *MONTH]).expectations)
    assert (share.column, share.value) == ("share quarantined beside recent batches", 0.6)
    assert share.arguments["max_value"] < 0.02


def test_a_tiny_bad_batch_does_not_hide_a_share_quarantined_of_a_first_week_either() -> None:
    bad = batch(night(10, 400), n_quarantined=600)
    for stray in (BAD_TINY, batch(night(-1, 1), n_quarantined=1)):
        found = broken(judged(bad, [*WEEK, stray]).expectations)
        assert columns(found) == ["share quarantined beside recent batches"]


def test_one_source_of_many_that_is_always_worse_is_usual() -> None:
    worse = [batch(night(day, 970), n_quarantined=30) for day in range(28)]
    others = [batch(night(day)) for day in range(28) for _ in range(19)]
    facts = batch(night(28, 970), n_quarantined=30)
    assert "share quarantined beside recent batches" not in columns(broken(judged(facts, worse + others).expectations))


@pytest.mark.parametrize("n_nights", [10, 28])
def test_a_stray_row_of_another_day_hides_no_missing_values_and_no_vanished_action(n_nights: int) -> None:
    stray = batch(night(-1, 1, nulls=1, actions={"hold": 1}))
    facts = batch(night(n_nights - 1, nulls=600, actions={"hold": 700, "up": 300}))
    found = broken(judged(facts, [stray, *MONTH[: n_nights - 1]]).expectations)
    assert columns(found) == ["share missing of observation.zone", "number of actions that vanished"]


def test_what_differs_on_one_day_of_the_week_is_usual() -> None:
    def of_week(day: int) -> BatchFacts:
        return batch(night(day, nulls=300, actions={"hold": 1000})) if day % 7 == 6 else batch(night(day))

    for day in (13, 20, 27, 34):
        assert broken(judged(of_week(day), [of_week(other) for other in range(day)]).expectations) == []


def average(action: str, mean: float, *, error: float = 0.01, n_effective: float = 500.0) -> InverseAverage:
    return InverseAverage(action, 1000, 300, 200, n_effective, mean, error)


def test_probabilities_that_no_policy_can_have_hold_the_batch() -> None:
    averages = [average("down", 1.0), average("hold", 1.3), average("up", 0.98)]
    (high,) = broken(judged(batch(night(10)), WEEK, averages).expectations)
    assert high.severity == "hold"
    assert high.column == "the least that 1[action = 'hold'] / behavior_prob may average to"
    assert "'hold' averages to 1.3, interval [1.2" in high.remedy
    assert "behavior.propensity = 'estimated'" in high.remedy


def test_a_hidden_mask_only_warns() -> None:
    (low,) = broken(judged(batch(night(10)), WEEK, [average("down", 0.7), average("up", 1.0)]).expectations)
    assert low.severity == "warn"
    assert "log available_actions" in low.remedy


def test_rare_or_uneven_actions_are_not_judged() -> None:
    found = judged(batch(night(10)), WEEK, [average("down", 3.0, n_effective=12.0)])
    assert found.not_judged == (
        "high propensities, low propensities: every action was taken too rarely, or with too uneven probabilities",
    )


def test_what_the_rarest_rows_add_may_as_well_be_missing() -> None:
    light = InverseAverage("up", 1000, 300, 200, 500.0, 0.85, 0.01, rarest=0.02)
    heavy = InverseAverage("up", 1000, 300, 200, 500.0, 0.85, 0.01, rarest=0.2)
    assert len(broken(judged(batch(night(10)), WEEK, [light]).expectations)) == 1
    assert broken(judged(batch(night(10)), WEEK, [heavy]).expectations) == []


def test_rounded_probabilities_are_no_matter() -> None:
    assert broken(judged(batch(night(10)), WEEK, [average("up", 1.0101, error=1e-5)]).expectations) == []


def test_severity_is_configured_check_by_check() -> None:
    config = ValidateConfig.model_validate({"severity": {"volume_low": "hold", "null_share": "off"}})
    found = broken(judged(batch(night(10, 200, nulls=200)), WEEK, config=config).expectations)
    assert [(e.column, e.severity) for e in found] == [("number of rows of 2024-05-11", "hold")]


def test_nights_of_a_whole_lake_are_compared_with_each_other() -> None:
    facts = batch(*(night(day, 100 if day == 20 else 1000) for day in range(30)))
    found = lake_expectations(facts, None, tiny(), ValidateConfig(), as_of=after(facts))
    assert columns(broken(found.expectations)) == ["number of rows of 2024-05-21"]


def test_outcomes_are_judged_by_volume_age_and_share_quarantined() -> None:
    found = outcome_expectations(batch(night(10, 200)), WEEK, ValidateConfig(), as_of=after(batch(night(10))))
    assert columns(broken(found.expectations)) == ["number of rows of 2024-05-11"]
    assert len(found.expectations) == 4


def test_facts_survive_json() -> None:
    facts = batch(night(3), night(4), labels=None, n_quarantined=3)
    assert BatchFacts.from_json(facts.to_json(n_nights=28)) == facts
    assert BatchFacts.from_json(facts.to_json(n_nights=1)).nights == facts.nights[1:]


def test_honest_nights_are_hardly_ever_held_or_warned_of() -> None:
    """200 nights with Poisson traffic, quiet weekends, shocks that all rows of a night share, holidays of no traffic,
    a back-fill and probabilities rounded to two digits. Held: none; 1 - 0.05^(1/200) = 1.5 % is the exact upper limit.
    """
    rng = np.random.default_rng(7)
    recent, held, warned = list[BatchFacts](), 0, dict[str, int]()
    pending = list[NightFacts]()
    n_batches = 0
    for day in range(200):
        if day % 41 == 40:
            continue  # nothing ran
        facts, table = honest_night(rng, day)
        pending += facts.nights
        if 100 <= day < 104:
            continue  # the exporter was down; what it missed comes in one batch
        whole = BatchFacts(tuple(pending), facts.newest, facts.labels, sum(n.n_rows for n in pending), 0)
        pending = []
        with duck() as connection:
            connection.register("steps", table)
            averages = inverse_averages(connection, "steps", tiny())
        n_batches += 1
        for e in broken(judged(whole, recent[-28:], averages).expectations):
            held += e.severity == "hold"
            kind = e.column.split(" of ")[0]
            warned[kind] = warned.get(kind, 0) + (e.severity == "warn")
        recent.append(whole)
    assert held == 0
    assert stats.beta.ppf(0.95, held + 1, n_batches - held) < 0.016
    assert sum(warned.values()) <= 4, warned


def honest_night(rng: np.random.Generator, day: int) -> tuple[BatchFacts, Any]:
    """One night of a logger that tells the truth: episodes of some five steps, a mean of 300 of them."""
    weekend = 0.4 if day % 7 in (5, 6) else 1.0
    n_episodes = int(rng.poisson(300 * weekend * rng.lognormal(0.0, 0.15)))
    episodes = np.repeat(np.arange(n_episodes), rng.poisson(4, n_episodes) + 1)
    n = len(episodes)
    logits = rng.normal(0.0, 0.2, 3) + np.array([-1.5, 0.5, 0.0]) + rng.normal(0.0, 1.0, (n_episodes, 3))[episodes]
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    actions = (probs.cumsum(axis=1) < rng.random(n)[:, None]).sum(axis=1).clip(0, 2)
    names = np.array(list(SHARES))
    table = pa.table(
        {
            "episode_id": episodes.astype(str),
            "cluster": episodes.astype(str),
            "action": names[actions],
            "behavior_prob": np.maximum(np.round(probs[np.arange(n), actions], 2), 0.01),
            "available_actions": pa.nulls(n, pa.list_(pa.string())),
        }
    )
    counts = {str(name): int((actions == i).sum()) for i, name in enumerate(names)}
    nulls = int(rng.binomial(n, min(0.05 * rng.lognormal(0.0, 0.3), 1.0)))
    facts = NightFacts(FIRST + timedelta(days=day), n, n_episodes, {"zone": nulls}, counts)
    return batch(facts), table
