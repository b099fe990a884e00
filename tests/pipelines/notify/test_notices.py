"""Which causes are open and who has to hear of them: grouped, told once, repeated late, and over when they are over."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from datasets.settings import SettingsError, build_settings
from pipelines.notify.config import NotifyConfig
from pipelines.notify.notices import Notice, Open, after_telling, due, found_now, message_of, still_open

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)  # a Monday
HELD = Notice("batches", "page", "batch b-1 is held", "Look at it.", "b-1")
REFUSED = Notice("gate", "ticket", "the gate refused release 2", "It is worse.", "2", lasts=False)


def found(before: tuple[Open, ...], *notices: Notice, hours: float = 0.0) -> tuple[Open, ...]:
    return found_now(before, notices, {"batches", "gate"}, NOON + timedelta(hours=hours))


def heard(cause: Open, hours: float = 0.0, *, taken: bool = True) -> Open:
    return after_telling(cause, "A", NOON + timedelta(hours=hours), taken=taken)


def is_due(cause: Open, hours: float) -> bool:
    return due(cause, "A", NOON + timedelta(hours=hours), repeat_hours=24)


def test_a_cause_is_told_once_and_again_only_after_the_configured_hours() -> None:
    (cause,) = found((), HELD)
    assert is_due(cause, 0)
    cause = heard(cause)
    (cause,) = found((cause,), HELD, hours=1)

    assert (cause.n_found, cause.since) == (2, NOON)
    assert [is_due(cause, hours) for hours in (1, 23.9, 24)] == [False, False, True]


def test_it_is_told_at_once_when_it_changes() -> None:
    cause = heard(*found((), HELD))
    (cause,) = found((cause,), Notice("batches", "page", "2 batches are held", "Look.", "b-1, b-2"), hours=1)

    assert is_due(cause, 1)


def test_an_event_is_not_repeated_and_another_one_of_its_kind_is_told() -> None:
    cause = heard(*found((), REFUSED))
    assert not is_due(cause, 1000)
    (cause,) = found((cause,), Notice("gate", "ticket", "the gate refused release 3", "", "3", lasts=False))
    assert is_due(cause, 0)


def test_what_is_over_is_told_to_those_who_heard_of_it_and_then_forgotten() -> None:
    cause = heard(*found((), HELD))
    (over,) = found((cause,), hours=2)

    assert over.over
    assert due(over, "A", NOON, 24)
    assert not due(over, "B", NOON, 24)  # never heard of it
    assert still_open([over], {"A"}) == (over,)
    assert still_open([heard(over, 2)], {"A"}) == ()
    assert still_open([over], {"B"}) == ()  # A is no receiver any more


def test_what_nobody_heard_of_ends_without_a_word() -> None:
    assert found(found((), HELD), hours=2) == ()  # for example within a planned window


def test_what_was_not_looked_for_stays_open() -> None:
    causes = found_now(found((), HELD), [], {"gate"}, NOON)

    assert [cause.over for cause in causes] == [False]


def test_what_comes_back_is_told_anew() -> None:
    (over,) = found((heard(*found((), HELD)),), hours=2)
    (again,) = found((over,), HELD, hours=3)

    assert (again.over, again.n_found, again.since) == (False, 1, NOON + timedelta(hours=3))
    assert is_due(again, 3)


def test_a_receiver_that_was_down_is_tried_again_even_when_it_is_over() -> None:
    cause = heard(*found((), HELD), taken=False)
    assert is_due(cause, 0.1)
    (over,) = found((cause,), hours=2)

    assert is_due(over, 2)
    (kept,) = still_open([heard(over, 2, taken=False)], {"A"})
    assert is_due(kept, 3)


def test_causes_survive_the_file() -> None:
    cause = heard(*found((), HELD))

    assert Open.from_json(cause.to_json()) == cause


def test_one_message_holds_every_cause_and_no_control_characters() -> None:
    hostile = Notice("night", "page", "the night failed\x1b[2J", "in \u202etrain\x00", "x")
    over, *_ = found((heard(*found((), HELD)),), hours=2)
    message = message_of([over, *found((), hostile)], "page", "autoscaler (workspace)")

    assert message.title == "[page] autoscaler (workspace): the night failed [2J (and 1 more)"
    assert message.kind == "failure"
    assert message.text.endswith("Over: batch b-1 is held, since 2026-01-05 12:00 UTC.")
    assert all(c.isprintable() or c == "\n" for c in message.text)


def notify(**values: object) -> NotifyConfig:
    return build_settings(NotifyConfig, values, "offline_dqn.toml")


@pytest.mark.parametrize(
    ("window", "at", "quiet"),
    [
        ({"begins": "22:00", "ends": "06:00"}, "2026-01-05T23:00+00:00", True),
        ({"begins": "22:00", "ends": "06:00"}, "2026-01-06T05:59+00:00", True),
        ({"begins": "22:00", "ends": "06:00"}, "2026-01-06T06:00+00:00", False),
        ({"begins": "22:00", "ends": "06:00", "days": ["mon"]}, "2026-01-06T05:00+00:00", True),  # began on Monday
        ({"begins": "22:00", "ends": "06:00", "days": ["tue"]}, "2026-01-06T05:00+00:00", False),
        ({"begins": "08:00", "ends": "10:00", "days": ["mon"]}, "2026-01-05T09:00+00:00", True),
        ({"begins": "2026-01-05T08:00:00Z", "ends": "2026-01-05T09:00:00Z"}, "2026-01-05T08:59+00:00", True),
        ({"begins": "2026-01-05T08:00:00Z", "ends": "2026-01-05T09:00:00Z"}, "2026-01-05T09:00+00:00", False),
    ],
)
def test_planned_windows_keep_tickets_and_let_pages_through(window: dict[str, object], at: str, quiet: bool) -> None:
    instant = datetime.fromisoformat(at)

    assert notify(quiet=[window]).is_quiet("ticket", instant) == quiet
    assert not notify(quiet=[window]).is_quiet("page", instant)
    assert notify(quiet=[{**window, "pages_too": True}]).is_quiet("page", instant) == quiet


def test_times_of_the_day_are_those_of_the_configured_zone() -> None:
    berlin = notify(timezone="Europe/Berlin", quiet=[{"begins": "22:00", "ends": "23:00"}])

    assert berlin.is_quiet("ticket", datetime(2026, 1, 5, 21, 30, tzinfo=UTC))
    assert not berlin.is_quiet("ticket", datetime(2026, 1, 5, 22, 30, tzinfo=UTC))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"timezone": "Europe/Berlyn"}, "no such time zone"),
        ({"quiet": [{"begins": "22:00", "ends": "2026-01-05T09:00:00Z"}]}, "both instants, or both times of the day"),
        ({"quiet": [{"begins": "2026-01-05T09:00:00Z", "ends": "2026-01-05T08:00:00Z"}]}, "before it begins"),
        ({"repeat_hours": 0}, "greater than 0"),
        ({"page": "OFFLINE_DQN_PAGE_URL"}, 'page is a list of names, such as page = ["OFFLINE_DQN_PAGE_URL"]'),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, object], says: str) -> None:
    with pytest.raises(SettingsError, match=r"offline_dqn\.toml has 1 problem") as refused:
        notify(**values)
    assert says in str(refused.value)


@pytest.mark.parametrize("level", ["page", "ticket"])
def test_an_address_in_the_file_is_refused_without_being_repeated(level: str) -> None:
    with pytest.raises(SettingsError) as refused:
        notify(**{level: ["slack://T0PSECRET/token/x"]})

    assert "lists names of environment variables" in str(refused.value)
    assert "T0PSECRET" not in str(refused.value)
