"""`release.json`: the SHA-256 of every file of a release, so that altered bytes are noticed before they act."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from datasets.bucket_folder import file_digest
from datasets.durable import write_durably

MANIFEST = "release.json"


@dataclass(frozen=True)
class Manifest:
    """What a release consists of.

    Attributes:
        files: path within the release -> SHA-256, of what it was registered with. These never change.
        evaluation_files: the same of what its evaluation added; the next evaluation replaces them.
    """

    release: int
    created_at: datetime
    gate: str
    tags: Mapping[str, str]
    files: Mapping[str, str]
    evaluation_files: Mapping[str, str]

    @classmethod
    def of_folder(
        cls, folder: Path, *, release: int, created_at: datetime, gate: str, tags: Mapping[str, str]
    ) -> Manifest:
        """The manifest of every file now in `folder`."""
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        files = {name: file_digest(folder / name) for name in names if name != MANIFEST}
        return cls(release, created_at, gate, tags, files, {})

    def with_evaluation(self, files: Mapping[str, bytes], *, gate: str, tags: Mapping[str, str]) -> Manifest:
        """The manifest after an evaluation added files, given as content by name."""
        added = {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)}
        return replace(self, gate=gate, tags={**self.tags, **tags}, evaluation_files=added)

    def damage(self, folder: Path, *, without_evaluation: bool = False) -> str:
        """Which files are missing or altered, in words; "" for none."""
        expected = dict(self.files) if without_evaluation else {**self.files, **self.evaluation_files}
        missing = [name for name in expected if not (folder / name).is_file()]
        altered = [n for n, digest in expected.items() if n not in missing and file_digest(folder / n) != digest]
        parts = [(missing, "missing"), (altered, "altered")]
        return "; ".join(
            f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} {how}" for names, how in parts if names
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest's content."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    def text(self) -> str:
        """As it is stored."""
        values = {
            "release": self.release,
            "created_at": self.created_at.isoformat(),
            "gate": self.gate,
            "tags": dict(self.tags),
            "files": dict(self.files),
            "evaluation_files": dict(self.evaluation_files),
        }
        return json.dumps(values, indent=1, sort_keys=True) + "\n"


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a release's folder; None if it is missing or none."""
    try:
        values: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        created_at = datetime.fromisoformat(values.pop("created_at"))
        return Manifest(created_at=created_at, **values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `release.json`, whole or not at all."""
    write_durably(folder / MANIFEST, manifest.text())
