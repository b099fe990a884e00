"""The guard of a candidate in words."""

from __future__ import annotations

from reports.formatting import counted
from reports.records import GuardReport

_CAUSES = {
    "missing": "too much is missing or new",
    "strange": "the observation lies outside the training data",
    "disagreement": "the networks disagree",
}


def guard_words(found: GuardReport) -> str:
    """How often it fires on the gate episodes, why, and what was promised."""
    interval = f" [{found.interval.low:.2%}, {found.interval.high:.2%}]" if found.interval else ""
    causes = ", ".join(f"{found.by_cause[cause]:.2%} where {words}" for cause, words in _CAUSES.items())
    says = (
        f"At {found.share:.2%}{interval} of {counted(found.n_steps, 'step')} of the gate episodes the guard lets "
        f"version 0 act: {causes}. Expect so much of live decisions; the values above are of both together. "
    )
    says += (
        f"Asked for was at most {found.false_alarm_share:.2%} of ordinary decisions, set on "
        f"{counted(found.n_clusters, 'cluster')} of the select episodes."
        if found.held
        else f"The {counted(found.n_clusters, 'cluster')} of the select episodes are too few to promise the "
        f"{found.false_alarm_share:.2%} that were asked for: thresholds lie at the farthest of them."
    )
    if found.features:
        named = ", ".join(f"{name} ({share:.0%})" for name, share in found.features.items())
        says += f" What makes observations strange, by its part in the distance: {named}."
    return says
