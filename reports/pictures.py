"""From an evaluation to the pictures of its report: rows that share an axis, each with its numbers in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from reports import charts
from reports.formatting import number, share, with_interval
from reports.records import Comparison, Estimate, Evaluation

POLICIES = ("candidate", "baseline", "version_zero", "log")
ESTIMATORS = {
    "dr": "doubly robust",
    "drl": "double reinforcement learning",
    "on_policy": "return of the log",
    "direct": "direct method",
    "wdr": "weighted doubly robust",
    "magic": "MAGIC",
    "switch_dr": "Switch-DR",
    "dros": "doubly robust, shrunk",
    "window": "doubly robust, within a window",
    "wpdis": "weighted per-decision",
    "wis": "weighted importance sampling",
    "pdis": "per-decision",
    "is": "importance sampling",
    "mis": "marginalized importance sampling",
}
"""Names for people, in the order of the report."""


@dataclass(frozen=True)
class Row:
    """One line of a picture; `term` is its key in the glossary, `quiet` where nothing rests on it."""

    label: str
    detail: str
    text: str
    mark: Markup
    term: str = ""
    quiet: bool = False
    alarmed: bool = False
    repeats: bool = False
    """Whether the label is that of the row above, and need not be seen twice."""


@dataclass(frozen=True)
class Refused:
    """Numbers that were not printed, and why."""

    what: str
    cause: str
    word: str = "refused"


@dataclass(frozen=True)
class Picture:
    """Rows over one axis, and what was refused."""

    rows: tuple[Row, ...]
    axis: Markup | None = None
    refused: tuple[Refused, ...] = ()


@dataclass(frozen=True)
class Panel:
    """A chart on its own; `instead` stands in the place of one that cannot be drawn."""

    title: str
    chart: Markup | None
    term: str = ""
    note: str = ""
    instead: str = "not measured"
    data: str = ""
    """The same lines for the page's script, from `reports.page_script.plot_data`; "" where there is nothing to zoom."""


def policy_name(evaluation: Evaluation, policy: str) -> str:
    """The policy's own name, such as "release 7", from its role."""
    names = {
        "candidate": evaluation.candidate_name,
        "baseline": evaluation.baseline_name,
        "version_zero": evaluation.version_zero_name or "version 0",
    }
    return names.get(policy, "the log")


def value_picture(evaluation: Evaluation) -> Picture:
    """Every estimate with its interval, by policy, the deciding ones first."""
    order = {name: i for i, name in enumerate(ESTIMATORS)}
    ranked = sorted(
        evaluation.estimates,
        key=lambda e: (_place(e.policy), not e.binding, order.get(e.estimator, len(order))),
    )
    known = [e for e in ranked if e.value is not None and e.refused is None]
    binding = [e for e in known if e.binding] or known
    scale = charts.scale_over(_ends(binding), _ends(known))
    above = [None, *(e.policy for e in known)]
    rows = tuple(_value_row(evaluation, e, scale, e.policy == before) for e, before in zip(known, above, strict=False))
    return Picture(rows, charts.axis(scale) if rows else None, _refused(evaluation, ranked))


def difference_picture(evaluation: Evaluation) -> Picture:
    """Candidate minus baseline and minus version 0, with the one-sided bound, zero and the margin."""
    known = [c for c in evaluation.comparisons if c.value is not None and c.refused is None]
    margin = evaluation.decision.margin if evaluation.decision is not None else 0.0
    binding = [c for c in known if c.binding] or known
    bounds = [c.lower_bound for c in binding if c.lower_bound is not None]
    scale = charts.scale_over([*_ends(binding), *bounds, 0.0, -margin], _ends(known))
    rows = tuple(_difference_row(evaluation, c, scale, margin) for c in sorted(known, key=lambda c: not c.binding))
    refused = tuple(
        Refused(f"Difference to {policy_name(evaluation, c.against)}, {_pair(c.estimator)}", c.refused)
        for c in evaluation.comparisons
        if c.refused is not None
    )
    return Picture(rows, charts.axis(scale) if rows else None, refused)


