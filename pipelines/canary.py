"""The canary at work: started by a person, judged at every look, and ended by what the look finds.

A look is a function of the workspace and an instant: the server calls it, `offline-dqn canary` and a drill do. It holds
a lock, so two at once do no harm, and every change is one appended line, so a kill at any moment leaves a state that
the next look goes on from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from datasets.contract import Contract, read_contract
from offline_dqn.assignment import block_of, in_burn_in
from pipelines.canary_episodes import SUCCESS, ClosedEpisode
from pipelines.canary_evidence import Evidence
from pipelines.canary_exclusions import ExclusionWatch
from pipelines.canary_state import (
    Canary,
    CanaryError,
    Ending,
    Kind,
    Override,
    Share,
    canary_lock,
    last_canary,
    read_events,
    record_event,
)
from pipelines.excluding import taint_of
from pipelines.serving.switch import read_switch
from pipelines.workspace import Workspace
from reports.canary_comparison import Arms
from reports.canary_config import CanaryConfig, check_plan
from reports.canary_verdict import RETURN, Measure, Verdict, judge_canary
from reports.history import Promotion
from reports.manifest import read_manifest
from reports.registry import PromotionRefusedError, RegistryError

_EVALUATION = "evaluation.json"
_TRIED = {"stopped": "stopped it", "expired": "ended undecided", "aborted": "was ended by hand"}
"""Endings after which the same release is tried again only for a reason that somebody gives."""


class CanaryRefusedError(CanaryError):
    """A canary, or a step of one, that the rules do not allow as things stand. Nothing was changed."""


@dataclass(frozen=True)
class Look:
    """What one look found, and what became of the canary."""

    canary: Canary
    """After the look."""
    did: str
    """What was changed, in words; "" for nothing."""
    verdict: Verdict | None
    """None where the canary ended for a cause outside its evidence."""
    n_open: int = 0
    """Episodes of its traffic that are not complete yet."""
    n_behind: int = 0
    """Complete ones that wait for an earlier one to end."""
    n_crossing: int = 0
    """Of a switchback: episodes that went on beyond their block."""
    n_other: int = 0
    """Episodes of the candidate's side in which it did not make most of the decisions."""
    n_unreadable: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **self.__dict__,
            "canary": self.canary.model_dump(mode="json"),
            "share": self.canary.share,
            "verdict": None if self.verdict is None else self.verdict.to_json(),
        }


