"""The report of one candidate: a single HTML file for the person who decides whether to promote.

It needs no network and is whole without a script: the one it has lets curves be zoomed and tables be sorted. A content
security policy inside it holds even if text from a log were to slip through the escaping. The same data gives the same
bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from reports import change_pictures, charts, formatting, pictures, training_pictures
from reports.bounds_by_method import TERMS
from reports.candidate_table import candidate_rows, compared_on
from reports.comparison import ReleaseComparison
from reports.decision_pictures import certified_picture
from reports.drift_view import drift_view
from reports.glossary import GLOSSARY
from reports.guard_words import guard_words
from reports.heat import heat_of_gate
from reports.log_pictures import sensitivity_picture, sensitivity_words, weight_picture
from reports.night_checks import NightlyChecks
from reports.page_script import content_security_policy, page_script
from reports.promises import earned_words
from reports.records import Evaluation, WeightHistogram
from reports.remedies import remedies, rooms
from reports.return_pictures import return_picture
from reports.rule_checks import slice_verdict

_TEMPLATES = Path(__file__).parent / "templates"

_LONGEST_TEXT = 600
"""Characters of one name or sentence; a log may hold names of any length."""

_MINUS = re.compile(r"(?<![\w.-])-(?=\.?\d)|(?<=\de)-(?=\d)")


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """All that the report shows. None leaves a section out with a word on why.

    Attributes:
        contract_name: the decision problem.
        release: number of the candidate's release.
        created_at: when the report was made; `as_of` the instant that its data stands for.
        evaluation: with its decision.
        snapshot: `SnapshotSummary.to_json()`.
        lineage: digests and versions by name.
        promote_command: the exact command line; shown only where the gate passed.
        training: {"config", "history", "n_steps", "n_unusable_steps", "seconds"}; None where nothing was trained.
        drift: the nightly check that led to the training, and those before it.
        validation: `ValidationResult.to_json()`; None takes the batch's own.
        batch: `Batch.to_json()` of the newest batch.
        coverage: what `datasets.coverage.read_coverage` gives of the snapshot.
    """

    contract_name: str
    release: int
    created_at: datetime
    as_of: datetime
    evaluation: Evaluation
    snapshot: Mapping[str, Any]
    lineage: Mapping[str, str]
    promote_command: str
    training: Mapping[str, Any] | None = None
    drift: NightlyChecks | None = None
    validation: Mapping[str, Any] | None = None
    batch: Mapping[str, Any] | None = None
    coverage: Mapping[str, Any] | None = None


def render_report(data: ReportData) -> str:
    """The report as one self-contained HTML document.

    Raises:
        ValueError: the evaluation holds no decision; there is nothing to report yet.
    """
    evaluation, decision = data.evaluation, data.evaluation.decision
    if decision is None:
        raise ValueError("The evaluation holds no decision: pass what `evaluate_candidate` returned.")
    validation = data.validation or (data.batch or {}).get("validation")
    selection = data.training.get("selection") if data.training else None
    text = page_environment().get_template("report.html").render(
        data=data,
        evaluation=evaluation,
        decision=decision,
        counts=evaluation.counts,
        checks=sorted(decision.checks, key=lambda check: check.passed),
        remedies=remedies(evaluation),
        rooms=rooms(evaluation),
        against_baseline=evaluation.comparison("baseline"),
        value=pictures.value_picture(evaluation),
        difference=pictures.difference_picture(evaluation),
        returns=return_picture(evaluation),
        propensity=pictures.propensity_picture(evaluation),
        weights=weight_picture(histogram) if (histogram := _weight_histogram(evaluation)) else None,
        sensitivity=sensitivity_picture(evaluation),
        guard_says=guard_words(evaluation.guard) if evaluation.guard else "",
        sensitivity_says=sensitivity_words(evaluation.sensitivity) if evaluation.sensitivity else "",
        actions=pictures.action_pictures(evaluation),
        certified=certified_picture(decision.certified_curve) if decision.certified_curve else None,
        features=change_pictures.feature_picture(evaluation.changes) if evaluation.changes else None,
        reliability=(
            change_pictures.reliability_picture(evaluation.q_calibration)
            if evaluation.q_calibration and not evaluation.q_calibration.refused
            else None
        ),
        slice_verdict=slice_verdict,
        slice_margin=_slice_margin(evaluation),
        training=training_pictures.training_picture(data.training["history"] if data.training else ()),
        candidates=candidate_rows(selection) if selection else (),
        compared_on=compared_on(selection) if selection else "",
        heat=heat_of_gate(evaluation.night_drift) if evaluation.night_drift else None,
        found=drift_view(data.drift) if data.drift else None,
        expectations=_expectations(validation),
        validation=validation,
        thin_regions=tuple(_thin_regions(data.coverage)),
        left_out=tuple(_left_out(data.snapshot)),
        account=_account(data.batch),
        settings={stage: dict(_flat(values)) for stage, values in _settings(data).items()},
        glossary=GLOSSARY,
        policy=content_security_policy(),
        script=page_script(),
    )  # fmt: skip
    return finished(text)


def render_comparison(comparison: ReleaseComparison, contract_name: str) -> str:
    """Two releases side by side as one self-contained HTML document, in the style of the report."""
    template = page_environment().get_template("compare.html")
    text = template.render(comparison=comparison, contract_name=contract_name)
    return finished(text)


def finished(text: str) -> str:
    """The rendered page without empty lines.

    All text of logs and policies passes here, whatever put it into the page: what cannot be seen in it is written out.
    """
    return "\n".join(line.rstrip() for line in formatting.visible(text).split("\n") if line.strip()) + "\n"


def _weight_histogram(evaluation: Evaluation) -> WeightHistogram | None:
    return evaluation.overlap_map.histogram if evaluation.overlap_map is not None else None


def page_environment() -> Environment:
    """The templates of all pages, with what they say numbers by."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_bounded,
    )  # fmt: skip
    environment.filters.update(
        number=formatting.number,
        share=formatting.share,
        duration=formatting.duration,
        instant=formatting.instant,
        setting=_setting,
        prose=_prose,
        breakable=_breakable,
        shortened=charts.shortened,
        first_choice=change_pictures.first_choice,
        moved_actions=change_pictures.moved_actions,
        observed=change_pictures.observed,
    )
    environment.globals.update(
        meanings={term.key: term.meaning for group in GLOSSARY for term in group.terms},
        with_interval=formatting.with_interval,
        spanned=formatting.spanned,
        earned_words=earned_words,
        policy_name=pictures.policy_name,
        bound_terms=TERMS,
        estimator_names=pictures.ESTIMATORS,
    )
    return environment


