from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from offline_dqn.architecture import Architecture
from offline_dqn.choice import BehaviorModel, Choice, choose, quantile_weights, score, supported
from offline_dqn.mixture import MOST_POLICIES, MixturePolicy
from offline_dqn.policy import QPolicy, RulePolicy
from tests.offline_dqn.test_policy import CONTRACT, NEWER, RULES, everything, some_observations, some_policy

ANY = np.ones((1, 3), dtype=bool)


def constant_policy(values: list[list[list[float]]], **kwargs: Any) -> QPolicy:
    """Says the same of every observation: values[member][action][quantile]."""
    table = np.array(values, dtype=np.float32)
    plain = some_policy()
    architecture = Architecture(
        n_inputs=plain.encoder.size, n_actions=3, hidden=(), n_members=len(table), n_quantiles=table.shape[2]
    )
    shapes = architecture.parameter_shapes()
    weights = {
        "head.weight": np.zeros(shapes["head.weight"], dtype=np.float32),
        "head.bias": table.reshape(shapes["head.bias"]),
    }
    fields: dict[str, Any] = {"reward_scale": 2.0, "exploration": 0.0} | kwargs
    return replace(plain, architecture=architecture, weights=weights, **fields)


def test_the_lowest_share_of_quantiles_may_end_within_one() -> None:
    np.testing.assert_allclose(quantile_weights(4, 1.0), [0.25] * 4)
    np.testing.assert_allclose(quantile_weights(4, 0.5), [0.5, 0.5, 0.0, 0.0])
    np.testing.assert_allclose(quantile_weights(4, 0.375), [2 / 3, 1 / 3, 0.0, 0.0])  # 1.5 of 4
    np.testing.assert_allclose(quantile_weights(4, 0.01), [1.0, 0.0, 0.0, 0.0])


def test_cvar_prefers_the_safe_action_and_values_stay_means() -> None:
    risky, safe, poor = [-10.0, 0.0, 10.0, 20.0], [4.0, 4.0, 4.0, 4.0], [0.0] * 4
    rows = some_observations(1)
    by_mean = constant_policy([[risky, safe, poor]])
    by_cvar = constant_policy([[risky, safe, poor]], choice=Choice(cvar_share=0.25))
    assert by_mean.action_probs(rows, ANY).tolist() == [[1.0, 0.0, 0.0]]
    assert by_cvar.action_probs(rows, ANY).tolist() == [[0.0, 1.0, 0.0]]
    assert by_cvar.q_values(rows) is not None
    np.testing.assert_allclose(by_cvar.q_values(rows), [[10.0, 8.0, 0.0]])  # means times the reward scale
    np.testing.assert_allclose(by_cvar.scores(rows)[0], [[-20.0, 8.0, 0.0]])


def test_members_are_averaged_and_their_spread_is_kept() -> None:
    policy, rows = constant_policy([[[1.0], [0.0], [2.0]], [[3.0], [0.0], [1.0]]]), some_observations(2)
    np.testing.assert_allclose(policy.q_values(rows), [[4.0, 0.0, 3.0]] * 2)
    np.testing.assert_allclose(policy.disagreement(rows), [[2 * 2**0.5, 0.0, 2**0.5]] * 2)  # n - 1 in the divisor
    assert some_policy().disagreement(rows) is None  # one network cannot disagree
    assert MixturePolicy(policy, some_policy(), 0.5).disagreement(rows) is not None


def test_softmax_temperature_is_in_reward_units() -> None:
    policy = constant_policy([[[0.0], [1.0], [0.0]]], choice=Choice(rule="softmax", temperature=2.0))
    e = np.exp(1.0)  # the best is worth 2.0 more: one temperature
    np.testing.assert_allclose(
        policy.action_probs(some_observations(1), ANY), [[1 / (2 + e), e / (2 + e), 1 / (2 + e)]]
    )


def test_logits_with_softmax_are_the_cloned_probabilities() -> None:
    logits = np.log([0.7, 0.2, 0.1])
    clone = constant_policy([[[v] for v in logits]], kind="logits", reward_scale=1.0, choice=Choice(rule="softmax"))
    rows = some_observations(1)
    np.testing.assert_allclose(clone.action_probs(rows, ANY), [[0.7, 0.2, 0.1]], rtol=1e-6)
    np.testing.assert_allclose(
        clone.action_probs(rows, np.array([[False, True, True]])), [[0.0, 2 / 3, 1 / 3]], rtol=1e-6
    )
    assert clone.q_values(rows) is None
    assert clone.disagreement(rows) is None


