"""Training by several processes: `torchrun --nproc-per-node 2 -m pipelines.train_distributed --workspace DIR`.

What `offline-dqn train` does alone. It ends in the release that one process would have made, to rounding. On several
machines the workspace is a folder that all of them see.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from datasets.locking import exclusive_lock
from pipelines import console
from pipelines.cli import print_training
from pipelines.command import JsonOption, WorkspaceOption, command, open_workspace_of, run_to_exit

if TYPE_CHECKING:  # what loads torch waits until the command runs
    from offline_dqn.distributed import Ranks
    from pipelines.training import TrainOutcome
    from pipelines.workspace import Workspace

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@command(app, "train")
def train(workspace: WorkspaceOption = Path(), as_json: JsonOption = False) -> None:
    """Train on the newest snapshot and choose, as one of the processes that torchrun started."""
    from offline_dqn.distributed import joined_ranks
    from pipelines.training import train_along

    with joined_ranks() as ranks:
        opened = open_workspace_of(workspace)
        if not ranks.writes:
            train_along(opened, ranks)
            return
        outcome = _lead(opened, ranks)
    if as_json:
        console.print_json(outcome.to_json())
    else:
        print_training(outcome)


def _lead(workspace: Workspace, ranks: Ranks) -> TrainOutcome:
    """What the first process does, under the workspace's lock."""
    from pipelines import training

    with (
        exclusive_lock(workspace.root / ".lock", f"The workspace {workspace.root}", wait_s=0.0),
        console.progress(f"training by {ranks.n_ranks} processes", workspace.config.train.n_updates, "updates") as move,
    ):
        outcome = training.train(workspace, on_metrics=lambda step, m: move(step, m["updates_per_s"]), ranks=ranks)
    if outcome.repeated:
        ranks.heard("")  # the others wait to hear what they train on: nothing
    return outcome


if __name__ == "__main__":
    started = f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', 'N')}"
    run_to_exit(app, prog_name=f"{started} -m pipelines.train_distributed")