def _bounded(value: object) -> object:
    """Text that is far too long for a page, without its middle; what is markup already stays whole."""
    endless = isinstance(value, str) and not isinstance(value, Markup) and len(value) > _LONGEST_TEXT
    return charts.shortened(value, _LONGEST_TEXT) if endless and isinstance(value, str) else value


def _prose(text: str, most: int = _LONGEST_TEXT) -> Markup:
    """A sentence that was written for a terminal: `code` becomes an element, and the minus of a number a true one."""
    parts = re.split(r"`([^`]+)`", charts.shortened(text, most))
    shown = [Markup("<code>{}</code>").format(p) if i % 2 else escape(_MINUS.sub("−", p)) for i, p in enumerate(parts)]
    return Markup("").join(shown)


def _breakable(text: str) -> Markup:
    """A headline that may break within names, behind their dots and underscores."""
    shown = str(escape(charts.shortened(text, _LONGEST_TEXT)))  # of Markup `sub` would escape its own tag
    return Markup(re.sub(r"(?<=\w)([._])(?=\w)", r"\1<wbr>", shown))


def _slice_margin(evaluation: Evaluation) -> float:
    """As the gate was set; an evaluation that was made before there was one held every slice to 0."""
    margin = evaluation.config.get("gate", {}).get("slice_margin", 0.0)
    return float(margin) if isinstance(margin, int | float) else 0.0


def _expectations(validation: Mapping[str, Any] | None) -> dict[str, list[Any]]:
    records = list(validation["records"]) if validation else []
    broken = [r for r in records if not r["success"]]
    return {
        "failed": [r for r in broken if r.get("severity") != "warn"],
        "warned": [r for r in broken if r.get("severity") == "warn"],
        "held": [r for r in records if r["success"]],
        "not_judged": list(validation.get("not_judged", ())) if validation else [],
    }


def _thin_regions(coverage: Mapping[str, Any] | None) -> Iterator[tuple[str, int, str]]:
    """Regions with thin actions, those with the most steps first: where, steps, and each action with its steps."""
    for region in coverage["regions"] if coverage else ():
        if region["thin"]:
            steps = region["train_steps"]
            yield region["where"], region["n_steps"], ", ".join(f"{name} ({steps[name]})" for name in region["thin"])


def _left_out(snapshot: Mapping[str, Any]) -> Iterator[tuple[int | None, str, str]]:
    """What the snapshot left out: count (None where the name tells), unit, and why."""
    if snapshot.get("n_open"):
        yield snapshot["n_open"], "episodes", "had not ended yet; a later snapshot takes them"
    if snapshot.get("n_damaged"):
        yield snapshot["n_damaged"], "episodes", "are damaged and stay out whole; an episode may have several causes"
        for cause, n in snapshot.get("damage", {}).items():
            yield n, "of them", cause
    if snapshot.get("n_excluded"):
        yield snapshot["n_excluded"], "episodes", "were excluded by a person; several rules may mean one episode"
        for rule, n in snapshot.get("excluded", {}).items():
            yield n, "of them", rule
    if snapshot.get("n_before_change"):
        since = snapshot.get("judge_since")
        yield snapshot["n_before_change"], "episodes", f"could not judge: they are older than the change on {since}"
    if snapshot.get("n_too_new"):
        yield snapshot["n_too_new"], "episodes", "are of a night not closed yet; it will judge later"
    if snapshot.get("n_erased"):
        yield snapshot["n_erased"], "episodes", "were erased after the snapshot was frozen"
    if snapshot.get("n_unplaced"):
        yield snapshot["n_unplaced"], "rows", "are in quarantine and name no episode"
    if snapshot.get("n_unusable_ends"):
        yield snapshot["n_unusable_ends"], "steps", "are frozen but give no target: the log was cut there"


def _account(batch: Mapping[str, Any] | None) -> dict[str, int]:
    """Where each row of the batch went; what does not add up stands there too."""
    if batch is None:
        return {}
    names = ("lake", "quarantined", "duplicates", "held", "pending", "erased")
    account = {name: int(batch.get(f"n_{name}") or 0) for name in names}
    rest = int(batch["n_in"]) - sum(account.values())
    return account | ({"not accounted for": rest} if rest else {})


def _settings(data: ReportData) -> dict[str, Mapping[str, Any]]:
    stages: dict[str, Mapping[str, Any]] = {"snapshot": data.snapshot.get("config", {})}
    if data.training:
        stages["train"] = data.training["config"]
    return stages | dict(data.evaluation.config)


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _setting(value: object) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return formatting.number(float(value), 6)
    if isinstance(value, list | tuple):
        return ", ".join(_setting(item) for item in value) or "none"
    return str(value) or "none"