def test_an_action_without_support_is_explored_and_never_chosen() -> None:
    values = constant_policy([[[1.0], [5.0], [3.0]]])
    logged = constant_policy([[[v] for v in np.log([0.8, 0.04, 0.16])]])
    policy = replace(
        values,
        behavior=BehaviorModel(logged.architecture, logged.weights),
        choice=Choice(support_threshold=0.1),
        exploration=0.3,
    )
    rows = some_observations(1)
    np.testing.assert_allclose(policy.action_probs(rows, ANY), [[0.1, 0.1, 0.8]])
    # Where the favourite is not available, the share is of the next one's: .04 of .04.
    only = np.array([[False, True, False]])
    np.testing.assert_allclose(policy.action_probs(rows, only), [[0.0, 1.0, 0.0]])
    two = np.array([[False, True, True]])
    np.testing.assert_allclose(policy.action_probs(rows, two), [[0.0, 0.85, 0.15]])  # .04 of .16 is enough


@given(st.lists(st.floats(-20, 20), min_size=3, max_size=3), st.floats(0, 0.99), st.integers(1, 7))
def test_the_favourite_always_has_support(logits: list[float], threshold: float, mask: int) -> None:
    allowed = np.array([[bool(mask & 1), bool(mask & 2), bool(mask & 4)]])
    found = supported(np.array([logits]), allowed, threshold)
    favourite = np.where(allowed, logits, -np.inf).argmax()
    assert found[0, favourite]
    assert not (found & ~allowed).any()
    probs = np.exp(logits) / np.exp(logits).sum()
    clearly = probs / probs[favourite] > threshold + 1e-9
    assert (found[0] | ~(clearly & allowed[0])).all()


@given(st.lists(st.floats(-100, 100), min_size=3, max_size=3), st.sampled_from(["greedy", "softmax"]))
def test_choices_are_probabilities_that_do_not_care_for_the_level(values: list[float], rule: Any) -> None:
    choice, candidates = Choice(rule=rule, temperature=3.0), np.array([[True, True, False]])
    probs = choose(np.array([values]), candidates, choice)
    np.testing.assert_allclose(probs.sum(), 1.0)
    assert probs[0, 2] == 0.0
    if rule == "softmax":
        np.testing.assert_allclose(choose(np.array([values]) + 1e3, candidates, choice), probs, atol=1e-9)


def test_score_is_the_mean_over_members_and_quantiles() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
    np.testing.assert_allclose(score(values), values.mean(axis=(0, 3)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choice": Choice(support_threshold=0.3)}, "needs a behavior model"),
        ({"choice": Choice(cvar_share=0.5)}, "n_quantiles > 1"),
        ({"exploration": 1.5}, "share in \\[0, 1\\]"),
        ({"actions": ("down",)}, "hold, up are missing"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(some_policy(), **changes)


@pytest.mark.parametrize("wrong", [{"temperature": 0}, {"support_threshold": 1}, {"cvar_share": 0}, {"rule": "best"}])
def test_impossible_choices_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Choice(**wrong)


# --- mixtures


def test_a_mixture_bounds_the_density_ratio() -> None:
    rows = some_observations()
    partner = RulePolicy(CONTRACT, RULES, otherwise="hold", exploration=0.3)
    mixture = MixturePolicy(some_policy(exploration=0.0), partner, 0.2)
    probs, logged = mixture.action_probs(rows, everything(40)), partner.action_probs(rows, everything(40))
    np.testing.assert_allclose(probs.sum(axis=1), 1.0)
    ratio = probs / logged
    assert ratio.min() >= 0.8 - 1e-12
    assert ratio.max() <= 0.8 + 0.2 / 0.1 + 1e-12  # the partner takes each action with at least .1


def test_a_mixture_promises_its_own_values() -> None:
    rows, own = some_observations(), some_policy()
    np.testing.assert_array_equal(MixturePolicy(own, some_policy(seed=5), 0.5).q_values(rows), own.q_values(rows))


def test_a_mixture_of_too_many_policies_is_refused() -> None:
    mixture: Any = some_policy()
    for _ in range(MOST_POLICIES - 1):
        mixture = MixturePolicy(some_policy(), mixture, 0.5)
    with pytest.raises(ValueError, match=r"a mixture of 5 policies .* mix with version 0"):
        MixturePolicy(some_policy(), mixture, 0.5)


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_a_mixture_wants_a_real_share(share: float) -> None:
    with pytest.raises(ValueError, match="share wants a number between 0 and 1"):
        MixturePolicy(some_policy(), some_policy(), share)


def test_a_mixture_wants_one_order_of_actions() -> None:
    with pytest.raises(ValueError, match="same actions in the same order"):
        MixturePolicy(some_policy(), replace(some_policy(), actions=NEWER.actions.names), 0.5)
