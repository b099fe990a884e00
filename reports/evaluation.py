"""The evaluation stage: a candidate on the gate episodes of a replay dataset, from policies to a decision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from datasets.errors import OfflineDqnError
from datasets.replay import GATE, Replay
from datasets.spreading import Spread, one_by_one
from offline_dqn.devices import one_thread
from offline_dqn.policy import Policy
from reports.assessment import DECIDING_RULE, assess, night_episodes_upper
from reports.calibration_line import line_of
from reports.crossfit import Fold, FoldFitter, behavior_outside, cross_fit, deal_folds, logged_ratios, step_probs
from reports.deciding import DecidingRule, choose_deciding
from reports.episode_terms import EpisodeTerms
from reports.estimators import Floats
from reports.evaluate_config import EvaluateConfig
from reports.explaining import explain_changes, explain_nights, explain_q
from reports.gate import GateConfig, decide
from reports.outcomes import asks_for_more_than_value, outcomes_of
from reports.overlap import PRODUCTS
from reports.overlap_regions import map_overlap
from reports.records import Counts, Evaluation, Freshness, Overlap, OverlapMap, PropensityReport
from reports.return_distribution import return_distributions
from reports.trial import Arm, Role, Trial, feasible_range, greedy_probs, masked, step_weights_of
from reports.uncounted import why_models_refuse, without_models
from reports.value_models import fold_fitter


class EvaluationError(OfflineDqnError):
    """There is nothing to evaluate on."""


@one_thread()
def evaluate_candidate(
    replay: Replay,
    *,
    candidate: Policy,
    baseline: Policy | None,
    version_zero: Policy | None,
    candidate_name: str,
    baseline_name: str,
    version_zero_name: str | None = None,
    baseline_wrote_gate: bool = False,
    version_zero_wrote_gate: bool = False,
    excluded: Mapping[str, int],
    config: EvaluateConfig,
    gate_config: GateConfig,
    seed: int,
    fit_models: FoldFitter | None = None,
    freshness: Freshness | None = None,
    explain: bool = True,
    on_terms: Callable[[Replay, EpisodeTerms], None] = lambda *_: None,
    spread: Spread = one_by_one,
) -> Evaluation:
    """Estimate the candidate's value on the gate episodes, compare it with what runs today, and decide.

    The same arguments give the same bits, whatever number of threads the process has; another kind of processor may
    round differently.

    Args:
        replay: every split; estimates use the gate episodes alone, models also what lies outside a fold.
        candidate: the policy on trial, exactly as it would act.
        baseline: what runs today; None for the logging policy, whose value is the mean return of the log.
        version_zero: the rule the workspace started with; None leaves that comparison out.
        candidate_name, baseline_name, version_zero_name: for the report.
        baseline_wrote_gate, version_zero_wrote_gate: whether exactly that policy logged every gate episode; then the
            mean of their returns is its value and nothing is weighted.
        excluded: episodes left out of `replay`, by reason; those under "damaged" are charged by the gate.
        config: estimators, folds, fitted Q evaluation.
        gate_config: when the candidate passes.
        seed: of folds, fits and bootstrap.
        fit_models: prepares the models of a fold; as `reports.value_models` says with `config.fqe` by default.
        explain: whether to add what a reviewer looks at and no check asks for: what the candidate changes, how its
            Q-values keep their word, and where in the features the log shows too little.
        freshness: whether newer nights are like the gate episodes; None where nobody looked.
        on_terms: is given the episodes that were judged and the deciding estimator's terms of each.
        spread: works out the folds.

    Raises:
        EvaluationError: if no gate episode can be used.
        ValueError: if a policy's actions are not the contract's.
    """
    policies: dict[Role, Policy] = {"candidate": candidate}
    if baseline is not None:
        policies["baseline"] = baseline
    if version_zero is not None:
        policies["version_zero"] = version_zero
    for role, policy in policies.items():
        if policy.actions != replay.contract.actions.names:
            raise ValueError(f"The {role}'s actions are {policy.actions}, not {replay.contract.actions.names}.")
    replay, n_unknown = _with_known_probabilities(replay.shielded())
    gate = replay.of_split(GATE)
    if gate.n_episodes == 0:
        raise EvaluationError(
            f"None of {replay.n_episodes} episodes can be evaluated: the gate split is empty. Wait for more nights, or "
            "raise the gate's share in [snapshot]."
        )
    if version_zero is baseline and baseline is not None:
        version_zero_wrote_gate = baseline_wrote_gate
    wrote_gate = {"baseline": baseline_wrote_gate, "version_zero": version_zero_wrote_gate}
    fit_models = fit_models or fold_fitter(replay, config.fqe)
    probs_of = {id(policy): step_probs(policy, replay) for policy in policies.values()}
    probs: dict[Role, Floats] = {role: probs_of[id(policy)] for role, policy in policies.items()}
    on_gate = (replay.split == GATE)[replay.episode_of_step]
    rule = _deciding_rule(replay, probs["candidate"], fit_models, config, gate_config, gate.n_episodes, seed)
    uncounted = why_models_refuse(gate)
    if uncounted is not None:
        rule = DecidingRule("dr", 0, None, f"But {uncounted}.")
    own_q = candidate.q_values(replay.observations.take(np.arange(replay.n_steps)))
    greedy = None
    if own_q is not None and rule.estimator == "drl" and np.all(np.isfinite(own_q)):
        greedy = greedy_probs(np.asarray(own_q), replay.permitted[: replay.n_steps])
    modelled: dict[str, Floats] = {str(role): p for role, p in probs.items() if not wrote_gate.get(role, False)}
    folds = deal_folds(gate.clusters, config.n_folds, seed)
    fitted = cross_fit(
        replay,
        folds,
        modelled if greedy is None else {**modelled, "greedy": greedy},
        fit_models,
        propensity=config.propensity,
        seed=seed,
        spread=spread,
    )
    arms = {
        role: Arm(
            probs=p[on_gate],
            q=fitted.q.get(role),
            model_error=fitted.model_errors.get(role),
            state_weights=fitted.state_weights.get(role),
        )
        for role, p in probs.items()
    }
    rule = _what_can_decide(rule, fitted.state_weights, gate)
    reward, gamma = replay.contract.reward, replay.contract.gamma
    trial = Trial(
        names=replay.contract.actions.names,
        actions=gate.actions,
        rewards=gate.rewards,
        available=gate.available[: gate.n_steps],
        permitted=gate.permitted[: gate.n_steps],
        behavior_probs=fitted.behavior_probs,
        propensity_kind=replay.contract.behavior.propensity,
        offsets=gate.offsets,
        clusters=gate.clusters,
        nights=gate.nights,
        truncated=gate.truncated[gate.offsets[1:] - 1],
        gamma=gamma,
        feasible=feasible_range(reward.min, reward.max, gamma, int(replay.lengths.max())),
        largest_reward=reward.max,
        candidate=arms["candidate"],
        baseline=arms.get("baseline"),
        version_zero=arms.get("version_zero"),
        version_zero_is_log=version_zero_wrote_gate,
        policy_versions=gate.policy_versions,
        outcomes=outcomes_of(gate) if asks_for_more_than_value(gate.contract) or gate.contract.forbids else None,
        own_q=None if own_q is None else np.asarray(own_q, dtype=np.float64)[on_gate],
        greedy=None
        if greedy is None
        else Arm(probs=greedy[on_gate], q=fitted.q["greedy"], state_weights=fitted.state_weights.get("greedy")),
        deciding=rule.estimator,
        window=rule.window,
    )
    found = assess(trial, config, gate_config, np.random.default_rng(seed))
    if uncounted is not None:
        found = without_models(found, uncounted)
    on_terms(gate, found.terms)
    distributions = return_distributions(
        trial,
        step_weights_of(trial).product.get("candidate") if found.propensities.refused is None else None,
        _why_products_fail(found.overlaps, found.propensities),
        level=config.level,
        rng=np.random.default_rng(seed),
    )
    evaluation = Evaluation(
        estimand=_estimand(trial),
        candidate_name=candidate_name,
        baseline_name=baseline_name,
        baseline_source="log" if baseline is None else "wrote_gate" if baseline_wrote_gate else "estimated",
        version_zero_name=None if version_zero is None else version_zero_name or "version 0",
        deciding_estimator=found.deciding_estimator,
        deciding_rule=f"{DECIDING_RULE} {rule.says}",
        estimates=found.estimates,
        comparisons=found.comparisons,
        agreement=found.agreement,
        overlaps=found.overlaps,
        propensities=found.propensities,
        q_claim=found.q_claim and replace(found.q_claim, disagreement=_disagreement(candidate, gate, trial)),
        design_effects=found.design_effects,
        action_shares=found.action_shares,
        bounds=found.bounds,
        return_distributions=distributions,
        sensitivity=found.sensitivity,
        safety=found.safety,
        slices=found.slices,
        feasible=trial.feasible,
        counts=_counts(replay, gate, excluded, n_unknown, gate_config.alpha),
        largest_probability_change=_largest_change(trial),
        gamma=gamma,
        alpha=gate_config.alpha,
        level=config.level,
        n_replicates=found.n_replicates,
        n_folds=int(folds.max()) + 1,
        seed=seed,
        config={"evaluate": config.model_dump(mode="json"), "gate": gate_config.model_dump(mode="json")},
        freshness=freshness,
    )
    evaluation = replace(evaluation, decision=decide(evaluation, gate_config), calibration=line_of(evaluation))
    if not explain:
        return evaluation
    return replace(
        evaluation,
        overlap_map=_overlap_map(trial, gate, gate_config) if found.deciding_estimator is not None else None,
        changes=explain_changes(replay, gate, trial, candidate, n_examples=config.example_episodes, seed=seed),
        night_drift=explain_nights(replay, gate),
        q_calibration=explain_q(gate, trial, candidate, level=config.level, refused=found.propensities.refused),
    )


def _with_known_probabilities(replay: Replay) -> tuple[Replay, int]:
    """The replay without gate episodes that lack a behavior probability, and how many those are.

    Where none is logged at all, the episodes stay: their returns are still what the log earned.
    """
    if replay.contract.behavior.propensity == "estimated" or np.all(np.isnan(replay.behavior_prob)):
        return replay, 0
    unknown = np.bincount(replay.episode_of_step, weights=np.isnan(replay.behavior_prob)) > 0
    left_out = unknown & (replay.split == GATE)
    return (replay.subset(~left_out), int(left_out.sum())) if left_out.any() else (replay, 0)


_MOST_RULE_STEPS = 60_000
"""Steps outside the gate that the rule looks at: what policies do there is known from fewer than all."""


def _deciding_rule(
    replay: Replay,
    probs: Floats,
    fit_models: FoldFitter,
    config: EvaluateConfig,
    gate_config: GateConfig,
    n_gate_episodes: int,
    seed: int,
) -> DecidingRule:
    """The estimator that decides, by what candidate and log do on the episodes outside the gate."""
    outside = replay.split != GATE
    if not outside.any():
        return DecidingRule("dr", 0, None, "No episode lies outside the gate to look at.")
    order = np.random.default_rng(seed).permutation(np.flatnonzero(outside))
    n_looked_at = max(1, int(np.searchsorted(np.cumsum(replay.lengths[order]), _MOST_RULE_STEPS, side="right")))
    looked_at = np.zeros(replay.n_episodes, dtype=bool)
    looked_at[order[:n_looked_at]] = True
    fold = Fold(replay, ~looked_at, looked_at, seed)
    behavior_probs = behavior_outside(fold, config.propensity)
    ratios, weights = np.ones(fold.outside.n_steps), None
    if behavior_probs is not None:
        ratios = logged_ratios(probs[fold.outside_steps], fold.outside.actions, behavior_probs)
        if fold.outside.lengths.max() > 1:
            weights = fit_models(fold).state_weights(ratios, outside=True)
    return choose_deciding(
        ratios,
        weights,
        fold.outside.offsets,
        replay.contract.gamma,
        n_gate_episodes=n_gate_episodes,
        largest_share=gate_config.overlap.largest_share,
        config=config.deciding,
    )


def _what_can_decide(rule: DecidingRule, state_weights: Mapping[str, Floats], gate: Replay) -> DecidingRule:
    """Products where no visits of states could be modelled after all: for want of probabilities, not by any reward.

    The rule looks at a sample of the episodes outside the gate, and more behavior probabilities may be unknown among
    all of them.
    """
    if rule.estimator == "dr" or (state_weights and gate.lengths.max() > 1):
        return rule
    why = (
        "too many behavior probabilities of the episodes that models are fitted on are unknown"
        if not state_weights
        else "every gate episode has one step"
    )
    return replace(
        rule, estimator="dr", window=0, says=f"{rule.says} But {why}: there are no such weights, and products decide."
    )


def _disagreement(candidate: Policy, gate: Replay, trial: Trial) -> float | None:
    """Mean over the gate steps of the greedy action's spread over the candidate's networks, in reward units."""
    spread = candidate.disagreement(gate.observations.take(np.arange(gate.n_steps)))
    if spread is None or trial.own_q is None:
        return None
    greedy = masked(trial.own_q, trial.allowed).argmax(axis=1)
    return float(spread[np.arange(gate.n_steps), greedy].mean())


def _overlap_map(trial: Trial, gate: Replay, config: GateConfig) -> OverlapMap:
    return map_overlap(
        gate.contract,
        gate.observations.take(np.arange(gate.n_steps)),
        probs=trial.candidate.probs,
        actions=trial.actions,
        behavior_probs=trial.behavior_probs,
        clusters=trial.clusters,
        offsets=trial.offsets,
        n_nights=len(np.unique(trial.nights)),
        smallest_sample_size=config.overlap.smallest_sample_size,
        products=trial.deciding == "dr",
    )


def _largest_change(trial: Trial) -> float | None:
    """Largest change of an action probability; against an unknown logging policy, of the logged actions alone."""
    if trial.baseline is not None:
        return float(np.abs(trial.candidate.probs - trial.baseline.probs).max())
    if trial.propensity_kind == "estimated" or not np.any(np.isfinite(trial.behavior_probs)):
        return None
    taken = trial.candidate.probs[np.arange(len(trial.actions)), trial.actions]
    return float(np.nanmax(np.abs(taken - trial.behavior_probs)))


def _why_products_fail(overlaps: tuple[Overlap, ...], propensities: PropensityReport) -> str | None:
    """Why whole episodes of the candidate cannot be weighted; None where they can."""
    of_candidate = (o.refused for o in overlaps if o.policy == "candidate" and o.weights == PRODUCTS)
    return propensities.refused or next(of_candidate, "there are no products of ratios")


def _counts(replay: Replay, gate: Replay, excluded: Mapping[str, int], n_unknown: int, alpha: float) -> Counts:
    damaged = excluded.get("damaged", 0)
    kept = (1 - damaged / (replay.n_episodes + n_unknown + damaged)) * (1 - n_unknown / (gate.n_episodes + n_unknown))
    left_out = dict(excluded) | ({"without behavior_prob": n_unknown} if n_unknown else {})
    return Counts(
        n_episodes=gate.n_episodes,
        n_steps=gate.n_steps,
        n_clusters=len(np.unique(gate.clusters)),
        n_nights=len(np.unique(gate.nights)),
        n_truncated=int(gate.truncated[gate.offsets[1:] - 1].sum()),
        n_fitting_episodes=replay.n_episodes - gate.n_episodes,
        left_out=left_out,
        damaged_share=1 - kept,
        mean_length=float(gate.lengths.mean()),
        median_length=float(np.median(gate.lengths)),
        longest_length=int(gate.lengths.max()),
        night_episodes_upper=night_episodes_upper(replay.nights, alpha) / kept,
    )


def _estimand(trial: Trial) -> str:
    words = (
        f"The expected return of one episode, discounted by {trial.gamma:g} per step, until the episode ends as the "
        "log ends it, in reward units."
    )
    share = float(trial.truncated.mean())
    if share > 0:
        words += (
            f" {share:.0%} of the episodes are cut by the log and not ended: every "
            "estimate counts the return up to the cut, while the policy's own Q-values look beyond it."
        )
    return words
