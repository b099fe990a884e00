"""Live nights against the reference: how far each column moved, and whether chance explains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from drift.comparison import ColumnBins, divergences
from drift.config import DriftConfig
from drift.divergence import psi_of_rows
from drift.hours import in_same_hours
from drift.night_null import Stretch
from drift.null import PsiNull, joined
from drift.pairing import Pair, paired_columns, too_little
from drift.records import ColumnDrift, DriftReport, NightlyDrift, SlowDrift, Status
from drift.reference import Known, Reference, scalars
from drift.seasons import night_kinds, strata
from drift.sentences import drift_sentence
from drift.stretches import NightCounts, NightlyColumn, furthest_since, night_counts, nightly, stretches_of
from drift.windows import DriftColumn, DriftWindow

COLUMNS_SHARE, SLOW_SHARE, JOINT_SHARE = 0.5, 0.25, 0.25
"""Of the false-alarm rate: that of the live window's columns, of stretches of nights, and of the joint tests."""


def measure_drift(
    references: DriftWindow | Sequence[DriftWindow],
    live: DriftWindow,
    config: DriftConfig,
    *,
    recent: DriftWindow | None = None,
) -> DriftReport:
    """Compares every column of the live window with its reference, and judges all of them together.

    A column drifted if its PSI is above its share of the null (so that at most `false_alarm_rate` of unchanged nights
    show any drift) and at least `min_psi`. Windows must not share episodes.

    Args:
        references: where there are several, an exogenous column is compared with the first one that has it, and what
            actions move with the last one: nights in which the same policy acted as in the live ones.
        live: the newest nights.
        recent: all nights since the references up to the newest live one, for changes that come slowly and to say
            since when; None looks at the live ones alone.

    Raises:
        ValueError: a live window is weighted, or a column's kind differs between the windows.
    """
    windows = [references] if isinstance(references, DriftWindow) else list(references)
    recent = live if recent is None else recent
    if live.weights is not None or recent.weights is not None:
        raise ValueError("only the reference is weighted (to the policy that acted in the live window)")
    whole, main = live, windows[0]
    same = in_same_hours(windows, live, recent, config)
    windows, live, recent = list(same.references), same.live, same.recent
    pairs = paired_columns(windows, live)
    live_kinds = night_kinds(np.unique(live.day_numbers), config.seasonality)
    live_strata = np.unique(strata(live.day_numbers, live.hours, config.seasonality))
    known = [Reference.of(window, config) if window.n_episodes else None for window in windows]
    problems = [same.problem or too_little(reference, live, live_kinds, config) for reference in known]
    counts = night_counts(live, recent, config.seasonality)
    usable = [reference for reference, problem in zip(known, problems, strict=True) if reference and not problem]
    stretches = stretches_of(counts, usable, config)
    reasons = {name: pair.why_not(known, problems, live_strata) for name, pair in pairs.items()}
    recent_columns = scalars(recent.columns)
    judged = [
        _compare(pair, known[pair.reference], stretches[0], counts, recent, recent_columns, config)  # type: ignore[arg-type]  # it is known
        for name, pair in pairs.items()
        if not reasons[name]
    ]
    nulls = _nulls(judged, known, stretches, counts, config)
    verdicts = _verdicts(judged, nulls[0] if nulls else None, stretches, counts, config)
    slow = tuple(
        one for one in _slow(judged, nulls, counts, stretches, config) if not verdicts[one.name].drifted
    )  # of the others `since` tells when it began
    since = {
        found.name: furthest_since(found.known, found.reference.window.n_nights, found.nightly, counts, config)
        for found in judged
    }
    columns = tuple(
        replace(verdicts[name], since=since[name] if verdicts[name].drifted else None)
        if name in verdicts
        else _unjudged(pair, reasons[name])
        for name, pair in pairs.items()
    )
    told = any(column.status != "not enough data" for column in columns)
    null = nulls[0] if nulls and (told or slow) else None
    status: Status = "not enough data"
    if null is not None:
        status = "drifted" if slow or any(column.drifted for column in columns) else "stable"
    problem = "" if null is not None else next((column.reason for column in columns if column.reason), "")
    return DriftReport(
        columns=columns,
        status=status,
        sentence=drift_sentence(columns, slow, null, problem, same.left_out, config),
        left_out=same.left_out,
        unit=null.unit if null else None,
        n_units=null.n_units if null else None,
        optimistic=null is not None and null.unit == "cluster",
        false_alarm_rate=config.false_alarm_rate,
        min_psi=config.min_psi,
        slow=slow,
        nightly=_nightly(judged, columns, counts, config),
        reference_episodes=main.n_episodes,
        effective_reference_episodes=main.effective_episodes,
        reference_nights=main.n_nights,
        live_episodes=whole.n_episodes,
        live_nights=whole.n_nights,
    )


