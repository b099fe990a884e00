"""Reference pages of the packages: a page per module, filled by mkdocstrings, and one that lists them."""

from __future__ import annotations

import ast
from pathlib import Path

from docstrings import as_code

PACKAGES = {
    "datasets": "Contract, log readers, lake, validation, privacy, snapshots.",
    "drift": "Binning, divergences, their null, the decision to retrain.",
    "offline_dqn": "Networks, losses, the training loop, checkpoints, what a policy is.",
    "reports": "Off-policy estimators, intervals, the gate, the report, the registry.",
    "pipelines": "Nights and their order, the policy server, metrics, notifications, the command line.",
}
"""Each package with what it holds, in the order in which they build on one another."""


_SEARCHED_LAST = "---\nsearch:\n  boost: 0.0002\n---\n\n"
"""Who searches for a word wants the page that explains it before the function that computes it."""


def module_pages(root: Path, package: str) -> dict[str, str]:
    """The pages of a package, name to Markdown: its list of modules, and one for each.

    Raises:
        ValueError: a module has no docstring, so the list could say nothing of it.
    """
    pages: dict[str, str] = {}
    rows: list[str] = []
    for path in sorted((root / package).rglob("*.py")):
        if path.name in ("__init__.py", "__main__.py"):
            continue
        where = path.relative_to(root)
        name = ".".join(where.with_suffix("").parts)
        documentation = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if not documentation:
            raise ValueError(f"{where} has no docstring. Say in one line at its top what it is for.")
        summary = as_code(" ".join(documentation.split("\n\n")[0].split())).replace("|", "\\|")
        pages[f"reference/{package}/{name}.md"] = (
            f"{_SEARCHED_LAST}# {name}\n\n`{where}`, of the package [{package}](../{package}.md).\n\n::: {name}\n"
        )
        rows.append(f"| [`{name}`]({package}/{name}.md) | {summary} |")
    title = f"# The package `{package}`\n\n{PACKAGES[package]}\n\n"
    pages[f"reference/{package}.md"] = title + "\n".join(["| module | |", "| --- | --- |", *rows, ""])
    return pages
