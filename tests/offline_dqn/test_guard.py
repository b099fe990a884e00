"""The guard: what it is made of, when it fires, and that every form of the policy agrees about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.contract import Contract
from datasets.observations import Observations, observations_of_checked
from offline_dqn.decisions import Permission, decide
from offline_dqn.description import PolicyArtifactError
from offline_dqn.exploration import NoAvailableActionError
from offline_dqn.familiarity_fit import fit_familiarity
from offline_dqn.guard import CAUSES, NEVER, Guard, choice_spread, reasons_of
from offline_dqn.guard_fit import calibrate, conformal_threshold, may_miss
from offline_dqn.guarded import GuardedPolicy
from offline_dqn.mixture import MixturePolicy, n_policies
from offline_dqn.onnx_export import export_graph
from offline_dqn.parity import measure_parity, probe_rows
from offline_dqn.policy import Rule, RulePolicy, load_policy, save_policy
from offline_dqn.scorers import NumpyScorer, scorer_of
from tests.offline_dqn.guards import guarded, some_rules, usual_records, usual_rows
from tests.offline_dqn.test_onnx import graph_of, older_partner
from tests.offline_dqn.test_policy import CONTRACT, VALUES, everything, rewrite, some_observations, some_policy

MADE: dict[str, Callable[[], GuardedPolicy]] = {
    "one network": lambda: guarded(some_policy()),
    "ensemble": lambda: guarded(some_policy(n_members=3, n_quantiles=2, dueling=True)),
    "mixture with a guarded champion": lambda: guarded(
        MixturePolicy(some_policy(n_members=2), guarded(some_policy(seed=4, n_members=2)), 0.5)
    ),
    "older fallback": lambda: guarded(some_policy(), older_partner()),
    "rules": lambda: guarded(RulePolicy(CONTRACT, (), otherwise="up", exploration=0.3)),
}


@cache
def of_kind(kind: str) -> GuardedPolicy:
    return MADE[kind]()


# --- the threshold


def test_threshold_of_independent_rows_is_their_quantile() -> None:
    # Each row is a cluster: left out, the k largest exceed the k-th largest of the others. Of 1,000, 20 may.
    scores = np.arange(1_000.0)
    assert conformal_threshold(scores, np.arange(1_000), 0.02) == 980.0
    assert (scores > 980.0).sum() == 19


def test_rows_of_one_cluster_count_together() -> None:
    # 100 clusters of 10 equal rows: left out, the top cluster exceeds the k-th largest of the others with all 10 rows
    # for k = 1 to 10, the two top ones with 20 for k = 11 to 20. Of 1,000 rows 20 may.
    clusters = np.repeat(np.arange(100), 10)
    assert conformal_threshold(clusters.astype(float), clusters, 0.02) == 98.0
    assert conformal_threshold(clusters.astype(float), clusters, 0.0199) == 99.0


def test_scores_that_are_all_alike_never_fire() -> None:
    scores, clusters = np.zeros(300), np.repeat(np.arange(50), 6)
    assert conformal_threshold(scores, clusters, 0.01) == 0.0
    scores[:3] = 1.0  # of one cluster: 3 of 300 rows may
    assert conformal_threshold(scores, clusters, 0.01) == 0.0
    assert conformal_threshold(scores, clusters, 0.009) is None


def test_no_threshold_is_enough_where_clusters_are_few() -> None:
    # 40 clusters of 10 equal rows: 8 rows may exceed, and the top one alone brings 10.
    clusters = np.repeat(np.arange(40), 10)
    assert conformal_threshold(clusters.astype(float), clusters, 0.02) is None
    thresholds, calibration = calibrate({"strange": clusters.astype(float)}, clusters, 0.02)
    assert not calibration.held
    assert thresholds["strange"] == pytest.approx(39.0, rel=1e-5)
    assert (thresholds["missing"], thresholds["disagreement"]) == (NEVER, NEVER)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.005, 0.2), st.integers(1, 6))
def test_left_out_clusters_exceed_it_with_at_most_the_share(seed: int, share: float, largest: int) -> None:
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(60), rng.integers(1, largest + 1, 60))
    scores = np.round(rng.exponential(size=len(clusters)) + rng.exponential(size=60)[clusters], int(rng.integers(1, 9)))
    threshold = conformal_threshold(scores, clusters, share)

    def exceeding(k: int) -> int:
        """Rows of each cluster above the k-th largest of the others, counted one by one."""
        return sum(int((scores[clusters == c] > np.sort(scores[clusters != c])[-k]).sum()) for c in np.unique(clusters))

    may = int(share * len(scores) + 1e-9)
    if threshold is None:
        assert exceeding(1) > may
    else:
        ks = range(int((scores > threshold).sum()) + 1, int((scores >= threshold).sum()) + 1)  # which of equal ones
        assert any(exceeding(k) <= may for k in ks)
        assert exceeding(ks[-1] + 1) > may, "a smaller threshold would have done"


def test_a_cause_that_cannot_fire_leaves_its_part_to_the_others() -> None:
    scores, clusters = {"strange": np.arange(2_000.0)}, np.arange(2_000)
    _, alone = calibrate(scores, clusters, 0.01)
    _, all_three = calibrate(scores | dict.fromkeys(("missing", "disagreement"), np.ones(2_000)), clusters, 0.01)
    assert alone.shares == {"strange": 0.01}
    assert all_three.shares == pytest.approx({"strange": 0.004, "missing": 0.002, "disagreement": 0.004})
    bare = {"features": {"cpu": {"type": "numeric"}}}
    assert not may_miss(Contract.model_validate(VALUES | bare))
    assert may_miss(CONTRACT)


# --- when it fires


def changed(rows: Observations, **columns: Any) -> Observations:
    return Observations({**rows.columns, **columns}, rows.vocabularies)


@pytest.fixture(scope="module")
def plain() -> GuardedPolicy:
    return guarded(some_policy(), false_alarm_share=0.01)


def test_ordinary_rows_are_left_to_the_policy(plain: GuardedPolicy) -> None:
    rows = usual_rows(20_000, seed=3)
    share = float((plain.guard_reasons(rows) != "").mean())
    assert 0.003 < share < 0.016, f"{share:.2%} of ordinary rows, 1 % asked for"


def test_what_was_never_there_is_named(plain: GuardedPolicy) -> None:
    rows = usual_rows(400, seed=4)
    cpu, load = rows.columns["cpu"], rows.columns["load"]
    far = plain.guard_reasons(changed(rows, load=load + np.array([0.0, 6.0])))
    apart = plain.guard_reasons(
        changed(rows, cpu=np.full(400, 0.8), load=np.stack([load[:, 0] * 0 + 0.7, load[:, 1]], 1))
    )
    new = Observations(rows.columns, {"zone": tuple(f"new {label}" for label in rows.vocabularies["zone"])})
    gone = changed(rows, cpu=np.full(400, np.nan), zone=np.full(400, -1, dtype=np.int32))
    unit = plain.guard_reasons(changed(rows, cpu=cpu / 1000.0))
    assert (far == "strange").mean() > 0.9
    assert (apart == "strange").mean() > 0.9, "each number is ordinary, both together are impossible"
    assert (plain.guard_reasons(new)[rows.columns["zone"] >= 0] == "missing").all()
    assert (plain.guard_reasons(gone) == "missing").all()
    assert (unit[~np.isnan(cpu)] == "strange").mean() > 0.9


def test_outliers_in_training_do_not_blind_it() -> None:
    rows = usual_rows(4_000, seed=5)
    load = rows.columns["load"].copy()
    load[:16, 1] += 1e4  # 4 in 1,000
    clean, wild = fit_familiarity(CONTRACT, rows), fit_familiarity(CONTRACT, changed(rows, load=load))
    ordinary = usual_rows(4_000, seed=6)
    shifted = changed(ordinary, load=ordinary.columns["load"] + np.array([0.0, 6.0]))
    for familiarity in (clean, wild):
        threshold = np.quantile(familiarity.distance(ordinary), 0.99)
        assert (familiarity.distance(shifted) > threshold).mean() > 0.9


@pytest.mark.parametrize("values", [np.full(500, 3.0), np.r_[np.zeros(499), 7.0], np.geomspace(1e-12, 1e12, 500)])
def test_any_column_gives_finite_distances(values: np.ndarray) -> None:
    contract = Contract.model_validate(VALUES | {"features": {"x": {"type": "numeric", "nullable": True}}})
    familiarity = fit_familiarity(contract, Observations({"x": values}, {}))
    asked = np.array([0.0, 3.0, -1e300, 1e300, np.nan, np.median(values)])
    distances = familiarity.distance(Observations({"x": asked}, {}))
    assert np.isfinite(distances).all()
    assert distances[3] > 1.0
    assert distances[5] < 1.0


def test_what_was_always_missing_is_no_surprise() -> None:
    contract = Contract.model_validate(VALUES | {"features": {"x": {"type": "numeric", "nullable": True}}})
    familiarity = fit_familiarity(contract, Observations({"x": np.full(300, np.nan)}, {}))
    assert familiarity.absence(Observations({"x": np.array([np.nan])}, {}))[0] < 0.01


def test_a_wider_picture_is_strange() -> None:
    screen = {"type": "image", "shape": [9, 10, 1], "nullable": True}
    contract = Contract.model_validate(VALUES | {"features": {"screen": screen}})
    rng = np.random.default_rng(0)
    pictures = np.clip(rng.normal(120, 20, (800, 91)), 0, 255).astype(np.uint8)
    pictures[:, -1] = 0
    familiarity = fit_familiarity(contract, Observations({"screen": pictures}, {}))
    dark = pictures.copy()
    dark[:, :45] = 0
    assert np.quantile(familiarity.distance(Observations({"screen": pictures}, {})), 0.99) < 1.2
    assert familiarity.distance(Observations({"screen": dark}, {})).min() > 1.5


def test_networks_that_agree_about_the_choice_do_not_disagree() -> None:
    policy, rows = some_policy(n_members=2), some_observations()
    weights = {name: np.repeat(values[:1], 2, axis=0) for name, values in policy.weights.items()}
    weights["head.bias"] = weights["head.bias"] + np.array([0.0, 100.0], dtype=np.float32)[:, None, None]
    spread = choice_spread(replace(policy, weights=weights), rows)
    disagreement = replace(policy, weights=weights).disagreement(rows)
    assert spread is not None
    assert disagreement is not None
    assert spread.max() < 1e-3, "one says 100 more of everything: both choose alike"
    assert disagreement.min() > 50.0


def test_the_first_cause_is_named() -> None:
    excess = np.array([[0.5, 1.0, 0.0], [2.0, 3.0, 0.0], [0.0, 1.1, 9.0], [0.0, 0.0, 1.5]])
    assert list(reasons_of(excess)) == ["", "missing", "strange", "disagreement"]
    assert CAUSES == ("missing", "strange", "disagreement")


def test_parts_of_the_distance_name_the_feature(plain: GuardedPolicy) -> None:
    rows = usual_rows(50, seed=4)
    far = changed(rows, cpu=np.full(50, 0.8), load=np.stack([np.full(50, 0.7), rows.columns["load"][:, 1]], axis=1))
    shares = plain.guard.familiarity.shares_of_distance(far)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    names = list(CONTRACT.features)
    assert shares[:, names.index("load")].mean() > 0.3
    assert shares[:, names.index("cpu")].mean() > 0.3


# --- who acts


@pytest.mark.parametrize("kind", MADE)
def test_the_fallback_acts_where_the_guard_fires(kind: str) -> None:
    policy = of_kind(kind)
    rows, available = probe_rows(policy, 500)
    fires = policy.guard_reasons(rows) != ""
    able = (available & np.isin(policy.fallback.actions, policy.fallback.contract.actions.names)).any(axis=1)
    assert 50 < fires.sum() < 450, "both act often enough to be seen"
    probs, acts = policy.action_probs(rows, available), fires & able
    own, fallback = policy.own.action_probs(rows, available), policy.fallback.action_probs(rows, available)
    np.testing.assert_array_equal(probs, np.where(acts[:, None], fallback, own))
    np.testing.assert_allclose(probs.sum(axis=1), 1.0)


def test_own_acts_where_the_fallback_knows_nothing_that_is_available() -> None:
    policy = of_kind("older fallback")  # it lacks "hold"
    rows = usual_rows(2, seed=1)
    gone = changed(rows, cpu=np.full(2, np.nan), zone=np.full(2, -1, dtype=np.int32))
    only_hold = np.array([[False, True, False]] * 2)
    assert (policy.guard_reasons(gone) == "missing").all()
    np.testing.assert_array_equal(policy.action_probs(gone, only_hold), only_hold.astype(float))
    with pytest.raises(NoAvailableActionError, match="allow no action"):
        policy.action_probs(gone, np.zeros((2, 3), dtype=bool))


@pytest.mark.parametrize("kind", MADE)
def test_saved_guard_acts_as_before(tmp_path: Path, kind: str) -> None:
    policy, rows = of_kind(kind), usual_rows(500, seed=8)
    digest = save_policy(tmp_path, policy)
    loaded = load_policy(tmp_path)
    assert isinstance(loaded, GuardedPolicy)
    assert loaded.digest == digest
    assert loaded.guard.thresholds == policy.guard.thresholds
    assert loaded.guard.calibration == policy.guard.calibration
    np.testing.assert_array_equal(
        loaded.action_probs(rows, everything(500)), policy.action_probs(rows, everything(500))
    )
    np.testing.assert_array_equal(loaded.guard_reasons(rows), policy.guard_reasons(rows))
    again = tmp_path / "again"
    assert save_policy(again, policy) == digest, "the same policy gives the same bytes"


def test_a_changed_byte_of_a_guard_is_refused(tmp_path: Path) -> None:
    save_policy(tmp_path, of_kind("one network"))
    for name in ("policy.safetensors", "policy.json"):
        before = (tmp_path / name).read_bytes()
        middle = len(before) // 2
        (tmp_path / name).write_bytes(before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :])
        with pytest.raises(PolicyArtifactError, match=r"was altered after it was written|cannot be read"):
            load_policy(tmp_path)
        (tmp_path / name).write_bytes(before)
    load_policy(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["guard"]["thresholds"].update(strange=-1.0), "thresholds.strange"),
        (lambda m: m["guard"]["features"].pop("load"), "the guard's center wants finite float64 numbers"),
        (lambda m: m["guard"]["features"].update(other=m["guard"]["features"].pop("cpu")), "none of the contract's"),
        (lambda m: m["guard"]["features"]["zone"].update(kind="number"), "takes 'zone' for number"),
        (lambda m: m["guard"].pop("calibration"), "calibration: missing"),
        (lambda m: m.update(own=dict(m)), "guarded itself"),
        (lambda m: m.update(fallback=m["fallback"] | {"kind": "none"}), "kind 'none'"),
    ],
)
def test_malformed_guards_are_refused_by_name(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    save_policy(tmp_path, of_kind("one network"))
    rewrite(tmp_path, change)
    with pytest.raises(PolicyArtifactError, match=rf"(?s)policy\.json.*({message})"):
        load_policy(tmp_path)


def test_a_guard_wants_one_order_of_actions() -> None:
    policy = of_kind("one network")
    with pytest.raises(ValueError, match="own and fallback of a guarded policy must name the same actions"):
        replace(policy, fallback=replace(some_rules(), actions=("up", "hold", "down")))


def test_a_guarded_champion_counts_as_what_it_guards() -> None:
    champion = guarded(MixturePolicy(some_policy(), some_policy(seed=1), 0.5))
    assert n_policies(champion) == 2
    assert n_policies(MixturePolicy(some_policy(), champion, 0.5)) == 3


# --- its graph


@pytest.mark.parametrize("kind", [kind for kind in MADE if kind != "rules"])
def test_graph_guards_as_the_policy_does(kind: str) -> None:
    policy = of_kind(kind)
    rows, available = probe_rows(policy, 4_000)
    graph = graph_of(policy)
    parity = measure_parity(policy, graph, rows, available)
    assert parity.holds, parity.text
    assert parity.n_ties < 60
    assert graph.depth == 0
    found, excess = graph.guard_excess(rows), policy.guard_excess(rows)
    assert found is not None
    reasons = reasons_of(found)
    clear = (np.abs(excess - 1.0) > 1e-4).all(axis=1)
    np.testing.assert_array_equal(reasons[clear], policy.guard_reasons(rows)[clear])
    assert {"", "missing", "strange"} <= set(reasons)
    assert policy.guard.watches_disagreement == (excess[:, 2] > 0.9).any()


def test_common_observations_that_lie_at_the_threshold_are_never_judged_in_two_ways() -> None:
    """One of 40 observations sets the threshold; a 40th of the traffic would act in another way than was evaluated."""
    rng, small = np.random.default_rng(1), some_policy(n_members=3)
    shape = small.architecture.model_copy(update={"hidden": (256, 256)})
    weights = {
        name: (rng.normal(size=size) * (size[1] ** -0.5 if len(size) == 3 else 0.1)).astype(np.float32)
        for name, size in shape.parameter_shapes().items()
    }
    weights["head.bias"] += np.float32(30.0)  # values around 75 that are 1.5 apart
    policy = replace(small, architecture=shape, weights=weights)
    few = usual_records(40, seed=3)
    rows = observations_of_checked(CONTRACT, [few[i] for i in rng.integers(0, 40, 2_000)])
    spread, familiarity = choice_spread(policy, rows), fit_familiarity(CONTRACT, rows)
    assert spread is not None
    distinct = np.unique(spread.round(6), return_index=True)[1]
    for share in (0.1, 0.2, 0.3):
        thresholds, calibration = calibrate({"disagreement": spread}, np.arange(2_000), share)
        whole = GuardedPolicy(policy, some_rules(), Guard(familiarity, thresholds, calibration))
        graph, together = graph_of(whole), whole.guard_reasons(rows)[distinct]
        assert set(together) == {"", "disagreement"}
        for row, reason in zip(distinct, together, strict=True):
            alone = rows.take(np.array([row]))
            excess = graph.guard_excess(alone)
            assert excess is not None
            assert reasons_of(excess)[0] == whole.guard_reasons(alone)[0] == reason


def test_graph_of_a_picture_guards_as_the_policy_does() -> None:
    screen = {"type": "image", "shape": [9, 10, 2], "nullable": True}
    contract = Contract.model_validate(VALUES | {"features": {"screen": screen}})
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (500, 181)).astype(np.uint8)
    pictures[:, -1] = rng.random(500) < 0.1
    pictures[pictures[:, -1] == 1, :-1] = 0
    rows = Observations({"screen": pictures}, {})
    familiarity = fit_familiarity(contract, rows)
    scores = {"strange": familiarity.distance(rows), "missing": familiarity.absence(rows)}
    thresholds, calibration = calibrate(scores, np.arange(500), 0.05)
    rules = RulePolicy(contract, (), otherwise="up")
    policy = GuardedPolicy(rules, replace(rules, otherwise="down"), Guard(familiarity, thresholds, calibration))
    available = np.ones((500, 3), dtype=bool)
    excess = graph_of(policy).guard_excess(rows)
    assert excess is not None
    np.testing.assert_allclose(excess, policy.guard_excess(rows), rtol=1e-9)
    np.testing.assert_array_equal(graph_of(policy).score(rows, available)[0], policy.action_probs(rows, available))


@pytest.mark.parametrize("mixed", [False, True])
def test_what_has_no_graph_is_combined(tmp_path: Path, mixed: bool) -> None:
    rules = RulePolicy(CONTRACT, (Rule("sqrt(observation.cpu) > 0.5", "up"),), otherwise="hold", exploration=0.1)
    own = MixturePolicy(some_policy(), rules, 0.5) if mixed else some_policy()
    policy = guarded(own, rules)
    save_policy(tmp_path, policy)
    described = json.loads((tmp_path / "policy.json").read_text())["graph"]
    assert described["whole"] is False
    assert described["outputs"] == ["q_values", "own_probabilities", "guard_excess"]
    wider = load_policy(tmp_path, actions=("burst", *CONTRACT.actions.names))
    scorer = scorer_of(wider, ((tmp_path / "policy.onnx").read_bytes(), described))
    records = usual_records(600, seed=2)
    rows = observations_of_checked(CONTRACT, records)
    available = np.random.default_rng(0).random((600, 4)) < 0.7
    available[:, 2] = True
    scores = scorer.score(records, available)
    np.testing.assert_allclose(scores.probs, wider.action_probs(rows, available), atol=1e-6)
    assert isinstance(wider, GuardedPolicy)
    assert scores.guard == wider.guard_reasons(rows).tolist()
    assert sum(reason != "" for reason in scores.guard) > 5
    assert scores.guard == NumpyScorer(wider).score(records, available).guard


def test_who_decided_is_the_guard_only_where_its_fallback_acts(tmp_path: Path) -> None:
    policy = of_kind("older fallback")  # it lacks "hold"
    save_policy(tmp_path, policy)
    graph = (tmp_path / "policy.onnx").read_bytes(), json.loads((tmp_path / "policy.json").read_text())["graph"]
    records = [*usual_records(1), {"busy": True, "load": [0.0, 0.0]}, {"busy": True, "load": [0.0, 0.0]}]
    permitted = np.array([[True, True, True], [True, True, True], [False, True, False]])
    for scorer in (NumpyScorer(policy), scorer_of(policy, graph)):
        decided = decide(scorer, CONTRACT.actions, records, Permission(permitted, np.zeros(3, dtype=bool)))
        assert decided.guard == ("", "missing", "")
        assert decided.decided_by == ("policy", "guard", "policy")


def test_a_policy_without_a_guard_says_so() -> None:
    exported = export_graph(some_policy())
    scores = scorer_of(some_policy(), exported).score(usual_records(5), everything(5))
    assert scores.guard is None
