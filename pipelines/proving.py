"""Proof on the user's own log, at the edge: reads the episodes that may be read, and the releases that wrote them.

`gate` is read by the gate alone (TRUST.md 2 and 16): backtest and placebo use the episodes of `train` and `select`, so
they may be repeated at will and cost no error. A version that is compared was frozen before the nights in which it
acted, so it was not fitted on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets.constraints import Rules
from datasets.replay import GATE, SELECT, TRAIN, Replay
from datasets.splits import gate_nights, last_night_over
from offline_dqn.policy import Policy
from pipelines.acting import ReleaseError, load_release
from pipelines.engines import spreading
from pipelines.log_reading import read_log
from pipelines.training import StageError, written_by
from pipelines.workspace import Workspace
from reports.backtest import backtest
from reports.estimators import on_policy_returns
from reports.placebo import placebo
from reports.proof_records import Placebo, Proof


def prove(workspace: Workspace, paths: Sequence[Path] = ()) -> Proof:
    """Backtest and placebo on the lake's episodes, or on those of the given files.

    Raises:
        StageError: no episode is complete and undamaged, or all of them judge.
    """
    replay, as_of = read_log(workspace, paths)
    config = workspace.config
    whole_nights = config.ingest.as_of == "newest"
    judges = gate_nights(config.snapshot, last_night_over(replay.contract, as_of, whole_nights=whole_nights))
    if judges is not None:  # nights judge, and what the hash says of a cluster does not matter
        split = np.where(replay.nights >= np.datetime64(judges.first), GATE, TRAIN).astype(np.int8)
        replay = replace(replay, split=split)
    if not np.isin(replay.split, (TRAIN, SELECT)).any():
        raise StageError(
            f"All {replay.n_episodes} episodes are in `gate`, which only the gate reads. Wait for more nights, or give "
            "it less in [snapshot] of a new workspace."
        )
    return proof_of(workspace, replay)


def proof_of(workspace: Workspace, replay: Replay) -> Proof:
    """Backtest and placebo on the `train` and `select` episodes of a replay dataset."""
    episodes, config = _as_it_acted(replay.of_split(TRAIN, SELECT)), workspace.config
    with spreading(config.engine, workspace.root) as spread:
        found = backtest(
            episodes,
            registered=_registered(workspace, episodes),
            config=config.evaluate,
            gate_config=config.gate,
            seed=config.train.seed,
            spread=spread,
        )
    return Proof(backtest=found, placebos=placebos_of(workspace, episodes))


def _as_it_acted(episodes: Replay) -> Replay:
    """The episodes without constraints, where the log took what these forbid by now: its versions knew no shield."""
    steps = np.arange(episodes.n_steps)
    held = not episodes.contract.forbids or episodes.permitted[steps, episodes.actions].all()
    return episodes if held else episodes.under(Rules(safe=episodes.contract.actions.safe))


def placebos_of(workspace: Workspace, episodes: Replay) -> tuple[Placebo, ...]:
    """The log's own policy against itself, dealt by cluster and by night."""
    returns = on_policy_returns(episodes.rewards, episodes.offsets, episodes.contract.gamma)
    config = workspace.config
    rng = np.random.default_rng(config.train.seed)
    return tuple(
        placebo(
            returns,
            episodes.clusters,
            units,
            of="return of the log",
            unit=unit,
            alpha=config.gate.alpha,
            n_halves=config.evaluate.placebo_halves,
            rng=rng,
        )
        for unit, units in (("cluster", episodes.clusters), ("night", episodes.nights))
    )


def _registered(workspace: Workspace, episodes: Replay) -> Mapping[str, Policy]:
    """The releases that wrote every episode that bears their number; a version that only looks like one is modelled."""
    found: dict[str, Policy] = {}
    for release in workspace.releases_on_disk():
        own = episodes.policy_versions == str(release)
        if not own.any():
            continue
        try:
            policy = load_release(workspace, release, episodes.contract)
        except ReleaseError:
            continue  # damaged, or of another contract: it cannot act here
        if written_by(policy, release, episodes.subset(own)).all():
            found[str(release)] = policy
    return found
