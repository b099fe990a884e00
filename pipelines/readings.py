"""What a reading of `gate` rests on: policies, snapshot and settings put together, entered in the ledger, then judged.

Kept apart from the stage so that a recorded decision can be made again from what its reading was entered with.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from datasets.constraints import Rules
from datasets.replay import GATE, Replay
from datasets.settings import build_settings
from datasets.snapshot import SnapshotSummary, open_snapshot
from datasets.spreading import Spread, one_by_one
from offline_dqn.policy import AnyPolicy
from pipelines.acting import ReleaseError, load_release
from pipelines.made_by import made_by
from pipelines.training import VERSION_ZERO, StageError, written_by
from pipelines.workspace import Workspace
from reports.episode_columns import EPISODES
from reports.episode_terms import episode_table, of_release
from reports.evaluate_config import EvaluateConfig
from reports.evaluation import EvaluationError, evaluate_candidate
from reports.gate import GateConfig, decide
from reports.guard_report import report_guard
from reports.ledger import Budget, Ledger, Reading, Terms, Verdict, budget_of
from reports.manifest import read_manifest
from reports.records import Evaluation, Freshness, evaluation_from_json

EVALUATION = "evaluation.json"
READING = "reading"
"""A tag of a judged release: the number of the reading behind its recorded decision."""


class TooFewEpisodesError(StageError):
    """The gate holds fewer episodes than may decide; `gate` was not read and nothing was spent."""


@dataclass(frozen=True)
class Bench:
    """A candidate and everything it is judged with; nothing of `gate` but its size and nights was looked at.

    Attributes:
        release: the candidate's number.
        champion: the release that it is compared with; None for the logging policy.
        replay, summary: the candidate's snapshot.
        candidate, baseline, version_zero: policies under the snapshot's contract; None where there is no such release.
        evaluate, gate, seed: settings.
    """

    release: int
    champion: int | None
    replay: Replay
    summary: SnapshotSummary
    candidate: AnyPolicy
    baseline: AnyPolicy | None
    version_zero: AnyPolicy | None
    evaluate: EvaluateConfig
    gate: GateConfig
    seed: int

    @property
    def terms(self) -> Terms:
        """What the ledger enters."""
        nights = self.replay.nights[self.replay.split == GATE]
        return Terms(
            release=self.release,
            candidate=self.candidate.digest,
            snapshot=self.summary.digest,
            nights=tuple(str(night) for night in np.unique(nights)),
            n_episodes=len(nights),
            alpha=self.gate.alpha,
            inputs={
                "contract": self.replay.contract.digest,
                "rules": self.replay.contract.rules.model_dump(mode="json"),
                "champion": self.champion,
                "baseline": self.baseline.digest if self.baseline else None,
                "version_zero": self.version_zero.digest if self.version_zero else None,
                "evaluate": self.evaluate.model_dump(mode="json"),
                "gate": self.gate.model_dump(mode="json", exclude={"yearly_error"}),  # of the year, not of the reading
                "seed": self.seed,
                "left_out": left_out(self.summary),
            },
            made_by=made_by(),
        )

    @property
    def stands_for(self) -> str:
        """The champions for which the decision stands: what the candidate was compared with.

        The comparison with version 0 serves for it as champion, where it asks for no less.
        """
        against = ["none" if self.champion is None else str(self.champion)]
        if self.version_zero is not None and self.gate.version_zero_margin <= self.gate.margin:
            against.append(str(VERSION_ZERO))
        return ", ".join(dict.fromkeys(against))

    def judge(
        self, freshness: Freshness | None, late_share: float = 0.0, *, spread: Spread = one_by_one
    ) -> tuple[Evaluation, bytes]:
        """Estimates, decides: the reading itself. Returns the evaluation, and `evaluation_episodes.parquet`.

        Args:
            freshness: what the newest nights said when it was entered.
            late_share: of the champion's live decisions, that version 0 made because scoring was late.
            spread: works out what can be cut into pieces.

        Raises:
            StageError: no gate episode can be used.
        """
        gate = self.replay.shielded().of_split(GATE)
        rules_champion = self.champion == VERSION_ZERO
        episodes: list[bytes] = []
        try:
            evaluation = evaluate_candidate(
                self.replay,
                candidate=self.candidate,
                baseline=self.version_zero if rules_champion else self.baseline,
                version_zero=self.version_zero,
                candidate_name=f"release {self.release}",
                baseline_name="the logging policy"
                if self.champion is None
                else f"release {self.champion}, the champion",
                version_zero_name="version 0, the rules" if self.version_zero is not None else None,
                baseline_wrote_gate=bool(written_by(self.baseline, self.champion, gate).all()),
                version_zero_wrote_gate=bool(written_by(self.version_zero, VERSION_ZERO, gate).all()),
                excluded=left_out(self.summary),
                config=self.evaluate,
                gate_config=self.gate,
                seed=self.seed,
                freshness=freshness,
                on_terms=lambda judged, terms: episodes.append(episode_table(self.release, judged, terms)),
                spread=spread,
            )
        except EvaluationError as error:
            raise _not_evaluated(self.release, self.summary, str(error)) from error
        evaluation = replace(
            evaluation, guard=report_guard(self.candidate, gate, self.evaluate.level), late_share=late_share
        )
        if late_share > 0:
            evaluation = replace(evaluation, decision=decide(evaluation, self.gate))
        return evaluation, episodes[0]


def set_up(workspace: Workspace, release: int) -> Bench:
    """The bench of a release as things stand now.

    Raises:
        StageError: it was not trained on a snapshot, nothing of it is in `gate`, or what it is to be compared with is
            gone.
        SnapshotError: its snapshot is gone, or a byte of it has changed.
    """
    config = workspace.config
    return bench_of(
        workspace,
        release,
        champion=workspace.registry.champion(),
        has_rules=config.baseline is not None or workspace.release_path(VERSION_ZERO).exists(),
        evaluate=config.evaluate,
        gate=config.gate,
        seed=config.train.seed,
        rules=workspace.contract.rules,
    )


def set_up_again(workspace: Workspace, terms: Terms, release: int) -> Bench:
    """The bench of an entered reading: its settings, and what it was compared with then.

    Raises:
        StageError, SnapshotError: as `set_up`.
    """
    inputs = terms.inputs
    gate = {**inputs["gate"], "yearly_error": workspace.config.gate.yearly_error}
    return bench_of(
        workspace,
        release,
        champion=inputs["champion"],
        has_rules=inputs["version_zero"] is not None,
        evaluate=build_settings(EvaluateConfig, inputs["evaluate"], "the error ledger"),
        gate=build_settings(GateConfig, gate, "the error ledger"),
        seed=inputs["seed"],
        rules=build_settings(Rules, inputs["rules"], "the error ledger"),
    )


def bench_of(
    workspace: Workspace,
    release: int,
    *,
    champion: int | None,
    has_rules: bool,
    evaluate: EvaluateConfig,
    gate: GateConfig,
    seed: int,
    rules: Rules,
) -> Bench:
    """The bench of a release, compared with the given champion and, where there are any, the rules of [baseline].

    Constraints, success and slices are those of `rules`, whatever they were when the snapshot was frozen.
    """
    replay, summary = open_snapshot(snapshot_of(workspace, release))
    replay = replay.under(rules)
    if not (replay.split == GATE).any():
        raise _not_evaluated(release, summary, "the gate split is empty")
    candidate = load_release(workspace, release, replay.contract)
    return Bench(
        release=release,
        champion=champion,
        replay=replay,
        summary=summary,
        candidate=candidate,
        baseline=None if champion is None else _compared(workspace, champion, replay, "the champion"),
        version_zero=_compared(workspace, VERSION_ZERO, replay, "version 0, the rules of [baseline]")
        if has_rules
        else None,
        evaluate=evaluate,
        gate=gate,
        seed=seed,
    )


def refuse_too_few(bench: Bench) -> None:
    """Refuses before it spends anything a reading that cannot pass: how many episodes `gate` holds needs no reward.

    Raises:
        TooFewEpisodesError: there are fewer than `gate.min_episodes`.
    """
    n_episodes, fewest = bench.terms.n_episodes, bench.gate.min_episodes
    if n_episodes < fewest:
        raise TooFewEpisodesError(
            f"Not enough data to judge release {bench.release}: {n_episodes:,} gate episodes, at least {fewest:,} "
            "decide; nothing was read and nothing spent. Wait for more nights, or raise the gate's share in "
            "[snapshot], then freeze and train again; to lower gate.min_episodes is to trust bounds that so few "
            "episodes may not bear out."
        )


def _compared(workspace: Workspace, release: int, replay: Replay, what: str) -> AnyPolicy:
    try:
        return load_release(workspace, release, replay.contract)
    except ReleaseError as error:
        raise StageError(
            f"Nothing can be compared with {what}: {error} Restore {workspace.release_path(release)} from a backup; "
            "`gate` was not read."
        ) from error


def _not_evaluated(release: int, summary: SnapshotSummary, cause: str) -> StageError:
    splits = ", ".join(f"{name} {n}" for name, n in summary.split_episodes.items())
    return StageError(
        f"Release {release} cannot be evaluated on the snapshot of {summary.as_of[:16]}: {cause} (episodes by split: "
        f"{splits}). Wait for more nights, or raise the gate's share in [snapshot]; then freeze and train again."
    )


def left_out(summary: SnapshotSummary) -> dict[str, int]:
    """Episodes left out, by the names that the gate knows."""
    reasons = {
        "damaged": summary.n_damaged + summary.n_unplaced,
        "still open": summary.n_open,
        "older than the change": summary.n_before_change,
        "excluded by a person": summary.n_excluded,
    }
    return {reason: n for reason, n in reasons.items() if n}


def snapshot_of(workspace: Workspace, release: int) -> Path:
    """The folder of the snapshot that a release was trained on."""
    path = workspace.release_path(release) / "training.json"
    if not path.exists():
        raise StageError(f"Release {release} was not trained on a snapshot, so there is nothing to judge it on.")
    return workspace.snapshots_path / str(json.loads(path.read_text())["snapshot"])


# --- the ledger of a workspace


def ledger_of(workspace: Workspace) -> Ledger:
    """The error ledger, beside the releases."""
    return Ledger(workspace.releases_path / "ledger.jsonl")


def spent_at(workspace: Workspace) -> datetime:
    """The instant at which a reading is entered: of the log's clock, and never later than ours.

    Nobody gains by a clock set forward; nor by one set back, as the ledger keeps our own clock beside it.
    """
    return min(workspace.as_of(workspace.open_lake()), datetime.now(UTC))


def budget(workspace: Workspace) -> Budget:
    """What the year that ends now has spent."""
    readings, gate = ledger_of(workspace).readings(), workspace.config.gate
    return budget_of(readings, gate, spent_at(workspace), datetime.now(UTC))


def reading_behind(workspace: Workspace, release: int) -> Reading | None:
    """The reading that ended with a release's recorded `evaluation.json`; None where the ledger knows of none.

    A reading that began later and was cut off decided nothing, whatever its terms.
    """
    manifest = read_manifest(workspace.release_path(release))
    recorded = manifest.evaluation_files.get(EVALUATION) if manifest is not None else None
    if recorded is None:
        return None
    ended = [r for r in ledger_of(workspace).readings() if r.evaluations.get(release) == recorded]
    return ended[-1] if ended else None


def finish_reading(workspace: Workspace, release: int) -> None:
    """Enters what a release's recorded evaluation was made of, where a crash or an erasure came before the entry.

    Only for the reading that the registry names with that evaluation: another one that is open stays open.
    """
    manifest = read_manifest(workspace.release_path(release))
    if manifest is None or manifest.gate not in ("passed", "refused") or EVALUATION not in manifest.evaluation_files:
        return
    ledger, recorded = ledger_of(workspace), manifest.evaluation_files[EVALUATION]
    own = [r for r in ledger.readings() if str(r.number) == manifest.tags.get(READING) and release in r.releases]
    if own and own[0].evaluations.get(release) != recorded:
        verdict: Verdict = "passed" if manifest.gate == "passed" else "refused"
        ledger.decide(own[0], verdict, recorded, release)


def found_before(workspace: Workspace, reading: Reading, release: int) -> tuple[Evaluation, bytes] | None:
    """What a reading found when another release with the same policy had it; None where nobody's is left.

    Nothing is computed: the same numbers and the same verdict under this release's name, and so is
    `evaluation_episodes.parquet`.
    """
    for other, digest in reading.evaluations.items():
        folder = workspace.release_path(other)
        manifest = read_manifest(folder)
        if other == release or manifest is None or manifest.evaluation_files.get(EVALUATION) != digest:
            continue
        if not manifest.damage(folder):
            recorded = json.loads((folder / EVALUATION).read_bytes())
            proof = recorded.pop("proof", None)  # it speaks of the release of that number
            named = re.compile(rf"\b{re.escape(recorded['candidate_name'])}\b")
            renamed = json.loads(named.sub(f"release {release}", json.dumps(recorded)))
            episodes = of_release((folder / EPISODES).read_bytes(), release)
            return evaluation_from_json({**renamed, "proof": proof}), episodes
    return None


def judged_releases(workspace: Workspace) -> dict[int, str]:
    """SHA-256 of `evaluation.json` by release that has a recorded verdict."""
    manifests = {release: read_manifest(workspace.release_path(release)) for release in workspace.releases_on_disk()}
    return {
        release: manifest.evaluation_files[EVALUATION]
        for release, manifest in manifests.items()
        if manifest is not None and EVALUATION in manifest.evaluation_files
    }


def check_writable(folder: Path) -> None:
    """Refuses before `gate` is read what could not be recorded afterwards.

    Raises:
        StageError: nothing can be written to the release's folder.
    """
    trial = folder / f".writable-{os.getpid()}"
    try:
        trial.write_bytes(b"")
        trial.unlink()
        blocked = [name for name in (EVALUATION, EPISODES, "report.html") if (folder / name).is_dir()]
        if blocked:
            raise IsADirectoryError(0, "is a folder", str(folder / blocked[0]))
    except OSError as error:
        raise StageError(
            f"The report cannot be written: {error.filename or folder}: {error.strerror}. Make {folder} writable; "
            "`gate` was not read and no error was spent."
        ) from error


def digest_of(content: bytes) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()


def evaluation_bytes(plain: Mapping[str, Any]) -> bytes:
    """`evaluation.json` as it is stored."""
    return json.dumps(plain, indent=1).encode()
