"""The error ledger: every reading of `gate`, entered before the first reward is looked at.

A reading is a candidate meeting `gate` under given terms, and each may pass a worse policy with chance alpha. The
ledger adds these chances up over a year (365 days) and refuses a reading that the year cannot afford. A year is told by
two clocks, that of the log and ours, and a reading counts while either says so: old logs that are read in one sitting,
or dates that are given by hand, make no more years than have passed. A reading that a
crash cut off stays entered: the same candidate under the same terms goes on with it and spends nothing more, and no
other reading can take its place. Lines are only ever appended; a last line that a crash cut off did not happen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from datasets.durable import read_records
from datasets.errors import OfflineDqnError
from datasets.locking import exclusive_lock
from reports.formatting import counted
from reports.gate import GateConfig
from reports.release_bucket import records_in
from reports.release_records import Seen, decide

YEAR = timedelta(days=365)
_LOCK_WAIT_S = 60.0
_ROUNDING = 1e-9
"""Twenty times .01 is .2, whatever floating point makes of it."""

Verdict = Literal["passed", "refused"]


class LedgerError(OfflineDqnError):
    """A ledger that cannot be read, or that does not know of a reading that took place."""


class ErrorSpentError(LedgerError):
    """The year's error is spent; `gate` was not read."""


@dataclass(frozen=True)
class Terms:
    """What a reading depends on: with equal terms the outcome is equal, and nothing is learned from a second one.

    Attributes:
        release: the candidate's number.
        candidate, snapshot: digests of its policy and of the replay dataset.
        nights: nights of the `gate` episodes, ascending.
        n_episodes: `gate` episodes.
        alpha: the chance to pass a candidate that is worse by the margin.
        inputs: everything else that decides, as plain JSON values: settings, seed, what it is compared with.
        made_by: versions of the code and its libraries; they are recorded, and a reading is the same under others.
    """

    release: int
    candidate: str
    snapshot: str
    nights: tuple[str, ...]
    n_episodes: int
    alpha: float
    inputs: Mapping[str, Any]
    made_by: Mapping[str, str]

    @property
    def key(self) -> str:
        """SHA-256 of what decides."""
        deciding = [self.candidate, self.snapshot, list(self.nights), self.n_episodes, self.alpha, dict(self.inputs)]
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Reading:
    """One reading of `gate`.

    Attributes:
        number: from 1.
        at: of the log's clock, the instant from which its year runs there.
        entered_at: of our clock.
        terms: what it depends on.
        releases: that it holds for; more than one where the same policy was registered again.
        verdict: of all of them; None while it is not finished.
        evaluations: SHA-256 of the `evaluation.json` that was recorded, by release.
    """

    number: int
    at: datetime
    entered_at: datetime
    terms: Terms
    releases: tuple[int, ...]
    verdict: Verdict | None = None
    evaluations: Mapping[int, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without the settings."""
        return {
            "reading": self.number,
            "at": self.at.isoformat(),
            "entered_at": self.entered_at.isoformat(),
            "releases": list(self.releases),
            "candidate": self.terms.candidate,
            "snapshot": self.terms.snapshot,
            "nights": list(self.terms.nights),
            "n_episodes": self.terms.n_episodes,
            "alpha": self.terms.alpha,
            "verdict": self.verdict,
            "evaluations": {str(release): digest for release, digest in self.evaluations.items()},
        }


@dataclass(frozen=True)
class Budget:
    """The error of the year that ends now.

    Attributes:
        at: now, of the log's clock.
        spent: sum of alpha over the readings of that year.
        allowed: `gate.yearly_error`.
        alpha: of one more reading.
        n_readings: of that year.
        n_left: readings at `alpha` that are still possible now.
        possible_at: when one more becomes possible; None where it is now.
    """

    at: datetime
    spent: float
    allowed: float
    alpha: float
    n_readings: int
    n_left: int
    possible_at: datetime | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        possible_at = self.possible_at.isoformat() if self.possible_at else None
        return {**self.__dict__, "at": self.at.isoformat(), "possible_at": possible_at}


def budget_of(readings: Sequence[Reading], gate: GateConfig, at: datetime, now: datetime) -> Budget:
    """What the year that ends now has spent. Later readings count too: a clock may have been set back.

    Args:
        readings: all.
        gate: what a year and a reading may spend.
        at: now, of the log's clock.
        now: of ours.
    """
    within = sorted(_of_year(readings, at, now), key=_leaves_at)
    spent = sum(reading.terms.alpha for reading in within)
    possible_at = None
    left = gate.yearly_error - spent
    for reading in within:  # the oldest leave the year one by one
        if left + _ROUNDING >= gate.alpha:
            break
        left += reading.terms.alpha
        possible_at = _leaves_at(reading)
    n_left = max(0, int((gate.yearly_error - spent + _ROUNDING) / gate.alpha))
    return Budget(at, spent, gate.yearly_error, gate.alpha, len(within), n_left, possible_at)


def _of_year(readings: Sequence[Reading], at: datetime, now: datetime) -> list[Reading]:
    return [reading for reading in readings if reading.at > at - YEAR or reading.entered_at > now - YEAR]


def _leaves_at(reading: Reading) -> datetime:
    """When a reading leaves the year, if the log's clock shows by then what ours does."""
    return max(reading.at, reading.entered_at) + YEAR


def in_words(reading: Reading, readings: Sequence[Reading], gate: GateConfig) -> str:
    """A reading for the report: its number, what it spends, and what its year had spent with it."""
    until = [r for r in readings if r.number <= reading.number]
    year = budget_of(until, gate, reading.at, reading.entered_at)
    has = "has" if year.n_readings == 1 else "have"
    return (
        f"number {reading.number}, entered for {reading.at:%Y-%m-%d %H:%M} UTC, spends {reading.terms.alpha:.3g}; with "
        f"it the {counted(year.n_readings, 'reading')} of the year before {has} spent {year.spent:.3g} of "
        f"{year.allowed:.3g}"
    )


@dataclass(frozen=True)
class Ledger:
    """The ledger in a file of JSON lines, `releases/ledger.jsonl`."""

    path: Path

    def readings(self) -> list[Reading]:
        """Every reading, oldest first.

        Raises:
            LedgerError: a line that is not the last one cannot be read.
        """
        found: dict[int, Reading] = {}
        try:
            for record in read_records(self.path):
                number = int(record["reading"])
                if record["event"] == "begun":
                    found[number] = _begun(number, record)
                elif record["event"] == "repeated":
                    found[number] = _also_of(found[number], record["release"])
                else:
                    found[number] = _decided(found[number], record["verdict"], record["evaluation"], record["release"])
        except (ValueError, KeyError, TypeError) as error:
            raise LedgerError(
                f"{self.path} cannot be read: {type(error).__name__}: {error}. It holds what was spent of the year's "
                "error, so nothing is judged without it: restore it from a backup."
            ) from error
        return list(found.values())

    def begin(
        self,
        terms: Terms,
        gate: GateConfig,
        at: datetime,
        judged: Mapping[int, str] | None = None,
        *,
        now: datetime | None = None,
    ) -> Reading:
        """Enters a reading, before `gate` is read, or finds the one that was entered for the same terms.

        Args:
            terms: of the reading.
            gate: for the year's budget.
            at: of the log's clock, the instant from which its year runs there.
            judged: SHA-256 of the recorded `evaluation.json` by release, as the registry knows them; the ledger must
                know each of these releases.
            now: of our clock; by default what that says.

        Raises:
            ErrorSpentError: the year cannot afford it; says when it can, and what else can be done. Nothing is entered.
            LedgerError: the ledger cannot be read or written, or lacks a reading that took place.
        """
        return decide(lambda: self._begin(terms, gate, at, judged or {}, now))

    def _begin(
        self, terms: Terms, gate: GateConfig, at: datetime, judged: Mapping[int, str], now: datetime | None
    ) -> Reading:
        with self._alone() as seen:
            now = (now or datetime.now(UTC)).astimezone(UTC)
            readings = self.readings()
            _refuse_lost_readings(self.path, readings, judged)
            for reading in readings:
                if reading.terms.key == terms.key:
                    if terms.release not in reading.releases:
                        line = {"event": "repeated", "reading": reading.number, "release": terms.release}
                        self._append(line, seen)
                    return _also_of(reading, terms.release)
            budget = budget_of(readings, gate, at, now)
            if budget.n_left < 1:
                raise ErrorSpentError(_spent_message(terms.release, _of_year(readings, at, now), budget))
            number = max((r.number for r in readings), default=0) + 1
            reading = Reading(number, at.astimezone(UTC), now, terms, (terms.release,))
            when = {"at": reading.at.isoformat(), "entered_at": now.isoformat()}
            self._append({"event": "begun", "reading": reading.number, **when, **_plain(terms)}, seen)
            return reading

    def decide(self, reading: Reading, verdict: Verdict, evaluation: str, release: int) -> Reading:
        """Enters how a reading ended for a release; once is enough.

        Args:
            reading: from `begin`.
            verdict: of the gate.
            evaluation: SHA-256 of the recorded `evaluation.json`.
            release: whose it is.

        Raises:
            LedgerError: the reading ended with another verdict before, or does not hold for the release.
        """
        return decide(lambda: self._decide(reading, verdict, evaluation, release))

    def _decide(self, reading: Reading, verdict: Verdict, evaluation: str, release: int) -> Reading:
        with self._alone() as seen:
            known = {r.number: r for r in self.readings()}[reading.number]
            if release not in known.releases:
                raise LedgerError(f"Reading {known.number} is of release {known.releases}, not of {release}.")
            if known.verdict not in (None, verdict):
                raise LedgerError(
                    f"Reading {known.number} ended with '{known.verdict}', and release {release} has '{verdict}' from "
                    "it: a second look at the same episodes is no second verdict. Train another candidate."
                )
            done = _decided(known, verdict, evaluation, release)
            if done != known:
                self._append(
                    {
                        "event": "decided",
                        "reading": done.number,
                        "release": release,
                        "verdict": verdict,
                        "evaluation": evaluation,
                    },
                    seen,
                )
            return done

    @contextmanager
    def _alone(self) -> Iterator[Seen]:
        what = f"The error ledger {self.path}"
        with exclusive_lock(self.path.with_name(".ledger.lock"), what, wait_s=_LOCK_WAIT_S):
            yield records_in(self.path.parent).refresh()

    def _append(self, record: Mapping[str, Any], seen: Seen) -> None:
        try:
            records_in(self.path.parent).append(self.path.stem, record, seen)
        except OSError as error:
            raise LedgerError(
                f"{self.path} cannot be written: {error.strerror or error}. `gate` was not read and no error is spent: "
                "a reading is entered first. See to space and permissions there, then run the command again."
            ) from error


def _refuse_lost_readings(path: Path, readings: Sequence[Reading], judged: Mapping[int, str]) -> None:
    lost = sorted(judged.keys() - {release for reading in readings for release in reading.releases})
    if lost:
        listed = ", ".join(map(str, lost))
        raise LedgerError(
            f"{path} does not know how release {listed} met `gate`, and its evaluation is recorded: what the year has "
            "spent cannot be told. Restore the ledger from a backup; nothing was read."
        )


def _spent_message(release: int, within: Sequence[Reading], budget: Budget) -> str:
    assert budget.possible_at is not None  # alpha is at most the year's error
    left, has = budget.allowed - budget.spent, "has" if budget.n_readings == 1 else "have"
    smaller = (
        f"; with gate.alpha at most {left:.3g} one more would fit, and would be harder to pass"
        if left > _ROUNDING
        else ""
    )
    return (
        f"Release {release} was not judged and `gate` was not read: {counted(budget.n_readings, 'reading')} since "
        f"{min(r.at for r in within):%Y-%m-%d} {has} spent {budget.spent:.3g} of the {budget.allowed:.3g} that a year "
        f"may err (gate.yearly_error), and one more spends {budget.alpha:.3g}. One becomes possible again on "
        f"{budget.possible_at:%Y-%m-%d %H:%M} UTC. Until then recorded decisions can be repeated and a release that "
        f"passed can be promoted; keep candidates for fewer readings{smaller}. To raise gate.yearly_error is to accept "
        "a larger chance that a worse policy passes within a year: whoever answers for the releases decides that."
    )


def _also_of(reading: Reading, release: int) -> Reading:
    known = reading.releases
    return reading if release in known else replace(reading, releases=(*known, release))


def _decided(reading: Reading, verdict: Verdict, evaluation: str, release: int) -> Reading:
    return replace(reading, verdict=verdict, evaluations={**reading.evaluations, int(release): evaluation})


def _plain(terms: Terms) -> dict[str, Any]:
    plain = {"nights": list(terms.nights), "inputs": dict(terms.inputs), "made_by": dict(terms.made_by)}
    return {**terms.__dict__, **plain}


def _begun(number: int, record: Mapping[str, Any]) -> Reading:
    terms = Terms(
        release=record["release"],
        candidate=record["candidate"],
        snapshot=record["snapshot"],
        nights=tuple(record["nights"]),
        n_episodes=record["n_episodes"],
        alpha=record["alpha"],
        inputs=record["inputs"],
        made_by=record["made_by"],
    )
    at, entered_at = (datetime.fromisoformat(record[name]) for name in ("at", "entered_at"))
    return Reading(number, at, entered_at, terms, (terms.release,))
