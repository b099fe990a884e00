"""The picture of how returns spread over episodes: worst parts and quantiles of log and candidate on one axis."""

from __future__ import annotations

from collections.abc import Iterator

from reports import charts
from reports.formatting import share, with_interval
from reports.pictures import ESTIMATORS, Picture, Refused, Row, policy_name
from reports.records import Evaluation, LevelValue, ReturnDistribution

_LONGEST_NAME = 40
"""Letters of a policy's name, which stands in every row."""


def return_picture(evaluation: Evaluation) -> Picture:
    """The worst parts first, then quantiles; for each the log, then the candidate by every estimator."""
    known = [d for d in evaluation.return_distributions if d.refused is None]
    lines = list(_lines(known))
    ends = [x for *_, found in lines for x in (found.value, found.interval.low, found.interval.high)]
    scale = charts.scale_over(ends)
    rows, above = [], ""
    for label, term, distribution, found in lines:
        text = with_interval(found.value, found.interval)
        who = f"{charts.shortened(policy_name(evaluation, distribution.policy), _LONGEST_NAME)}, {_by(distribution)}"
        mark = charts.interval_mark(
            scale, found.value, found.interval.low, found.interval.high,
            role=distribution.policy, label=f"{label}: {who}: {text}",
        )  # fmt: skip
        rows.append(Row(label, who, text, mark, term=term, repeats=label == above))
        above = label
    causes: dict[tuple[str, str], list[str]] = {}
    for d in evaluation.return_distributions:
        if d.refused is not None:
            causes.setdefault((d.policy, d.refused), []).append(_by(d))
    refused = tuple(
        Refused(f"{policy_name(evaluation, policy)}: {', '.join(names)}", cause)
        for (policy, cause), names in causes.items()
    )
    return Picture(tuple(rows), charts.axis(scale) if rows else None, refused)


def _lines(known: list[ReturnDistribution]) -> Iterator[tuple[str, str, ReturnDistribution, LevelValue]]:
    first = known[0] if known else None
    for i in range(len(first.tail_means) if first else 0):
        for d in known:
            yield f"mean of the worst {share(d.tail_means[i].level)}", "tail_mean", d, d.tail_means[i]
    for i in range(len(first.quantiles) if first else 0):
        for d in known:
            yield f"{share(d.quantiles[i].level)} return at most", "return_quantile", d, d.quantiles[i]


def _by(distribution: ReturnDistribution) -> str:
    return "as logged" if distribution.estimator == "on_policy" else ESTIMATORS[distribution.estimator]
