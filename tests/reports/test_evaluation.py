from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from datasets.contract import Contract, contract_from_text
from datasets.observations import Observations
from datasets.replay import GATE, SELECT, TRAIN, Replay
from offline_dqn.fqe import FqeConfig, HeldOutValues
from reports.crossfit import Fold, NothingToFitError, cross_fit, deal_folds
from reports.deciding import DecidingConfig
from reports.evaluation import EvaluateConfig, EvaluationError, evaluate_candidate
from reports.gate import GateConfig
from reports.propensity import PropensityConfig
from reports.records import Evaluation, evaluation_from_json, evaluation_to_json
from tests.offline_dqn.worlds import states_of
from tests.reports.worlds import GAMMA, Log, World, greedy, simulate, small_world

CONTRACT = """
name = "world"
gamma = 0.9
[features.state]
type = "categorical"
values = ["0", "1", "2", "3"]
[actions]
names = ["left", "right"]
[reward]
min = -3.0
max = 3.0
"""
WORLD = small_world()
UNIFORM = np.full((4, 2), 0.5)
CONFIG = EvaluateConfig(
    n_replicates=2000, n_folds=2, fqe=FqeConfig(n_random_features=20), deciding=DecidingConfig(estimator="dr")
)
GATE_CONFIG = GateConfig(alpha=0.05)


@dataclass(frozen=True)
class TablePolicy:
    """Acts by a table (S, A)."""

    table: NDArray[np.float64]
    q: NDArray[np.float64] | None = None
    spread: NDArray[np.float64] | None = None
    digest: str = ""
    actions: tuple[str, ...] = ("left", "right")

    @property
    def contract(self) -> Contract:
        return contract_from_text(CONTRACT, "test")

    def action_probs(self, observations: Observations, available: NDArray[np.bool_]) -> NDArray[np.float64]:
        probs = self.table[observations.columns["state"]] * available
        return np.asarray(probs / probs.sum(axis=1, keepdims=True))

    def q_values(self, observations: Observations) -> NDArray[np.float64] | None:
        return None if self.q is None else self.q[observations.columns["state"]]

    def disagreement(self, observations: Observations) -> NDArray[np.float64] | None:
        return None if self.spread is None else self.spread[observations.columns["state"]]


def make_replay(log: Log, behavior: NDArray[np.float64], *, text: str = CONTRACT) -> Replay:
    n, n_steps = len(log.offsets) - 1, len(log.actions)
    ends = np.zeros(n_steps, dtype=bool)
    ends[log.offsets[1:] - 1] = True
    rng = np.random.default_rng(987)  # not the log's: splits must not know first states
    return Replay(
        contract=contract_from_text(text, "test"),
        digest="0" * 64,
        observations=Observations({"state": log.states.astype(np.int32)}, {"state": ("0", "1", "2", "3")}),
        available=np.ones((n_steps, 2), dtype=bool),
        actions=log.actions,
        rewards=log.rewards,
        terminated=ends,
        truncated=np.zeros(n_steps, dtype=bool),
        next_row=np.where(ends, -1, np.arange(n_steps) + 1),
        behavior_prob=behavior[log.states, log.actions],
        offsets=log.offsets,
        episode_ids=np.array([f"e{i}" for i in range(n)], dtype=object),
        clusters=np.arange(n),
        nights=np.datetime64("2024-05-01") + np.arange(n) % 7,
        policy_versions=np.full(n, "", dtype=object),
        split=rng.choice([TRAIN, SELECT, GATE], p=[0.4, 0.1, 0.5], size=n).astype(np.int8),
    )


@dataclass(frozen=True)
class KnownModels:
    """The true Q of the evaluation policy, read off its probabilities, in place of a fit; no state is reweighted."""

    fold: Fold

    def held_out(self, evaluation_probs: NDArray[np.float64], held_probs: NDArray[np.float64]) -> HeldOutValues:
        table = np.full((4, 2), 0.5)
        table[states_of(self.fold.outside)] = evaluation_probs
        q_values, first = WORLD.q(table)[states_of(self.fold.held)], self.fold.held.offsets[:-1]
        return HeldOutValues(q_values, np.array([(held_probs * q_values)[first].sum(axis=1).mean()]), None)

    def state_weights(self, ratios: NDArray[np.float64], *, outside: bool = False) -> NDArray[np.float64]:
        return np.ones(len(ratios) if outside else self.fold.held.n_steps)


