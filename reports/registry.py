"""The release registry: numbered folders, the MLflow versions that point at them, promotion and rollback.

Release 0 is the rule-based baseline; candidates are 1, 2, and so on. A release is its folder `releases/<n>`:
`release.json` there holds the SHA-256 of every file, and a tag of the MLflow version holds that of `release.json`.
`history.jsonl` says who is champion, and the MLflow alias repeats it; `rejections.jsonl` what reviewers said no to.
Folder and history come first; what a crash kept MLflow from learning, the next operation tells it. Where releases lie
in a bucket, the folder is a copy of it, and what counts is what the journal there says (`release_records`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from datasets.durable import write_durably
from datasets.errors import OfflineDqnError
from datasets.locking import exclusive_lock
from reports.history import Promotion, Rejection, left_by, line_of_champions, read_history, read_rejections
from reports.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from reports.release_bucket import entered_digests, mend_release, publish_evaluated, publish_registered, records_in
from reports.release_records import HISTORY, REJECTIONS, Seen, decide
from reports.shared_tracking import SharedTracking, TrackingError
from reports.tracking import Tracking

TRAINING = "training.json"
"""A trained release's file with its "config" and its "history": metrics by update, each with its "step"."""

VOUCHED = "vouched.json"
"""In a restored workspace: by release, the digests that a shared registry knew when it was backed up. Asked once."""

JUDGED_AGAINST = "judged_against"
"""A tag of a judged release: the champions for which its decision stands, such as "2" or "none, 0"."""

Gate = Literal["passed", "refused", "baseline", "not evaluated"]
_LOCK_WAIT_S = 60.0
_OWN_TAGS = {"release", "digest", "digest_expected", "gate", "created_at", "run_id"}


class RegistryError(OfflineDqnError):
    """A release that is not there, not whole, or may not do what was asked of it."""


class PromotionRefusedError(RegistryError):
    """A release that may not be promoted as things stand. Nothing was changed."""


class GateNotPassedError(PromotionRefusedError):
    """Its gate did not pass, or it was not evaluated."""


class StaleDecisionError(PromotionRefusedError):
    """Its gate compared it with a champion that is no longer champion."""


class RejectedError(PromotionRefusedError):
    """A reviewer has rejected it."""


@dataclass(frozen=True)
class ReleaseRecord:
    """One release as it stands now.

    Attributes:
        gate: "passed", "refused", "baseline" or "not evaluated".
        aliases: of "champion" and "candidate".
        tags: what was said of it when it was registered or evaluated.
        damage: which of its bytes are not those that were registered, in words; "" for none.
    """

    number: int
    created_at: datetime
    gate: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    damage: str

    @property
    def intact(self) -> bool:
        """Whether every file is the one that was registered."""
        return not self.damage

    def to_json(self) -> dict[str, object]:
        """Plain JSON values."""
        return {
            "release": self.number,
            "created_at": self.created_at.isoformat(),
            "gate": self.gate,
            "aliases": list(self.aliases),
            "tags": dict(self.tags),
            "damage": self.damage,
        }


