"""From a trial to what the report says of the candidate's decisions: where they change, why, and what Q promises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from datasets.coverage import train_regions
from datasets.coverage_config import CoverageConfig
from datasets.images import mean_brightness
from datasets.observations import MISSING_CODE, Observations
from datasets.replay import GATE, TRAIN, Replay
from drift.config import DriftConfig
from drift.nights import psi_by_night
from drift.windows import window_from_replay
from offline_dqn.policy import Policy
from reports.change_records import Changes, ExampleEpisode, ExampleStep, NightDrift, QCalibration
from reports.changes import (
    Stretch,
    changes_by_region,
    disagreement_with_log,
    disagreement_with_policy,
    telling_episodes,
)
from reports.estimators import Floats, on_policy_returns
from reports.feature_effects import N_REPEATS, feature_effects, steps_to_permute
from reports.q_calibration import calibrate_q
from reports.trial import Trial, masked

_REGIONS = 12
"""Few enough to be read one by one; coverage counts over finer ones."""
_REGION_SAMPLE = 20_000
_REGIONS_SHOWN = 8
_FEATURES_SHOWN = 8
_STEPS_SHOWN = 12
_COMPONENTS_SHOWN = 4
_NIGHTS_SHOWN = 31
_COLUMNS_SHOWN = 24


def explain_changes(
    replay: Replay, gate: Replay, trial: Trial, candidate: Policy, *, n_examples: int, seed: int
) -> Changes:
    """Where the candidate departs from the baseline, or from the log where the logging policy is the baseline.

    Args:
        replay: every split; regions are fitted on `train`, on all of it where that is empty.
        gate: the episodes of the trial.
        trial: policies on the gate steps.
        candidate: asked again where features are dealt anew.
        n_examples: episodes to show step by step.
        seed: of regions and dealing.
    """
    probs, observations = trial.candidate.probs, gate.observations.take(np.arange(gate.n_steps))
    if trial.baseline is not None:
        other = trial.baseline.probs
        disagreement = disagreement_with_policy(probs, other)
        usual = other.argmax(axis=1)
    else:
        other = np.eye(len(trial.names))[trial.actions]
        logged = trial.behavior_probs if trial.propensity_kind == "logged" else np.full(gate.n_steps, np.nan)
        disagreement = disagreement_with_log(probs, trial.actions, logged)
        usual = trial.actions
    regions = train_regions(
        replay if (replay.split == TRAIN).any() else _as_training(replay),
        CoverageConfig(regions=_REGIONS, sample=_REGION_SAMPLE, seed=seed),
    )
    places = regions.assign(observations)
    by_region = changes_by_region(places, regions.words, disagreement, probs, other, gate.episode_of_step, trial.names)
    ranked = [number for number, _ in by_region]
    stretches = telling_episodes(
        disagreement, places, ranked, gate.offsets, n_episodes=n_examples, n_steps=_STEPS_SHOWN
    )
    rng = np.random.default_rng(seed)
    rows = steps_to_permute(trial.allowed, len(observations.columns), rng)
    effects = feature_effects(candidate, observations.take(rows), trial.allowed[rows], rng)
    shown = tuple([e.feature for e in effects] or list(observations.columns))[:_FEATURES_SHOWN]
    return Changes(
        against="baseline" if trial.baseline is not None else "log",
        disagreement=float(disagreement.mean()),
        other_action_share=float((probs.argmax(axis=1) != usual).mean()),
        regions=tuple(change for _, change in by_region[:_REGIONS_SHOWN]),
        n_regions=len(by_region),
        episodes=tuple(
            _example(stretch, gate, trial, disagreement, regions.words[places[stretch.peak]], shown)
            for stretch in stretches
        ),
        shown_features=shown,
        features=effects,
        n_permuted_steps=len(rows),
        n_repeats=N_REPEATS,
    )


def explain_q(
    gate: Replay, trial: Trial, candidate: Policy, *, level: float, refused: str | None
) -> QCalibration | None:
    """The candidate's own Q-values against what the log shows; None for a policy without values.

    Args:
        refused: why behavior probabilities may not weight anything; None where they may.
    """
    own_q = trial.own_q
    if own_q is None:
        return None
    rows = np.arange(gate.n_steps)
    final_rows = np.arange(gate.n_steps, len(gate.observations))
    final_q = candidate.q_values(gate.observations.take(final_rows)) if len(final_rows) else own_q[:0]
    spread = candidate.disagreement(gate.observations.take(rows))
    assert final_q is not None  # it has values for the steps
    if not (np.isfinite(own_q).all() and np.isfinite(final_q).all()):
        return QCalibration((), 0, level, None, "some of its Q-values are not finite")
    known = np.concatenate([masked(own_q, trial.allowed), masked(final_q, gate.permitted[gate.n_steps :])])
    return calibrate_q(
        own_q,
        trial.allowed,
        trial.actions,
        trial.rewards,
        trial.behavior_probs if refused is None else None,
        _next_values(known.max(axis=1), gate),
        trial.offsets,
        trial.clusters,
        trial.gamma,
        disagreement=spread,
        level=level,
        refused=refused or "",
    )


def explain_nights(replay: Replay, gate: Replay) -> NightDrift | None:
    """How far each column of the gate's nights moved from the other episodes; None where there are none."""
    fitted_on = replay.subset(replay.split != GATE)
    if fitted_on.n_episodes == 0:
        return None
    found = psi_by_night(window_from_replay(fitted_on), window_from_replay(gate), DriftConfig())
    newest = slice(-_NIGHTS_SHOWN, None)
    psi, allowed = found.psi[:, newest], found.allowed[:, newest]
    order = np.argsort(-(psi / allowed).max(axis=1), kind="stable")[:_COLUMNS_SHOWN]
    return NightDrift(
        columns=tuple(found.columns[i] for i in order),
        nights=tuple(str(night) for night in found.nights[newest]),
        n_episodes=tuple(found.n_episodes[newest].tolist()),
        psi=tuple(tuple(row) for row in psi[order].tolist()),
        allowed=tuple(tuple(row) for row in allowed[order].tolist()),
        n_columns=len(found.columns),
        n_nights=len(found.nights),
    )