def known_models(fold: Fold) -> KnownModels:
    return KnownModels(fold)


def evaluate(replay: Replay, candidate: NDArray[np.float64] | TablePolicy, **changes: Any) -> Evaluation:
    arguments: dict[str, Any] = {
        "candidate": candidate if isinstance(candidate, TablePolicy) else TablePolicy(candidate),
        "baseline": None,
        "version_zero": None,
        "candidate_name": "7",
        "baseline_name": "the logging policy",
        "excluded": {"damaged": 0},
        "config": CONFIG,
        "gate_config": GATE_CONFIG,
        "seed": 0,
        "fit_models": known_models,
    }
    return evaluate_candidate(replay, **(arguments | changes))


@pytest.fixture(scope="module")
def replay() -> Replay:
    return make_replay(simulate(WORLD, UNIFORM, 2400, np.random.default_rng(0)), UNIFORM)


def world_gain(world: World, candidate: NDArray[np.float64], baseline: NDArray[np.float64]) -> float:
    return world.value(candidate) - world.value(baseline)


def test_a_better_candidate_passes_with_a_difference_near_the_truth(replay: Replay) -> None:
    candidate = greedy(WORLD, 0.6)
    evaluation = evaluate(replay, candidate)
    assert evaluation.decision is not None
    assert evaluation.decision.passed, evaluation.decision.reason
    comparison = evaluation.comparison("baseline")
    assert comparison is not None
    assert comparison.value == pytest.approx(world_gain(WORLD, candidate, UNIFORM), abs=0.15)
    assert evaluation.counts.n_episodes == int((replay.split == GATE).sum())
    assert evaluation.counts.n_nights == 7
    assert evaluation_from_json(json.loads(json.dumps(evaluation_to_json(evaluation)))) == evaluation


def test_a_state_in_which_the_log_hardly_follows_the_candidate_is_named() -> None:
    behavior, candidate = UNIFORM.copy(), UNIFORM.copy()
    behavior[2], candidate[2] = [0.99, 0.01], [0.05, 0.95]
    replay = make_replay(simulate(WORLD, behavior, 2400, np.random.default_rng(0)), behavior)
    found = evaluate(replay, candidate).overlap_map
    assert found is not None
    assert found.regions[0].where == "state = 2"
    assert found.regions[0].action == "right"
    assert found.regions[0].flagged is not None
    assert all(region.flagged is None for region in found.regions[1:])


def test_returns_of_log_and_candidate_are_spread_out(replay: Replay) -> None:
    found = {d.estimator: d for d in evaluate(replay, greedy(WORLD, 0.6)).return_distributions}
    assert set(found) == {"on_policy", "wis", "dr"}
    for distribution in found.values():
        assert distribution.refused is None
        assert [q.level for q in distribution.quantiles] == [0.05, 0.25, 0.5, 0.75, 0.95]
    lying = replace(replay, behavior_prob=np.full(replay.n_steps, 0.9))
    refused = {d.estimator: d.refused for d in evaluate(lying, greedy(WORLD, 0.6)).return_distributions}
    assert refused["on_policy"] is None
    assert "average" in (refused["wis"] or "")


def test_the_same_seed_gives_the_same_evaluation(replay: Replay) -> None:
    assert evaluate(replay, greedy(WORLD, 0.6)) == evaluate(replay, greedy(WORLD, 0.6))


def test_fitted_q_evaluation_is_the_default_model(replay: Replay) -> None:
    candidate = greedy(WORLD, 0.6)
    evaluation = evaluate(replay, candidate, fit_models=None)
    direct, robust = evaluation.estimate("direct", "candidate"), evaluation.estimate("dr", "candidate")
    assert direct is not None
    assert robust is not None
    assert direct.value == pytest.approx(WORLD.value(candidate), abs=0.15)
    assert robust.value == pytest.approx(WORLD.value(candidate), abs=0.15)


