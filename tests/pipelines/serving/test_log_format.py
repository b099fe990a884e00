"""What the policy server's own log says of an error."""

from __future__ import annotations

import logging
import sys

from datasets.errors import RowError
from pipelines.serving.log_format import WithoutRows


def test_a_traceback_in_the_log_has_its_frames_and_no_message_that_may_quote_a_row() -> None:
    try:
        try:
            raise ValueError("Could not convert string 'Jane Doe'")
        except ValueError as error:
            raise RowError("rule 1 fails in {'zone': 'Jane Doe'}", "rule 1 fails in row 0") from error
    except RowError:
        record = logging.LogRecord("uvicorn.error", logging.ERROR, __file__, 1, "Exception", (), sys.exc_info())

    said = WithoutRows("%(levelname)s: %(message)s").format(record)

    first, then = said.split("which led to")
    assert first.startswith("ERROR: Exception\n  File ")
    assert first.rstrip().endswith("ValueError")
    assert then.rstrip().endswith("rule 1 fails in row 0")
    assert "test_log_format.py" in then
    assert 'row 0") from error' in then