class CanaryWatch:
    """Looks at a workspace's canary again and again, and reads the logs only a little further each time."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._evidence: Evidence | None = None
        self._exclusions = ExclusionWatch(workspace)

    def evaluate(self, as_of: datetime, *, act: bool = True) -> Look | None:
        """One look; None where no canary runs.

        Args:
            as_of: the instant taken for now, in the clock of the log.
            act: stop, advance, promote or end it if that is due; otherwise only say so.

        Raises:
            CanaryError: its files cannot be read.
            ConstraintError: a condition of the contract fails on a logged step.
            LockedError: another look takes long.
        """
        with canary_lock(self._workspace):
            canary = last_canary(self._workspace)
            if canary is None or not canary.running:
                self._evidence = None
                return None
            return self._look(canary, as_of, act)

    def _look(self, canary: Canary, as_of: datetime, act: bool) -> Look:
        workspace, config = self._workspace, self._workspace.config.canary
        outside, blind = _ended_from_outside(workspace, canary), ""
        if outside is None:
            outside, blind = self._excluded_since(canary)
        if outside is not None:
            ending, reason = outside
            return Look(_end(workspace, canary, ending, reason, as_of) if act else canary, reason, None)
        if self._evidence is None or self._evidence.canary.id != canary.id:
            self._evidence = Evidence(workspace, canary)
        evidence = self._evidence
        evidence.read(as_of.timestamp())
        episodes = evidence.cohort()
        verdict = _held_by_the_switch(workspace, judge_episodes(canary, episodes, workspace, config))
        verdict = _held_by_a_budget(workspace, verdict)
        if blind and verdict.action == "advance":
            verdict = replace(verdict, action="wait", reason=f"{blind}; the evidence alone says: {verdict.reason}")
        after, did = _acted(workspace, canary, verdict, as_of) if act else (canary, "")
        ours = [e for e in episodes if _is_candidate(canary, e)]
        return Look(
            after,
            did,
            verdict,
            n_open=evidence.n_open,
            n_behind=len(evidence.closed) - len(episodes),
            n_crossing=sum(_crosses(canary, e) for e in episodes),
            n_other=sum(2 * e.versions.get(str(canary.release), 0) < e.n_steps for e in ours),
            n_unreadable=evidence.n_unreadable,
        )

    def _excluded_since(self, canary: Canary) -> tuple[tuple[Ending, str] | None, str]:
        """Whether an exclusion ends the canary, or else why that cannot be told now."""
        try:
            reason = self._exclusions.why_ended(canary)
        except Exception as error:  # a lake that is locked or away must not keep harm from being seen
            return None, f"no step is taken while it cannot be told whether its release rests on exclusions ({error})"
        return (("overtaken", reason) if reason else None), ""


def _held_by_the_switch(workspace: Workspace, verdict: Verdict) -> Verdict:
    """Whoever took the releases out of charge has not asked for more of one, whatever it earned before."""
    disabled = read_switch(workspace.serving_path)
    if disabled is None or verdict.action != "advance":
        return verdict
    reason = (
        f"the kill switch was thrown by {disabled.by} ({disabled.note or 'no note'}), so no step is taken and nothing "
        f"is promoted until `offline-dqn enable`; the evidence alone says: {verdict.reason}"
    )
    return replace(verdict, action="wait", reason=reason)


def _held_by_a_budget(workspace: Workspace, verdict: Verdict) -> Verdict:
    """A service that owes its users gives them no more of a new release; a stop is never held up."""
    if verdict.action != "advance":
        return verdict
    from pipelines.slo.standing import why_stopped

    stopped = why_stopped(workspace)
    reason = f"{stopped} No step is taken until then; the evidence alone says: {verdict.reason}"
    return replace(verdict, action="wait", reason=reason) if stopped else verdict


def evaluate_canary(workspace: Workspace, as_of: datetime) -> Look | None:
    """One look, as `CanaryWatch.evaluate`, by a process that looks once."""
    return CanaryWatch(workspace).evaluate(as_of)


def judge_episodes(
    canary: Canary, episodes: Sequence[ClosedEpisode], workspace: Workspace, config: CanaryConfig
) -> Verdict:
    """What complete episodes in the order of their start allow."""
    contract = workspace.contract
    counted = [e for e in episodes if _is_evidence(canary, e)]
    ours = np.array([_is_candidate(canary, e) for e in counted], dtype=bool)
    arms = Arms(
        candidate=ours,
        share=np.array([canary.share_at(_utc(e.began)) for e in counted]),
        units=_units(canary, counted),
        hours=np.array([int(e.began // 3600) for e in counted], dtype=np.int64),
    )
    steps = np.array([e.n_steps for e in counted], dtype=np.float64)
    measures = [Measure(RETURN, np.array([e.value for e in counted]), np.ones(len(counted)))]
    if contract.success is not None:
        measures.append(Measure(SUCCESS, *_rates(counted, SUCCESS)))
    for name in contract.breaches:
        rates = _rates(counted, name)
        measures.append(Measure(f"breaches of {name}", *rates, is_loss=True, limit=contract.constraints[name].limit))
    late = np.array([e.n_late for e in counted], dtype=np.float64)
    measures.append(Measure("late decisions", late, steps, is_loss=True))
    own = sum(e.versions.get(str(canary.release), 0) for e, is_ours in zip(counted, ours, strict=True) if is_ours)
    since = canary.shares[-1].at.timestamp()
    return judge_canary(
        arms,
        measures,
        config,
        next_share=canary.next_share,
        at_step=np.array([e.began >= since for e in counted], dtype=np.float64),
        exposure=own / float(steps[ours].sum()) if ours.any() else None,
        in_blocks=canary.kind == "switchback",
    )


def start_canary(
    workspace: Workspace,
    release: int,
    *,
    plan: Sequence[float] | None,
    share: float | None,
    kind: Kind,
    block_s: float | None,
    burn_in_s: float,
    reviewer: str,
    override: str | None,
    as_of: datetime,
) -> Canary:
    """Puts a release that may be promoted on trial against the champion.

    Args:
        plan: shares, ascending; None takes the configured ones.
        share: the first one, where it differs from the plan's.
        override: why more than the certified share is given, a release tried again, or one tried although the newest
            nights differ from what it was judged on.

    Raises:
        PromotionRefusedError: its gate did not pass, compared with another champion, or was followed by a rejection;
            or it lapsed, or the contract's rules or the world changed since.
        CanaryRefusedError: the kill switch is thrown, a canary runs, or the plan asks for more than the certified
            share.
        RegistryError: it is unknown, damaged or champion.
    """
    from pipelines.promoting import refuse_what_changed

    if not reviewer.strip() or (override is not None and not override.strip()):
        raise CanaryRefusedError(
            "Who starts the canary, and why is the rule overridden? --reviewer NAME --override WHY."
        )
    _refuse_under_the_switch(workspace, "no canary is started", "then start it")
    workspace.registry.check_promotion(release)
    manifest = read_manifest(workspace.release_path(release))
    if manifest is None or manifest.gate != "passed":
        raise CanaryRefusedError(
            f"Release {release} is the baseline: `offline-dqn rollback --to {release}` puts it in charge, without a "
            "trial."
        )
    _, although = refuse_what_changed(workspace, release, override=override is not None)
    tainted = taint_of(workspace, release) if override is not None else None
    champion = workspace.registry.champion()
    if champion is None and read_manifest(workspace.release_path(0)) is None:
        raise CanaryRefusedError(
            "There is no champion and no version 0, so nothing acts on the rest of the traffic. Describe the rules "
            "that act today under [baseline] in offline_dqn.toml and run a night."
        )
    certified = _certified_share(workspace, release)
    with canary_lock(workspace):
        last = last_canary(workspace)
        if last is not None and last.running:
            outside = _ended_from_outside(workspace, last)
            excluded = ExclusionWatch(workspace).why_ended(last) if outside is None else ""
            outside = ("overtaken", excluded) if excluded else outside
            if outside is None:
                raise CanaryRefusedError(
                    f"Canary {last.id} of release {last.release} runs; one at a time. `offline-dqn canary status` "
                    "shows it, `offline-dqn canary abort` ends it."
                )
            _end(workspace, last, *outside, as_of)
        _refuse_another_try(workspace, release, override)
        steps = _steps(plan, share, workspace.config.canary, certified, override)
        number = 1 if last is None else last.id + 1
        canary = Canary(
            id=number,
            release=release,
            champion=champion,
            kind=kind,
            salt=f"{workspace.contract.name} canary {number} of {release}",
            plan=steps,
            shares=(Share(at=as_of, share=steps[0]),),
            started_at=as_of,
            started_by=reviewer.strip(),
            block_s=block_s if kind == "switchback" else None,
            burn_in_s=burn_in_s if kind == "switchback" else 0.0,
            digest=manifest.digest,
            rules=_rules_digest(workspace),
            certified_share=certified,
            override=None
            if override is None
            else Override(reviewer=reviewer.strip(), reason=override.strip() + although),
            despite_excluded=() if tainted is None else tainted.rules,
        )
        record_event(workspace, "started", canary, as_of)
    return canary


def abort_canary(workspace: Workspace, *, reviewer: str, reason: str, as_of: datetime) -> Canary:
    """Ends the canary by hand: the champion has all the traffic at once.

    Raises:
        CanaryRefusedError: none runs, or nobody is named.
    """
    if not reviewer.strip():
        raise CanaryRefusedError("Who ends the canary? --reviewer NAME.")
    with canary_lock(workspace):
        canary = _running(workspace)
        why = f"by {reviewer.strip()}" + (f": {reason.strip()}" if reason.strip() else "")
        return _end(workspace, canary, "aborted", why, as_of)


def override_advance(workspace: Workspace, *, reviewer: str, reason: str, as_of: datetime) -> Canary:
    """Takes the next step by hand, without enough evidence for it; never promotes, and never beyond the certified share
    unless the canary was started so. A spent error budget is overridden too, and recorded with the reason.

    Raises:
        CanaryRefusedError: none runs, nobody or no reason is named, the kill switch is thrown, or the next step is
            promotion.
    """
    from pipelines.promoting import refuse_spent_budget

    if not reviewer.strip() or not reason.strip():
        raise CanaryRefusedError("Who takes the step, and why? --reviewer NAME --override WHY.")
    with canary_lock(workspace):
        canary = _running(workspace)
        if canary.next_share >= 1:
            raise CanaryRefusedError(
                f"The next step is promotion, which the canary's evidence alone may take. `offline-dqn promote "
                f"{canary.release} --reviewer NAME` promotes it on the gate's word."
            )
        _refuse_under_the_switch(workspace, "no step is taken", "then take the step")
        although = refuse_spent_budget(workspace, canary.release, override=True)
        note = Override(reviewer=reviewer.strip(), reason=reason.strip() + although)
        return _advance(workspace, canary, as_of, override=note.model_dump())


def _refuse_under_the_switch(workspace: Workspace, so: str, then: str) -> None:
    disabled = read_switch(workspace.serving_path)
    if disabled is not None:
        raise CanaryRefusedError(
            f"The kill switch was thrown by {disabled.by} on {disabled.at:%Y-%m-%d %H:%M:%S} UTC "
            f"({disabled.note or 'no note'}), so {so}. `offline-dqn enable --reviewer NAME` lets releases act again; "
            f"{then}."
        )


def _running(workspace: Workspace) -> Canary:
    canary = last_canary(workspace)
    if canary is None or not canary.running:
        raise CanaryRefusedError("No canary runs. `offline-dqn canary start VERSION --share 0.05` starts one.")
    return canary


def _acted(workspace: Workspace, canary: Canary, verdict: Verdict, as_of: datetime) -> tuple[Canary, str]:
    config = workspace.config.canary
    figures = {"verdict": verdict.to_json()}
    if verdict.action == "stop":
        return _end(workspace, canary, "stopped", verdict.reason, as_of, **figures), "stopped: the champion acts alone"
    if verdict.action == "advance":
        if canary.next_share < 1:
            after = _advance(workspace, canary, as_of, **figures)
            return after, f"advanced to a share of {after.share:g}"
        return _succeed(workspace, canary, verdict, as_of)
    if (as_of - canary.started_at).total_seconds() > config.longest_s:
        reason = f"undecided for {config.longest}: {verdict.reason}"
        return _end(workspace, canary, "expired", reason, as_of, **figures), "expired: the champion acts alone"
    return canary, ""


def _succeed(workspace: Workspace, canary: Canary, verdict: Verdict, as_of: datetime) -> tuple[Canary, str]:
    figures = {"verdict": verdict.to_json()}
    if canary.plan[-1] < 1:
        return _end(workspace, canary, "succeeded", verdict.reason, as_of, **figures), (
            f"succeeded: its plan ends at {canary.plan[-1]:g}, so a reviewer may promote release {canary.release}"
        )
    try:
        workspace.registry.promote_vouched(
            canary.release,
            digest=canary.digest,
            reviewer=_promoter(canary),
            note=_figures_in_words(verdict),
            at=as_of,
        )
    except (PromotionRefusedError, RegistryError) as error:
        return _end(workspace, canary, "overtaken", str(error), as_of, **figures), "could not be promoted"
    return _end(workspace, canary, "promoted", verdict.reason, as_of, **figures), "promoted"


def _promoter(canary: Canary) -> str:
    return f"canary {canary.id}, started by {canary.started_by}"


def _figures_in_words(verdict: Verdict) -> str:
    parts = [
        f"{j.name} {j.candidate:.4g} against {j.champion:.4g} (gain at least {j.at_least:.3g})"
        for j in verdict.judgements
    ]
    return f"{verdict.n_candidate} and {verdict.n_champion} units: {'; '.join(parts)}"


def _advance(workspace: Workspace, canary: Canary, as_of: datetime, **facts: Any) -> Canary:
    share = Share(at=as_of, share=canary.next_share)
    after = canary.model_copy(update={"shares": (*canary.shares, share)})
    record_event(workspace, "advanced", after, as_of, **facts)
    return after


def _end(workspace: Workspace, canary: Canary, ending: Ending, reason: str, as_of: datetime, **facts: Any) -> Canary:
    after = canary.model_copy(update={"ended_at": as_of, "ending": ending, "reason": reason})
    record_event(workspace, "ended", after, as_of, **facts)
    return after


def _ended_from_outside(workspace: Workspace, canary: Canary) -> tuple[Ending, str] | None:
    """Why the canary is over whatever its evidence says; None where it is not."""
    registry = workspace.registry
    history = registry.history()
    last: Promotion | None = history[-1] if history else None
    champion = None if last is None else last.to_release
    if champion == canary.release and last is not None:
        if last.reviewer == _promoter(canary):  # a kill came between the promotion and its line here
            return "promoted", last.note
        return "overtaken", f"release {canary.release} was promoted by {last.reviewer}"
    if champion != canary.champion and last is not None:
        return "overtaken", (
            f"release {champion} became champion on {last.at:%Y-%m-%d %H:%M} UTC ({last.action}, by {last.reviewer}), "
            "and the canary compares with another one"
        )
    rejected = [r for r in registry.rejections() if r.release == canary.release]
    if rejected:
        return "aborted", f"rejected by {rejected[-1].reviewer}: {rejected[-1].note}"
    manifest = read_manifest(workspace.release_path(canary.release))
    if manifest is None or manifest.digest != canary.digest:
        return (
            "overtaken",
            f"release {canary.release} is not what it was at the start: release.json is missing or altered",
        )
    if canary.rules != _rules_digest(workspace):
        return "overtaken", "what the contract says of success, constraints or discounting has changed"
    if canary.rules != _digest_of_rules(workspace.contract):
        return "overtaken", (
            "who judged it opened the contract before success, constraints or discounting changed in it: restart the "
            "server, then start the canary anew"
        )
    return None


def _rules_digest(workspace: Workspace) -> str:
    """Of the contract as it lies on the disk now: who looks again and again has opened it long ago."""
    return _digest_of_rules(read_contract(workspace.root / "contract.toml"))


def _digest_of_rules(contract: Contract) -> str:
    said = {"rules": contract.rules.model_dump(mode="json"), "gamma": contract.gamma}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _certified_share(workspace: Workspace, release: int) -> float:
    path = workspace.release_path(release) / _EVALUATION
    try:
        return float(json.loads(path.read_bytes())["decision"]["certified_share"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CanaryRefusedError(
            f"{path} says no certified share ({error}); `offline-dqn evaluate {release}` writes it."
        ) from error


def _refuse_another_try(workspace: Workspace, release: int, override: str | None) -> None:
    """Each canary may err once more in `promote_error`, also where the one before was only left undecided."""
    for event in reversed(read_events(workspace)):
        former: Mapping[str, Any] = event["canary"]
        if former["release"] == release and former["ending"] in _TRIED and override is None:
            raise CanaryRefusedError(
                f"Canary {former['id']} of release {release} {_TRIED[former['ending']]}: {former['reason']}. Tried "
                "often enough, everything passes once. Train another candidate, or say why with --override WHY."
            )


def _steps(
    plan: Sequence[float] | None, share: float | None, config: CanaryConfig, certified: float, override: str | None
) -> tuple[float, ...]:
    """The plan that is followed; one that was not asked for is cut at the certified share."""
    first = () if share is None else (share,)
    steps = (*first, *(s for s in (config.plan if plan is None else plan) if not first or s > first[0]))
    try:
        check_plan(steps)
    except ValueError as error:
        raise CanaryRefusedError(f"{error}.") from error
    if override is not None or steps[-1] <= certified:
        return steps
    within = tuple(s for s in steps if s <= certified)
    if plan is not None or not within or (share is not None and share > certified):
        raise CanaryRefusedError(
            f"The gate certified a share of {certified:.3g}, and the plan is {', '.join(f'{s:g}' for s in steps)}. Ask "
            "for less with --share or --plan, or say with --override WHY and --reviewer NAME why it may be more."
        )
    return within


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _is_candidate(canary: Canary, episode: ClosedEpisode) -> bool:
    """By assignment, whoever acted."""
    return canary.assigned(episode.episode_id, _utc(episode.began))


def _is_evidence(canary: Canary, episode: ClosedEpisode) -> bool:
    """Whether chance decided who acts: not before the first whole block, nor while the block before still shows."""
    began = _utc(episode.began)
    burnt_in = canary.block_s is None or not in_burn_in(began, canary.block_s, canary.burn_in_s)
    return 0 < canary.share_at(began) < 1 and burnt_in


def _crosses(canary: Canary, episode: ClosedEpisode) -> bool:
    if canary.block_s is None:
        return False
    return block_of(_utc(episode.began), canary.block_s) != block_of(_utc(episode.ended), canary.block_s)


def _units(canary: Canary, episodes: Sequence[ClosedEpisode]) -> np.ndarray[Any, np.dtype[np.int64]]:
    names: list[Any] = (
        [e.cluster for e in episodes]
        if canary.block_s is None
        else [block_of(_utc(e.began), canary.block_s) for e in episodes]
    )
    codes: dict[Any, int] = {}
    return np.array([codes.setdefault(name, len(codes)) for name in names], dtype=np.int64)


def _rates(episodes: Sequence[ClosedEpisode], name: str) -> tuple[Any, Any]:
    """(N,) steps for which a condition was true, and for which it was known."""
    found = [e.rules.get(name, (0, 0)) for e in episodes]
    return np.array([t for t, _ in found], dtype=np.float64), np.array([k for _, k in found], dtype=np.float64)
