"""Text that came with a log, where a person or a program reads it: shown, and never obeyed."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from pipelines import console
from pipelines.cli import Form, query
from pipelines.metrics.exposition import exposition
from pipelines.metrics.values import Values
from pipelines.workspace import Workspace

HOSTILE = "e\x1b[2J\x1b]52;c;aGk=\x07\x9b31m\u202etxt.exe\r[bold]x[/bold]"
"""Clears the screen, sets the clipboard, colors, turns the direction of writing, goes back in the line, and markup."""

AS_SHOWN = r"e\x1b[2J\x1b]52;c;aGk=\x07\x9b31m\u202etxt.exe\x0d[bold]x[/bold]"


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal is sent."""
    sent = io.StringIO()
    for name in ("out", "err"):
        terminal = Console(file=sent, force_terminal=True, no_color=True, width=300, highlight=False)
        monkeypatch.setattr(console, name, terminal)
    return sent


def test_no_control_sequence_of_a_log_reaches_the_terminal(screen: io.StringIO) -> None:
    console.print_account(HOSTILE, {HOSTILE: HOSTILE})
    console.print_table(HOSTILE, [HOSTILE], [[HOSTILE], [None]])
    console.warn(HOSTILE)
    console.fail(HOSTILE)

    assert screen.getvalue().count(AS_SHOWN) == 7
    for sequence in ("\x1b[2J", "\x1b]52", "\x07", "\x9b", "\u202e", "\r"):
        assert sequence not in screen.getvalue()


@given(st.text())
def test_what_is_printable_stays_as_it_is_and_nothing_else_gets_through(text: str) -> None:
    shown = console.printable(text)
    assert all(c in "\t\n" or (c.isprintable() or ord(c) > 0x9F) for c in shown)
    if text.isprintable():
        assert shown == text
    assert console.printable(shown) == shown


@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\\n{},=# '), max_size=40))
def test_a_label_for_prometheus_is_one_label_whatever_it_holds(text: str) -> None:
    values = Values()
    values.add("offline_dqn_run_verdict", 1, decision=text, gate="none")

    page = exposition(values.values, "problem")
    (family,) = text_string_to_metric_families(page)

    assert [s.labels for s in family.samples] == [{"problem": "problem", "decision": text, "gate": "none"}]


def test_a_formula_in_a_csv_is_told_and_not_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fresh: Workspace
) -> None:
    monkeypatch.setattr(console, "err", Console(stderr=True, width=300))
    query("SELECT '=HYPERLINK(\"//x\")' AS a, -5 AS b, '+1' AS c", fresh.root, Form.CSV, False)

    told = capsys.readouterr()
    assert told.out == 'a,b,c\n"=HYPERLINK(""//x"")",-5,+1\n'
    assert "2 texts begin like a formula" in told.err
