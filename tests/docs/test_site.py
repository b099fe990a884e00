"""The site is built strictly, fetches nothing from anywhere, and opens from a folder: search and reference included."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, pages
from tests.reports.test_report_browser import CHROMIUM, browse, said

FETCHING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}
"""Elements with the attribute that makes a browser fetch something as soon as the page opens."""


def build(site: Path, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    """Builds the site as `make docs` does, into another folder."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--config-file", config, "--site-dir", site],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site") / "site"
    done = build(folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


_TAG = re.compile(r"<(script|img|iframe|source|video|link|a)\b([^>]*)>")
_ATTRIBUTE = re.compile(r"""([\w-]+)=(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""")


@cache
def addresses_in(page: Path) -> tuple[frozenset[str], frozenset[str]]:
    """What a page fetches by itself, and where its links lead."""
    fetched, linked = set(), set()
    for tag, rest in _TAG.findall(page.read_text(encoding="utf-8")):
        found = {name: html.unescape(a or b or c) for name, a, b, c in _ATTRIBUTE.findall(rest)}
        address = found.get(FETCHING.get(tag, "href"), "")
        if tag == "a":
            linked.add(address)
        elif found.get("rel") not in ("next", "prev", "canonical"):
            fetched.add(address)
    return frozenset(fetched - {""}), frozenset(linked - {""})


def test_every_page_of_the_folder_is_built(site: Path) -> None:
    for page in pages()[1:]:
        built = page.relative_to(ROOT / "docs").with_suffix(".html")
        assert (site / (built.with_name("index.html") if built.stem == "README" else built)).is_file()


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    built = sorted(site.rglob("*.html"))
    assert len(built) > len(pages())
    for page in built:
        for address in addresses_in(page)[0]:
            if page.name == "404.html" and address.startswith("/"):
                continue  # it is answered for any address, so it names its own files from the top
            assert not re.match(r"(\w+:)?//", address), f"{page} fetches {address}"
            assert (page.parent / address.partition("?")[0]).resolve().exists(), f"{page} fetches {address}"
    for sheet in (*site.rglob("*.css"), site / "assets" / "iframe-worker.js"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_links_between_pages_lead_to_pages(site: Path) -> None:
    for page in sorted(site.rglob("*.html")):
        if page.name == "404.html":
            continue
        for link in addresses_in(page)[1]:
            if not re.match(r"\w+:|#", link):
                assert (page.parent / link.partition("#")[0]).resolve().exists(), f"{page} links to {link}"


def test_reference_shows_commands_settings_and_docstrings(site: Path) -> None:
    def text(name: str) -> str:
        return html.unescape(re.sub(r"<[^>]+>", "", (site / "reference" / name).read_text(encoding="utf-8")))

    assert "Make the recorded decision again, and say whether every bit is the same." in text("commands.html")
    assert re.search(r"false_alarm_rate\s+number, > 0.0, < 1.0\s+0.01\s+\S", text("settings.html"))
    assert re.search(r"attribution_window\s+text\s+required", text("contract.html"))
    assert "The release gate: a pure function" in text("reports.html")
    assert "How much worse than the baseline a candidate may be." in text("reports/reports.gate.html")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")
def test_site_opens_from_its_folder_and_its_search_finds_the_page(site: Path, tmp_path: Path) -> None:
    looked_up = tmp_path / "search.html"  # a file's own address cannot carry ?q= here, a frame's can
    looked_up.write_text(f'<meta http-equiv="refresh" content="0; url={(site / "index.html").as_uri()}?q=propensity">')

    dom, log = browse(looked_up, tmp_path / "profile", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom")

    assert said(log) == []
    assert re.search(r"\d+ matching documents", dom)
    (first, *_) = re.findall(r'href="([^"]*)"[^>]*class="md-search-result__link"', dom)
    assert not re.search(r"/reference/\w+/", first), "pages that explain a word come before modules"


def test_page_in_no_navigation_and_broken_link_fail_the_build(tmp_path: Path) -> None:
    small = tmp_path / "mkdocs.yml"
    strict = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    validation = re.search(r"^validation:\n(?:  .*\n|\n)+", strict, re.MULTILINE)
    assert validation is not None
    small.write_text(f"site_name: small\nstrict: true\nnav: [index.md]\n{validation[0]}", encoding="utf-8")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Small\n\n[nowhere](nowhere.md)\n", encoding="utf-8")
    (tmp_path / "docs" / "forgotten.md").write_text("# Forgotten\n", encoding="utf-8")

    done = build(tmp_path / "site", small)

    assert done.returncode != 0
    assert "forgotten.md" in done.stderr
    assert "nowhere.md" in done.stderr
