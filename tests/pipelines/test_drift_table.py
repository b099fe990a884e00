"""The drift check in the terminal: bars, widths, encodings, folded columns, hostile names."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from pipelines.drift_table import bar, print_check
from reports.night_checks import NightCheck
from tests.reports import drift_samples as samples


def printed(check: NightCheck, width: int = 120, encoding: str = "utf-8") -> str:
    """What a terminal of that width and encoding shows."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    print_check(check, Console(file=stream, width=width, highlight=False), page="offline-dqn drift page --open")
    stream.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize(
    ("times", "blocks", "ascii_only"),
    [
        # Ten characters stand for twice what is allowed, the mark at the sixth for 1: .5 times is 2.5 characters.
        (0.0, "     │    ", "     |    "),
        (0.5, "██▌  │    ", "###  |    "),
        (1.4, "█████│█   ", "#####|#   "),
        (2.0, "█████│████", "#####|####"),
        (9.0, "█████│███▶", "#####|###>"),
        (float("inf"), "█████│███▶", "#####|###>"),
    ],
)
def test_a_bar_is_psi_relative_to_what_is_allowed(times: float, blocks: str, ascii_only: str) -> None:
    assert bar(times, 10, blocks=True) == blocks
    assert bar(times, 10, blocks=False) == ascii_only


def test_the_decision_stands_on_top_and_what_to_do_at_the_end() -> None:
    lines = printed(samples.drifted_check()).splitlines()
    assert lines[0] == "Retrain: zone and 2 more moved"
    assert lines[-1].split(maxsplit=1)[1].strip() == "offline-dqn drift page --open"
    assert any(line.startswith("what to do  Rule out the logging first") for line in lines)
    rows = [line.split() for line in lines if "drifted," in line]
    assert [row[0] for row in rows] == ["zone", "request_rate", "p95_ms"]
    assert "2024-05-18" in rows[1]
    assert any(line.startswith("not judged: hour (only the live window has this column)") for line in lines)
    for name in ("effect", "together", "slowly"):
        assert any(line.startswith(name) for line in lines)


def test_a_suspicion_is_named_among_what_was_found() -> None:
    assert "suspicious  request_rate moved in 1 of 25 sources alone" in printed(samples.held_check())


def test_many_columns_are_folded_to_the_nearest_twenty() -> None:
    text = printed(samples.calm_check(n_columns=65))
    assert text.count("stable") == 20
    assert "and 45 more, none above half its threshold" in text
    assert text.index("feature_64") < text.index("feature_45")


@pytest.mark.parametrize("width", [50, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_lines_fit_the_terminal_and_its_encoding(width: int, encoding: str) -> None:
    for check in (samples.drifted_check(), samples.extreme_checks("名前\u202e[red]\x1b[31m").newest):
        text = printed(check, width, encoding)
        assert max(map(cell_len, text.splitlines())) <= width
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert ("█" in text) == (encoding == "utf-8")


def test_a_night_without_a_comparison_says_what_it_knows() -> None:
    lines = printed(samples.unknown_check()).splitlines()
    assert lines[:2] == [
        "Keep the champion: too little data to judge drift",
        "Keep the champion: there was nothing to compare.",
    ]
    assert not any("PSI" in line for line in lines)