@dataclass(frozen=True)
class _Compared:
    """A column's numbers, as keyword arguments of `ColumnDrift`, and its entries by cell, and by night since."""

    name: str
    place: int
    reference: Reference
    bins: ColumnBins
    known: Known
    nightly: NightlyColumn
    numbers: Mapping[str, Any]

    def judged_psi(self, stretch: Stretch, counts: NightCounts, config: DriftConfig, n_columns: int) -> float:
        """PSI of a stretch, without slots that the reference hardly holds and chance may fill."""
        return counts.judged_psi(
            self.nightly, self.known, stretch.n_nights,
            floor=config.floor, rate=COLUMNS_SHARE * config.false_alarm_rate / n_columns,
        )  # fmt: skip


def _compare(
    pair: Pair,
    reference: Reference,
    stretch: Stretch,
    counts: NightCounts,
    recent: DriftWindow,
    recent_columns: Mapping[str, DriftColumn],
    config: DriftConfig,
) -> _Compared:
    before, now = pair.before, pair.now
    assert before is not None  # else it is not judged
    assert now is not None
    bins = reference.bins(before)
    known = reference.known(before, bins)
    nightly_column = counts.of_column(recent, recent_columns[pair.name], bins)
    mixture = counts.mixture(nightly_column, slice(-stretch.n_nights, None))
    numbers = {
        "name": pair.name,
        "kind": before.kind,
        "role": before.role,
        "exogenous": before.exogenous,
        "reference_rows": len(before.values),
        "live_rows": len(now.values),
        **divergences(
            before, now, bins, known.shares(mixture), reference.entry_weights(before, mixture),
            floor=config.floor,
        ),
    }  # fmt: skip
    return _Compared(pair.name, pair.reference, reference, bins, known, nightly_column, numbers)


def _nulls(
    judged: Sequence[_Compared],
    known: Sequence[Reference | None],
    stretches: Sequence[Stretch],
    counts: NightCounts,
    config: DriftConfig,
) -> list[PsiNull]:
    """The null of each stretch, over the judged columns in their order; empty without any."""
    rng = np.random.default_rng(config.seed)
    n_clusters = [counts.n_clusters(stretch.n_nights) for stretch in stretches]
    per_night = counts.n_cells(counts.n_live) / max(1, counts.n_live)
    parts: list[tuple[list[int], list[PsiNull]]] = []
    for place, reference in enumerate(known):
        own = [j for j, found in enumerate(judged) if found.place == place]
        if own and reference is not None:
            columns = [judged[j].known.binned for j in own]
            mixtures = [
                [counts.mixture(judged[j].nightly, slice(-stretch.n_nights, None)) for j in own]
                for stretch in stretches
            ]
            parts.append((own, reference.nulls(columns, stretches, n_clusters, per_night, mixtures, rng)))
    if not parts:
        return []
    order = np.argsort(np.concatenate([own for own, _ in parts]), kind="stable")
    return [joined([nulls[s] for _, nulls in parts]).of_columns(order) for s in range(len(stretches))]