def _next_values(values: Floats, gate: Replay) -> Floats:
    """(T,) value of the observation after each step: 0 after the end, NaN where the log was cut without one."""
    following = np.where(gate.next_row >= 0, values[gate.next_row.clip(min=0)], np.nan)
    return np.where(gate.terminated, 0.0, following)


def _as_training(replay: Replay) -> Replay:
    return replace(replay, split=np.full_like(replay.split, TRAIN))


def _example(
    stretch: Stretch, gate: Replay, trial: Trial, disagreement: Floats, where: str, features: Sequence[str]
) -> ExampleEpisode:
    start, end = gate.offsets[stretch.episode], gate.offsets[stretch.episode + 1]
    rows = np.arange(stretch.first, stretch.last)
    table = {name: _shown(gate.observations, name, rows) for name in features}
    earned = on_policy_returns(trial.rewards[start:end], np.array([0, end - start]), trial.gamma)[0]
    steps = tuple(
        ExampleStep(
            step=int(row - start) + 1,
            observation={name: values[i] for name, values in table.items()},
            action=trial.names[trial.actions[row]],
            behavior_prob=None if math.isnan(trial.behavior_probs[row]) else float(trial.behavior_probs[row]),
            candidate_probs=_by_name(trial, trial.candidate.probs[row]),
            baseline_probs={} if trial.baseline is None else _by_name(trial, trial.baseline.probs[row]),
            reward=float(trial.rewards[row]),
            disagreement=float(disagreement[row]),
        )
        for i, row in enumerate(rows.tolist())
    )
    return ExampleEpisode(
        episode_id=str(gate.episode_ids[stretch.episode]),
        night=str(gate.nights[stretch.episode]),
        where=where,
        peak_step=int(stretch.peak - start) + 1,
        n_steps=int(end - start),
        episode_return=float(earned),
        steps=steps,
    )


def _by_name(trial: Trial, probs: Floats) -> dict[str, float]:
    return {name: float(p) for name, p in zip(trial.names, probs, strict=True)}


def _shown(observations: Observations, name: str, rows: NDArray[np.int64]) -> list[float | str | bool | None]:
    """A feature's values on a few rows, as a reader may see them."""
    values = observations.columns[name][rows]
    if name in observations.vocabularies:
        vocabulary = observations.vocabularies[name]
        return [None if code == MISSING_CODE else vocabulary[code] for code in values.tolist()]
    if values.ndim == 1:
        return [None if math.isnan(value) else value for value in values.tolist()]
    if values.dtype == np.uint8:
        return [f"image, mean {value:.3g}" for value in mean_brightness(values).tolist()]
    more = f", … {values.shape[1]} in all" if values.shape[1] > _COMPONENTS_SHOWN else ""
    return [
        None if math.isnan(vector[0]) else f"{', '.join(f'{v:.4g}' for v in vector[:_COMPONENTS_SHOWN])}{more}"
        for vector in values.tolist()
    ]
