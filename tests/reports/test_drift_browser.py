"""The drift page in a headless browser: how wide it is, what it says to the console, what it fetches, on paper too."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from reports.drift_page import render_drift_page
from reports.night_checks import NightlyChecks
from tests.reports import drift_samples as samples
from tests.reports.test_report_browser import CHROMIUM, HOSTILE, WIDTHS, browse, framed, said

PAGES: dict[str, NightlyChecks] = {
    "drifted": samples.nightly_checks(),
    "calm": samples.nightly_checks(samples.calm_check(n_columns=65)),
    "held": samples.nightly_checks(samples.held_check()),
    "first": NightlyChecks(newest=samples.unknown_check(champion=None)),
    **{name: samples.extreme_checks(text) for name, text in HOSTILE.items()},
}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """What each page came out as in frames of both widths, and what the browser wrote to its console."""
    folder = tmp_path_factory.mktemp("browser")
    pages = {name: render_drift_page(checks, "autoscaler") for name, checks in PAGES.items()}
    (folder / "frames.html").write_text(framed(pages))
    dom, log = browse(folder / "frames.html", folder / "profile", "--dump-dom")
    return html.unescape(dom), said(log)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_page_fits_both_widths_whatever_names_the_log_holds(seen: tuple[str, list[str]], name: str, width: int) -> None:
    assert f"{name}-{width} is {width} wide, not too tall, 1 script, 0 curves missing, 0 fetched: " in seen[0]


def test_console_stays_silent_whatever_names_the_log_holds(seen: tuple[str, list[str]]) -> None:
    assert seen[1] == []


def test_page_on_paper_has_its_pictures_as_drawings(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(render_drift_page(PAGES["drifted"], "autoscaler"))
    printed = tmp_path / "page.pdf"
    _, log = browse(tmp_path / "page.html", tmp_path / "profile", f"--print-to-pdf={printed}")
    assert said(log) == []
    assert printed.read_bytes().startswith(b"%PDF")
    assert not re.search(rb"/Subtype\s*/Image", printed.read_bytes())