def test_the_spread_of_an_ensemble_is_that_of_its_greedy_actions(replay: Replay) -> None:
    table, q = greedy(WORLD, 0.6), np.array([[1.0, 0.0]] * 4)
    spread = np.array([[0.5, 9.0]] * 4)
    ensemble = evaluate(replay, TablePolicy(table, q=q, spread=spread))
    single = evaluate(replay, TablePolicy(table, q=q))
    assert ensemble.q_claim is not None
    assert single.q_claim is not None
    assert ensemble.q_claim.disagreement == pytest.approx(0.5)
    assert single.q_claim.disagreement is None


def test_a_champion_that_wrote_the_gate_episodes_is_worth_their_plain_mean(replay: Replay) -> None:
    champion = TablePolicy(UNIFORM)
    evaluation = evaluate(
        replay, greedy(WORLD, 0.6), baseline=champion, baseline_wrote_gate=True, version_zero=champion
    )
    comparisons = [evaluation.comparison(name) for name in ("baseline", "version_zero")]
    assert [c.estimator for c in comparisons if c] == ["dr - on_policy"] * 2
    assert evaluation.baseline_source == "wrote_gate"
    assert [o.policy for o in evaluation.overlaps if o.decides] == ["candidate"]
    assert evaluation.largest_probability_change == pytest.approx(0.2)


def test_an_estimated_baseline_has_overlap_of_its_own(replay: Replay) -> None:
    baseline = TablePolicy(greedy(WORLD, 0.9))
    evaluation = evaluate(replay, greedy(WORLD, 0.6), baseline=baseline)
    comparison = evaluation.comparison("baseline")
    assert comparison is not None
    assert comparison.estimator == "dr - dr"
    assert comparison.value == pytest.approx(world_gain(WORLD, greedy(WORLD, 0.6), baseline.table), abs=0.15)
    assert [o.policy for o in evaluation.overlaps if o.decides] == ["candidate", "baseline"]


def test_candidate_equal_to_the_logging_policy_is_nothing_new(replay: Replay) -> None:
    decision = evaluate(replay, UNIFORM).decision
    assert decision is not None
    assert "something new" in [check.name for check in decision.failed_checks]


