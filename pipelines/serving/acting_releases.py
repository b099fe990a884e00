"""Who acts: champion, canary, version 0 and the kill switch, read from the workspace's files and kept current.

The files are looked at several times a second, in a thread. A release is loaded, checked and timed beside the one that
acts, and takes its place by one assignment; one that cannot act is refused, and what acted before goes on. Nothing here
needs MLflow, and once it runs nothing needs the folders either: what acts is in memory.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from datasets.errors import OfflineDqnError
from offline_dqn.decisions import Scorer
from offline_dqn.policy import AnyPolicy
from offline_dqn.scorers import scorer_of
from pipelines.acting import load_release, read_graph
from pipelines.serving.switch import SWITCH_FILE, Disabled, read_switch
from pipelines.workspace import Workspace
from reports.history import read_history
from reports.manifest import MANIFEST

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
        loaded_at: when.
    """

    number: int
    digest: str
    scorer: Scorer
    engine: str
    loaded_at: datetime


@dataclass(frozen=True)
class Acting:
    """Who acts now; never changed, only replaced.

    Attributes:
        champion: of the registry's history, or version 0 where there is none yet or it could not be loaded.
        version_zero: None where the workspace has no rules.
        disabled: what the kill switch says; None where releases may act.
        refused: why a release that should act does not, by its number.
        wanted: the champion that the history names; None where it names none.
    """

    champion: LoadedRelease
    version_zero: LoadedRelease | None
    disabled: Disabled | None
    refused: dict[int, str]
    wanted: int | None

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
        self._stop = threading.Event()
        self._listeners: list[Callable[[Acting], None]] = []
        signature = self._signature(None)
        self.current = self._begin()
        self._seen = signature if self.current.wanted is None else self._signature(self.current.wanted)
        self._thread = threading.Thread(target=self._watch, name="watch releases", daemon=True)

    def start(self) -> None:
        """Begins to look at the files."""
        self._thread.start()

    def stop(self) -> None:
        """Ends that."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

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
        return Acting(champion, zero, disabled, refused, wanted)

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
            return replace(before, disabled=disabled, wanted=wanted, refused={})
        try:
            zero = before.version_zero
            champion = zero if wanted == VERSION_ZERO and zero is not None else load(self._workspace, wanted)
        except (OfflineDqnError, OSError) as error:
            _LOG.error("release %s is refused and release %s goes on: %s", wanted, before.champion.number, error)
            return replace(before, disabled=disabled, wanted=wanted, refused={wanted: str(error)})
        return replace(before, champion=champion, disabled=disabled, wanted=wanted, refused={})

    def _signature(self, wanted: int | None) -> object:
        """What changes when one of the files does; a release that was refused is looked at again when it is mended."""
        paths = [self._workspace.releases_path / "history.jsonl", self._folder / SWITCH_FILE]
        if wanted is not None:
            paths.append(self._workspace.release_path(wanted) / MANIFEST)
            paths.append(self._workspace.release_path(wanted))
        return tuple(_stat(path) for path in paths)

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
    return LoadedRelease(number, policy.digest, scorer, type(scorer).__name__, datetime.now(UTC))


def _tell(before: Acting, now: Acting) -> None:
    if now.champion.number != before.champion.number:
        _LOG.warning("release %s acts; before it was %s", now.champion.number, before.champion.number)
    if (now.disabled is None) != (before.disabled is None):
        if now.disabled is not None:
            _LOG.warning("disabled by %s (%s): version 0 acts", now.disabled.by, now.disabled.note or "no note")
        else:
            _LOG.warning("enabled: release %s acts", now.champion.number)


def _stat(path: Path) -> tuple[int, int, int] | None:
    with suppress(OSError):
        found = path.stat()
        return found.st_mtime_ns, found.st_size, found.st_ino
    return None