@dataclass(frozen=True)
class Registry:
    """The releases of one workspace. Nothing is opened before it is used.

    Attributes:
        mlflow_path: MLflow's SQLite database; made when first needed, unless `shared` says where it is.
        releases_path: the folder of the numbered folders.
        name: of the decision problem, under which the versions are registered.
        shared: MLflow's database or server outside the workspace.
    """

    mlflow_path: Path
    releases_path: Path
    name: str
    shared: SharedTracking | None = None
    _tracking: Tracking = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_tracking", Tracking(self.mlflow_path, self.name, self.shared))

    def new_staging(self) -> Path:
        """An empty folder beside the releases, to be filled and then registered."""
        self.releases_path.mkdir(parents=True, exist_ok=True)
        path = self.releases_path / f".staging-{os.getpid()}-{os.urandom(4).hex()}"
        path.mkdir()
        return path

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder from `new_staging`, which is gone at the end unless it was registered."""
        path = self.new_staging()
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def register(
        self, staged_path: Path, *, gate: Gate = "not evaluated", tags: Mapping[str, object], at: datetime | None = None
    ) -> int:
        """Turns a fully written staging folder into the next release and makes it the candidate.

        Its `training.json`, if there is one, becomes an MLflow run that belongs to the release.

        Args:
            staged_path: folder on the releases' own file system, best from `staging`; it is moved.
            gate: "baseline" makes release 0, of which there is one and which is no candidate.
            tags: what the registry shall say of it, such as the snapshot's digest.
            at: when it was made; default now.

        Returns:
            The number of the release.

        Raises:
            RegistryError: the folder is missing or empty, or there is a baseline already.
        """
        if not staged_path.is_dir() or not any(path.is_file() for path in staged_path.rglob("*")):
            raise RegistryError(f"{staged_path} is no folder with files in it; nothing was registered.")
        _check_arguments(gate, tags)
        created_at = (at or datetime.now(UTC)).astimezone(UTC)
        return decide(lambda: self._register(staged_path, gate, {k: str(v) for k, v in tags.items()}, created_at))

    def _register(self, staged_path: Path, gate: Gate, tags: Mapping[str, str], created_at: datetime) -> int:
        with self._opened() as seen:
            number = self._next_number(gate)
            manifest = Manifest.of_folder(staged_path, release=number, created_at=created_at, gate=gate, tags=tags)
            write_manifest(staged_path, manifest)
            for path in (*staged_path.rglob("*"), staged_path):
                _sync(path)
            # The commit point, in a bucket or here: from then on the release exists.
            publish_registered(self.releases_path, staged_path, manifest, seen)
            if not self._path(number).exists():
                staged_path.replace(self._path(number))
            _sync(self.releases_path)
            with self._tracking.later():
                self._tracking.add(manifest)
                if gate != "baseline":
                    self._tracking.set_alias("candidate", number)
                self._log_trainings()
        shutil.rmtree(staged_path, ignore_errors=True)
        return number

    def record_evaluation(
        self, number: int, *, gate: Gate, files: Mapping[str, bytes], tags: Mapping[str, object] | None = None
    ) -> None:
        """Adds what an evaluation found to a release; a later evaluation replaces an earlier one.

        Args:
            gate: the verdict.
            files: name and content, such as `evaluation.json` and `report.html`.
            tags: added to the release's own.

        Raises:
            RegistryError: the release is unknown or damaged, or a file would replace one that it was registered with.
        """
        _check_arguments(gate, tags or {})
        wrong = [name for name in files if Path(name).name != name or name == MANIFEST or name.startswith(".")]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: a file of an evaluation is named by a plain name, not {MANIFEST}")
        decide(lambda: self._record_evaluation(number, gate, files, {k: str(v) for k, v in (tags or {}).items()}))

    def _record_evaluation(self, number: int, gate: Gate, files: Mapping[str, bytes], tags: Mapping[str, str]) -> None:
        with self._opened() as seen:
            manifest = self._known(number)
            taken = sorted(manifest.files.keys() & files.keys())
            if taken:
                raise RegistryError(f"Release {number} was registered with {', '.join(taken)}: that cannot change.")
            # What an earlier evaluation left may be half written; it is about to be replaced.
            self._refuse_damage(number, without_evaluation=True)
            folder = self._path(number)
            judged = manifest.with_evaluation(files, gate=gate, tags=tags)
            publish_evaluated(self.releases_path, judged, files, seen)
            for name, content in files.items():
                write_durably(folder / name, content)
            self._tracking.expect(number, judged.digest)  # a crash between these lines leaves either digest valid
            write_manifest(folder, judged)
            with self._tracking.later():
                self._tracking.update(judged)

    def releases(self) -> list[ReleaseRecord]:
        """Every release by number, each with its bytes checked."""
        with self._opened():
            aliases, digests = self._tracking.aliases(), self._tracking.digests()
            return [self._record(number, aliases, digests) for number in self._numbers()]

    def path(self, number: int) -> Path:
        """The folder of a release whose bytes are those that were registered.

        Raises:
            RegistryError: it is unknown or damaged.
        """
        with self._opened():
            self._known(number)
            self._refuse_damage(number)
        return self._path(number)

    def champion(self) -> int | None:
        """The release that acts; None before the first promotion."""
        history = self.history()
        return history[-1].to_release if history else None

    def candidate(self) -> int | None:
        """The newest release that was not promoted yet."""
        with self._opened():
            return self._tracking.aliases().get("candidate")

    def history(self) -> list[Promotion]:
        """Every promotion and rollback, oldest first."""
        return read_history(self._history_path)

    def rejections(self) -> list[Rejection]:
        """Every rejection, oldest first."""
        return read_rejections(self._rejections_path)

    def promote(
        self, number: int, *, reviewer: str, note: str = "", at: datetime | None = None, despite_rejection: bool = False
    ) -> Promotion:
        """Makes a release whose gate passed (or the baseline) the champion.

        Of two at once one wins; the other is refused, and told who won and when.

        Args:
            despite_rejection: promote what a reviewer has rejected before; the record of both stays.

        Raises:
            GateNotPassedError: its gate did not pass, or it was not evaluated.
            StaleDecisionError: it was compared with another champion than today's.
            RejectedError: a reviewer has rejected it.
            RegistryError: it is unknown, its bytes changed, it is champion already, or no
                reviewer is named. Nothing changes then.
        """

        def act() -> Promotion:
            with self._opened() as seen:
                self._refuse_promotion(self._known(number), despite_rejection)
                return self._make_champion("promote", number, reviewer, note, at, seen)

        return decide(act)

    def promote_vouched(
        self, number: int, *, digest: str, reviewer: str, note: str = "", at: datetime | None = None
    ) -> Promotion:
        """As `promote`, where MLflow is not at hand, such as in a server: the alias follows when it next is.

        Args:
            digest: of the release's manifest, from a time when the registry vouched for it.

        Raises:
            PromotionRefusedError: as `promote`.
            RegistryError: its bytes are not those that were vouched for, or as `promote`. Nothing changes then.
        """

        def act() -> Promotion:
            with self.locked():
                seen = records_in(self.releases_path).refresh()
                manifest = read_manifest(self._path(number))
                if manifest is None:
                    raise RegistryError(self._damage_message(number, "release.json is missing or unreadable"))
                altered = manifest.digest != digest
                damage = "release.json was altered" if altered else manifest.damage(self._path(number))
                if damage:
                    raise RegistryError(self._damage_message(number, damage))
                self._refuse_promotion(manifest, despite_rejection=False)
                return self._append_champion("promote", number, reviewer, note, at, seen)

        return decide(act)

    def check_promotion(self, number: int, *, despite_rejection: bool = False) -> None:
        """Raises what `promote` would raise now, as far as it does not depend on the reviewer; changes nothing."""
        with self._opened():
            self._refuse_promotion(self._known(number), despite_rejection)
            self._refuse_champion(number)
            self._refuse_damage(number)

    def reject(self, number: int, *, reviewer: str, note: str, at: datetime | None = None) -> Rejection:
        """Records a reviewer's no to a release that is not champion.

        Raises:
            RegistryError: it is unknown, the baseline or the champion, or reviewer or note are empty.
        """
        return decide(lambda: self._reject(number, reviewer, note, at))

    def _reject(self, number: int, reviewer: str, note: str, at: datetime | None) -> Rejection:
        with self._opened() as seen:
            manifest = self._known(number)
            if manifest.gate == "baseline":
                raise RegistryError("Release 0, the baseline, is what one can always go back to; it is not rejected.")
            if self.champion() == number:
                raise RegistryError(
                    f"Release {number} is the champion; `offline-dqn rollback` takes it out of service."
                )
            if not reviewer.strip() or not note.strip():
                raise RegistryError(
                    f"Who rejects release {number}, and why? Name both: --reviewer NAME --note TEXT. Whoever trains "
                    "the next one will want to know."
                )
            when = (at or datetime.now(UTC)).astimezone(UTC)
            rejection = Rejection(when, number, reviewer.strip(), note.strip())
            records_in(self.releases_path).append(REJECTIONS, rejection.to_json(), seen)
            return rejection

    def stale(self, number: int) -> str:
        """Why the decision on a release no longer stands, in words; "" where it does, or where there is none."""
        manifest = read_manifest(self._path(number))
        return "" if manifest is None else self._why_stale(manifest)

    def _refuse_promotion(self, manifest: Manifest, despite_rejection: bool) -> None:
        number = manifest.release
        if manifest.gate not in ("passed", "baseline"):
            raise GateNotPassedError(
                f"Release {number} cannot be promoted: its gate is '{manifest.gate}', not 'passed'. "
                + (
                    f"Run `offline-dqn evaluate {number}` first."
                    if manifest.gate == "not evaluated"
                    else f"{self._path(number) / 'report.html'} says why; train another candidate."
                )
            )
        self._refuse_champion(number)
        stale = self._why_stale(manifest)
        if stale:
            raise StaleDecisionError(f"Release {number} cannot be promoted: {stale}")
        rejected = [r for r in self.rejections() if r.release == number]
        if rejected and not despite_rejection:
            last = rejected[-1]
            raise RejectedError(
                f"Release {number} was rejected by {last.reviewer} on {last.at:%Y-%m-%d %H:%M} UTC: {last.note}. Train "
                "another candidate, or promote it all the same with --override and a note that says why."
            )

    def _why_stale(self, manifest: Manifest) -> str:
        champion, judged_against = self.champion(), manifest.tags.get(JUDGED_AGAINST)
        now = "none" if champion is None else str(champion)
        if manifest.gate not in ("passed", "refused") or champion == manifest.release:
            return ""
        if judged_against is None:
            return (
                "what it was compared with is not recorded, so its gate says nothing about a lead over what acts now. "
                f"`offline-dqn evaluate {manifest.release} --again` compares it with that, for another reading of "
                "`gate`."
            )
        if now in judged_against.split(", "):
            return ""
        first = judged_against.split(", ")[0]
        then = "the logging policy" if first == "none" else f"release {first}"
        return (
            f"it was compared with {then}, and {self._acting()}. Its gate says nothing about a lead over that. "
            f"`offline-dqn evaluate {manifest.release} --again` compares it with what acts now, for another reading of "
            "`gate`; the next night trains and judges a candidate of its own."
        )

    def _acting(self) -> str:
        """Who made today's champion, and when."""
        last = self.history()[-1]
        return (
            f"release {last.to_release} is the champion since {last.at:%Y-%m-%d %H:%M:%S} UTC ({last.action}, by "
            f"{last.reviewer})"
        )

    def rollback(
        self, to: int | None = None, *, reviewer: str, note: str = "", at: datetime | None = None
    ) -> Promotion:
        """Goes back to a former champion, by default the one before this; where there is none, to the baseline.

        Only back: what was rolled back from acts again by `promote` alone, which asks gate, rejections and budgets.
        Where a shared database is away it is done without: what is wrong now must end now. The release's bytes are
        then held against its own manifest, and nobody vouches for that.

        Raises:
            RegistryError: there is nothing to go back to, `to` is neither the baseline nor a champion before this one,
                its bytes changed, it is champion already, no reviewer is named, or without `to` somebody else has
                changed the champion since this began. Nothing changes then.
        """
        records_in(self.releases_path).refresh()
        left = self.champion()
        return decide(lambda: self._roll_back(left, to, reviewer, note, at))

    def _roll_back(self, left: int | None, to: int | None, reviewer: str, note: str, at: datetime | None) -> Promotion:
        try:
            with self._opened() as seen:
                to = self._former(to, left)
                self._known(to)
                return self._make_champion("rollback", to, reviewer, note, at, seen)
        except TrackingError:
            with self.locked():
                seen = records_in(self.releases_path).refresh()
                to = self._former(to, left)
                self._refuse_nobody(to, reviewer)
                self._refuse_champion(to)
                manifest = read_manifest(self._path(to))
                damage = "release.json is missing or unreadable"
                if manifest is not None:
                    damage = manifest.damage(self._path(to))
                if damage:
                    raise RegistryError(self._damage_message(to, damage)) from None
                return self._append_champion("rollback", to, reviewer, note, at, seen)

    def _former(self, to: int | None, left: int | None) -> int:
        history = self.history()
        former, numbers = line_of_champions(history)[:-1], self._numbers()
        if to is None and self.champion() != left:  # else two people who mean the same one would go back two
            raise RegistryError(
                f"This began while {'nothing' if left is None else f'release {left}'} was the champion, and now "
                f"{self._acting()}. Nothing was changed. `offline-dqn rollback` goes back from there."
            )
        if to is None:
            if not former and (0 not in numbers or self.champion() == 0):
                raise RegistryError("There is nothing to roll back to: no former champion, and no other baseline.")
            return former[-1] if former else 0
        if to == 0 or to in former or to == self.champion():
            return to
        before = ", ".join(str(n) for n in sorted({*former, *({0} & {*numbers})} - {self.champion()}))
        goes = f"A rollback goes only back: here to {before}." if before else "There is nothing to roll back to."
        undone = left_by(to, history)
        if to not in numbers:
            raise RegistryError(f"There is no release {to}. {goes}")
        if undone is None:
            raise RegistryError(f"Release {to} was never champion. {goes} `offline-dqn promote {to}` has it act.")
        raise RegistryError(
            f"Release {to} was rolled back from on {undone.at:%Y-%m-%d %H:%M:%S} UTC by {undone.reviewer}"
            f"{f' ({undone.note})' if undone.note else ''}. {goes} `offline-dqn promote {to}` has it act again, after "
            "its gate, rejections and error budgets were asked."
        )

    def _make_champion(
        self,
        action: Literal["promote", "rollback"],
        number: int,
        reviewer: str,
        note: str,
        at: datetime | None,
        seen: Seen,
    ) -> Promotion:
        self._refuse_nobody(number, reviewer)
        self._refuse_champion(number)
        self._refuse_damage(number)
        promotion = self._append_champion(action, number, reviewer, note, at, seen)
        with self._tracking.later():
            self._repair_aliases()
        return promotion

    def _refuse_nobody(self, number: int, reviewer: str) -> None:
        if not reviewer.strip():
            raise RegistryError(f"Who answers for release {number}? Name a reviewer: --reviewer NAME.")

    def _append_champion(
        self,
        action: Literal["promote", "rollback"],
        number: int,
        reviewer: str,
        note: str,
        at: datetime | None,
        seen: Seen,
    ) -> Promotion:
        when = (at or datetime.now(UTC)).astimezone(UTC)
        promotion = Promotion(when, action, self.champion(), number, reviewer.strip(), note)
        # The commit point; the aliases follow, now or later.
        records_in(self.releases_path).append(HISTORY, promotion.to_json(), seen)
        return promotion

    def _refuse_champion(self, number: int) -> None:
        if self.champion() == number:
            last = self.history()[-1]
            raise RegistryError(
                f"Release {number} is the champion already; nothing was changed. {last.reviewer} made it that on "
                f"{last.at:%Y-%m-%d %H:%M:%S} UTC."
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nothing in the registry changes while this is held, but by its holder's own hand.

        Raises:
            LockedError: another process is at work on it, and was after a minute.
        """
        self.releases_path.mkdir(parents=True, exist_ok=True)
        what = f"The registry of '{self.name}' ({self.releases_path})"
        with exclusive_lock(self.releases_path / ".lock", what, wait_s=_LOCK_WAIT_S):
            yield

    @contextmanager
    def _opened(self) -> Iterator[Seen]:
        """The registry for one operation: alone at work, and with whatever a crash left undone made good.

        Alone among the processes of this machine: others may decide something in a bucket all the same, and then what
        is yielded here is no longer what stands.
        """
        with self._tracking.reached(), self.locked():
            seen = records_in(self.releases_path).refresh()
            self._repair()
            yield seen

    def vouched(self) -> dict[int, set[str]]:
        """By release, the digests that its manifest may have, for `VOUCHED` in a backup. Its caller holds `locked`.

        Raises:
            TrackingError: a shared database is away; it is not waited for, with the lock held.
        """
        at_once = None if self.shared is None else replace(self.shared, wait_s=0.0)
        tracking = Tracking(self.mlflow_path, self.name, at_once)
        with tracking.reached():
            return tracking.digests()

    def _repair(self) -> None:
        numbers, registered, vouched = self._numbers(), self._tracking.digests(), self._brought_along()
        entered = entered_digests(self.releases_path)
        for number in numbers:
            manifest = read_manifest(self._path(number))
            if number in registered:
                if entered is not None and manifest is not None and entered.get(number) not in registered[number]:
                    self._tracking.update(manifest)  # another machine has evaluated it
                continue
            if manifest is None or manifest.release != number:
                continue  # its bytes are reported as damage
            known = vouched.get(number, [])
            self._tracking.add(manifest, "" if not known or manifest.digest in known else known[0])
            if manifest.gate != "baseline" and number == max(numbers):
                self._tracking.set_alias("candidate", number)
        if vouched:
            (self.releases_path / VOUCHED).unlink()  # MLflow says so now, and what is evaluated later too
        self._log_trainings()
        self._repair_aliases()

    def _brought_along(self) -> dict[int, list[str]]:
        try:
            found = json.loads((self.releases_path / VOUCHED).read_text(encoding="utf-8"))
            return {int(number): list(digests) for number, digests in found.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError, TypeError) as error:
            raise RegistryError(
                f"{self.releases_path / VOUCHED} is damaged: it says which releases a backup vouched for. Restore the "
                "workspace again, from another backup."
            ) from error

    def _log_trainings(self) -> None:
        """The curves and settings of every release that was trained, as MLflow runs; once each."""
        for number in self._tracking.without_run():
            path, manifest = self._path(number), read_manifest(self._path(number))
            if manifest is None or TRAINING not in manifest.files or manifest.damage(path, without_evaluation=True):
                continue
            training = json.loads((path / TRAINING).read_text(encoding="utf-8"))
            curves = [(int(m["step"]), {k: v for k, v in m.items() if k != "step"}) for m in training["history"]]
            self._tracking.log_run(number, curves, training["config"])

    def _repair_aliases(self) -> None:
        aliases, champion = self._tracking.aliases(), self.champion()
        if champion is not None and aliases.get("champion") != champion:
            self._tracking.set_alias("champion", champion)
        if champion is not None and aliases.get("candidate") == champion:
            self._tracking.drop_alias("candidate")

    def _next_number(self, gate: Gate) -> int:
        numbers = {*self._numbers(), *self._tracking.digests()}
        if gate != "baseline":
            return max(numbers, default=0) + 1
        if 0 in numbers:
            raise RegistryError("Release 0, the baseline, exists already and stays; nothing was registered.")
        return 0

    def _numbers(self) -> list[int]:
        names = (path.name for path in self.releases_path.iterdir() if path.is_dir())
        return sorted(int(name) for name in names if name.isdecimal())

    @property
    def _history_path(self) -> Path:
        return self.releases_path / "history.jsonl"

    @property
    def _rejections_path(self) -> Path:
        return self.releases_path / "rejections.jsonl"

    def _path(self, number: int) -> Path:
        return self.releases_path / str(number)

    def _known(self, number: int) -> Manifest:
        known = sorted({*self._numbers(), *self._tracking.digests()})
        if number not in known:
            listed = ", ".join(str(n) for n in known) or "none"
            raise RegistryError(
                f"There is no release {number}; there are: {listed}. `offline-dqn releases` shows them."
            )
        manifest = read_manifest(self._path(number))
        if manifest is None:
            raise RegistryError(self._damage_message(number, "release.json is missing or unreadable"))
        return manifest

    def _refuse_damage(self, number: int, *, without_evaluation: bool = False) -> None:
        damage = self._damage(number, self._tracking.digests(), without_evaluation=without_evaluation)
        if damage and mend_release(self.releases_path, number):
            damage = self._damage(number, self._tracking.digests(), without_evaluation=without_evaluation)
        if damage:
            raise RegistryError(self._damage_message(number, damage))

    def _damage_message(self, number: int, damage: str) -> str:
        return (
            f"Release {number} is not what was registered: {damage} (in {self._path(number)}). Restore the files from "
            "a backup, or use another release; nothing was changed."
        )

    def _damage(self, number: int, digests: Mapping[int, set[str]], *, without_evaluation: bool = False) -> str:
        manifest = read_manifest(self._path(number))
        if manifest is None:
            return "release.json is missing or unreadable"
        if manifest.release != number:
            return f"release.json is that of release {manifest.release}"
        entered = entered_digests(self.releases_path)
        known = digests.get(number, set()) if entered is None else {entered.get(number)}
        if manifest.digest not in known:
            return "release.json was altered"
        return manifest.damage(self._path(number), without_evaluation=without_evaluation)

    def _record(self, number: int, aliases: Mapping[str, int], digests: Mapping[int, set[str]]) -> ReleaseRecord:
        manifest = read_manifest(self._path(number))
        return ReleaseRecord(
            number=number,
            created_at=manifest.created_at if manifest else datetime.fromtimestamp(0, UTC),
            gate=manifest.gate if manifest else "unknown",
            aliases=tuple(sorted(alias for alias, of in aliases.items() if of == number)),
            tags=manifest.tags if manifest else {},
            damage=self._damage(number, digests),
        )


def _check_arguments(gate: str, tags: Mapping[str, object]) -> None:
    if gate not in get_args(Gate):
        raise ValueError(f"gate is '{gate}' and wants to be one of {', '.join(get_args(Gate))}")
    reserved = sorted(_OWN_TAGS & tags.keys())
    if reserved:
        raise ValueError(f"the tags {', '.join(reserved)} are the registry's own; choose other names")


def _sync(path: Path) -> None:
    """A file or folder through to the disk: a release must not exist before its bytes do."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
