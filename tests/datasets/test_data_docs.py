"""Pages of validation results: what they show, that they fetch nothing, and how many are kept."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from datasets.data_docs import docs_folder, docs_path, drop_old_docs, write_docs
from datasets.lake import Lake
from datasets.validation import ExpectationRecord, ValidationResult
from tests.datasets.builders import tiny

HOSTILE = "<script>alert(1)</script>$x<img src='http://example.org/a.png' onerror=alert(2)>"


def record(*, success: bool = True, severity: str = "hold", column: str = "observation.cpu") -> ExpectationRecord:
    return ExpectationRecord(
        name="ExpectColumnValuesToBeInSet",
        column=column,
        says="is one of a, b",
        success=success,
        observed_value=0.0 if success else 0.25,
        unexpected_count=0 if success else 5,
        examples=() if success else (HOSTILE,),
        sentence="" if success else f"Expected that {column} is one of a, b: found {HOSTILE}. Mend the log.",
        n_rows=20,
        severity=severity,  # type: ignore[arg-type]  # the literals are the parameters
        arguments={"value_set": ["a<1", "b"], "mostly": 1.0},
    )


def of_batch() -> ExpectationRecord:
    return ExpectationRecord("ExpectColumnValuesToBeBetween", "quarantined share", "is at most 5%", True, 0.01, 0, (),
        "", arguments={"max_value": 0.05})  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    records = (record(), record(success=False, column="action"), record(success=False, severity="warn"), of_batch())
    path = tmp_path_factory.mktemp("docs") / "new" / "index.html"
    write_docs(ValidationResult(False, records, 20, 0.1, ("a low volume: not enough nights yet",)), path, title="B & 1")
    return path.read_text(encoding="utf-8")


def test_page_shows_verdict_findings_and_what_was_not_judged(page: str) -> None:
    assert "<h1>B &amp; 1</h1>" in page
    assert "Failed" in page
    assert "holds the batch" in page
    assert "warns" in page
    assert "not judged" in page
    assert "a low volume: not enough nights yet" in page
    assert "quarantined share" in page
    assert "5 unexpected values found. 25% of 20 total rows." in page
    assert "a&lt;1" in page
    assert "$mostly" not in page


def test_page_fetches_and_runs_nothing(page: str) -> None:
    assert "default-src 'none'" in page
    assert not re.search(r"<(script|link|img|iframe|object)\b", page)
    assert not re.search(r"<[^>]*\s(src|href|on\w+)=", page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;$x" in page


def test_page_of_a_held_batch_lies_beside_it(tmp_path: Path) -> None:
    lake = Lake(tmp_path, tiny())
    assert docs_path(lake, "b-1") == tmp_path / "_validation" / "b-1" / "index.html"
    (lake.held_path / "b-1").mkdir(parents=True)
    assert docs_path(lake, "b-1") == lake.held_path / "b-1" / "validation.html"


def test_only_the_newest_pages_are_kept(tmp_path: Path) -> None:
    lake = Lake(tmp_path, tiny())
    for name in ("b-20240501", "b-20240503", "b-20240502", "lake"):
        (docs_folder(lake) / name).mkdir(parents=True)
    drop_old_docs(lake, keep=2)
    assert sorted(p.name for p in docs_folder(lake).iterdir()) == ["b-20240502", "b-20240503", "lake"]
