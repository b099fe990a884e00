"""Takes example episodes out of what an evaluation wrote, where one of them has to go: rows of a log stand in them."""

from __future__ import annotations

import json
import re

_BLOCK = re.compile(rb"<!--example-->.*?<!--/example-->", re.DOTALL)
"""Only the template writes these marks: text of a log comes escaped, so it cannot."""


def report_without(report: bytes, named: re.Pattern[bytes]) -> bytes:
    """The report's HTML without the example episodes in which `named` is found."""
    return _BLOCK.sub(lambda block: b"" if named.search(block.group()) else block.group(), report)


def evaluation_without(evaluation: bytes, named: re.Pattern[bytes]) -> bytes:
    """The content of `evaluation.json` without the example episodes in which `named` is found."""
    record = json.loads(evaluation)
    changes = record.get("changes")
    if not changes or not changes["episodes"]:
        return evaluation
    kept = [e for e in changes["episodes"] if not named.search(json.dumps(e, ensure_ascii=False).encode())]
    if len(kept) == len(changes["episodes"]):
        return evaluation
    return json.dumps(record | {"changes": changes | {"episodes": kept}}, indent=1).encode()
