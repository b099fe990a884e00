"""The page of a nightly drift check: one HTML file for the person who is asked at night what has happened.

As the report of a release it needs no network, is whole without its one script, and the same data gives the same bytes.
"""

from __future__ import annotations

from reports.drift_view import drift_view
from reports.glossary import GLOSSARY
from reports.night_checks import NightlyChecks
from reports.page_script import content_security_policy, page_script
from reports.render import finished, page_environment

_GROUP = "Drift"


def render_drift_page(checks: NightlyChecks, contract_name: str) -> str:
    """A drift check and those before it as one self-contained HTML document.

    Args:
        checks: the check that the page is of, and its past.
        contract_name: the decision problem.
    """
    text = page_environment().get_template("drift_page.html").render(
        contract_name=contract_name,
        found=drift_view(checks),
        glossary=[group for group in GLOSSARY if group.title == _GROUP],
        policy=content_security_policy(),
        script=page_script(),
    )  # fmt: skip
    return finished(text)
