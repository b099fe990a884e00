"""`make nightly`: the whole loop on simulated logs of an autoscaler, three nights, one table."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from datasets.errors import OfflineDqnError
from pipelines import console, stages
from pipelines.cli import print_nights, quiet_libraries
from pipelines.nights import read_nights
from pipelines.running import run_night
from pipelines.workspace import Workspace, WorkspaceError, write_workspace

_MARK = ".made-by-make-nightly"
"""Only a workspace that carries this file is thrown away by the next `make nightly`."""

_NIGHTS = (
    ("there is no champion yet, so it trains", 1.0),
    ("the same traffic, now served by the champion: nothing should be found", 1.0),
    ("traffic grows by 60 %: the world has changed", 1.6),
)


def main() -> int:
    """Runs the demonstration in the folder named by the first argument."""
    quiet_libraries()
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "workspace")
    try:
        workspace = _fresh_workspace(root)
        for night, (what, traffic) in enumerate(_NIGHTS, start=1):
            console.err.rule(f"night {night}: {what}", align="left")
            _run(workspace, traffic)
    except OfflineDqnError as error:
        console.fail(str(error))
        return 1
    print_nights(workspace.root, read_nights(workspace.nights_path))
    console.print_account(
        "",
        {
            "workspace": workspace.root,
            "go on with": f"offline-dqn --help (in .venv/bin; --workspace {root})",
        },
    )
    return 0


def _fresh_workspace(root: Path) -> Workspace:
    if root.exists():
        if not (root / _MARK).exists():
            raise WorkspaceError(
                f"{root} exists and was not made by `make nightly`, so it is left alone. Choose another folder: "
                "make nightly WORKSPACE=DIR"
            )
        shutil.rmtree(root)
    workspace = write_workspace(root, "autoscaler")
    (root / _MARK).write_text("Thrown away by the next `make nightly`.\n")
    return workspace


def _run(workspace: Workspace, traffic: float) -> None:
    simulated = stages.simulate(workspace, traffic=traffic)
    acting = "version 0, the rules" if simulated.policy_version == "0" else f"release {simulated.policy_version}"
    console.err.print(f"{simulated.n_steps:,} decisions of {simulated.n_episodes:,} service-hours logged by {acting}")
    console.err.print(
        f"about {simulated.episodes_per_effective:.1f} logged episodes per effective episode of a candidate that "
        "decides differently in half of the states"
    )
    record = run_night(workspace, force_train=False)
    console.err.print(record.reason, soft_wrap=True)
    if record.gate == "passed" and record.release is not None:
        # In earnest a person reads the report first; this is what he or she would type.
        workspace.registry.promote(record.release, reviewer="make nightly", note="demonstration")
        console.err.print(f"promoted: offline-dqn promote {record.release} --reviewer 'make nightly'")


if __name__ == "__main__":
    sys.exit(main())
