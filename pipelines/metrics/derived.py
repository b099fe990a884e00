"""Writes what follows from the definitions: the dashboards, the alert rules, and the table in docs/metrics.md.

Run from the project's folder: `make derived`.
"""

from __future__ import annotations

import json
from pathlib import Path

from pipelines.metrics.alerts import alerts
from pipelines.metrics.dashboards import debug, executive, on_call
from reports.operating_metrics import definitions_as_markdown

BEGIN, END = "<!-- the ten: begin -->\n", "\n<!-- the ten: end -->"


def derived_files(page: str) -> dict[str, str]:
    """Content by path, relative to the project's folder.

    Args:
        page: docs/metrics.md as it is; what stands outside the table stays.
    """
    before, _, rest = page.partition(BEGIN)
    boards = {"executive": executive(), "on_call": on_call(), "debug": debug()}
    return {
        **{f"dashboards/{name}.json": json.dumps(board, indent=1) + "\n" for name, board in boards.items()},
        "dashboards/alerts.yml": alerts(),
        "docs/metrics.md": before + BEGIN + definitions_as_markdown() + END + rest.partition(END)[2],
    }


def main() -> None:
    """Writes them where they lie."""
    for name, content in derived_files(Path("docs/metrics.md").read_text(encoding="utf-8")).items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
