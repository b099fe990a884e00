"""The contract: what is refused, in which words, and what its digest depends on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.contract import Contract, contract_from_json, contract_from_text, read_contract
from datasets.durations import seconds_of
from datasets.settings import SettingsError
from tests.datasets.builders import tiny

TEXT = """
name = "tiny"
gamma = 0.9
[features.cpu]
type = "numeric"
[actions]
names = ["down", "hold"]
"""


def problem_of(text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        contract_from_text(text, "contract.toml")
    return str(caught.value)


def test_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    assert "gama: unknown key; did you mean 'gamma'?" in problem_of(TEXT.replace("gamma", "gama"))
    assert "actions.nmes: unknown key; did you mean 'names'?" in problem_of(TEXT.replace("names", "nmes"))


def test_unknown_key_of_a_feature_is_compared_with_keys_of_its_own_type_only() -> None:
    message = problem_of(TEXT.replace('"numeric"', '"boolean"\nmin = 0.0'))

    assert "features.cpu.min: unknown key; known here: exogenous, nullable, type." in message


def test_unknown_key_far_from_everything_lists_what_is_known() -> None:
    message = problem_of(TEXT + "qqqqqqq = 1\n")

    assert "actions.qqqqqqq: unknown key; known here: bins, caps, names, safe, values." in message


def test_feature_named_like_a_type_is_named_in_full() -> None:
    message = problem_of(TEXT + '[features.numeric]\ntype = "numeric"\nmni = 1\n')

    assert "features.numeric.mni: unknown key; did you mean 'min'?" in message


def test_every_problem_is_in_one_error() -> None:
    message = problem_of(
        TEXT.replace("0.9", "1.5").replace('"hold"', '"down"')
        + '[features."not ok"]\ntype = "numeric"\n'
        + '[episodes]\ntimeout = "soon"\n[time]\nzone = "Mars/Base"\n[columns]\nactoin = "a"\n'
    )

    assert message.startswith("contract.toml has 6 problems:")
    for part in (
        "gamma: Input should be less than or equal to 1 (found 1.5)",
        "actions: names wants at least two different, non-empty labels",
        "features: 'not ok' is no feature name",
        "episodes.timeout: 'soon' is no duration; write it as 90s, 15m, 6h, 30d or 1h30m (found 'soon')",
        "time: zone = 'Mars/Base' is no IANA time zone",
        "columns: 'actoin' is no canonical column of this contract; did you mean 'action'?",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('[features.x]\ntype = "numbr"', "features.x: type is 'numbr'; wanted is one of 'numeric', 'categorical'"),
        ("[features.x]\nmin = 1", "features.x: type is missing."),
        ('[features.x]\ntype = "numeric"\nmin = "low"', "features.x.min: Input should be a valid number"),
        ('[features.x]\ntype = "numeric"\nmin = 2\nmax = 1', "features.x: min 2.0 is larger than max 1.0"),
        ('[features.x]\ntype = "numeric"\nmin = nan', "features.x.min: Input should be a finite number"),
        ('[features.x]\ntype = "vector"', "features.x.length: missing."),
        ('[features.x]\ntype = "vector"\nlength = 0', "features.x.length: Input should be greater than 0 (found 0)"),
        ('[features.x]\ntype = "categorical"\nvalues = ["a", "a"]', "features.x.values: wants at least one label"),
        ('[features.CPU]\ntype = "numeric"', "'CPU' differs from another feature in case only"),
        ("[reward]\nmin = 1.0\nmax = 0.0", "reward: min 1.0 is larger than max 0.0"),
        ('[behavior]\npropensity = "guessed"', "behavior.propensity: Input should be 'logged' or 'estimated'"),
        ('[episodes]\ntimeout = "0h"', "'0h' is no time at all"),
        ('[episodes]\nkind = "endless"', "episodes.kind: Input should be 'sequence' or 'one_step'"),
        ('[time]\nformat = "stardate"', "format = 'stardate' is neither iso, epoch_s, epoch_ms nor a strptime pattern"),
        ('[time]\nformat = "%Q"', "format = '%Q' has a % that begins no strptime specifier"),
        ('[columns]\n"observation.mem" = "m"', "'observation.mem' is no canonical column"),
        ('[columns]\nreward = ""', "'reward' is mapped to '', which is no name of a log column"),
        ('[columns]\nreward = "a..b"', "'reward' is mapped to 'a..b', which is no name of a log column"),
    ],
)
def test_refusal_names_the_key_and_the_cause(table: str, message: str) -> None:
    assert message in problem_of(TEXT + table + "\n")


def test_safe_must_be_an_action() -> None:
    assert "safe = 'wait' is none of the actions down, hold" in problem_of(TEXT + 'safe = "wait"\n')


def test_mapped_feature_suggests_the_nearest_one() -> None:
    assert "did you mean 'observation.cpu'?" in problem_of(TEXT + '[columns]\n"observation.cpuu" = "c"\n')


def test_a_file_that_is_no_toml_or_missing_is_named(tmp_path: Path) -> None:
    assert "contract.toml is not valid TOML" in problem_of("name = ")
    with pytest.raises(SettingsError, match="does not exist"):
        read_contract(tmp_path / "contract.toml")
    (tmp_path / "contract.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"contract\.toml cannot be read"):
        read_contract(tmp_path / "contract.toml")


def test_digest_does_not_depend_on_the_layout_of_the_file() -> None:
    other = """
    # the same in another order
    gamma = 9e-1
    name = 'tiny'
    actions = {names = ["down", "hold"]}
    features = {cpu = {nullable = false, type = "numeric"}}
    """
    assert contract_from_text(TEXT, "a").digest == contract_from_text(other, "b").digest


@pytest.mark.parametrize(
    ("before", "after"), [("0.9", "0.8"), ('"down", "hold"', '"hold", "down"'), ('"tiny"', '"other"')]
)
def test_digest_depends_on_the_content(before: str, after: str) -> None:
    assert contract_from_text(TEXT, "a").digest != contract_from_text(TEXT.replace(before, after), "b").digest


def test_json_round_trip_keeps_the_contract() -> None:
    contract = tiny(columns={"observation.cpu": "metrics.cpu"}, time={"zone": "UTC"})
    again = contract_from_json(contract.to_json(), "again")

    assert again == contract
    assert again.digest == contract.digest
    assert list(again.features) == list(contract.features)


def test_contract_cannot_be_changed() -> None:
    contract: Contract = tiny()
    with pytest.raises(ValueError, match="frozen"):
        contract.gamma = 0.5  # type: ignore[misc]  # that is the point


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("1h30m", 5400), ("1.5h", 5400), ("30d", 2592000)]
)
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@given(st.text(max_size=6))
def test_a_duration_is_positive_or_refused(text: str) -> None:
    try:
        seconds = seconds_of(text)
    except ValueError:
        return
    assert seconds > 0


def hiding(**changes: Any) -> Contract:
    features = {"zone": {"values": None}}
    return tiny(features=features, **changes)


def test_what_is_hashed_is_found_wherever_the_contract_reads_it() -> None:
    contract = hiding(columns={"episode_id": "session"}, privacy={"hash": ["session", "observation.zone", "user.id"]})
    assert contract.hashed_columns == ("episode_id", "observation.zone", "final_observation.zone")
    assert contract.hashed_paths == ("session", "observation.zone", "user.id", "zone", "final_observation.zone")


@pytest.mark.parametrize(
    ("privacy", "problem"),
    [
        ({"drop": ["reward"]}, "privacy.drop takes out 'reward', which the contract reads as reward"),
        ({"drop": ["observation"]}, "takes out 'observation.cpu', which the contract reads as observation.cpu"),
        ({"drop": ["Action"]}, "takes out 'action'"),
        ({"drop": ["episode_id.name"]}, "reads 'episode_id' as episode_id, and privacy hides 'episode_id.name' inside"),
        ({"hash": ["observation"]}, "which privacy.hash calls 'observation'"),
        ({"hash": ["Episode_ID"]}, "which privacy.hash calls 'Episode_ID'"),
        ({"hash": ["observation.cpu"]}, "reads as observation.cpu: a hash is no such value"),
        ({"hash": ["policy_version"]}, "reads as policy_version: a hash is no such value"),
        ({"hash": ["user"], "drop": ["user.email"]}, "'user.email' lies inside 'user', which is hidden whole"),
    ],
)
def test_a_contract_that_reads_what_privacy_hides_is_refused(privacy: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(problem)):
        hiding(privacy=privacy)


def test_a_decision_must_be_hashed_in_both_logs_or_in_none() -> None:
    outcomes = {"attribution_window": "1h", "columns": {"decision_id": "request"}}
    with pytest.raises(SettingsError, match="only one of the two logs"):
        tiny(outcomes=outcomes, privacy={"hash": ["decision_id"]})
    assert tiny(outcomes=outcomes, privacy={"hash": ["decision_id", "request"]}).hashed_columns == ("decision_id",)
