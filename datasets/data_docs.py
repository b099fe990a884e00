"""Where the pages of validation results lie, and how long. They are derived: what is deleted is made again."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path

from datasets.lake import Lake
from datasets.suite_process import render_page
from datasets.validation import ValidationResult


def docs_folder(lake: Lake) -> Path:
    """Where the pages lie, each in a folder named by its batch."""
    return lake.root / "_validation"


def docs_path(lake: Lake, batch_id: str) -> Path:
    """A batch's page; that of a held batch lies beside its rows."""
    held = lake.held_path / batch_id
    return held / "validation.html" if held.exists() else docs_folder(lake) / batch_id / "index.html"


def write_docs(result: ValidationResult, path: Path, *, title: str) -> None:
    """Renders a result as a page of Great Expectations' Data Docs. Written beside, then renamed.

    Raises:
        SuiteError: it could not be rendered.
    """
    page = render_page(title, [asdict(record) for record in result.records], list(result.not_judged))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(page, encoding="utf-8")
    beside.replace(path)


def drop_old_docs(lake: Lake, *, keep: int) -> None:
    """Deletes all but the newest pages; held batches keep theirs."""
    folders = [folder for folder in docs_folder(lake).glob("b-*") if folder.is_dir()]
    # Batches are named by the time of their ingest.
    for folder in sorted(folders, key=lambda folder: folder.name, reverse=True)[keep:]:
        shutil.rmtree(folder, ignore_errors=True)
