"""Data Docs: validation results as the page that Great Expectations renders, made to stand on its own.

Its templates fetch stylesheets, scripts, icons and a logo from seven addresses on the network, and link to pages of a
site. Here none of that is left: what looked like Bootstrap comes from a short stylesheet inside the page, and the page
forbids the browser to fetch or run anything.

Nothing but `datasets.duckdb_datasource` uses this module, in its own interpreter.
"""

from __future__ import annotations

import html
import re
from typing import Any

import great_expectations as gx
from great_expectations.core.expectation_validation_result import (
    ExpectationSuiteValidationResult,
    ExpectationValidationResult,
)
from great_expectations.expectations.expectation_configuration import ExpectationConfiguration
from great_expectations.expectations.metadata_types import FailureSeverity
from great_expectations.render.components import RenderedSectionContent, RenderedTableContent
from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
from great_expectations.render.view.view import DefaultJinjaPageView

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; max-width: 76em; margin: 0 auto;
  padding: 1em 2em; }
h1 { font-size: 1.5em; } h5 { font-size: 1.15em; margin: 0; } h6 { font-size: 1em; margin: .6em 0 .2em; }
.ge-section { border-top: 1px solid #ddd; padding: 1em 0; }
.ge-section .row > div { width: 100%; }
.alert { padding: .4em .8em; background: #eef1f5; border-radius: 4px; }
table { border-collapse: collapse; width: 100%; margin: .5em 0; }
th, td { text-align: left; vertical-align: top; padding: .35em .7em; border-bottom: 1px solid #e4e4e4; }
th { font-weight: 600; } td:first-child { white-space: nowrap; } thead[hidden] { display: none; }
ul { margin: .2em 0; padding-left: 1.2em; }
.badge, code { background: #eef1f5; border-radius: 3px; padding: 0 .3em; font-family: ui-monospace, monospace; }
.fa-check-circle::before { content: "\\2713"; color: #177245; font-weight: bold; }
.fa-times::before { content: "\\2717"; color: #b3261e; font-weight: bold; }
.fa-exclamation-triangle::before { content: "!"; color: #9a5b00; font-weight: bold; }
i { font-style: normal; }
a { color: inherit; text-decoration: none; }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181a1b; }
  .alert, .badge, code { background: #2a2d30; } th, td, .ge-section { border-color: #3a3d40; } }
"""


class _PlainPageView(DefaultJinjaPageView):
    """The page without navigation and side bar, which need scripts and a site around them."""

    _template = "page_minimal.j2"


def render_page(title: str, records: list[dict[str, Any]], not_judged: list[str]) -> str:
    """The results of one validation as one HTML document that fetches nothing.

    Args:
        title: of the page.
        records: of a validation result, as `ExpectationRecord` has them.
        not_judged: what could not be compared with recent nights, and why.
    """
    results = [_result(record) for record in records]
    n_good = sum(record["success"] for record in records)
    held = [r for r in records if not r["success"] and r["severity"] == "hold"]
    validation = ExpectationSuiteValidationResult(
        success=not held,
        results=results,
        suite_name="derived from contract.toml",
        statistics={
            "evaluated_expectations": len(records),
            "successful_expectations": n_good,
            "unsuccessful_expectations": len(records) - n_good,
            "success_percent": 100.0 * n_good / max(len(records), 1),
        },
        meta={"great_expectations_version": gx.__version__, "batch_kwargs": {"data_asset_name": title}},
    )
    document: Any = ValidationResultsPageRenderer(run_info_at_end=True).render(validation)
    document.sections.pop()  # the run's name and version again
    effects = {"hold": "holds the batch", "warn": "warns"}
    findings = [[effects[r["severity"]], r["sentence"]] for r in records if not r["success"]]
    findings += [["not judged", sentence] for sentence in not_judged]
    if findings:
        document.sections.insert(1, _findings(findings))
    return _standing_alone(_PlainPageView().render(document), title)  # type: ignore[no-untyped-call]


def _result(record: dict[str, Any]) -> ExpectationValidationResult:
    column = {"column": record["column"]} if record["column"] else {}
    n_rows, n_unexpected = record["n_rows"], record["unexpected_count"]
    result: dict[str, Any] = {"observed_value": record["observed_value"]}
    if n_rows:
        result = {
            "element_count": n_rows,
            "unexpected_count": n_unexpected,
            "unexpected_percent": 100.0 * n_unexpected / n_rows,
            # Great Expectations pastes these into its markup as they are.
            "partial_unexpected_list": [html.escape(v) if isinstance(v, str) else v for v in record["examples"]],
        }
    return ExpectationValidationResult(
        success=record["success"],
        expectation_config=ExpectationConfiguration(
            type=re.sub(r"(?<!^)(?=[A-Z])", "_", record["name"]).lower(),
            # Of a `mostly` of 1 the template for other shares would be left in the sentence.
            kwargs=column | {n: v for n, v in record["arguments"].items() if (n, v) != ("mostly", 1.0)},
            severity=FailureSeverity.CRITICAL if record["severity"] == "hold" else FailureSeverity.WARNING,
        ),
        result=result,
        exception_info={"raised_exception": False, "exception_message": None, "exception_traceback": None},
    )


def _findings(rows: list[list[str]]) -> RenderedSectionContent:
    return RenderedSectionContent(
        section_name="What was found, and what to do",
        content_blocks=[
            RenderedTableContent(
                header="What was found, and what to do",
                header_row=["Effect", "Finding"],
                table=[[html.escape(cell) for cell in row] for row in rows],
            )
        ],
    )


def _standing_alone(page: str, title: str) -> str:
    page = re.sub(r"<script\b.*?</script>", "", page, flags=re.DOTALL | re.IGNORECASE)
    page = re.sub(r"<style\b.*?</style>", "", page, flags=re.DOTALL | re.IGNORECASE)
    page = re.sub(r"<(link|meta|img)\b[^>]*>", "", page, flags=re.IGNORECASE)
    page = re.sub(r"<title>.*?</title>", "", page, flags=re.DOTALL | re.IGNORECASE)
    page = re.sub(r"<!--.*?-->", "", page, flags=re.DOTALL)
    page = re.sub(r'\s(href|src|on\w+)="[^"]*"', "", page)
    head = (
        f'<head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style>"
    )
    page = re.sub(r"<head>", lambda _: head, page, count=1)
    page = re.sub(r"<body>", lambda _: f"<body><h1>{html.escape(title)}</h1>", page, count=1)
    return "\n".join(line.rstrip() for line in page.splitlines() if line.strip()) + "\n"
