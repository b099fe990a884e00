"""The commands `act` and `compress`: what a release would do, and a smaller release that does nearly the same."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from datasets.locking import exclusive_lock
from pipelines import console
from pipelines.command import JsonOption, WorkspaceOption, command, open_workspace_of

policy_app = typer.Typer(rich_markup_mode=None)


class Engine(StrEnum):
    """What computes."""

    NUMPY = "numpy"
    ONNX = "onnx"


@command(policy_app, "act")
def act(
    version: Annotated[int, typer.Argument(help="Number of the release.")],
    file: Annotated[Path, typer.Argument(help="Observations, one JSON object per line.")],
    engine: Annotated[Engine, typer.Option(help="What computes: numpy, or onnxruntime on policy.onnx.")] = Engine.NUMPY,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """What a release would do: action, probabilities and Q-values, one JSON line per observation."""
    from pipelines.acting import act as act_on

    rows = act_on(open_workspace_of(workspace), version, file, engine.value)
    if as_json:
        console.print_json({"release": version, "decisions": rows})
        return
    for row in rows:
        console.print_json(row)


@command(policy_app, "compress")
def compress(
    version: Annotated[int, typer.Argument(help="Number of the release.")],
    hidden: Annotated[
        str, typer.Option(help="Units of the smaller network's hidden layers, such as 32,32; taught by the release.")
    ] = "",
    int8: Annotated[bool, typer.Option("--int8", help="Store the weights in a byte each.")] = False,
    updates: Annotated[int, typer.Option(help="Updates of the smaller network.", min=1)] = 4_000,
    workspace: WorkspaceOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Make a smaller candidate of a release, and say what that costs. It has to pass the gate itself."""
    from offline_dqn.compression import DistillConfig
    from pipelines import compressing

    units = _units(hidden)
    distillation = DistillConfig(hidden=units, n_updates=updates) if units else None
    opened = open_workspace_of(workspace)
    with (
        exclusive_lock(opened.root / ".lock", f"The workspace {opened.root}", wait_s=0.0),
        console.progress("compressing", None) as advance,
    ):
        done = compressing.compress(opened, version, distillation=distillation, int8=int8, on_update=advance)
    if as_json:
        console.print_json(done.to_json())
        return
    loss = done.loss
    console.print_account(
        f"Release {done.release} {'was made from this before' if done.repeated else 'made'}",
        {
            "smaller form of": f"release {done.compressed_from}",
            "weights": f"{done.bytes_before:,} -> {done.bytes_after:,} bytes",
            "same action": f"{loss.agreement:.2%} of {loss.n_steps:,} steps of `select`",
            "value loss": f"{console.number(loss.value_loss)} +- {console.number(loss.standard_error)} (one standard "
            f"error), from {console.number(loss.value_before)} by fitted Q evaluation",
            "next": f"offline-dqn evaluate {done.release}",
        },
    )


def _units(hidden: str) -> tuple[int, ...]:
    try:
        units = tuple(int(part) for part in hidden.split(",")) if hidden else ()
    except ValueError:
        units = (0,)
    if any(n < 1 for n in units):
        raise typer.BadParameter(f"wants whole numbers such as 32,32, found '{hidden}'", param_hint="--hidden")
    return units
