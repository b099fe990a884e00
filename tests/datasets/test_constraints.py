"""Success, constraints and slices in the contract: what is refused, and in which words."""

from __future__ import annotations

import pytest

from datasets.compatibility import lake_incompatibilities, policy_incompatibilities
from datasets.contract import contract_from_text, with_rules
from datasets.settings import SettingsError
from tests.datasets.builders import tiny

TEXT = """
name = "tiny"
gamma = 0.9
[features.replicas]
type = "numeric"
[features.p95_ms]
type = "numeric"
[features.zone]
type = "categorical"
[actions]
names = ["scale_down", "hold"]
safe = "hold"
"""
RULES = """
[success]
when = "next_observation.p95_ms <= 250"
[constraints.keep_two]
forbid = "action = 'scale_down' AND observation.replicas <= 2"
[constraints.slo]
breached = "next_observation.p95_ms > 500"
limit = 0.01
[slices]
columns = ["zone"]
"""


def problem_of(rules: str, text: str = TEXT) -> str:
    with pytest.raises(SettingsError) as caught:
        contract_from_text(text + rules, "contract.toml")
    return str(caught.value)


def test_rules_are_read_and_told_apart() -> None:
    contract = contract_from_text(TEXT + RULES, "contract.toml")

    assert contract.forbids == {"keep_two": "action = 'scale_down' AND observation.replicas <= 2"}
    assert contract.breaches == {"slo": "next_observation.p95_ms > 500"}
    assert contract.slices.columns == ("zone",)
    assert contract.success is not None
    assert contract_from_text(TEXT, "a").digest != contract.digest


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("breached = \"true\"\nlimit = 0", "x: limit 0 is only for forbid: 0 breaches seen in n still leave a rate of"),
        ("breached = \"true\"\nlimit = 1.5", "x: limit wants a share of steps in (0, 1), found 1.5"),
        ("breached = \"true\"", "x: wants a limit"),
        ("limit = 0.1", "x: wants either forbid (an action) or breached"),
        ("forbid = \"true\"\nlimit = 0.1", "x: has a limit, which only breached takes"),
        ("forbd = \"true\"", "constraints.x.forbd: unknown key; did you mean 'forbid'?"),
        ("forbid = \"next_observation.p95_ms > 1\"", "x: forbid speaks of next_observation, which is not known yet"),
        ("forbid = \"observation.replcas < 2\"", "'replcas' is no feature; did you mean 'replicas'?"),
        ("forbid = \"acton = 'hold'\"", "'acton' is no column here; did you mean 'action'?"),
        ("forbid = \"action = 'scale_dwn'\"", "'scale_dwn' is no action; did you mean 'scale_down'?"),
        ("forbid = \"'hld' <> action\"", "'hld' is no action; did you mean 'hold'?"),
        ("forbid = \"action IN ('hold', 'qqqq')\"", "'qqqq' is no action; known: scale_down, hold"),
        ("breached = \"(SELECT true)\"\nlimit = 0.1", "holds a subquery"),
        ("breached = \"avg(observation.p95_ms) > 1\"\nlimit = 0.1", "cannot contain aggregates"),
        ("breached = \"row_number() OVER () > 1\"\nlimit = 0.1", "cannot contain window functions"),
        ("breached = \"1) AS BOOLEAN) FROM steps; SELECT CAST((1\"\nlimit = 0.1", "is not one expression"),
        ("breached = \"observation.p95_ms >\"\nlimit = 0.1", "syntax error"),
    ],
)  # fmt: skip
def test_a_constraint_that_cannot_hold_is_refused(rules: str, message: str) -> None:
    assert message in problem_of(f"[constraints.x]\n{rules}\n")


def test_what_forbids_needs_a_safe_action_behind_it() -> None:
    message = problem_of("[constraints.x]\nforbid = \"action = 'hold'\"\n", TEXT.replace('safe = "hold"', ""))

    assert "x: forbids, so actions.safe must name what acts where every action is forbidden" in message


def test_every_problem_of_the_rules_is_in_one_error() -> None:
    message = problem_of(
        "[success]\nwhen = \"next_observation.p95 < 1\"\n[slices]\ncolumns = ['zon', 'p95_ms']\n"
        "[constraints.a]\nlimit = 0\nbreached = \"observation.nothing\"\n[constraints.b]\nforbid = \"action = 'x'\"\n"
    )  # fmt: skip

    assert message.startswith("contract.toml has 3 problems:")
    for part in (
        "success: `next_observation.p95 < 1`: 'p95' is no feature; did you mean 'p95_ms'?",
        "'zon' is no feature; did you mean 'zone'?",
        "'p95_ms' is numeric, and only categorical and boolean features make slices",
        "a: limit 0 is only for forbid",
        "a: `observation.nothing`: 'nothing' is no feature",
        "b: `action = 'x'`: 'x' is no action",
    ):
        assert part in message


RULE_TABLES = {
    "actions": {"safe": "hold"},
    "constraints": {"cool": {"forbid": "action = 'down' AND observation.cpu > 0.9"}},
    "slices": {"columns": ["zone"]},
}


def test_new_constraints_are_compatible_with_a_lake_and_with_a_release() -> None:
    assert lake_incompatibilities(tiny(), tiny(RULE_TABLES)) == []
    assert lake_incompatibilities(tiny(RULE_TABLES), tiny()) == []
    assert policy_incompatibilities(tiny(), tiny(RULE_TABLES)) == []


def test_the_rules_of_today_hold_for_a_contract_of_yesterday() -> None:
    old, current = tiny(), tiny(RULE_TABLES)
    today = with_rules(old, current.rules)

    assert today.forbids == current.forbids
    assert today.slices == current.slices
    assert today.actions.safe == "hold"
    assert today.features == old.features
    assert with_rules(current, old.rules).forbids == {}


def test_a_rule_on_a_feature_that_was_added_later_cannot_hold_for_older_contracts() -> None:
    later = tiny(
        {"features": {"memory": {"type": "numeric", "nullable": True}}, "actions": {"safe": "hold"}},
        constraints={"room": {"forbid": "action = 'up' AND observation.memory > 0.9"}},
    )

    with pytest.raises(ValueError, match=r"room: .*'memory' is no feature"):
        with_rules(tiny(), later.rules)
