"""From the arrays of a trial to everything an evaluation says: estimates, comparisons, overlap, checks of the inputs.

Pure: models of the policies' values come in as arrays, fitted elsewhere on other episodes. The estimator that decides
comes in by name (`reports.deciding`); where the behavior probabilities are not usable, none does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from reports import estimators
from reports.beyond_value import assess_beyond_value
from reports.bounds_by_method import bounds_by_method, interval_by, refused_bounds
from reports.deciding import Deciding
from reports.dependence import design_effect
from reports.episode_terms import EpisodeTerms, terms_of
from reports.estimators import Floats, RatioSum
from reports.evaluate_config import AssessmentConfig
from reports.gate import GateConfig
from reports.intervals import (
    PERCENTILE,
    bootstrap,
    cluster_codes,
    lower_bound,
    percentile_interval,
    spanning,
    upper_bound,
)
from reports.magic import magic
from reports.model_error import model_noise
from reports.overlap import MARGINALIZED, PRODUCTS, measure_overlap
from reports.propensity import check_propensities
from reports.records import (
    ActionShares,
    Agreement,
    Bounds,
    Comparison,
    DesignEffect,
    Estimate,
    Interval,
    Overlap,
    PropensityReport,
    QClaim,
    Safety,
    Sensitivity,
    Slices,
)
from reports.resampling import Replicates
from reports.sensitivity import sensitivity_of
from reports.studentized import studentized_bounds
from reports.trial import NO_WEIGHTS, Role, StepWeights, Trial, estimators_of, masked, step_weights_of

DECIDING_RULE = (
    "Cross-fitted doubly robust estimation decides wherever the behavior probabilities are usable, with products of "
    "ratios where they are affordable and with marginalized weights where they are not; without probabilities nothing "
    "decides and the gate refuses. The rule is fixed before the gate episodes are read."
)

CHECKS = {"dr": "wpdis", "drl": "window"}
"""What each deciding estimator is checked against."""

_ONE_STEP = ("switch_dr", "dros")
_PRODUCTS = ("is", "wis", "pdis", "wpdis", "dr", "wdr", "magic")
_KINDS: tuple[Deciding, ...] = ("dr", "drl")
_MARGINAL = ("mis", "drl", "window")


@dataclass(frozen=True)
class Assessment:
    """What `assess` found, for `reports.evaluation` to put beside names, counts and settings."""

    deciding_estimator: str | None
    estimates: tuple[Estimate, ...]
    comparisons: tuple[Comparison, ...]
    agreement: Agreement
    overlaps: tuple[Overlap, ...]
    propensities: PropensityReport
    q_claim: QClaim | None
    design_effects: tuple[DesignEffect, ...]
    action_shares: tuple[ActionShares, ...]
    bounds: tuple[Bounds, ...]
    sensitivity: Sensitivity
    n_replicates: int
    safety: Safety | None
    slices: Slices | None
    terms: EpisodeTerms


def assess(trial: Trial, config: AssessmentConfig, gate: GateConfig, rng: np.random.Generator) -> Assessment:
    """Estimate, compare and check everything the gate asks about.

    Args:
        trial: episodes and policies.
        config: levels and replicates.
        gate: for alpha and the bounds on overlap.
        rng: draws the bootstrap.
    """
    arms = trial.arms
    step_clusters = np.repeat(cluster_codes(trial.clusters), np.diff(trial.offsets))
    propensities = check_propensities(
        trial.behavior_probs,
        trial.actions,
        trial.available,
        step_clusters,
        trial.names,
        kind=trial.propensity_kind,
        used_shares=np.max([arm.probs.mean(axis=0) for arm in arms.values()], axis=0),
        versions=None if trial.policy_versions is None else np.repeat(trial.policy_versions, np.diff(trial.offsets)),
        config=config.propensity,
    )
    weighted = propensities.refused is None
    weights = step_weights_of(trial) if weighted else NO_WEIGHTS
    sums = estimators_of(trial, weights, largest_step_table=config.largest_step_table)
    n_replicates = max(config.n_replicates, int(np.ceil(100 / gate.alpha)))
    differences = _differences(trial, sums)
    drawn: dict[str, Replicates] = {}
    if len(np.unique(trial.clusters)) > 1:
        # Further columns do not change the draws: intervals of plain estimators are the same whatever is asked beside.
        every = {**sums, **differences}
        bounding = [name for name in differences if not name.startswith("direct")]
        drawn = bootstrap(
            every,
            trial.clusters,
            n_replicates=n_replicates,
            rng=rng,
            with_errors=every if config.interval == "studentized" else bounding,
        )
        known = {str(role): arm.model_error for role, arm in arms.items() if arm.model_error is not None}
        for role, noise in model_noise(known, n_replicates, rng.spawn(1)[0]).items():
            plain = drawn[f"direct/{role}"]
            drawn[f"direct/{role}"] = replace(plain, values=plain.values + noise)
    report = _Reporter(trial, config, gate, propensities, weights, sums, differences, drawn)
    overlaps = tuple(report.overlap(role, kind) for kind in _KINDS for role in arms if role in weights.of(kind))
    estimates = report.estimates(overlaps)
    if weighted and drawn:
        of_products = {o.policy: o.refused for o in overlaps if o.weights == PRODUCTS}
        estimates = (*estimates, report.magic(of_products.get("candidate"), rng))
    comparisons = report.comparisons(estimates)
    against_baseline = next(c for c in comparisons if c.against == "baseline" and c.binding)
    design_effects = report.design_effects(rng.spawn(1)[0]) if weighted else ()
    safety, slices = assess_beyond_value(
        trial,
        weights.of(trial.deciding),
        report.deciding_differences() if weighted else None,
        refusals={o.policy: o.refused for o in overlaps if (o.weights == PRODUCTS) == (trial.deciding == "dr")},
        difference_refused=against_baseline.refused,
        gate=gate,
        level=config.level,
        n_replicates=n_replicates,
        rng=rng.spawn(1)[0],
    )
    return Assessment(
        deciding_estimator=trial.deciding if weighted else None,
        estimates=estimates,
        comparisons=comparisons,
        agreement=report.agreement(estimates),
        overlaps=overlaps,
        propensities=propensities,
        q_claim=report.q_claim(),
        design_effects=design_effects,
        action_shares=_action_shares(trial),
        bounds=report.bounds(against_baseline, rng.spawn(1)[0]),
        sensitivity=sensitivity_of(
            trial, weights.of(trial.deciding), against_baseline, gate.margin, products=trial.deciding == "dr"
        ),
        n_replicates=n_replicates,
        safety=safety,
        slices=slices,
        terms=terms_of(trial, sums, trial.deciding if weighted else None),
    )


def night_episodes_upper(nights: NDArray[Any], alpha: float) -> float:
    """Upper bound at confidence 1 - alpha of the number of episodes that start in one more night.

    From (N,) nights of past episodes: a t prediction bound, at least the largest night seen; from a single night the
    Poisson bound, which takes episodes to come independently.
    """
    counts = np.unique(nights, return_counts=True)[1].astype(np.float64)
    if len(counts) == 1:
        rate = stats.chi2.ppf(1 - alpha / 2, 2 * (counts[0] + 1)) / 2
        return float(stats.poisson.ppf(1 - alpha / 2, rate))
    spread = float(counts.std(ddof=1)) * np.sqrt(1 + 1 / len(counts))
    return max(float(counts.max()), float(counts.mean() + stats.t.ppf(1 - alpha, len(counts) - 1) * spread))


@dataclass(frozen=True)
class _Reporter:
    """Turns estimators and their shared replicates into records."""

    trial: Trial
    config: AssessmentConfig
    gate: GateConfig
    propensities: PropensityReport
    weights: StepWeights
    sums: Mapping[str, RatioSum]
    differences: Mapping[str, RatioSum]
    """By "ours - theirs", the deciding one first."""
    drawn: Mapping[str, Replicates]

    def overlap(self, role: Role, kind: Deciding) -> Overlap:
        """How well the log covers a policy, by products of ratios ("dr") or by marginalized weights ("drl")."""
        mean = f"weight/{role}" if kind == "dr" else f"balance/{role}"
        terms = self.sums[f"{kind}/{role}"].terms
        if role == "candidate":  # what decides is its difference to the baseline
            terms = terms - self.sums[self._value_of("baseline", kind)].terms
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            influence = terms - terms.mean()
            whole = estimators.episode_log_weights(self.weights.product[role], self.trial.offsets)
            if kind == "drl":
                whole = np.log(np.maximum(self.sums[mean].terms, 0.0))
        return measure_overlap(
            role,
            whole,
            influence,
            self.sums[mean].value,
            self._percentile(mean, self.gate.overlap.mean_weight_level),
            self.gate.overlap,
            decides=kind == self.trial.deciding,
            weights=PRODUCTS if kind == "dr" else MARGINALIZED,
            modelled=kind == "drl" or self.trial.propensity_kind == "estimated",
        )

    def estimates(self, overlaps: tuple[Overlap, ...]) -> tuple[Estimate, ...]:
        refusals = {(overlap.policy, overlap.weights): overlap.refused for overlap in overlaps}
        found = []
        for key, estimator in self.sums.items():
            name, role = key.split("/")
            if name in ("weight", "balance", "greedy"):
                continue
            weights = PRODUCTS if name in (*_PRODUCTS, *_ONE_STEP) else MARGINALIZED if name in _MARGINAL else ""
            found.append(self._estimate(name, role, estimator.value, refusals.get((role, weights))))
        if self.propensities.refused is not None:
            names = (*_PRODUCTS, *(_MARGINAL if self.trial.deciding == "drl" else ()))
            found += [self._estimate(name, "candidate", 0.0, self.propensities.refused) for name in names]
        return tuple(found)

    def _estimate(self, name: str, role: str, value: float, cause: str | None) -> Estimate:
        interval = self._interval(f"{name}/{role}")
        if name in ("switch_dr", "dros") and interval is not None:
            unbiased = self._interval(f"dr/{role}")
            interval = unbiased and spanning(interval, unbiased, "DR")
        return self._estimate_of(name, role, value, interval, cause)

    def _estimate_of(
        self, name: str, role: str, value: float, interval: Interval | None, cause: str | None
    ) -> Estimate:
        low, high = self.trial.feasible.low, self.trial.feasible.high
        slack = 1e-9 * (1 + abs(value))
        outside = (low is not None and value < low - slack) or (high is not None and value > high + slack)
        if cause is None and not np.isfinite(value):
            cause = "the weights overflow or are all zero"
        elif cause is None and outside:
            cause = f"{name} of the {role} is {value:.4g}, outside the feasible range [{low}, {high}]"
        elif cause is None and interval is None:
            cause = "there is no interval: fewer than two clusters, or replicates without any weight"
        return Estimate(
            estimator=name,
            policy=role,
            value=None if cause else value,
            interval=None if cause else interval,
            propensity="none" if name in ("on_policy", "direct") else self.trial.propensity_kind,
            binding=name == self.trial.deciding or (role == "log" and "on_policy/log" in self._values_of_others()),
            refused=cause,
            note=_note(name, one_step=self.trial.is_one_step, error_known=self._model_error_is_known(role)),
        )

    def magic(self, overlap_refusal: str | None, rng: np.random.Generator) -> Estimate:
        """Of the candidate; its blend is no ratio of sums, so it brings an interval of its own."""
        trial, q = self.trial, self.trial.candidate.q
        assert q is not None
        blended = magic(
            trial.rewards,
            q[np.arange(len(trial.actions)), trial.actions],
            (trial.candidate.probs * q).sum(axis=1),
            self.weights.product["candidate"],
            trial.offsets,
            trial.gamma,
            clusters=trial.clusters,
            level=self.config.level,
            rng=rng,
        )
        cause = overlap_refusal or blended.refused
        return self._estimate_of("magic", "candidate", blended.value or 0.0, blended.interval, cause)

    def comparisons(self, estimates: tuple[Estimate, ...]) -> tuple[Comparison, ...]:
        refused = {f"{e.estimator}/{e.policy}": e.refused for e in estimates}
        others: list[Role] = ["baseline"]
        if self.trial.version_zero is not None or self.trial.version_zero_is_log:
            others.append("version_zero")
        found = []
        for against in others:
            value_of = self._value_of(against)
            decides = f"{self.trial.deciding}/candidate"
            found.append(self._comparison(against, decides, value_of, refused, binding=True))
            model_of = f"direct/{against}" if f"direct/{against}" in self.sums else "on_policy/log"
            found.append(self._comparison(against, "direct/candidate", model_of, refused, binding=False))
        return tuple(found)

    def _comparison(
        self, against: Role, ours: str, theirs: str, refused: Mapping[str, str | None], *, binding: bool
    ) -> Comparison:
        cause = refused.get(ours, self.propensities.refused) or refused.get(theirs, self.propensities.refused)
        difference = self._difference(ours, theirs) if cause is None else None
        alpha = self.gate.alpha
        bounds = Bounds(PERCENTILE, None, None, alpha)
        if difference is not None and binding:
            bounds = self._deciding_bounds(f"{ours} - {theirs}")
        elif difference is not None:
            bounds = Bounds(PERCENTILE, lower_bound(difference, alpha), upper_bound(difference, alpha), alpha)
        theirs_alone = self.drawn.get(theirs) if refused.get(theirs, "missing") is None else None
        return Comparison(
            against=against,
            estimator=f"{ours.split('/')[0]} - {theirs.split('/')[0]}",
            value=None if difference is None else self.sums[ours].value - self.sums[theirs].value,
            interval=None if difference is None else self._interval(f"{ours} - {theirs}"),
            lower_bound=bounds.lower,
            upper_bound=bounds.upper,
            against_upper_bound=None if theirs_alone is None else upper_bound(theirs_alone.values, alpha),
            alpha=alpha,
            propensity="none" if ours.startswith("direct") else self.trial.propensity_kind,
            binding=binding,
            refused=cause or bounds.refused,
            note="" if binding else "biased as far as its models are; shown, not binding",
        )

    def _deciding_bounds(self, name: str) -> Bounds:
        """Studentized, as returns are skewed and a percentile then errs on one side.

        Marginalized weights rest on a model of visits. What longer exact products say instead is what that model may
        be wrong by, so bounds must hold for both: the lower of the lower ones, the higher of the upper ones.
        """
        found = studentized_bounds(self.drawn[name], self.gate.alpha)
        if self.trial.deciding == "dr":
            return found
        other = studentized_bounds(self.drawn[name.replace("drl/", "window/")], self.gate.alpha)
        if found.lower is None or found.upper is None or other.lower is None or other.upper is None:
            return replace(found, lower=None, upper=None, refused=found.refused or other.refused)
        return replace(found, lower=min(found.lower, other.lower), upper=max(found.upper, other.upper))

    def agreement(self, estimates: tuple[Estimate, ...]) -> Agreement:
        """DR against WPDIS, or WIS where the table of steps would be too large; DRL against itself with a window."""
        deciding: str = self.trial.deciding
        checking = CHECKS[deciding]
        if checking == "wpdis" and "wis/candidate" in self.sums and "wpdis/candidate" not in self.sums:
            checking = "wis"
        refused = {e.estimator: e.refused for e in estimates if e.policy == "candidate"}
        cause = refused.get(deciding) or refused.get(checking)
        if cause is not None:
            return Agreement(deciding, checking, None, None, cause)
        replicates = self._difference(f"{deciding}/candidate", f"{checking}/candidate")
        difference = self.sums[f"{deciding}/candidate"].value - self.sums[f"{checking}/candidate"].value
        interval = percentile_interval(replicates, self.config.agreement_level)
        tolerance, shown = 0.0, self._interval(f"{deciding}/candidate")
        if deciding == "drl" and shown is not None:  # the bounds own what the two differ by; see `_deciding_bounds`
            tolerance = (shown.high - shown.low) / 2
        return Agreement(deciding, checking, difference, interval, tolerance=tolerance)

    def q_claim(self) -> QClaim | None:
        trial = self.trial
        if trial.own_q is None:
            return None
        first = trial.offsets[:-1]
        finite = np.isfinite(trial.own_q)
        possible = trial.own_q[trial.allowed & finite]
        greedy = masked(trial.own_q, trial.allowed)[first].max(axis=1)
        beyond = self._beyond_cuts()
        uppers = [
            upper_bound(self.drawn[key].values, self.gate.alpha)
            for key in (f"{trial.deciding}/candidate", "greedy/candidate")
            if key in self.drawn
        ]
        finite_uppers = [bound for bound in uppers if bound is not None]
        high = trial.feasible.high
        if np.any(trial.truncated) and high is not None:
            high = None if trial.gamma == 1 else max(high, (trial.largest_reward or 0.0) / (1 - trial.gamma))
        note = "" if finite_uppers and beyond is not None else "the evaluation puts no upper bound on the greedy policy"
        return QClaim(
            greedy_q=float(greedy.mean()) if np.all(np.isfinite(greedy)) else None,
            upper_bound=max(finite_uppers) + beyond if finite_uppers and beyond is not None else None,
            largest_q=float(possible.max()) if len(possible) else None,
            feasible_high=high,
            n_nonfinite=int((~finite).sum()),
            note=note,
        )

    def _beyond_cuts(self) -> float | None:
        """Largest mean return behind truncated ends, which Q-values may promise and the log cannot show."""
        trial = self.trial
        if not np.any(trial.truncated) or (trial.largest_reward is not None and trial.largest_reward <= 0):
            return 0.0
        if trial.largest_reward is None or trial.gamma == 1:
            return None
        reach = trial.gamma ** np.diff(trial.offsets) * trial.truncated
        return float(reach.mean()) * trial.largest_reward / (1 - trial.gamma)

    def design_effects(self, rng: np.random.Generator) -> tuple[DesignEffect, ...]:
        """Of clusters against episodes (the intervals know of it) and of nights against clusters (they may not)."""
        clusters, nights = cluster_codes(self.trial.clusters), cluster_codes(self.trial.nights)
        terms = self.sums[f"{self.trial.deciding}/candidate"].terms - self.sums[self._value_of("baseline")].terms
        found = []
        if not np.all(np.isfinite(terms)) or clusters.max() == 0 or np.ptp(terms) == 0:
            return ()
        episodes = np.arange(len(terms))
        if len(np.unique(clusters)) < len(episodes):
            found.append(design_effect("cluster", clusters, "episode", episodes, terms, ignored=False, rng=rng))
        if nights.max() >= 1:
            pairs = len(np.unique(nights * (clusters.max() + 1) + clusters))
            whole = pairs == len(np.unique(nights))  # each night lies within one cluster
            found.append(design_effect("night", nights, "cluster", clusters, terms, ignored=not whole, rng=rng))
        return tuple(found)

    def _model_error_is_known(self, role: str) -> bool:
        return any(role == name and arm.model_error is not None for name, arm in self.trial.arms.items())

    def _value_of(self, against: Role, kind: Deciding | None = None) -> str:
        return f"{kind or self.trial.deciding}/{against}" if against in self.trial.arms else "on_policy/log"

    def deciding_differences(self) -> Floats:
        """(N,) per-episode terms of candidate minus baseline by the deciding estimator."""
        with np.errstate(invalid="ignore"):  # overflowed weights are refused later
            return self.sums[f"{self.trial.deciding}/candidate"].terms - self.sums[self._value_of("baseline")].terms

    def _values_of_others(self) -> list[str]:
        return [self._value_of("baseline"), self._value_of("version_zero") if self.trial.version_zero_is_log else ""]

    def bounds(self, comparison: Comparison, rng: np.random.Generator) -> tuple[Bounds, ...]:
        """Of the difference that decides, by every method."""
        if self.propensities.refused is not None:
            return refused_bounds(self.gate.alpha, self.propensities.refused)
        name, difference = next(iter(self.differences.items()))
        return bounds_by_method(
            self.trial,
            self.weights,
            difference,
            self.drawn.get(name),
            alpha=self.gate.alpha,
            smallest_behavior_prob=self.config.smallest_behavior_prob,
            refused=comparison.refused,
            rng=rng,
        )

    def _interval(self, key: str) -> Interval | None:
        """The interval that is shown, by the configured method; the direct method's holds its model's error as well,
        which only replicates know."""
        if key not in self.drawn:
            return None
        if key.startswith("direct/"):
            ours, *theirs = key.split(" - ")
            values = self._difference(ours, theirs[0]) if theirs else self.drawn[ours].values
            return percentile_interval(values, self.config.level)
        estimator = self.sums[key] if key in self.sums else self.differences[key]
        return interval_by(self.config.interval, estimator, self.drawn[key], self.trial.clusters, self.config.level)

    def _percentile(self, key: str, level: float) -> Interval | None:
        return percentile_interval(self.drawn[key].values, level) if key in self.drawn else None

    def _difference(self, ours: str, theirs: str) -> Floats:
        return np.asarray(self.drawn[ours].values - self.drawn[theirs].values)


def _differences(trial: Trial, sums: Mapping[str, RatioSum]) -> dict[str, RatioSum]:
    """Every difference that is compared, by "ours - theirs", the deciding one against the baseline first."""
    found = {}
    for against in ("baseline", "version_zero"):
        for ours in (trial.deciding, *(("window",) if trial.deciding == "drl" else ()), "direct"):
            theirs = f"{ours}/{against}" if f"{ours}/{against}" in sums else "on_policy/log"
            if f"{ours}/candidate" in sums:
                name = f"{ours}/candidate - {theirs}"
                found[name] = estimators.difference_of(sums[f"{ours}/candidate"], sums[theirs])
    return found


def _note(name: str, *, one_step: bool, error_known: bool) -> str:
    notes = {
        "direct": "biased as far as its model is; shown, not binding"
        + ("" if error_known else "; the interval leaves out what the fit owes to luck"),
        "magic": "leans on the model where weights are noisy; its interval spans that of WDR, which does not",
        "switch_dr": "the model alone where weights are heavy; its interval spans that of DR, which weighs all",
        "dros": "heavy weights are shrunk; its interval spans that of DR, where they are not",
    }
    same = {"is": "every episode is one step: this is IPS", "wis": "every episode is one step: this is SNIPS"}
    return notes.get(name, same.get(name, "") if one_step else "")


def _action_shares(trial: Trial) -> tuple[ActionShares, ...]:
    logged = np.bincount(trial.actions, minlength=len(trial.names)) / len(trial.actions)
    shares = {"log": logged, "candidate": trial.candidate.probs.mean(axis=0)}
    if trial.baseline is not None:
        shares["baseline"] = trial.baseline.probs.mean(axis=0)
    if trial.version_zero is not None:
        shares["version_zero"] = trial.version_zero.probs.mean(axis=0)
    return tuple(
        ActionShares(policy, {name: float(s) for name, s in zip(trial.names, values, strict=True)})
        for policy, values in shares.items()
    )
