"""The error ledger: what a year may spend, and that no crash and no second process gives a free look."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.settings import SettingsError, build_settings
from reports.gate import GateConfig
from reports.ledger import ErrorSpentError, Ledger, LedgerError, Reading, Terms, budget_of

AT = datetime(2026, 1, 1, 3, 0, tzinfo=UTC)
GATE = GateConfig()


def terms(release: int, **changes: object) -> Terms:
    made = Terms(
        release=release,
        candidate=f"policy-{release}",
        snapshot="s" * 64,
        nights=("2025-12-30", "2025-12-31"),
        n_episodes=500,
        alpha=0.01,
        inputs={"champion": None, "seed": 0},
        made_by={"numpy": "2"},
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # fields by name


def enter(ledger: Ledger, entered: Terms, at: datetime) -> Reading:
    """Where both clocks agree."""
    return ledger.begin(entered, GATE, at, now=at)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "releases" / "ledger.jsonl")


def test_twenty_readings_fit_into_a_year_and_the_next_waits_for_the_oldest(ledger: Ledger) -> None:
    for k in range(20):
        enter(ledger, terms(k + 1), AT + timedelta(days=k))

    with pytest.raises(ErrorSpentError) as refused:
        enter(ledger, terms(21), AT + timedelta(days=364))

    text = str(refused.value)
    assert "Release 21 was not judged and `gate` was not read: 20 readings since 2026-01-01 have spent 0.2" in text
    assert "One becomes possible again on 2027-01-01 03:00 UTC." in text
    assert "gate.yearly_error" in text
    assert len(ledger.readings()) == 20
    # A year after the first: it is 365 days old and no longer counts.
    assert enter(ledger, terms(21), AT + timedelta(days=365)).number == 21


def test_a_reading_spends_once_whatever_is_repeated(ledger: Ledger) -> None:
    begun = ledger.begin(terms(1), GATE, AT)
    again = ledger.begin(terms(1), GATE, AT + timedelta(days=3))  # after a crash: neither date nor error moves
    decided = ledger.decide(again, "passed", "e" * 64, 1)
    ledger.decide(again, "passed", "e" * 64, 1)
    finished = ledger.begin(terms(1), GATE, AT + timedelta(days=9))

    assert begun == again
    assert finished == decided
    assert (decided.verdict, decided.at) == ("passed", AT)
    assert budget_of(ledger.readings(), GATE, AT + timedelta(days=9), AT + timedelta(days=9)).spent == pytest.approx(
        0.01
    )
    assert len(ledger.path.read_text().splitlines()) == 2


def test_an_unfinished_reading_is_nobody_elses(ledger: Ledger) -> None:
    ledger.begin(terms(1), GATE, AT)

    other = ledger.begin(terms(2), GATE, AT)
    other_champion = ledger.begin(terms(1, inputs={"champion": 2, "seed": 0}), GATE, AT)

    assert [other.number, other_champion.number] == [2, 3]
    assert budget_of(ledger.readings(), GATE, AT, AT).spent == pytest.approx(0.03)


def test_new_libraries_do_not_make_an_unfinished_reading_a_new_one(ledger: Ledger) -> None:
    ledger.begin(terms(1), GATE, AT)

    assert ledger.begin(terms(1, made_by={"numpy": "3"}), GATE, AT).terms.made_by == {"numpy": "2"}
    assert len(ledger.readings()) == 1


def test_the_same_policy_under_another_number_spends_nothing(ledger: Ledger) -> None:
    ledger.decide(ledger.begin(terms(1), GATE, AT), "refused", "e" * 64, 1)

    twin = ledger.begin(terms(4, candidate="policy-1"), GATE, AT)

    assert (twin.number, twin.releases, twin.verdict) == (1, (1, 4), "refused")
    assert ledger.readings() == [twin]
    done = ledger.decide(twin, "refused", "f" * 64, 4)
    assert done.evaluations == {1: "e" * 64, 4: "f" * 64}  # each keeps its own
    assert ledger.readings() == [done]
    assert ledger.begin(terms(5), GATE, AT, judged={1: "a", 4: "b"}).number == 2


def test_a_reading_has_one_verdict_whoever_looks_again(ledger: Ledger) -> None:
    begun = ledger.begin(terms(1), GATE, AT)
    ledger.decide(begun, "refused", "e" * 64, 1)
    ledger.begin(terms(2, candidate="policy-1"), GATE, AT)

    with pytest.raises(LedgerError, match=r"Reading 1 ended with 'refused', and release 2 has 'passed'"):
        ledger.decide(begun, "passed", "f" * 64, 2)
    with pytest.raises(LedgerError, match=r"Reading 1 is of release \(1, 2\), not of 3"):
        ledger.decide(begun, "refused", "f" * 64, 3)
    assert ledger.readings()[0].evaluations == {1: "e" * 64}


def test_dates_given_by_hand_make_no_more_years(ledger: Ledger) -> None:
    now, entered = datetime(2026, 6, 1, tzinfo=UTC), 0
    for year in range(2010, 2026, 2):  # ascending, so that each year of the log would begin anew
        for k in range(30):
            try:
                ledger.begin(terms(1, candidate=f"{year}-{k}"), GATE, datetime(year, 1, 1, tzinfo=UTC), now=now)
            except ErrorSpentError as refused:
                assert "possible again on 2027-06-01 00:00 UTC" in str(refused)  # noqa: PT017 - the loop goes on
                break
            entered += 1

    assert entered == 20
    # A year later by our clock, and by the log's: both have let go of the first twenty.
    assert enter(ledger, terms(21), now + timedelta(days=365)).number == 21


def test_a_log_that_moves_on_slowly_still_counts_by_its_own_clock(ledger: Ledger) -> None:
    for k in range(20):
        ledger.begin(terms(k + 1), GATE, AT, now=AT)

    with pytest.raises(ErrorSpentError):
        ledger.begin(terms(21), GATE, AT + timedelta(days=364), now=AT + timedelta(days=800))


@pytest.mark.parametrize("kept", [0, 1, 40, -1])
def test_a_torn_last_line_is_a_reading_that_did_not_begin(ledger: Ledger, kept: int) -> None:
    first = ledger.begin(terms(1), GATE, AT)
    whole = ledger.path.read_bytes()
    ledger.begin(terms(2), GATE, AT)
    ledger.path.write_bytes(whole + ledger.path.read_bytes()[len(whole) :][:kept])

    assert ledger.readings() == [first]
    assert ledger.begin(terms(3), GATE, AT).number == 2
    assert [reading.terms.release for reading in ledger.readings()] == [1, 3]


def test_a_damaged_line_stops_everything_and_says_what_to_do(ledger: Ledger) -> None:
    ledger.begin(terms(1), GATE, AT)
    ledger.path.write_text("{}\n" + ledger.path.read_text())

    with pytest.raises(LedgerError, match=r"ledger\.jsonl cannot be read: KeyError: 'reading'.*restore it from a back"):
        ledger.begin(terms(2), GATE, AT)


def test_a_ledger_that_was_taken_away_is_noticed(ledger: Ledger) -> None:
    ledger.begin(terms(1), GATE, AT)
    ledger.path.unlink()

    with pytest.raises(LedgerError, match=r"does not know how release 1, 2 met `gate`.*Restore the ledger"):
        ledger.begin(terms(3), GATE, AT, judged={1: "a", 2: "b"})
    assert not ledger.path.exists()


def test_a_ledger_that_cannot_be_written_reads_nothing(ledger: Ledger) -> None:
    ledger.path.mkdir(parents=True)

    with pytest.raises(OSError, match="ledger"):
        ledger.begin(terms(1), GATE, AT)


def test_a_ledger_on_a_full_disk_says_that_nothing_was_spent(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reports.release_records.append_record", full)

    with pytest.raises(LedgerError, match=r"No space left on device\. `gate` was not read and no error is spent"):
        ledger.begin(terms(1), GATE, AT)


def test_two_processes_never_spend_the_last_reading_twice(ledger: Ledger) -> None:
    for k in range(18):
        ledger.begin(terms(k + 1), GATE, AT)
    code = (
        "import sys\nfrom pathlib import Path\nfrom reports.gate import GateConfig\nfrom reports.ledger import *\n"
        "from tests.reports.test_ledger import terms, AT\nsys.stdin.read(1)\nn = 0\nfor k in range(4):\n"
        "    try:\n        Ledger(Path(sys.argv[1])).begin(terms(100 * int(sys.argv[2]) + k), GateConfig(), AT)\n"
        "        n += 1\n"
        "    except ErrorSpentError:\n        pass\nprint(n)"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(ledger.path), str(i)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in (1, 2)
    ]
    for process in both:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    counts = [int(process.communicate(timeout=60)[0]) for process in both]

    assert sum(counts) == 2
    assert [reading.number for reading in ledger.readings()] == list(range(1, 21))


@settings(max_examples=60, deadline=None)
@given(
    days=st.lists(st.integers(0, 800), max_size=30),
    alphas=st.lists(st.sampled_from([0.01, 0.02, 0.05]), min_size=30, max_size=30),
    lags=st.lists(st.integers(0, 800), min_size=30, max_size=30),
)
def test_a_reading_is_possible_when_it_is_promised_and_not_a_moment_before(
    days: list[int], alphas: list[float], lags: list[int]
) -> None:
    at = [AT + timedelta(days=day) for day in days]
    ours = [min(when + timedelta(days=lag), AT + timedelta(days=800)) for when, lag in zip(at, lags, strict=False)]
    readings = [Reading(i + 1, at[i], ours[i], terms(i, alpha=alphas[i]), (i,)) for i in range(len(days))]
    now = AT + timedelta(days=800)
    found = budget_of(readings, GATE, now, now)

    if found.possible_at is None:
        assert found.n_left >= 1
        assert found.spent + GATE.alpha <= GATE.yearly_error + 1e-9
    else:
        assert found.n_left == 0
        assert budget_of(readings, GATE, found.possible_at, found.possible_at).n_left >= 1
        before = found.possible_at - timedelta(seconds=1)
        assert budget_of(readings, GATE, before, before).n_left == 0


def test_settings_under_which_not_one_reading_fits_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"alpha = 0\.05 is more than yearly_error = 0\.04"):
        build_settings(GateConfig, {"alpha": 0.05, "yearly_error": 0.04}, "test")
