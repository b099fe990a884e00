"""The verdict of a drift check in words, column by column and as a whole."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from drift.decision import RetrainDecision
from drift.findings import drift_clause
from drift.records import JointDrift
from reports.drift_words import (
    column_words,
    folded_words,
    joint_words,
    ranked,
    since_of,
    slow_lines,
    slow_words,
    times_allowed,
    times_words,
    verdict_of,
)
from reports.night_checks import NightCheck, NightlyChecks, changes_of_champion, report_from_json
from tests.reports import drift_samples as samples


def test_drifted_columns_come_first_and_then_the_nearest_to_their_threshold() -> None:
    # Times what is allowed: zone 4.1 / .0212 = 193, request_rate .1874 / .0414 = 4.5, p95_ms .0411 / .0402 = 1.02;
    # reward .0166 / .02 (min_psi, above its threshold .0141) = .83, replicas .497, cpu .39; hour was not measured.
    names = [column.name for column in ranked(samples.drift_report())]
    assert names == ["zone", "request_rate", "p95_ms", "reward", "replicas", "cpu"]


def test_nothing_below_the_smallest_psi_that_matters_is_close_to_drift() -> None:
    small = samples.column("x", 0.01, 0.0001)
    assert times_allowed(small, 0.02) == 0.5
    assert times_allowed(samples.column("x", 0.01, 0.0), 0.0) == float("inf")
    assert times_allowed(samples.column("x", None, None), 0.02) == 0.0


@pytest.mark.parametrize(
    ("times", "words"),
    [(1.022, "1.02 times"), (4.53, "4.5 times"), (0.43, "0.43 times"), (193.4, "over 100 times"),
     (float("inf"), "over 100 times")],
)  # fmt: skip
def test_a_ratio_just_above_1_is_told_from_1(times: float, words: str) -> None:
    assert times_words(times) == words


def test_column_words_say_why_a_column_was_not_judged_or_does_not_matter() -> None:
    cpu, rate, _, _, _, reward, hour = samples.drifted_columns()
    assert column_words(rate, 0.02) == "drifted, 4.5 times what is allowed"
    assert column_words(cpu, 0.02) == "stable"
    assert column_words(reward, 0.02) == "beyond chance, but PSI is below 0.02"
    assert column_words(hour, 0.02) == "not judged: only the live window has this column"


def test_columns_beyond_those_shown_are_folded_into_what_bounds_them_all() -> None:
    calm = samples.calm_report(65)  # at most .012 of .0312
    assert folded_words(calm, 20) == "and 45 more, none above half its threshold"
    assert folded_words(calm, 65) == ""
    report = samples.drift_report()
    assert folded_words(report, 2) == "and 4 more, 1 of them drifted"
    assert folded_words(report, 3) == "and 3 more, none above its threshold"  # reward is at .83


def test_drift_says_to_rule_out_the_logging_before_the_world() -> None:
    verdict = verdict_of(samples.drifted_check())
    assert (verdict.tone, verdict.badge) == ("moved", "Drift")
    assert verdict.headline == "Retrain: zone and 2 more moved"
    assert verdict.to_do[0] == (
        "Rule out the logging first: request_rate: 12% of its values are missing, 0% before; zone: 36% are values "
        "that the reference hardly knows, 0% before."
    )
    assert verdict.to_do[1].startswith("The nightly run trains a candidate because of this")


def test_rare_labels_that_the_reference_has_as_often_are_no_fault_of_the_logging() -> None:
    column = samples.column(
        "action", 0.14, 0.03, kind="categorical", status="drifted", bins=("a", "(rare or unseen)", "(missing)"),
        reference_probs=(0.94, 0.06, 0.0), live_probs=(0.92, 0.08, 0.0), unseen_share=0.08,
    )  # fmt: skip
    verdict = verdict_of(samples.drifted_check(report=samples.drift_report(columns=(column,))))
    assert not any("logging" in says for says in verdict.to_do)


def test_the_verdict_makes_the_drift_short_and_leaves_the_rest_of_the_sentence() -> None:
    report = samples.drift_report()
    said = f"Keep the champion: cooling down until the night of 2024-05-22, although {drift_clause(report)}."
    waits = samples.drifted_check(decision=samples.decision("cool-down", said, retrain=False))
    assert verdict_of(waits).sentence == (
        "Keep the champion: cooling down until the night of 2024-05-22, although 3 of 6 columns drifted since "
        "2024-05-18, also together, 1 column over several nights; furthest is zone, at over 100 times what is allowed."
    )


def test_a_drift_that_only_stretches_of_nights_show_says_so() -> None:
    report = samples.drift_report(columns=(samples.column("cpu"),), status="stable", joint=())
    retrain = samples.decision("drift", f"Retrain: {drift_clause(report)}.")
    assert verdict_of(samples.drifted_check(report=report, decision=retrain)).sentence == (
        "Retrain: none of 1 column drifted tonight, 1 column over several nights."
    )


def test_slow_drift_of_columns_that_drifted_anyway_is_only_counted() -> None:
    (cpu,) = samples.drift_report().slow
    also = (replace(cpu, name="zone"), replace(cpu, name="request_rate"))
    alone = tuple(replace(cpu, name=f"feature_{i}") for i in range(4))
    lines = slow_lines(samples.drift_report(slow=(*also, cpu, *alone)))
    assert [line.split()[0] for line in lines[:3]] == ["cpu", "feature_0", "feature_1"]
    assert lines[3:] == (
        "2 further columns moved over several nights, too.", "2 drifted columns moved over several nights, too."
    )  # fmt: skip


def test_one_drifted_column_is_named_with_its_first_night() -> None:
    column = samples.column("cpu", 0.3, 0.02, status="drifted", since="2024-05-19")
    report = samples.drift_report(columns=(column,), slow=())
    assert verdict_of(samples.drifted_check(report=report)).headline == "Retrain: cpu moved, since 2024-05-19"


def test_a_held_retrain_names_the_suspicion_first_and_both_ways_out() -> None:
    verdict = verdict_of(samples.held_check())
    assert (verdict.tone, verdict.badge) == ("moved", "Held for a person")
    assert verdict.headline == "A person must look: request_rate moved in a suspicious way"
    assert verdict.sentence == (
        "Wait for a person: request_rate moved in 1 of 25 sources alone (logs/steps/eu.jsonl, 4% of the episodes). "
        "Held: 3 of 6 columns drifted since 2024-05-18, also together, 1 column over several nights; furthest is zone, "
        "at over 100 times what is allowed."
    )
    look, right, wrong = verdict.to_do
    assert look == "Look at where the rows come from that the sentence above names."
    assert "`offline-dqn nightly --force-train`" in right
    assert "`offline-dqn erase --episode ID`" in wrong


def test_drift_that_waits_is_not_told_as_a_training() -> None:
    waits = samples.decision("cool-down", "Keep the champion: cooling down.", retrain=False)
    verdict = verdict_of(samples.drifted_check(decision=waits))
    assert verdict.badge == "Cooling down"
    assert verdict.headline == "Keep the champion tonight, although zone and 2 more moved"
    assert not any("trains a candidate" in says for says in verdict.to_do)


@pytest.mark.parametrize(
    ("check", "tone", "headline"),
    [
        (samples.calm_check(), "calm", "Keep the champion: nothing has moved"),
        (samples.unknown_check(), "unknown", "Keep the champion: too little data to judge drift"),
        (
            replace(samples.unknown_check(), decision=samples.decision("no champion", "Retrain.")),
            "unknown", "Train: no policy has been promoted yet",
        ),
        (
            replace(samples.calm_check(), decision=samples.decision("performance", "Retrain: x.")),
            "moved", "Retrain: the champion earns less than was promised",
        ),
        (
            replace(samples.calm_check(), decision=samples.decision("age", "Retrain: x.")),
            "calm", "Retrain: the champion is old",
        ),
    ],
)  # fmt: skip
def test_every_cause_has_its_headline(check: NightCheck, tone: str, headline: str) -> None:
    verdict = verdict_of(check)
    assert (verdict.tone, verdict.headline) == (tone, headline)
    assert verdict.to_do


def test_a_shift_that_only_the_joint_tests_show_is_not_given_to_a_column() -> None:
    report = replace(samples.calm_report(), status="drifted")
    assert verdict_of(samples.drifted_check(report=report)).headline == "Retrain: the columns moved together"


def test_joint_tests_in_words() -> None:
    classifier, mmd = samples.drift_report().joint
    assert joint_words(classifier) == (
        "A classifier tells live rows from the reference better than it tells unchanged nights: area under its curve "
        "0.713; an unchanged night stays below 0.541 (p 0.0005). Most telling: zone (62%), request_rate (21%)."
    )
    assert (
        joint_words(mmd)
        == "The mean discrepancy of what pairs of columns do together (MMD) was not asked: fewer than 100 live rows."
    )
    blind = replace(classifier, status="stable", statistic=0.912, threshold=1.23, p_value=0.029)
    assert joint_words(blind) == (
        "A classifier tells live rows from the reference no better than it tells unchanged nights: area under its "
        "curve 0.912, and so few unchanged nights are known that not even 1 would be beyond chance (p 0.029)."
    )
    calm = JointDrift(method="mmd", status="stable", reason="", statistic=0.00012, threshold=0.0009, p_value=0.4)
    assert joint_words(calm) == (
        "The mean discrepancy of what pairs of columns do together (MMD) is within chance: 0.00012; "
        "an unchanged night stays below 0.0009 "
        "(p 0.4)."
    )
    below = "beyond chance, but below 0.002, the smallest that matters; optimistic: few nights"
    small = joint_words(replace(calm, statistic=0.001, threshold=0.002, p_value=1e-9, reason=below))
    assert "is beyond chance, but too little to matter: 0.001 (p" in small
    assert small.endswith(" Beyond chance, but below 0.002, the smallest that matters; optimistic: few nights.")


def test_slow_drift_in_words_tells_psi_from_what_is_allowed() -> None:
    (slow,) = samples.drift_report().slow
    assert slow_words(slow) == (
        "cpu has moved since 2024-05-12, over 9 nights: PSI 0.0313 together, 0.0312 allowed (p 0.004)."
    )


def test_since_is_the_first_night_of_whatever_moved() -> None:
    assert since_of(samples.drift_report()) == ("2024-05-18", "request_rate")
    slowly = samples.drift_report(columns=(samples.column("cpu"),), status="stable")
    assert since_of(slowly) == ("2024-05-12", "cpu")
    assert verdict_of(samples.drifted_check(report=slowly)).headline == "Retrain: cpu moved, since 2024-05-12"
    assert since_of(samples.calm_report()) == ("", "")
    assert since_of(None) == ("", "")


def test_a_recorded_report_comes_back_whole_and_one_of_another_version_with_what_is_known() -> None:
    report = samples.drift_report()
    assert report_from_json(report.to_json()) == report
    older: dict[str, Any] = report.to_json() | {"of a later version": 1}
    for name in ("joint", "slow", "effects", "suspicions", "nightly"):
        del older[name]
    assert report_from_json(older) == replace(report, joint=(), slow=(), effects=(), nightly=None)


def test_champions_change_by_who_acted_although_the_clock_is_of_another_year() -> None:
    checks = samples.nightly_checks()
    changes = changes_of_champion((*checks.past, checks.newest), checks.promotions)
    assert changes == {"2024-05-13": "release 6 promoted by Grace"}
    since = NightlyChecks(newest=checks.past[0], promotions=checks.promotions)
    assert changes_of_champion((since.newest,), since.promotions) == {"": "release 6 promoted by Grace"}


def test_where_most_columns_were_not_judged_nothing_is_said_to_be_calm() -> None:
    why = "another policy wrote the reference"
    unjudged = [samples.column(f"x{i}", None, None, status="not enough data", reason=why) for i in range(8)]
    report = samples.drift_report(
        columns=(samples.column("hour"), *unjudged), status="stable", joint=(), slow=(), effects=()
    )
    keep = RetrainDecision(False, "none", "Keep the champion: none of 1 columns drifted.", ())
    verdict = verdict_of(samples.drifted_check(report=report, decision=keep))
    assert (verdict.tone, verdict.badge) == ("unknown", "Mostly not judged")
    assert verdict.headline == "Keep the champion: none of the 1 of 9 columns that could be judged moved"
    assert verdict.to_do == (f"Nothing tonight, but most columns were not judged: {why}.",)