def propensity_picture(evaluation: Evaluation) -> Picture:
    """1[A = a] / p averaged for each action, with a line at 1."""
    actions = evaluation.propensities.actions
    ends = [x for a in actions if a.interval is not None for x in (a.interval.low, a.interval.high)]
    scale = charts.scale_over([0.95, 1.05, *(min(max(end, 0.0), 2.0) for end in ends)])
    rows = []
    for action in actions:
        text = with_interval(action.average, action.interval)
        if action.average is None or action.interval is None:
            mark = charts.empty_track(scale, f"{action.action}: not measured", 1.0)
        else:
            low, high = action.interval.low, action.interval.high
            mark = charts.interval_mark(
                scale, action.average, low, high, role="neutral", label=f"{action.action}: {text}", reference=1.0
            )
        detail = f"taken {action.n_taken:,} of {action.n_available:,} times"
        note = f"{detail}; {action.note}" if action.note else detail
        rows.append(Row(action.action, note, text, mark, alarmed=not action.passed))
    return Picture(tuple(rows), charts.axis(scale) if rows else None)


def action_pictures(evaluation: Evaluation) -> tuple[Panel, ...]:
    """For each action, how often the log, the candidate and the baseline take it."""
    policies = sorted(evaluation.action_shares, key=lambda s: _place("" if s.policy == "log" else s.policy))
    policies = [s for s in policies if s.policy == "log"] + [s for s in policies if s.policy != "log"]
    actions = list(dict.fromkeys(action for s in policies for action in s.shares))
    panels = []
    for action in actions:
        bars = [(s.policy, s.shares.get(action, 0.0)) for s in policies]
        said = ", ".join(f"{policy_name(evaluation, role)} {share(value)}" for role, value in bars)
        panels.append(Panel(action, charts.share_bars(bars, f"{action}: {said}")))
    return tuple(panels)


def _value_row(evaluation: Evaluation, estimate: Estimate, scale: charts.Scale, repeats: bool) -> Row:
    assert estimate.value is not None
    interval = estimate.interval
    low, high = (interval.low, interval.high) if interval else (estimate.value, estimate.value)
    name = ESTIMATORS.get(estimate.estimator, estimate.estimator)
    text = with_interval(estimate.value, interval)
    policy = policy_name(evaluation, estimate.policy)
    mark = charts.interval_mark(
        scale, estimate.value, low, high, role=estimate.policy, label=f"{policy}, {name}: {text}",
        emphasis=estimate.binding,
    )  # fmt: skip
    term = estimate.estimator if estimate.estimator in ESTIMATORS else ""
    return Row(policy, name, text, mark, term=term, quiet=not estimate.binding, repeats=repeats)


def _difference_row(evaluation: Evaluation, c: Comparison, scale: charts.Scale, margin: float) -> Row:
    assert c.value is not None
    low, high = (c.interval.low, c.interval.high) if c.interval else (c.value, c.value)
    text = with_interval(c.value, c.interval)
    against = policy_name(evaluation, c.against)
    bound = f"at least {number(c.lower_bound, 3)} with {share(1 - c.alpha)} confidence"
    mark = charts.interval_mark(
        scale, c.value, low, high, role="candidate", label=f"candidate minus {against}: {text}, {bound}",
        reference=0.0, good_above=-margin, bound=c.lower_bound if c.binding else None, emphasis=c.binding,
    )  # fmt: skip
    detail = bound if c.binding else f"{_pair(c.estimator)}; {c.note or 'shown, not binding'}"
    return Row(f"against {against}", detail, text, mark, quiet=not c.binding)


def _refused(evaluation: Evaluation, ranked: Iterable[Estimate]) -> tuple[Refused, ...]:
    """Refused estimates; those of one policy with one cause stand together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for e in ranked:
        if e.refused is not None or e.value is None:
            cause = e.refused or "not measured"
            groups.setdefault((e.policy, cause), []).append(ESTIMATORS.get(e.estimator, e.estimator))
    return tuple(
        Refused(f"{policy_name(evaluation, policy)}: {', '.join(names)}", cause)
        for (policy, cause), names in groups.items()
    )


def _ends(found: Iterable[Estimate] | Iterable[Comparison]) -> list[float]:
    ends: list[float] = []
    for item in found:
        ends += [] if item.value is None else [item.value]
        ends += [item.interval.low, item.interval.high] if item.interval is not None else []
    return ends


def _pair(estimators: str) -> str:
    ours, _, theirs = estimators.partition(" - ")
    if ours == theirs:
        return ESTIMATORS.get(ours, ours)
    return " − ".join(ESTIMATORS.get(name, name) for name in estimators.split(" - "))


def _place(policy: str) -> int:
    return POLICIES.index(policy) if policy in POLICIES else len(POLICIES)
