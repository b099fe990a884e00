"""Caps in the contract: the counter and the constraint that follow, and what is refused in which words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from datasets.caps import counter_field
from datasets.compatibility import lake_incompatibilities
from datasets.constraints import Rules
from datasets.contract import Contract, NumericFeature, contract_from_json, with_rules
from datasets.observations import observations_from_records
from datasets.settings import SettingsError
from datasets.step_rules import permitted_actions
from tests.datasets.builders import tiny


def capped(cap: dict[str, Any] | None = None, **tables: Any) -> Contract:
    """The tiny contract with a cap on `up`: three an hour."""
    return tiny(actions={"caps": {"up": cap or {"at_most": 3, "per": "1h"}}}, **tables)


def problem(cap: Any, **tables: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        capped(cap, **tables)
    return str(caught.value)


def test_a_cap_brings_a_nullable_counter_and_a_constraint() -> None:
    contract = capped()

    assert contract.features["taken_up"] == NumericFeature(type="numeric", min=0.0, nullable=True)
    assert contract.forbids == {"actions.caps.up": "action = 'up' AND observation.taken_up >= 3"}


def test_the_capped_action_is_forbidden_from_the_cap_on_and_free_where_nobody_counted() -> None:
    contract = capped()
    rows = [{"cpu": 0.5, "taken_up": taken} for taken in (0, 2, 3, 4, None)]
    observations = observations_from_records(contract, rows)

    permitted = permitted_actions(contract, observations, np.ones((5, 3), dtype=bool))

    assert permitted[:, 2].tolist() == [True, True, False, False, True]
    assert permitted[:, :2].all()


def test_json_reads_back_as_the_same_contract() -> None:
    contract = capped({"at_most": 3, "per": "1h", "by": "episode"})

    again = contract_from_json(contract.to_json(), "again")

    assert again == contract
    assert again.digest == contract.digest != tiny().digest


def test_a_contract_without_caps_is_written_as_before() -> None:
    assert "caps" not in tiny().to_json()["actions"]


@pytest.mark.parametrize(
    ("action", "field"), [("up", "taken_up"), ("scale up!", "taken_scale_up"), ("[50, 100]", "taken_50_100")]
)
def test_the_counter_is_named_after_the_action(action: str, field: str) -> None:
    cap = capped().actions.caps["up"]

    assert counter_field(action, cap) == field


def test_a_bin_is_capped_by_its_label() -> None:
    actions = {"names": None, "bins": [0, 10, 50, 100], "safe": 5, "caps": {"[50, 100]": {"at_most": 1, "per": "1d"}}}

    contract = tiny(actions=actions)

    assert contract.forbids == {"actions.caps.[50, 100]": "action = '[50, 100]' AND observation.taken_50_100 >= 1"}


def test_a_declared_counter_is_used() -> None:
    declared = {"taken_up": {"type": "numeric", "nullable": True, "unit": "times"}}

    contract = capped(features=declared)

    assert contract.features["taken_up"].unit == "times"  # type: ignore[union-attr]  # it is numeric


@pytest.mark.parametrize(
    "declared",
    [{"type": "boolean", "nullable": True}, {"type": "numeric"}, {"type": "numeric", "nullable": True, "max": 3}],
)
def test_a_feature_of_the_counters_name_that_is_no_counter_is_refused(declared: dict[str, Any]) -> None:
    message = problem(None, features={"taken_up": declared})

    assert (
        "features.taken_up is the counter of actions.caps.up: leave it out, or declare it numeric and nulla" in message
    )


def test_caps_want_a_safe_action_that_is_not_capped() -> None:
    with pytest.raises(SettingsError, match="so safe must name what acts then"):
        tiny(actions={"safe": None, "caps": {"up": {"at_most": 3, "per": "1h"}}})
    with pytest.raises(SettingsError, match=r"caps.hold caps the safe action"):
        tiny(actions={"caps": {"hold": {"at_most": 3, "per": "1h"}}})


@pytest.mark.parametrize(
    ("cap", "wanted"),
    [
        ({"at_most": 0, "per": "1h"}, "actions.caps.up.at_most: Input should be greater than or equal to 1 (found 0)"),
        ({"at_most": 3, "per": "1 hour"}, "actions.caps.up.per: '1 hour' is no duration"),
        ({"at_most": 3}, "actions.caps.up.per: missing."),
        ({"at_most": 3, "per": "1h", "filed": "x"}, "actions.caps.up.filed: unknown key; did you mean 'field'?"),
        ({"at_most": 3, "per": "1h", "by": "cluster"}, "actions.caps.up is by cluster, and episodes.cluster names no"),
        ({"at_most": 3, "per": "1h", "field": "no name"}, "field = 'no name' is no feature name"),
    ],
)
def test_a_cap_that_cannot_be_kept_is_refused(cap: dict[str, Any], wanted: str) -> None:
    assert wanted in problem(cap)


def test_a_cap_of_no_action_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"caps.upp is none of the actions down, hold, up"):
        tiny(actions={"caps": {"upp": {"at_most": 3, "per": "1h"}}})


def test_two_caps_that_share_a_counter_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"caps.up and caps.down count in the same feature 'n'; give it a field"):
        tiny(actions={"caps": {a: {"at_most": 3, "per": "1h", "field": "n"} for a in ("up", "down")}})


def test_adding_loosening_and_tightening_a_cap_is_compatible() -> None:
    loose, tight = capped({"at_most": 9, "per": "1h"}), capped({"at_most": 2, "per": "60m"})

    assert lake_incompatibilities(tiny(), tight) == []
    assert lake_incompatibilities(loose, tight) == lake_incompatibilities(tight, loose) == []


def test_another_window_under_the_same_counter_is_refused_and_under_a_new_one_is_not() -> None:
    hourly = capped({"at_most": 3, "per": "1h"})
    daily = {"at_most": 3, "per": "1d"}
    kept = {"taken_up": {"type": "numeric", "nullable": True, "min": 0.0}}

    (found,) = lake_incompatibilities(hourly, capped(daily))

    assert "actions.caps.up counted per 1h by all and counts per 1d by all: 'taken_up' holds another number" in found
    assert lake_incompatibilities(hourly, capped({**daily, "field": "taken_up_1d"}, features=kept)) == []


def test_dropping_a_cap_keeps_its_counter() -> None:
    (found,) = lake_incompatibilities(capped(), tiny())

    assert "features.taken_up is gone" in found


def test_the_current_caps_hold_for_an_older_contract_that_counts() -> None:
    older, current = capped({"at_most": 3, "per": "1h"}), capped({"at_most": 2, "per": "1h"})

    assert with_rules(older, current.rules).forbids == current.forbids
    assert with_rules(older, Rules(safe="hold")).forbids == {}


def test_caps_cannot_hold_for_a_contract_that_did_not_count() -> None:
    with pytest.raises(ValueError, match=r"actions.caps.up counts in 'taken_up', which is no feature here"):
        with_rules(tiny(), capped().rules)