def _verdicts(
    judged: Sequence[_Compared],
    null: PsiNull | None,
    stretches: Sequence[Stretch],
    counts: NightCounts,
    config: DriftConfig,
) -> dict[str, ColumnDrift]:
    """The judged columns by name."""
    if null is None:
        return {}
    rate = COLUMNS_SHARE * config.false_alarm_rate
    psi = np.array([found.judged_psi(stretches[0], counts, config, len(judged)) for found in judged])
    p_values, bounds = null.p_values(psi), null.stepped_thresholds(psi, rate)
    verdicts = {}
    for found, without_rare, p_value, bound, typical in zip(
        judged, psi, p_values, bounds, null.typical_psi, strict=True
    ):
        beyond, matters = p_value <= rate, without_rare >= config.min_psi
        status: Status = "drifted" if beyond and matters else "stable"
        reason = f"beyond chance, but PSI is below {config.min_psi:g}" if beyond and not matters else ""
        if status == "stable" and found.numbers["psi"] >= max(float(bound), config.min_psi):
            reason = "only beyond what is allowed by values so rare that chance may bring them"
        if not beyond and bound >= _attainable(found.numbers["reference_probs"], config.floor) > config.min_psi:
            # Or "stable" would be said of whatever comes.
            units = f"{null.n_units} reference {null.unit}s"
            status, reason = "not enough data", f"the {units} differ so much that no shift of it could stand out"
        verdicts[found.name] = ColumnDrift(
            **found.numbers,
            status=status,
            reason=reason,
            typical_psi=float(typical),
            threshold=float(bound),
            p_value=float(p_value),
        )
    return verdicts


def _attainable(reference_probs: Sequence[float], floor: float) -> float:
    """Largest PSI of a live window whose entries all fall into one bin that the reference holds."""
    probs = np.array(reference_probs)
    return float(psi_of_rows(probs, np.eye(len(probs))[probs > 0], floor=floor).max())


def _slow(
    judged: Sequence[_Compared],
    nulls: Sequence[PsiNull],
    counts: NightCounts,
    stretches: Sequence[Stretch],
    config: DriftConfig,
) -> tuple[SlowDrift, ...]:
    """Columns that moved over one of the stretches beyond the live window, each in the stretch that shows it best."""
    if len(stretches) < 2 or not nulls:
        return ()
    rate = SLOW_SHARE * config.false_alarm_rate
    null = joined(nulls[1:])
    psi = np.array([
        found.judged_psi(stretch, counts, config, len(judged))
        for stretch in stretches[1:] for found in judged
    ])  # fmt: skip
    shape = len(stretches) - 1, len(judged)
    p_values, bounds = null.p_values(psi).reshape(shape), null.thresholds(rate).reshape(shape)
    psi = psi.reshape(shape)
    slow = []
    for j, found in enumerate(judged):
        s = int(np.argmin(p_values[:, j] - 1e-9 * psi[:, j] / np.maximum(bounds[:, j], 1e-12)))
        if p_values[s, j] <= rate and psi[s, j] >= config.min_psi:
            n_nights = stretches[s + 1].n_nights
            slow.append(
                SlowDrift(
                    name=found.name,
                    since=counts.first_of(n_nights),
                    n_nights=n_nights,
                    psi=float(psi[s, j]),
                    threshold=max(float(bounds[s, j]), config.min_psi),
                    p_value=float(p_values[s, j]),
                )
            )
    return tuple(sorted(slow, key=lambda one: -one.psi / one.threshold))


def _nightly(
    judged: Sequence[_Compared], columns: Sequence[ColumnDrift], counts: NightCounts, config: DriftConfig
) -> NightlyDrift | None:
    if not judged:
        return None
    allowed = {column.name: column.allowed(config.min_psi) for column in columns}
    return NightlyDrift(
        columns=tuple(found.name for found in judged),
        nights=counts.names,
        n_episodes=tuple(counts.n_episodes.tolist()),
        psi=tuple(nightly(found.known, found.nightly, counts, config) for found in judged),
        threshold=tuple(allowed[found.name] for found in judged),
        relative=counts.relative(judged[0].reference.cells.n_cells),
    )


def _unjudged(pair: Pair, reason: str) -> ColumnDrift:
    known = pair.before if pair.before is not None else pair.now
    assert known is not None
    return ColumnDrift(
        name=pair.name,
        kind=known.kind,
        exogenous=known.exogenous,
        role=known.role,
        status="not enough data",
        reason=reason,
        reference_rows=0 if pair.before is None else len(pair.before.values),
        live_rows=0 if pair.now is None else len(pair.now.values),
    )
