"""Every number of the report, defined once, with the function that computes it."""

from __future__ import annotations

from dataclasses import dataclass

from offline_dqn.metrics import METRICS


@dataclass(frozen=True)
class Term:
    """A number: its key in links, its name, what it means, and the dotted name of what computes it."""

    key: str
    name: str
    meaning: str
    computed_by: str


@dataclass(frozen=True)
class TermGroup:
    """Terms that belong together."""

    title: str
    terms: tuple[Term, ...]


UNSEEN = ("td_loss", "learning_rate", "updates_per_s")
"""Metrics of training that the report leaves to MLflow and TensorBoard."""

GLOSSARY: tuple[TermGroup, ...] = (
    TermGroup(
        "Verdict",
        (
            Term(
                "check",
                "check",
                "A condition of the release gate. The gate passes only if every check does.",
                "reports.gate.decide",
            ),
            Term(
                "difference",
                "paired difference",
                "Value of the candidate minus value of the baseline on the same episodes: what both share cancels.",
                "reports.assessment.assess",
            ),
            Term(
                "lower_bound",
                "one-sided bound",
                "The difference lies above it with confidence 1 − alpha. The gate asks whether it is above −margin.",
                "reports.intervals.lower_bound",
            ),
            Term(
                "alpha",
                "alpha and margin",
                "Chance per reading of passing a candidate that is worse by the margin, and that margin.",
                "reports.gate.GateConfig",
            ),
            Term(
                "calibrated_rate",
                "how often the gate errs",
                "Share of simulated logs in which a candidate that is worse by exactly the margin passed, in the "
                "simulated world most like this log in episode length, episodes, overlap and deciding estimator.",
                "reports.calibration_line.fitting_line",
            ),
            Term(
                "certified_share",
                "certified share",
                "Largest share of the traffic whose worst plausible loss in one night stays within the harm budget.",
                "reports.certified.largest_share",
            ),
            Term(
                "certified_curve",
                "risk by share of traffic",
                "Share of traffic × episodes of a night, at most × largest plausible loss per episode, against the "
                "harm budget of a night.",
                "reports.certified.certified_curve",
            ),
            Term(
                "night_episodes",
                "episodes of a night, at most",
                "Upper bound of the number of episodes that start in one more night; the certified share assumes it.",
                "reports.assessment.night_episodes_upper",
            ),
            Term(
                "damaged_share",
                "damaged episodes",
                "Share of episodes with a quarantined, missing or conflicting row, or without a needed probability. "
                "They stay out whole, and the gate charges them at the worst feasible difference.",
                "datasets.snapshot.SnapshotSummary.damaged_share",
            ),
        ),
    ),
    TermGroup(
        "Value",
        (
            Term(
                "policy_value",
                "policy value",
                "Expected discounted return of an episode in which the policy acts, in reward units.",
                "reports.evaluation.evaluate_candidate",
            ),
            Term(
                "interval",
                "interval",
                "Percentiles of a bootstrap that draws whole clusters, all estimates on the same draws. The setting "
                "evaluate.interval shows another method in its place.",
                "reports.intervals.percentile_interval",
            ),
            Term(
                "bounds_by_method",
                "bounds by method",
                "The deciding difference, bounded in several ways: how much hangs on the way it is bounded.",
                "reports.bounds_by_method.bounds_by_method",
            ),
            Term(
                "studentized",
                "studentized bootstrap",
                "Each draw is divided by its own standard error: errs least where returns are skewed.",
                "reports.studentized.studentized_bounds",
            ),
            Term(
                "bca",
                "BCa bootstrap",
                "Percentiles of the draws, moved for bias and for a spread that grows with the value.",
                "reports.studentized.bca_bounds",
            ),
            Term(
                "student_t",
                "Student t",
                "Value and standard error between clusters, as if the estimate were normal.",
                "reports.intervals.student_t_bounds",
            ),
            Term(
                "hoeffding",
                "Hoeffding's bound",
                "From the range that a term can have at all, by contract and policy. Right at any number of episodes.",
                "reports.concentration.hoeffding_bounds",
            ),
            Term(
                "empirical_bernstein",
                "empirical Bernstein bound",
                "From that range and the variance seen. Right at any number of episodes, narrower where little varies.",
                "reports.concentration.empirical_bernstein_bounds",
            ),
            Term(
                "clipped_weights",
                "bound for clipped weights",
                "Weighted returns, counted from the smallest feasible one, are cut off above a threshold. That "
                "only widens the bound, which needs no largest possible weight.",
                "reports.concentration.clipped_bounds",
            ),
            Term(
                "on_policy",
                "return of the log",
                "Mean discounted return of the logged episodes: the value of whatever wrote them.",
                "reports.estimators.on_policy_returns",
            ),
            Term(
                "dr",
                "doubly robust (DR)",
                "Model value plus weighted corrections by what was logged; right if the model or the weights are. "
                "The model of an episode is fitted on other episodes.",
                "reports.estimators.doubly_robust",
            ),
            Term(
                "wdr",
                "weighted doubly robust (WDR)",
                "DR with weights that are normalized step by step.",
                "reports.estimators.weighted_doubly_robust",
            ),
            Term(
                "magic",
                "MAGIC",
                "A blend of the direct method, of WDR, and of what lies between: corrected by the log up to some step, "
                "by the model from there on. Shares are chosen for the least expected squared error.",
                "reports.magic.magic",
            ),
            Term(
                "switch_dr",
                "Switch-DR",
                "DR where the weight is below a threshold, the model alone above it; logs of one step only. The "
                "threshold for an episode is chosen on other clusters: the lowest at which no bias shows.",
                "reports.one_step.switch_doubly_robust",
            ),
            Term(
                "dros",
                "doubly robust with optimistic shrinkage (DRos)",
                "DR with weights w shrunk to s w / (w² + s); logs of one step only. The strength s for an episode is "
                "chosen on other clusters: the smallest at which no bias shows.",
                "reports.one_step.shrunk_doubly_robust",
            ),
            Term(
                "direct",
                "direct method",
                "What a fitted model of the policy's values says on its own. Its interval holds the luck of the fit "
                "and the spread of several fits, not what the model cannot express.",
                "offline_dqn.fqe_ensemble.FqeEnsemble",
            ),
            Term(
                "is",
                "importance sampling (IS)",
                "Mean of returns times episode weights; where every episode is one step, IPS.",
                "reports.estimators.importance_sampling",
            ),
            Term(
                "wis",
                "weighted importance sampling (WIS)",
                "The same, divided by the sum of weights; where every episode is one step, SNIPS.",
                "reports.estimators.weighted_importance_sampling",
            ),
            Term(
                "pdis",
                "per-decision importance sampling (PDIS)",
                "Each reward is weighted only by the decisions before it.",
                "reports.estimators.per_decision",
            ),
            Term(
                "wpdis",
                "weighted per-decision importance sampling (WPDIS)",
                "PDIS with normalized weights; ended episodes hold their last weight.",
                "reports.estimators.weighted_per_decision",
            ),
            Term(
                "mis",
                "marginalized importance sampling (MIS)",
                "Each reward is weighted by how much more often the policy visits the step's state, times the step's "
                "own ratio, in place of the product of all ratios before it.",
                "reports.estimators.windowed_log_weights",
            ),
            Term(
                "drl",
                "double reinforcement learning (DRL)",
                "DR with the weights of marginalized importance sampling; the models of an episode never saw it.",
                "reports.estimators.doubly_robust",
            ),
            Term(
                "window",
                "DR within a window",
                "DR with exact products of the last few ratios and marginalized weights before them: checks DRL.",
                "reports.estimators.windowed_log_weights",
            ),
            Term(
                "agreement",
                "agreement",
                "Deciding minus checking estimator on the same episodes; its interval must contain 0. Where "
                "marginalized weights decide, the bounds hold for both, and half the deciding interval is allowed.",
                "reports.assessment.assess",
            ),
            Term(
                "feasible",
                "feasible range",
                "Smallest and largest return that rewards within the contract's range can add up to.",
                "reports.trial.feasible_range",
            ),
            Term(
                "design_effect",
                "design effect",
                "Variance of the difference with a larger unit (a night) as independent over that with a smaller one.",
                "reports.dependence.design_effect",
            ),
            Term(
                "backtest",
                "backtest",
                "A policy version estimated from another's episodes of the same nights, beside its own mean return: "
                "covered where the interval of the difference holds 0.",
                "reports.backtest.backtest",
            ),
            Term(
                "placebo",
                "placebo",
                "Share of random halves of the log whose mean returns, in truth equal, differ by a studentized lower "
                "bound above 0; alpha may. It tests the bound on this log's returns, clusters and nights, not the "
                "weights of the gate's estimator.",
                "reports.placebo.placebo",
            ),
            Term(
                "promise",
                "promise",
                "Lower end of a promoted release's value. Kept or broken once a confidence sequence of what it has "
                "earned since lies above or below; it may be read every night.",
                "reports.promises.judge_promise",
            ),
            Term(
                "return_quantile",
                "quantile of the return",
                "Return that a share of the policy's episodes does not exceed. Of the candidate by weighted episodes, "
                "or doubly robust with a model of the return; where products of weights lack overlap there is none.",
                "reports.return_distribution.return_distributions",
            ),
            Term(
                "tail_mean",
                "mean of the worst episodes (CVaR)",
                "Mean return of the worst 5 % or 25 % of the policy's episodes, estimated like the quantiles.",
                "reports.return_distribution.tail_mean",
            ),
            Term(
                "q_claim",
                "Q-values against evaluation",
                "What the policy's own Q-values promise at the first step. Above what the log supports is suspicious; "
                "below is normal, because the penalty makes them cautious.",
                "reports.assessment.assess",
            ),
        ),
    ),
    TermGroup(
        "What else the contract asks",
        (
            Term(
                "breach_rate",
                "breach rate",
                "Expected steps of an episode that breach a constraint over the expected steps, not discounted; of the "
                "candidate with the weights of the estimator that decides. Where the condition is null the step counts "
                "as a breach, except for want of a next observation at an episode's end, where it counts neither way.",
                "reports.safety.rate_of",
            ),
            Term(
                "breach_bound",
                "upper bound of a breach rate",
                "The candidate's rate lies below it with confidence 1 − alpha / number of constraints. It is never 0: "
                "0 breaches seen in n effective clusters still leave about 3/n at 95%. It may be at most the limit.",
                "reports.safety.rate_upper_bound",
            ),
            Term(
                "success_rate",
                "success rate",
                "Share of steps that the contract calls a success, estimated like a breach rate, with null as no "
                "success. It binds only where gate.success_margin is set.",
                "reports.safety.assess_safety",
            ),
            Term(
                "forbidden",
                "forbidden actions",
                "Actions that a constraint takes away before the policy chooses. What is evaluated acts behind the "
                "same shield, so that their probability is 0.",
                "datasets.step_rules.permitted_actions",
            ),
            Term(
                "slice_value",
                "difference by slice",
                "Paired difference over the episodes whose first step lies in the slice, with bounds that hold for all "
                "slices at once, each at alpha over their number. The gate refuses where an upper bound is below "
                "−gate.slice_margin, or where no slice has one.",
                "reports.slices.assess_slices",
            ),
            Term(
                "shrunk_value",
                "shrunk difference",
                "The difference of a slice drawn toward that of its column, the more the less is known of the slice: "
                "the better guess, but no bound.",
                "reports.slices.shrink",
            ),
        ),
    ),
    TermGroup(
        "Can the log tell?",
        (
            Term(
                "mean_weight",
                "mean weight",
                "Mean of the episode weights; 1 if the log covers everything that the policy does.",
                "reports.overlap.measure_overlap",
            ),
            Term(
                "effective_sample_size",
                "effective sample size",
                "How many episodes of the policy itself the weighted log is worth: (Σw)² / Σw².",
                "reports.estimators.effective_sample_size",
            ),
            Term(
                "tail_index",
                "tail index",
                "How heavy the tail of the influence terms is; above 0.7 their mean is not to be trusted.",
                "reports.overlap.pareto_tail_index",
            ),
            Term(
                "largest_share",
                "largest influence",
                "Share of the most influential episode in the sum of squared influence.",
                "reports.overlap.largest_influence_share",
            ),
            Term(
                "propensity",
                "propensity check",
                "1[A = a] / p, averaged over the steps where action a was available: 1 if the probabilities are right. "
                "Where several policy versions wrote the log, each is checked on its own steps too.",
                "reports.propensity.check_propensities",
            ),
            Term(
                "effective_events",
                "rare events",
                "How many equal rare events would skew the candidate's difference as much as its influence terms are: "
                "n over the squared skewness. Below 28 a bound may miss.",
                "reports.overlap.effective_events",
            ),
            Term(
                "overlap_region",
                "where the log shows too little",
                "Regions of the features in which the ratio of candidate to log, which has mean 1 where the log takes "
                "all that the candidate does, falls short of 1, or costs more logged steps than the gate can afford.",
                "reports.overlap_regions.map_overlap",
            ),
            Term(
                "sensitivity",
                "if the probabilities are wrong",
                "The factor by which the odds p / (1 − p) of logged actions would have to be off, each in the "
                "direction that does most harm, before the bound on the difference no longer clears the margin.",
                "reports.sensitivity.measure_sensitivity",
            ),
            Term(
                "coverage",
                "coverage",
                "Share of the pairs of a region of observations and an action available there that are not thin. "
                "Regions are clusters or grid cells of encoded observations, fitted on the training split.",
                "datasets.coverage.measure_coverage",
            ),
            Term(
                "thin",
                "thin",
                "An action that was logged in fewer training steps of a region than configured: what a policy does "
                "with it there rests on other regions.",
                "datasets.coverage.measure_coverage",
            ),
            Term(
                "action_share",
                "action shares",
                "Average probability with which a policy takes each action on the gate episodes; counted for the log.",
                "reports.assessment.assess",
            ),
        ),
    ),
    TermGroup(
        "What changes?",
        (
            Term(
                "disagreement",
                "disagreement",
                "Probability that the candidate moves to other actions than the baseline: half the sum of absolute "
                "differences of the action probabilities, averaged over steps.",
                "reports.changes.disagreement_with_policy",
            ),
            Term(
                "disagreement_with_log",
                "disagreement with the log",
                "Change of the logged action's probability: at most the disagreement, as the log tells no other one.",
                "reports.changes.disagreement_with_log",
            ),
            Term(
                "feature_effect",
                "effect of a feature",
                "What the decisions lose when one feature's values are dealt anew among the steps. Of two features "
                "that say the same, each looks weaker than it is.",
                "reports.feature_effects.feature_effects",
            ),
            Term(
                "q_calibration",
                "Q-calibration",
                "Own Q-value of the best action against the same value corrected by the weighted prediction errors of "
                "the next logged steps, as far ahead as the log covers the greedy policy.",
                "reports.q_calibration.calibrate_q",
            ),
            Term(
                "ensemble",
                "ensemble disagreement",
                "Standard deviation of the best action's value over the networks of an ensemble, in reward units.",
                "offline_dqn.q_policy.QPolicy.disagreement",
            ),
        ),
    ),
    TermGroup(
        "Training",
        (
            *(Term(m.name, m.title, m.meaning, m.computed_by) for m in METRICS if m.name not in UNSEEN),
            Term(
                "selection_bound",
                "how candidates were compared",
                "Lower bound of a candidate's value above the baseline's, before any meets the gate: by a model of the "
                "values in which training episodes count less than those of select, or by doubly robust weighting on "
                "select where the log covers the candidate and weighting is more precise or contradicts the model.",
                "reports.selection.select_candidate",
            ),
            Term(
                "unusable_steps",
                "unusable steps",
                "Truncated steps after which nothing is known: no target can be made, and they are not the end either.",
                "offline_dqn.training_data.usable_steps",
            ),
        ),
    ),
    TermGroup(
        "Drift",
        (
            Term(
                "psi",
                "PSI",
                "Population stability index of reference and live window, in nats: KL(live ‖ reference) + "
                "KL(reference ‖ live) on shared bins.",
                "drift.divergence.population_stability_index",
            ),
            Term(
                "guard",
                "guard",
                "Share of steps at which version 0 acts in the candidate's place: the observation lies outside the "
                "training data, too much of it is missing or new, or an ensemble disagrees. Part of every value here.",
                "reports.guard_report.report_guard",
            ),
            Term(
                "freshness",
                "newer nights",
                "Whether the nights after those that judged are like them: the column nearest to drift, by PSI over "
                "its threshold.",
                "pipelines.live_nights.freshness",
            ),
            Term(
                "night_psi",
                "PSI night by night",
                "PSI of one night's gate episodes against those the candidate was fitted on, beside what chance "
                "explains 99 times in 100 were each cluster one row. It knows nothing of shocks that a night shares.",
                "drift.nights.psi_by_night",
            ),
            Term(
                "psi_threshold",
                "allowed PSI",
                "What unchanged nights exceed in no column at the promised false-alarm rate, and at least the smallest "
                "size that matters.",
                "drift.null.psi_null",
            ),
            Term(
                "kl",
                "KL",
                "KL(live ‖ reference) in nats.",
                "drift.divergence.kl_divergence",
            ),
            Term(
                "kl_reverse",
                "reverse KL",
                "KL(reference ‖ live) in nats: large where live has lost what the reference holds, as KL is large "
                "where live has what the reference lacks.",
                "drift.divergence.kl_divergence",
            ),
            Term(
                "js",
                "Jensen-Shannon divergence",
                "Mean KL of both windows to their mixture, in nats; never above ln 2, and no empty bin makes it large.",
                "drift.divergence.js_divergence",
            ),
            Term(
                "wasserstein",
                "Wasserstein distance",
                "How far the values moved on average, in the column's own unit; numeric columns only.",
                "drift.divergence.wasserstein_distance",
            ),
            Term(
                "retrain",
                "retrain decision",
                "Whether drift, age, performance, a missing champion or a person asked for a new candidate.",
                "drift.decision.decide_retrain",
            ),
            Term(
                "drift_since",
                "since",
                "Of a drifted column the first night of that stretch up to the newest whose nights together differ "
                "most from the reference, in units of chance.",
                "drift.records.ColumnDrift",
            ),
            Term(
                "drift_nights",
                "drift night by night",
                "PSI of each night since the reference against it, beside what a night of so many episodes is "
                "allowed. Single nights only show; the live window and the stretches of nights decide.",
                "drift.records.NightlyDrift",
            ),
            Term(
                "joint_test",
                "joint test",
                "Whether the columns moved together in a way that none of them need show alone: can a classifier tell"
                " live rows from the reference, and how far apart are the windows in what pairs of columns do together "
                "(MMD).",
                "drift.records.JointDrift",
            ),
            Term(
                "slow_drift",
                "slow drift",
                "A column whose newest nights, put together, are beyond what as many unchanged nights show, though "
                "none of them need stand out alone.",
                "drift.records.SlowDrift",
            ),
            Term(
                "drift_effect",
                "effect of drift",
                "What a drifted column does to the champion: its action shares, estimated value and overlap on live "
                "episodes, against the same ones with the column put back to how the reference has it.",
                "drift.records.DriftEffect",
            ),
            Term(
                "suspicion",
                "suspicion",
                "A shift that looks like poisoned or gamed data: confined to few sources, one policy version or few "
                "episodes, or a reward that rises while a declared outcome falls. By default it holds the retrain for"
                " a person.",
                "drift.records.Suspicion",
            ),
        ),
    ),
    TermGroup(
        "Data",
        (
            Term(
                "expectation",
                "expectation",
                "A statement about the data that the contract implies, checked on the batch before it enters the lake.",
                "datasets.validation.validate_steps",
            ),
            Term(
                "account",
                "account of a batch",
                "in = lake + quarantined + duplicates + held + pending + erased: no row is lost.",
                "datasets.batches.BatchCounts",
            ),
            Term(
                "snapshot",
                "snapshot",
                "The replay dataset, frozen: complete, undamaged episodes, split by cluster into train, select, gate.",
                "datasets.freezing.freeze_snapshot",
            ),
        ),
    ),
)
