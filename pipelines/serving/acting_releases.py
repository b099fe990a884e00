"""Who acts: champion, canary, version 0 and the kill switch, read from the workspace's files and kept current.

The files are looked at several times a second, in a thread. A release is loaded, checked and timed beside the one that
acts, and takes its place by one assignment; one that cannot act is refused, and what acted before goes on. Nothing here
needs MLflow, and once it runs nothing needs the folders either: what acts is in memory.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from datasets.errors import OfflineDqnError
from offline_dqn.decisions import Scorer
from offline_dqn.policy import AnyPolicy
from offline_dqn.scorers import scorer_of
from pipelines.acting import ReleaseError, load_release, read_graph
from pipelines.canary_state import Canary, CanaryError, canary_path, read_canary
from pipelines.serving.switch import SWITCH_FILE, Disabled, read_switch
from pipelines.serving.timed_scorer import measured_cost
from pipelines.workspace import Workspace
from reports.history import read_history
from reports.manifest import MANIFEST, read_manifest

_LOG = logging.getLogger("offline_dqn.serve")
_EVERY_S = 0.2
"""Seconds between two looks at the files: a promotion acts within a second, its loading included."""
VERSION_ZERO = 0


class NothingToServeError(OfflineDqnError):
    """A workspace in which nothing can act."""


@dataclass(frozen=True)
class LoadedRelease:
    """A release in memory.

    Attributes:
        number: of the release; 0 is version 0.
        digest: of its policy.
        scorer: what answers for it.
        engine: which that is, for people.
        cost_s: seconds that it is likely to take for n rows, as measured when it was loaded.
        loaded_at: when.
    """

    number: int
    digest: str
    scorer: Scorer
    engine: str
    cost_s: Callable[[int], float]
    loaded_at: datetime


@dataclass(frozen=True)
class Acting:
    """Who acts now; never changed, only replaced.

    Attributes:
        champion: of the registry's history, or version 0 where there is none yet or it could not be loaded.
        version_zero: None where the workspace has no rules.
        disabled: what the kill switch says; None where releases may act.
        canary: the one that runs, of which `candidate` has part of the traffic; None where none does.
        refused: why a release that should act does not, by its number.
        wanted: the champion that the history names; None where it names none.
    """

    champion: LoadedRelease
    version_zero: LoadedRelease | None
    disabled: Disabled | None
    refused: Mapping[int, str]
    wanted: int | None
    canary: Canary | None = None
    candidate: LoadedRelease | None = None

    def in_charge(self, episode: str, began_at: datetime) -> LoadedRelease:
        """Who decides in an episode.

        Args:
            episode: its id.
            began_at: when it began, as far as is known.
        """
        if self.disabled is not None:
            return self.fallback
        candidate, canary = self.candidate, self.canary
        if candidate is not None and canary is not None and canary.assigned(episode, began_at):
            return candidate
        return self.champion

    @property
    def fallback(self) -> LoadedRelease:
        """What acts where the release may not, or is late: version 0, or the champion where there is none."""
        return self.version_zero or self.champion


class ActingReleases:
    """Keeps `current` up to the workspace's files.

    Args:
        workspace: its contract and configuration stay as they are now; its files are looked at.

    Raises:
        NothingToServeError: neither champion nor version 0 can act.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._folder = workspace.serving_path
        self._seen: object = None
        self._held = False
        self._stop = threading.Event()
        self.current = self._begin()
        # What changes between the two is seen at the next look: a stale signature only makes it look again.
        self._seen = None
        self._thread = threading.Thread(target=self._watch, name="watch releases", daemon=True)

    def start(self) -> None:
        """Begins to look at the files."""
        self._thread.start()

    def stop(self) -> None:
        """Ends that."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def hold_canary(self, held: bool) -> None:
        """Whether a canary's candidate gets no traffic, whatever its share; from the next look on."""
        self._held = held

    def look(self) -> bool:
        """Looks at the files once; whether anything has changed."""
        signature = self._signature(self.current.wanted)
        if signature == self._seen:
            return False
        before = self.current
        self.current = self._reread(before)
        self._seen = self._signature(self.current.wanted)
        _tell(before, self.current)
        return True

    # --- reading

    def _begin(self) -> Acting:
        zero, why_not = self._version_zero()
        wanted, problem = self._wanted(None)
        disabled = read_switch(self._folder)
        refused: dict[int, str] = {}
        champion = zero if wanted in (None, VERSION_ZERO) else None
        if wanted is not None and champion is None:
            try:
                champion = load(self._workspace, wanted)
            except OfflineDqnError as error:
                refused[wanted] = str(error)
                champion = zero
        if champion is None:
            reasons = " ".join(text for text in (*refused.values(), problem, why_not) if text)
            raise NothingToServeError(
                f"Nothing in {self._workspace.root} can act: no champion that can, and no version 0. {reasons} "
                "Promote a release, or describe version 0 under [baseline] in offline_dqn.toml."
            )
        for number, text in refused.items():
            _LOG.error("release %s is refused and version 0 acts: %s", number, text)
        alone = Acting(champion, zero, disabled, refused, wanted)
        now = self._with_canary(alone, None)
        _tell_canary(alone, now)
        return now

    def _with_canary(self, now: Acting, before: Acting | None) -> Acting:
        """With the canary that runs, if it is one against the champion that acts; its candidate is loaded once."""
        try:
            canary = read_canary(self._workspace)
        except CanaryError as error:
            _LOG.error("%s", error)
            canary = None
        if canary is None or canary.champion != now.wanted or now.champion.number != (now.wanted or VERSION_ZERO):
            return replace(now, canary=None, candidate=None)
        if self._held:
            return replace(now, canary=canary, candidate=None)
        if before is not None and before.candidate is not None and before.candidate.number == canary.release:
            return replace(now, canary=canary, candidate=before.candidate)
        try:
            manifest = read_manifest(self._workspace.release_path(canary.release))
            if manifest is not None and manifest.digest != canary.digest:
                raise ReleaseError(f"Release {canary.release} is not what it was when its canary began.")
            candidate = load(self._workspace, canary.release)
        except (OfflineDqnError, OSError) as error:
            _LOG.error("release %s is refused, and its canary gets no traffic: %s", canary.release, error)
            return replace(now, canary=canary, candidate=None, refused={**now.refused, canary.release: str(error)})
        return replace(now, canary=canary, candidate=candidate)

    def _version_zero(self) -> tuple[LoadedRelease | None, str]:
        """Version 0 as it was registered, else as it is configured; and why not where it is neither."""
        try:
            if self._workspace.release_path(VERSION_ZERO).exists():
                return load(self._workspace, VERSION_ZERO), ""
            why_not = ""
        except OfflineDqnError as error:
            why_not = str(error)
        rules = self._workspace.config.baseline
        if rules is None:
            return None, why_not
        if why_not:
            _LOG.error("version 0 acts as offline_dqn.toml describes it: %s", why_not)
        try:
            policy = rules.to_policy(self._workspace.contract)
        except (OfflineDqnError, ValueError) as error:
            return None, f"{why_not} [baseline] cannot act: {error}"
        return _loaded(VERSION_ZERO, policy, scorer_of(policy)), ""

    def _wanted(self, before: int | None) -> tuple[int | None, str]:
        """The champion that the history names; what it named before where it cannot be read."""
        path = self._workspace.releases_path / "history.jsonl"
        try:
            history = read_history(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            return before, f"{path} cannot be read: {error}."
        if not history and before is not None:
            return before, f"{path} is gone, which named release {before}."
        return (history[-1].to_release if history else None), ""

    def _reread(self, before: Acting) -> Acting:
        wanted, problem = self._wanted(before.wanted)
        disabled = read_switch(self._folder)
        if problem:
            _LOG.error("%s What acted goes on.", problem)
        if wanted is None or wanted == before.champion.number:
            return self._with_canary(replace(before, disabled=disabled, wanted=wanted, refused={}), before)
        try:
            zero = before.version_zero
            champion = zero if wanted == VERSION_ZERO and zero is not None else load(self._workspace, wanted)
        except (OfflineDqnError, OSError) as error:
            _LOG.error("release %s is refused and release %s goes on: %s", wanted, before.champion.number, error)
            return self._with_canary(
                replace(before, disabled=disabled, wanted=wanted, refused={wanted: str(error)}), before
            )
        return self._with_canary(
            replace(before, champion=champion, disabled=disabled, wanted=wanted, refused={}), before
        )

    def _signature(self, wanted: int | None) -> object:
        """What changes when one of the files does; a release that was refused is looked at again when it is mended."""
        paths = [self._workspace.releases_path / "history.jsonl", self._folder / SWITCH_FILE]
        paths.append(canary_path(self._workspace))
        current: Acting | None = getattr(self, "current", None)
        tried = None if current is None or current.canary is None else current.canary.release
        for number in {wanted, tried} - {None}:
            assert number is not None
            folder = self._workspace.release_path(number)
            paths += [folder, folder / MANIFEST]
        return self._held, *(_stat(path) for path in paths)

    def _watch(self) -> None:
        while not self._stop.wait(_EVERY_S):
            try:
                self.look()
            except Exception:  # what acts must go on acting, whatever happened to the files
                _LOG.exception("the workspace's files could not be looked at; what acts goes on")


def load(workspace: Workspace, number: int) -> LoadedRelease:
    """A release, its bytes checked, ready to answer.

    Raises:
        OfflineDqnError: it is missing, altered, or made for another contract, or cannot answer.
    """
    policy = load_release(workspace, number, with_evaluation=True)
    graph = read_graph(workspace.release_path(number))
    return _loaded(number, policy, scorer_of(policy, graph))


def _loaded(number: int, policy: AnyPolicy, scorer: Scorer) -> LoadedRelease:
    try:
        cost_s = measured_cost(scorer, policy.contract)
    except Exception as error:  # whatever an engine may throw: what cannot answer must not act
        raise ReleaseError(f"Release {number} cannot answer: {error}") from error
    return LoadedRelease(number, policy.digest, scorer, type(scorer).__name__, cost_s, datetime.now(UTC))


def _tell(before: Acting, now: Acting) -> None:
    if now.champion.number != before.champion.number:
        _LOG.warning("release %s acts; before it was %s", now.champion.number, before.champion.number)
    if (now.disabled is None) != (before.disabled is None):
        if now.disabled is not None:
            _LOG.warning("disabled by %s (%s): %s", now.disabled.by, now.disabled.note or "no note", _in_place(now))
        else:
            _LOG.warning("enabled: release %s acts", now.champion.number)
    _tell_canary(before, now)


def _tell_canary(before: Acting, now: Acting) -> None:
    """Says what changed for a canary's candidate: it has traffic, another share of it, or none any more."""
    had, has = (each.canary if each.candidate is not None else None for each in (before, now))
    if has is not None and (had is None or (had.id, had.share) != (has.id, has.share)):
        was = f"; before it was {had.share:.3g}" if had is not None and had.id == has.id else ""
        _LOG.warning("canary %s: release %s gets %.3g of the traffic%s", has.id, has.release, has.share, was)
    if had is not None and (has is None or has.id != had.id):
        why = "`offline-dqn canary status` says why"
        _LOG.warning("canary %s: release %s gets no traffic of it any more; %s", had.id, had.release, why)


def _in_place(now: Acting) -> str:
    if now.version_zero is not None:
        return "version 0 acts"
    return f"there is no version 0, so release {now.champion.number} goes on alone; roll back to one that is trusted"


def _stat(path: Path) -> tuple[int, int, int] | None:
    with suppress(OSError):
        found = path.stat()
        return found.st_mtime_ns, found.st_size, found.st_ino
    return None