def test_models_never_see_the_fold_they_are_used_on(replay: Replay) -> None:
    fitted_on: list[set[str]] = []

    @dataclass(frozen=True)
    class Remembered(KnownModels):
        def held_out(self, evaluation_probs: NDArray[np.float64], held_probs: NDArray[np.float64]) -> HeldOutValues:
            fitted_on.append(set(self.fold.outside.episode_ids))
            return super().held_out(evaluation_probs, held_probs)

    gate = replay.of_split(GATE)
    clustered = replace(replay, clusters=replay.clusters // 3)
    folds = deal_folds(gate.clusters // 3, 3, seed=0)
    probs = greedy(WORLD, 0.6)[states_of(replay)]
    cross_fit(
        clustered, folds, {"candidate": probs, "baseline": probs}, Remembered, propensity=PropensityConfig(), seed=0
    )
    assert len(fitted_on) == 3  # one policy in two roles is fitted once
    for fold, seen in enumerate(fitted_on):
        of_judged = np.isin(clustered.clusters, gate.clusters[folds == fold] // 3)  # train episodes of theirs, too
        assert seen == set(replay.episode_ids[~of_judged])
        assert (of_judged & (replay.split == TRAIN)).any()
    for cluster in np.unique(gate.clusters // 3):
        assert len(np.unique(folds[gate.clusters // 3 == cluster])) == 1


def test_episodes_without_a_probability_are_left_out_and_charged(replay: Replay) -> None:
    probs = replay.behavior_prob.copy()
    first_gate = int(np.flatnonzero(replay.split == GATE)[0])
    probs[replay.offsets[first_gate]] = np.nan
    evaluation = evaluate(replace(replay, behavior_prob=probs), greedy(WORLD, 0.6))
    n_gate = int((replay.split == GATE).sum())
    assert evaluation.counts.n_episodes == n_gate - 1
    assert evaluation.counts.left_out["without behavior_prob"] == 1
    assert evaluation.counts.damaged_share == pytest.approx(1 / n_gate)


def test_damaged_episodes_count_against_the_candidate(replay: Replay) -> None:
    evaluation = evaluate(replay, greedy(WORLD, 0.6), excluded={"damaged": 60, "incomplete": 500})
    assert evaluation.counts.damaged_share == pytest.approx(60 / 2460)
    assert evaluation.decision is not None
    assert evaluation.decision.failed_checks[0].name == "damaged episodes"


def test_a_log_without_probabilities_decides_nothing(replay: Replay) -> None:
    blank = replace(replay, behavior_prob=np.full(replay.n_steps, np.nan))
    evaluation = evaluate(blank, greedy(WORLD, 0.6))
    assert evaluation.deciding_estimator is None
    on_policy = evaluation.estimate("on_policy", "log")
    assert on_policy is not None
    assert on_policy.value == pytest.approx(WORLD.value(UNIFORM), abs=0.1)


def test_products_decide_where_marginalized_weights_cannot_be_had(
    replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The rule looks at 300 steps outside the gate, all known; most of the others there are not.
    monkeypatch.setattr("reports.evaluation._MOST_RULE_STEPS", 300)
    order = np.random.default_rng(0).permutation(np.flatnonzero(replay.split != GATE))
    n_looked_at = int(np.searchsorted(np.cumsum(replay.lengths[order]), 300, side="right"))
    unknown = np.isin(replay.episode_of_step, order[n_looked_at:])
    blank = replace(replay, behavior_prob=np.where(unknown, np.nan, replay.behavior_prob))
    wanted = CONFIG.model_copy(update={"deciding": DecidingConfig(estimator="drl")})

    whole, partly = (evaluate(log, greedy(WORLD, 0.6), config=wanted) for log in (replay, blank))

    assert whole.deciding_estimator == "drl"
    assert partly.deciding_estimator in ("dr", None)
    assert partly.deciding_rule.endswith(
        "But too many behavior probabilities of the episodes that models are fitted on are unknown: there are no such "
        "weights, and products decide."
    )


def test_estimated_probabilities_are_labelled_and_serve(replay: Replay) -> None:
    text = CONTRACT + '[behavior]\npropensity = "estimated"\n'
    blank = replace(replay, contract=contract_from_text(text, "test"), behavior_prob=np.full(replay.n_steps, np.nan))
    evaluation = evaluate(blank, greedy(WORLD, 0.6))
    robust = evaluation.estimate("dr", "candidate")
    assert robust is not None
    assert robust.propensity == "estimated"
    assert robust.value == pytest.approx(WORLD.value(greedy(WORLD, 0.6)), abs=0.2)
    assert evaluation.propensities.kind == "estimated"


def test_one_step_episodes_work_the_same_way(replay: Replay) -> None:
    n = replay.n_steps
    one_step = replace(
        replay,
        offsets=np.arange(n + 1),
        terminated=np.ones(n, dtype=bool),
        next_row=np.full(n, -1),
        episode_ids=np.arange(n).astype(str).astype(object),
        clusters=np.arange(n),
        nights=np.repeat(replay.nights, replay.lengths),
        policy_versions=np.full(n, "", dtype=object),
        split=np.repeat(replay.split, replay.lengths),
    )
    candidate = greedy(WORLD, 0.6)
    evaluation = evaluate(one_step, candidate)
    gate = one_step.of_split(GATE)
    states = gate.observations.columns["state"]
    truth = float((candidate * WORLD.rewards)[states].sum(axis=1).mean())
    for name in ("is", "wis", "dr"):
        found = evaluation.estimate(name, "candidate")
        assert found is not None
        assert found.value == pytest.approx(truth, abs=0.05)


def test_truncated_episodes_are_named_in_the_estimand(replay: Replay) -> None:
    last = replay.offsets[1:] - 1
    terminated, truncated = replay.terminated.copy(), replay.truncated.copy()
    terminated[last[::2]], truncated[last[::2]] = False, True
    evaluation = evaluate(replace(replay, terminated=terminated, truncated=truncated), greedy(WORLD, 0.6))
    assert "are cut by the log" in evaluation.estimand
    assert evaluation.counts.n_truncated > 0


def test_nothing_in_the_gate_split_is_an_error(replay: Replay) -> None:
    with pytest.raises(EvaluationError, match="the gate split is empty"):
        evaluate(replace(replay, split=np.full(replay.n_episodes, TRAIN, dtype=np.int8)), UNIFORM)


def test_a_single_episode_in_all_is_an_error() -> None:
    one = make_replay(simulate(WORLD, UNIFORM, 1, np.random.default_rng(0)), UNIFORM)
    with pytest.raises(NothingToFitError, match="one cluster of gate episodes"):
        evaluate(replace(one, split=np.full(1, GATE, dtype=np.int8)), UNIFORM)


def test_a_policy_with_other_actions_is_refused(replay: Replay) -> None:
    other = replace(TablePolicy(UNIFORM), actions=("up", "down"))
    with pytest.raises(ValueError, match="The baseline's actions are"):
        evaluate(replay, UNIFORM, baseline=other)


def test_gamma_of_the_test_contract_is_that_of_the_world() -> None:
    assert contract_from_text(CONTRACT, "test").gamma == GAMMA


def test_changes_against_the_log_are_found_where_the_candidate_acts_otherwise() -> None:
    log = simulate(WORLD, UNIFORM, 600, np.random.default_rng(2))
    # It differs from the uniform logger in state 2 alone, by .45 of the probability.
    table = UNIFORM.copy()
    table[2] = [0.95, 0.05]
    evaluation = evaluate(make_replay(log, UNIFORM), TablePolicy(table, q=WORLD.q(table)))
    changes = evaluation.changes
    assert changes is not None
    assert changes.against == "log"
    assert changes.regions[0].share_of_all == pytest.approx(1.0)
    assert changes.regions[0].where.startswith("state = 2 in 100%")
    assert changes.regions[0].candidate_shares == pytest.approx({"left": 0.95, "right": 0.05})
    assert changes.features == ()  # one feature has nothing to be compared with
    for episode in changes.episodes:
        (peak,) = (step for step in episode.steps if step.step == episode.peak_step)
        assert peak.observation == {"state": "2"}
        assert peak.disagreement == pytest.approx(0.45)
        assert peak.baseline_probs == {}
    assert len({episode.episode_id for episode in changes.episodes}) == CONFIG.example_episodes
    assert evaluation_from_json(json.loads(json.dumps(evaluation_to_json(evaluation)))) == evaluation


def test_no_logged_row_is_kept_where_no_example_is_wanted() -> None:
    log = simulate(WORLD, UNIFORM, 300, np.random.default_rng(2))
    config = CONFIG.model_copy(update={"example_episodes": 0})
    evaluation = evaluate(make_replay(log, UNIFORM), TablePolicy(greedy(WORLD, 0.2)), config=config)
    assert evaluation.changes is not None
    assert evaluation.changes.episodes == ()
    assert evaluation.q_calibration is None


def test_own_values_of_the_truth_keep_their_word_in_the_evaluation() -> None:
    log = simulate(WORLD, UNIFORM, 1_500, np.random.default_rng(4))
    best = greedy(WORLD, 0.0)
    policy = TablePolicy(greedy(WORLD, 0.2), q=WORLD.q(best), spread=np.full((4, 2), 0.3))
    evaluation = evaluate(make_replay(log, UNIFORM), policy)
    calibration = evaluation.q_calibration
    assert calibration is not None
    assert calibration.excess is not None
    assert abs(calibration.excess) < 0.1
    assert [b.disagreement for b in calibration.bins] == pytest.approx([0.3] * len(calibration.bins))
