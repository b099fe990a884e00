"""The report in a headless browser: what it shows, how wide it is, what it says to the console, what it fetches."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from reports.render import ReportData, render_report
from tests.reports import report_samples as samples

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --virtual-time-budget=5000 --enable-logging=stderr"
)
WIDTHS = (390, 1280)
HOSTILE = {
    "script": "<script>alert(1)</script>",
    "style": "</style></title></script><b onmouseover=alert(1)>",
    "template": "{{7*7}} {% raw %} ${7*7}",
    "quotes": '" onload="alert(1)" x=\'`',
    "marks": "\u202egnirts\u202c \u2066a\u2069 \u2028 \u0000\u0007 \ud7ff",
    "endless": "x" * 10_000,
    "comment": "<!-- --> ]]> <![CDATA[ &amp;lt;script>",
}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """What each report came out as in frames of both widths, and what the browser wrote to its console."""
    reports: Mapping[str, ReportData] = {
        "passed": samples.report(samples.passed_evaluation()),
        "refused": samples.report(samples.refused_evaluation()),
        "narrow": samples.report(samples.narrow_evaluation()),
        **{name: samples.extreme_report(text) for name, text in HOSTILE.items()},
    }
    folder = tmp_path_factory.mktemp("browser")
    (folder / "frames.html").write_text(framed({name: render_report(data) for name, data in reports.items()}))
    dom, log = browse(folder / "frames.html", folder / "profile", "--dump-dom")
    return html.unescape(dom), said(log)


def framed(pages: Mapping[str, str]) -> str:
    """A page of pages, each in frames of both widths, whose titles say how they came out."""
    frames = "".join(
        f'<iframe id="{name}-{width}" style="width:{width}px;height:800px;border:0" '
        f'srcdoc="{html.escape(page)}"></iframe>'
        for name, page in pages.items()
        for width in WIDTHS
    )
    script = """<script>addEventListener("load", () => { for (const frame of document.querySelectorAll("iframe")) {
      const root = frame.contentDocument.documentElement;
      for (const folded of root.querySelectorAll("details")) folded.open = true;
      const title = root.querySelector("h1").textContent;
      const scripts = root.querySelectorAll("script").length;
      const missing = root.querySelectorAll("figure[data-plot]:not(.enhanced)").length;
      const fetched = frame.contentWindow.performance.getEntriesByType("resource").length;
      const tall = root.scrollHeight < 80000 ? "not too tall" : `${root.scrollHeight} tall`;
      frame.title = `${frame.id} is ${root.scrollWidth} wide, ${tall}, ${scripts} script, ${missing} curves missing, ` +
        `${fetched} fetched: ${title}`;
    } })</script>"""
    return f"<!doctype html><meta charset=utf-8>{frames}{script}"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["passed", "refused", "narrow", *HOSTILE])
def test_report_fits_and_draws_its_curves_at_both_widths_whatever_names_the_log_holds(
    seen: tuple[str, list[str]], name: str, width: int
) -> None:
    verdict = "may be" if name == "passed" else "must not be"
    wanted = f"{name}-{width} is {width} wide, not too tall, 1 script, 0 curves missing, 0 fetched: Release 7 {verdict}"
    assert wanted in seen[0]


def test_console_stays_silent_whatever_names_the_log_holds(seen: tuple[str, list[str]]) -> None:
    assert seen[1] == []


def test_browser_opens_the_file_itself_and_takes_pictures_of_both_widths(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(render_report(samples.report(samples.narrow_evaluation())))
    for width in WIDTHS:
        picture = tmp_path / f"{width}.png"
        _, log = browse(
            tmp_path / "report.html", tmp_path / "profile", f"--screenshot={picture}", f"--window-size={width},900"
        )
        assert said(log) == []
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 20_000  # a blank page of that size has 5,000


def test_foreign_script_is_refused_and_the_console_says_so(tmp_path: Path) -> None:
    """The policy holds even where the escaping would not; and a console that speaks is heard."""
    text = render_report(samples.report(samples.passed_evaluation()))
    (tmp_path / "report.html").write_text(
        text.replace(
            "</footer>", "</footer><script>document.title = 'taken over'</script><img src='https://a.invalid/x'>"
        )
    )
    dom, log = browse(tmp_path / "report.html", tmp_path / "profile", "--dump-dom")
    assert "<title>taken over" not in dom
    assert sum("Content Security Policy" in line for line in said(log)) == 2


def test_report_on_paper_shows_still_pictures_and_every_step(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(render_report(samples.report(samples.passed_evaluation())))
    printed = tmp_path / "report.pdf"
    _, log = browse(tmp_path / "report.html", tmp_path / "profile", f"--print-to-pdf={printed}")
    assert said(log) == []
    assert printed.read_bytes().startswith(b"%PDF")
    # A canvas would be an image; the still pictures are drawn.
    assert not re.search(rb"/Subtype\s*/Image", printed.read_bytes())


def browse(path: Path, profile: Path, *what: str) -> tuple[str, str]:
    """Output and log of a headless browser on a file."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={profile}", *what, path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


def said(log: str) -> list[str]:
    """Lines that pages wrote to the console."""
    return [line for line in log.splitlines() if ":CONSOLE" in line or "CONSOLE(" in line]
