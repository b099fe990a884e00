"""Differences by slice against worlds whose values are known, with bounds that hold for all slices at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from datasets.contract import contract_from_text
from datasets.observations import Observations
from datasets.replay import Replay
from reports.estimators import cumulative_log_weights, doubly_robust, on_policy_returns
from reports.gate import GateConfig, decide
from reports.outcomes import MOST_LABELS, SliceMembers, outcomes_of
from reports.records import Check, Slices, evaluation_from_json, evaluation_to_json
from reports.rule_checks import rule_checks
from reports.slices import FEWEST_CLUSTERS, assess_slices, shrink, slice_action_shares
from tests.reports.report_samples import passed_evaluation
from tests.reports.test_evaluation import CONTRACT, make_replay
from tests.reports.worlds import GAMMA, Log, greedy, simulate, small_world

Floats = NDArray[np.float64]
WORLD = small_world()
UNIFORM = np.full((4, 2), 0.5)
CANDIDATE = greedy(WORLD, 0.5)


def differences(log: Log) -> Floats:
    """Terms of DR(candidate) - return of the log, with a model that is off by up to .2."""
    q = WORLD.q(CANDIDATE) + 0.2 * np.cos(np.arange(8)).reshape(4, 2)
    probs = CANDIDATE[log.states, log.actions], UNIFORM[log.states, log.actions]
    weights = cumulative_log_weights(*probs, log.offsets)
    values = (CANDIDATE * q).sum(axis=1)[log.states]
    ours = doubly_robust(log.rewards, q[log.states, log.actions], values, weights, log.offsets, GAMMA).terms
    return ours - on_policy_returns(log.rewards, log.offsets, GAMMA)


def by_first_state(log: Log) -> list[SliceMembers]:
    first = log.states[log.offsets[:-1]]
    return [SliceMembers("state", str(s), "label", first == s) for s in range(4)]


def assessed(
    parts: list[SliceMembers], terms: Floats | None, seed: int = 0, clusters: NDArray[np.int64] | None = None,
    refused: str | None = None,
) -> Slices:  # fmt: skip
    n = len(parts[0].members)
    return assess_slices(
        parts,
        terms,
        np.arange(n) if clusters is None else clusters,
        dict.fromkeys(range(len(parts)), ()),
        refused=refused,
        notes=(),
        alpha=0.05,
        n_replicates=2_000,
        rng=np.random.default_rng(seed),
    )


def test_all_bounds_of_a_side_hold_at_once_as_often_as_promised() -> None:
    truth = (CANDIDATE * WORLD.q(CANDIDATE)).sum(axis=1) - (UNIFORM * WORLD.q(UNIFORM)).sum(axis=1)
    n_worlds, above, below = 100, 0, 0
    for seed in range(n_worlds):
        log = simulate(WORLD, UNIFORM, 300, np.random.default_rng(seed))
        found = assessed(by_first_state(log), differences(log), seed).slices
        above += any(part.upper_bound < t for part, t in zip(found, truth, strict=True))
        below += any(part.lower_bound > t for part, t in zip(found, truth, strict=True))
    # At a true rate of 5 %, 10 of 100 or fewer have probability .99; measured over 500 logs: 4.8 % and 5.6 %.
    assert above <= 10
    assert below <= 10


def test_bounds_of_more_slices_are_wider() -> None:
    terms = np.random.default_rng(0).normal(size=800)
    part = SliceMembers("all", "x", "label", np.arange(800) < 100)
    others = [SliceMembers("all", str(i), "label", np.arange(800) // 100 == i) for i in range(1, 8)]

    alone, among = assessed([part], terms).slices[0], assessed([part, *others], terms).slices[0]

    assert among.value == alone.value == pytest.approx(terms[:100].mean())
    assert among.upper_bound > alone.upper_bound  # type: ignore[operator]  # both are there
    assert among.lower_bound < alone.lower_bound  # type: ignore[operator]


# Equal errors of 1, values -2, 0, 2: Q = 8, between = (8 - 2) / (3 - 1) = 3, kept share 3 / 4 (DerSimonian and Laird).
def test_values_are_drawn_toward_their_mean_by_the_noise_in_their_spread() -> None:
    assert shrink(np.array([-2.0, 0.0, 2.0]), np.ones(3)) == pytest.approx([-1.5, 0.0, 1.5])
    assert shrink(np.array([-0.1, 0.0, 0.1]), np.ones(3)) == pytest.approx([0.0, 0.0, 0.0])  # no more than noise
    assert shrink(np.array([5.0]), np.ones(1)) == [5.0]


def test_a_slice_of_one_episode_has_a_value_and_no_bound() -> None:
    terms = np.random.default_rng(0).normal(size=200)
    lonely = SliceMembers("zone", "z", "label", np.arange(200) == 7)

    found = assessed([lonely, SliceMembers("zone", "a", "label", np.arange(200) != 7)], terms).slices

    assert found[0].value == pytest.approx(terms[7])
    assert found[0].upper_bound is None
    assert found[0].refused == f"1 cluster; {FEWEST_CLUSTERS} give a bound"
    assert found[1].upper_bound is not None


def test_clusters_are_counted_and_not_episodes() -> None:
    terms = np.random.default_rng(0).normal(size=200)

    part = assessed([SliceMembers("zone", "a", "label", np.arange(200) < 100)], terms, clusters=np.arange(200) // 10)

    assert (part.slices[0].n_episodes, part.slices[0].n_clusters) == (100, 10)
    assert part.slices[0].upper_bound is None


BIG = np.arange(1_030) < 1_000


def big_and_small(small: Floats, big: float = -5.0) -> Slices:
    """A slice of 1,000 episodes that the candidate serves worse, and one of 30 with the given terms."""
    terms = np.random.default_rng(0).normal(big, 1, 1_030)
    terms[~BIG] = small
    return assessed([SliceMembers("zone", "a", "label", BIG), SliceMembers("zone", "b", "label", ~BIG)], terms)


@pytest.mark.parametrize("gain", [0.3, -0.3])
@pytest.mark.parametrize("n_varying", [1, 2, 14])
def test_a_small_slice_in_which_hardly_anything_varies_blinds_no_other(gain: float, n_varying: int) -> None:
    found = big_and_small(np.where(np.arange(30) < n_varying, gain, 0.0))

    alone = assessed([SliceMembers("zone", "a", "label", BIG)], np.random.default_rng(0).normal(-5, 1, 1_030)).slices[0]
    assert found.slices[0] == alone
    assert found.slices[1].refused == (
        f"the difference varies in {n_varying} of 30 clusters, and is the same in all others; 20 give a bound"
    )
    assert (found.slices[1].lower_bound, found.slices[1].upper_bound) == (None, None)
    check = slices_check(found)
    assert not check.passed
    assert "worse by more than 0 per episode where zone = a." in check.meaning
    assert f"for want of an upper bound: zone = b (the difference varies in {n_varying} of 30" in check.meaning


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0, 3.0])
def test_a_skewed_slice_leaves_the_bounds_of_another_alone(sigma: float) -> None:
    found = big_and_small(np.exp(np.random.default_rng(1).normal(0, sigma, 30)), big=-0.3)

    assert found.slices[0].upper_bound == big_and_small(np.ones(30) + np.arange(30), big=-0.3).slices[0].upper_bound
    assert not slices_check(found).passed


# Two clusters of 40 differ by far more than the others do. (38 / 40)^40 = 13 % of the draws hold neither, and have next
# to no spread: nothing bounds the slice from above.
def test_bounds_without_an_end_are_undecided_by_themselves() -> None:
    rare = np.where(np.arange(40) < 2, 1e6, -2e5 + np.arange(40) * 1e-3)
    terms = np.concatenate([np.random.default_rng(0).normal(-5, 1, 1_000), rare])
    members = np.arange(1_040) < 1_000
    found = assessed([SliceMembers("z", "a", "label", members), SliceMembers("z", "b", "label", ~members)], terms)

    assert found.slices[1].upper_bound is None
    assert found.slices[1].refused is not None
    assert found.slices[0].upper_bound == pytest.approx(-5, abs=0.2)
    check = slices_check(found)
    assert not check.passed
    assert "zone" not in check.meaning
    assert f"Undecided for want of an upper bound: z = b ({found.slices[1].refused}" in check.meaning


def test_where_no_slice_has_an_upper_bound_the_check_fails_and_names_them() -> None:
    terms = np.where(np.arange(60) % 30 == 0, -1.0, 0.0)
    parts = [SliceMembers("zone", z, "label", (np.arange(60) < 30) == (z == "a")) for z in "ab"]

    check = slices_check(assessed(parts, terms))

    assert not check.passed
    assert check.value is None
    assert check.meaning.startswith(
        "No slice has an upper bound, so that no loss in any could be seen. Undecided: zone = a ("
    )
    assert "; zone = b (the difference varies in 1 of 30 clusters" in check.meaning


def test_bounds_of_sparse_differences_hold_as_often_as_promised() -> None:
    """Four slices of 500 in which 6 % of the episodes differ, by a normal amount whose mean is 0."""
    zones = np.arange(2_000) % 4
    parts = [SliceMembers("zone", str(z), "label", zones == z) for z in range(4)]
    n_worlds, above, below = 60, 0, 0
    for seed in range(n_worlds):
        rng = np.random.default_rng(seed)
        terms = np.where(rng.random(2_000) < 0.06, rng.normal(size=2_000), 0.0)
        found = assessed(parts, terms, seed).slices
        above += any(part.upper_bound is not None and part.upper_bound < 0 for part in found)
        below += any(part.lower_bound is not None and part.lower_bound > 0 for part in found)
    # At a true rate of 5 %, 7 of 60 or fewer have probability .98.
    assert above <= 7
    assert below <= 7


def test_a_slice_in_which_nothing_differs_is_bounded_by_its_value() -> None:
    terms = np.where(np.arange(200) < 100, 0.25, np.random.default_rng(0).normal(size=200))
    parts = [SliceMembers("zone", z, "label", (np.arange(200) < 100) == (z == "a")) for z in "ab"]

    found = assessed(parts, terms).slices

    assert found[0].lower_bound == found[0].upper_bound == 0.25
    assert found[1].upper_bound is not None


def test_an_untrusted_difference_has_no_slices() -> None:
    found = assessed([SliceMembers("zone", "a", "label", np.ones(50, dtype=bool))], None, refused="no overlap")

    assert found.refused == "no overlap"
    assert found.slices[0].value is None
    assert not slices_check(found).passed


def slices_check(found: Slices, margin: float = 0.0) -> Check:
    evaluation = replace(passed_evaluation(), slices=found)
    return next(c for c in rule_checks(evaluation, success_margin=None, slice_margin=margin) if c.name == "slices")


def three_zones(seed: int = 0) -> Slices:
    """Worse by 1 in zone a, better by 1 in b, and undecided in c."""
    zones = np.arange(900) % 3
    terms = np.array([-1.0, 1.0, 0.0])[zones] + np.random.default_rng(seed).normal(size=900)
    return assessed([SliceMembers("zone", "abc"[z], "label", zones == z) for z in range(3)], terms)


def test_the_gate_refuses_for_one_slice_that_is_surely_worse_and_lists_the_undecided() -> None:
    check = slices_check(three_zones())

    assert not check.passed
    assert "worse by more than 0 per episode where zone = a." in check.meaning
    assert "Undecided: zone = c." in check.meaning
    decision = decide(replace(passed_evaluation(), decision=None, slices=three_zones()), GateConfig())
    assert not decision.passed
    assert [c.name for c in decision.failed_checks] == ["slices"]
    assert decision.certified_share == 0.0


def test_a_slice_margin_lets_small_losses_pass() -> None:
    assert slices_check(three_zones(), margin=1.0).passed


def test_slices_survive_json() -> None:
    evaluation = replace(passed_evaluation(), slices=three_zones())

    assert evaluation_from_json(evaluation_to_json(evaluation)) == evaluation


# --- which episodes make a slice


SLICED = CONTRACT.replace('values = ["0", "1", "2", "3"]', 'values = ["0", "1", "2"]\nnullable = true') + (
    '[slices]\ncolumns = ["state"]\n'
)


def sliced(text: str = SLICED, n: int = 200) -> Replay:
    return make_replay(simulate(WORLD, UNIFORM, n, np.random.default_rng(0)), UNIFORM, text=text)


def test_an_episode_belongs_to_the_slice_of_its_first_step_and_unseen_labels_are_one() -> None:
    replay = sliced()
    first = replay.observations.columns["state"][replay.offsets[:-1]]

    parts = {(part.kind, part.label): part.members for part in outcomes_of(replay).slices}

    assert set(parts) == {("label", "0"), ("label", "1"), ("label", "2"), ("unseen", None)}
    assert np.array_equal(parts["label", "1"], first == 1)
    assert np.array_equal(parts["unseen", None], first == 3)


def test_missing_values_are_a_slice() -> None:
    replay = sliced()
    states = np.where(np.arange(replay.n_steps) % 2 == 0, -1, replay.observations.columns["state"]).astype(np.int32)
    replay = replace(replay, observations=Observations({"state": states}, replay.observations.vocabularies))

    missing = next(part for part in outcomes_of(replay).slices if part.kind == "missing")

    assert np.array_equal(missing.members, states[replay.offsets[:-1]] == -1)


def test_a_column_that_is_null_everywhere_is_one_slice_with_a_note() -> None:
    replay = sliced()
    nothing = np.full(replay.n_steps, -1, dtype=np.int32)
    found = outcomes_of(replace(replay, observations=Observations({"state": nothing}, {"state": ("0",)})))

    assert [part.kind for part in found.slices] == ["missing"]
    assert found.slices[0].members.all()
    assert found.notes == ("'state' is missing at the first step of every episode, so it tells none apart",)


def test_many_labels_leave_the_rarest_in_one_slice() -> None:
    n = 500
    log = Log(np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64), np.zeros(n), np.arange(n + 1))
    replay = make_replay(log, UNIFORM, text=SLICED.replace('values = ["0", "1", "2"]\n', ""))
    labels = np.sort(np.random.default_rng(0).integers(30, size=n)).astype(np.int32)
    vocabulary = tuple(f"user {i}" for i in range(30))
    found = outcomes_of(replace(replay, observations=Observations({"state": labels}, {"state": vocabulary}))).slices

    assert [part.kind for part in found] == ["label"] * MOST_LABELS + ["rest"]
    assert np.array_equal(sum(part.members.astype(int) for part in found), np.ones(n))
    assert min(part.members.sum() for part in found[:-1]) >= max(np.bincount(labels[found[-1].members]).max(), 1)


def test_booleans_make_slices_of_false_true_and_missing() -> None:
    text = CONTRACT + '[features.busy]\ntype = "boolean"\nnullable = true\n[slices]\ncolumns = ["busy"]\n'
    replay = make_replay(simulate(WORLD, UNIFORM, 30, np.random.default_rng(0)), UNIFORM, text=CONTRACT)
    busy = np.tile([0.0, 1.0, np.nan], replay.n_steps)[: replay.n_steps]
    columns = {"state": replay.observations.columns["state"], "busy": busy}
    replay = replace(
        replay,
        contract=contract_from_text(text, "test"),
        observations=Observations(columns, replay.observations.vocabularies),
    )

    found = {part.label or part.kind: part.members for part in outcomes_of(replay).slices}

    first = busy[replay.offsets[:-1]]
    assert np.array_equal(found["true"], first == 1)
    assert np.array_equal(found["false"], first == 0)
    assert np.array_equal(found["missing"], np.isnan(first))


def test_actions_are_shared_out_within_the_slice() -> None:
    shares = slice_action_shares(
        np.array([True, False]), np.array([0, 2, 3]), np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.7, 0.3], [0, 1]]),
        ("left", "right"),
    )  # fmt: skip

    assert [(s.policy, s.shares["left"]) for s in shares] == [("log", 0.5), ("candidate", pytest.approx(0.8))]
