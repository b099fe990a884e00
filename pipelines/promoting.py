"""Promotion and rejection as a reviewer asks for them, from a shell, from Prefect's form or from Python."""

from __future__ import annotations

from pipelines.excluding import taint_of
from pipelines.lapsing import why_lapsed
from pipelines.live_nights import freshness_of_release
from pipelines.readings import reading_behind, snapshot_of
from pipelines.slo.standing import stopped_now
from pipelines.stages import held_outcomes
from pipelines.workspace import Workspace
from reports.history import Promotion, Rejection
from reports.manifest import read_manifest
from reports.registry import TRAINING, PromotionRefusedError


class LapsedError(PromotionRefusedError):
    """Nobody decided on it before its deadline."""


class BudgetStopsError(PromotionRefusedError):
    """An error budget is spent, or the policy server that would tell does not answer."""


class ExcludedError(PromotionRefusedError):
    """It learned from, or was judged on, what a person has taken out since."""


class WorldChangedError(PromotionRefusedError):
    """The newest nights differ from what the release was judged on."""


def promote(
    workspace: Workspace, release: int, *, reviewer: str, note: str = "", override: bool = False
) -> tuple[Promotion, str]:
    """Makes a release the champion if its decision still stands and the newest nights are like what it was judged on.

    Args:
        override: promote although the newest nights differ, or cannot be told for a batch of outcomes that is held,
            although an error budget is spent, although it was rejected before, or although episodes that taught or
            judged it are excluded. It takes a note, which goes into the history; it opens no gate, mends no byte and
            makes no stale comparison current.

    Returns:
        The promotion, and a sentence on the newest nights.

    Raises:
        PromotionRefusedError: the gate did not pass, compared with another champion, held it to other constraints or
            slices than the contract's of today, was followed by a rejection or lapsed, an error budget is spent, or the
            world has changed since. Nothing changes then.
        RegistryError: it is unknown, damaged, or champion already, or no reviewer (or no note to override) is given.
    """
    registry = workspace.registry
    if override and not note.strip():
        raise PromotionRefusedError(f"Why is release {release} promoted all the same? --override takes a --note.")
    registry.check_promotion(release, despite_rejection=override)
    says, although = refuse_what_changed(workspace, release, override=override)
    promotion = registry.promote(release, reviewer=reviewer, note=note + although, despite_rejection=override)
    workspace.refresh_catalog(workspace.open_lake())
    return promotion, says


def refuse_what_changed(workspace: Workspace, release: int, *, override: bool) -> tuple[str, str]:
    """What a release that passed must still be: decided on in time, under today's rules, in the world it was judged in;
    and no error budget may be spent.

    Args:
        override: put up with nights that differ or cannot be told, with a spent budget, and with episodes that are
            excluded since.

    Returns:
        A sentence on the newest nights, and what was overridden, for the history.

    Raises:
        PromotionRefusedError: it lapsed, the rules changed, the world did, a budget is spent, or it rests on what is
            excluded now.
    """
    lapsed = why_lapsed(workspace, release)
    if lapsed:
        raise LapsedError(f"Release {release} cannot be promoted. {lapsed}")
    refuse_other_rules(workspace, release)
    although = refuse_spent_budget(workspace, release, override=override)
    manifest = read_manifest(workspace.release_path(release))
    says = ""
    if manifest is not None and TRAINING in manifest.files:
        tainted = taint_of(workspace, release)
        if tainted is not None and not override:
            raise ExcludedError(
                f"Release {release} cannot be promoted: {tainted.in_words} (`offline-dqn exclude list`). `offline-dqn "
                "nightly --force-train` trains and judges a successor without them; to promote this one all the same, "
                "give --override and a --note that says why."
            )
        fresh = freshness_of_release(workspace, snapshot_of(workspace, release))
        says = fresh.sentence
        if fresh.status == "differs" and not override:
            raise WorldChangedError(
                f"Release {release} cannot be promoted: {fresh.sentence} What it was judged on is no longer what it "
                "would meet. `offline-dqn nightly` trains and judges a successor on the nights since; to promote this "
                "one all the same, give --override and a --note that says why."
            )
        held = held_outcomes(workspace.open_lake())
        if held is not None and not override:
            raise PromotionRefusedError(
                f"Release {release} cannot be promoted: batch {held.batch_id} of outcomes is held, so rewards of the "
                "newest nights are missing and nobody can tell whether they are like what it was judged on. "
                f"`offline-dqn batches show {held.batch_id}` says why it is held; release or reject it first. To "
                "promote all the same, give --override and a --note that says why."
            )
        if fresh.status == "differs" or held is not None:
            although += f" (although: {fresh.sentence})"
        if tainted is not None:
            although += f" (although {tainted.in_words})"
    return says, although


def refuse_spent_budget(workspace: Workspace, release: int, *, override: bool) -> str:
    """While the service owes its users, nothing new is tried on them.

    Returns:
        What was overridden, for the history; "" where nothing stops promotions.

    Raises:
        BudgetStopsError: one is, or the policy server cannot be asked, and that is not overridden.
    """
    stopped = stopped_now(workspace)
    if stopped.why and not override:
        raise BudgetStopsError(
            f"Release {release} cannot be promoted: {stopped.why} {stopped.remedy} Or, where this release is the "
            "remedy, give --override and a --note that says why."
        )
    return f" (although: {stopped.why})" if stopped.why else ""


def refuse_other_rules(workspace: Workspace, release: int) -> None:
    """A verdict says nothing of constraints, success and slices that the contract got later.

    What it was judged under is what the reading behind the recorded evaluation was entered with, and no other's.
    """
    manifest = read_manifest(workspace.release_path(release))
    if manifest is not None and manifest.gate == "baseline":
        return  # it was never judged
    reading = reading_behind(workspace, release)
    if reading is None:
        raise PromotionRefusedError(
            f"Release {release} cannot be promoted: the error ledger has no reading that ended with its recorded "
            f"evaluation, so what it was held to is not known. `offline-dqn evaluate {release}` finishes a reading "
            f"that was cut off; where {workspace.releases_path / 'ledger.jsonl'} was lost, restore it from a backup."
        )
    judged, now = reading.terms.inputs.get("rules"), workspace.contract.rules.model_dump(mode="json")
    if judged is None:
        raise PromotionRefusedError(
            f"Release {release} cannot be promoted: its reading of `gate` was entered by another version of "
            "offline-dqn, which did not record the contract's rules. `offline-dqn nightly --force-train` trains and "
            "judges a successor."
        )
    changed = sorted(key for key in {**now, **judged} if now.get(key) != judged.get(key))
    if changed:
        raise PromotionRefusedError(
            f"Release {release} cannot be promoted: what the contract says of {' and '.join(changed)} has changed "
            "since the gate judged it. `offline-dqn nightly --force-train` trains and judges a successor under the "
            "contract of today; or bring back the old rules."
        )


def reject(workspace: Workspace, release: int, *, reviewer: str, note: str) -> Rejection:
    """Records a reviewer's no, with who and why.

    Raises:
        RegistryError: it is unknown, the baseline or the champion, or reviewer or note are empty.
    """
    return workspace.registry.reject(release, reviewer=reviewer, note=note)
