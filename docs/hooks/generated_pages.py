"""What the site has beside the pages of this folder: the reference and the changelog, written while it is built."""

from __future__ import annotations

import sys
from pathlib import Path

from command_pages import commands_page
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from module_pages import PACKAGES, module_pages
from settings_pages import contract_page, settings_page

ROOT = Path(__file__).resolve().parents[2]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lets the hooks import the packages that they describe, wherever mkdocs was started."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages; the navigation in mkdocs.yml names those a reader begins with."""
    pages = {
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        "reference/commands.md": commands_page(),
        "reference/settings.md": settings_page(),
        "reference/contract.md": contract_page(),
    }
    for package in PACKAGES:
        pages |= module_pages(ROOT, package)
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files
