"""`make loop`: simulated weeks of an autoscaler, served, logged, learned from, and promoted, with what can go wrong.

A real `offline-dqn serve` decides over HTTP for a simulated fleet in simulated time; each night is the nightly run;
what its gate passes is tried by a canary. It ends with one picture: the true return of what was served, per day.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from datasets.errors import OfflineDqnError
from pipelines import console
from pipelines.cli import quiet_libraries
from pipelines.loop_fleet import AT_MOST, CAPPED
from pipelines.loop_page import Curve, draw, page
from pipelines.loop_rivals import Thresholds, best_thresholds, returns_of
from pipelines.loop_server import running_server
from pipelines.loop_story import Story, Told, live
from pipelines.workspace import Workspace, WorkspaceError, open_workspace, write_workspace

PICTURE, PAGE, RECORD = "loop.svg", "loop.html", "loop.json"

VERSION_ZERO = Thresholds(up=0.6, down=0.3, keeps=2, exploration=0.5)
"""The rules of `[baseline]` below, as `loop_rivals` tries controllers."""

_CONTRACT = f"""
[actions.caps]          # counted by the server, kept by the shield
{CAPPED} = {{ at_most = {AT_MOST}, per = "1h", by = "episode" }}

[outcomes]              # the services report their rewards a step later
attribution_window = "20m"
default = -10.0         # what nobody reports counts as the worst
"""

SETTINGS = """# The autoscaler in a drill: small networks and few folds, so that two weeks take minutes.

[ingest]
as_of = "newest"               # simulated time

[snapshot]
train_share = 0.4
select_share = 0.1

[drift]
cool_down = "2d"

[train]
n_updates = 2000
hidden = [64, 64]
penalty_weights = [0.1]
bcq_thresholds = []
candidates_at = 1.0
exploration = 0.4

[select]
n_finalists = 1

[evaluate]
n_folds = 2
placebo_halves = 400

[evaluate.fqe]
n_members = 1

[serve]
clock = "request"              # simulated time
seed = 1
deadline_ms = 2000             # on a machine that trains at the same time

[canary]
plan = [0.2, 0.5, 1.0]
interval = "7d"                # the drill looks itself, once in each simulated hour

[baseline]                     # version 0: the controller that a team has
rules = [
    { when = "observation.cpu > 0.6", action = "scale_up" },
    { when = "observation.cpu < 0.3 AND observation.replicas > 2", action = "scale_down" },
]
otherwise = "hold"
exploration = 0.5
"""


def main() -> int:
    """Runs the drill in the folder that is named."""
    quiet_libraries()
    parser = argparse.ArgumentParser(prog="python -m pipelines.loop", description=__doc__.split("\n\n")[0])
    parser.add_argument("workspace", nargs="?", default="workspace-loop", help="folder; made anew")
    parser.add_argument("--days", type=int, default=Story().n_days, help="simulated days")
    parser.add_argument("--episodes", type=int, default=Story().n_episodes, help="service-hours a day")
    given = parser.parse_args()
    try:
        workspace = fresh_workspace(Path(given.workspace))
        counts = run(workspace, Story(n_days=given.days, n_episodes=given.episodes))
    except OfflineDqnError as error:
        console.fail(str(error))
        return 1
    console.print_account("", {**dict(counts), "picture": workspace.root / PAGE})
    return 0


def fresh_workspace(root: Path, maker: str = "make loop") -> Workspace:
    """A workspace for a drill, in place of an older one of the same drill.

    Args:
        maker: the command; only a workspace that carries its mark is thrown away.

    Raises:
        WorkspaceError: the folder holds something else.
    """
    mark = root / f".made-by-{maker.replace(' ', '-')}"
    if root.exists():
        if not mark.exists():
            raise WorkspaceError(
                f"{root} exists and was not made by `{maker}`, so it is left alone. Choose another folder: "
                f"{maker} WORKSPACE=DIR"
            )
        shutil.rmtree(root)
    write_workspace(root, "autoscaler")
    path = root / "contract.toml"
    text = path.read_text(encoding="utf-8")
    before, success, after = text.partition("[success]")
    # Whether the objective was met is priced by the reward already; as a measure of its own it would contradict it.
    path.write_text(before + after[after.index("[constraints") :] + _CONTRACT if success else text + _CONTRACT)
    (root / "offline_dqn.toml").write_text(SETTINGS, encoding="utf-8")
    mark.write_text(f"Thrown away by the next `{maker}`.\n")
    return open_workspace(root)


def run(workspace: Workspace, story: Story) -> list[tuple[str, str]]:
    """Lives the story on a workspace and writes picture, page and record into it; returns the table of counts."""
    began, told = time.monotonic(), Told()
    with running_server(workspace.root) as server:
        live(workspace.root, story, server, told, lambda text: console.err.print(text, soft_wrap=True, markup=False))
    lived_s = time.monotonic() - began
    curves, best = _curves(story, told, explored=workspace.config.train.exploration)
    counts = [*_counts(workspace, told), ("minutes", f"{lived_s / 60:.1f}")]
    svg = draw(curves, told.releases, told.events)
    (workspace.root / PICTURE).write_text(svg, encoding="utf-8")
    (workspace.root / PAGE).write_text(page(svg, counts, told.events, _notes(story, best)), encoding="utf-8")
    record = {**told.to_json(), "curves": {c.key: list(c.values) for c in curves}, "counts": dict(counts)}
    (workspace.root / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    return counts


def _curves(story: Story, told: Told, *, explored: float) -> tuple[list[Curve], Thresholds]:
    """What was served, and what others would have earned on the same days."""
    best = best_thresholds(story.days, seed=story.seed + 1)

    def means(controller: Thresholds) -> list[float]:
        return [float(returns_of(controller, day, seed=story.seed + 2).mean()) for day in story.days]

    return [
        Curve("served", "what was served", told.served),
        Curve("rules", "version 0, the rules", means(VERSION_ZERO)),
        Curve("best", "best fixed thresholds", means(best)),
        Curve(
            "exploring",
            f"the same, exploring {explored:.0%} as releases do",
            means(replace(best, exploration=explored)),
        ),
    ], best


def _counts(workspace: Workspace, told: Told) -> list[tuple[str, str]]:
    tally, n_events = told.tally, dict.fromkeys(("train", "promotion", "rollback"), 0)
    for event in told.events:
        if event.kind in n_events:
            n_events[event.kind] += 1
    logged = set(_logged_ids(workspace.logs_path))
    answered = set(tally.ids)
    lost, unanswered = len(answered - logged), len(logged - answered)
    in_lake = workspace.query("SELECT count(*) AS n FROM steps").rows[0][0]
    fallbacks = {by: tally.decided_by[by] for by in ("guard", "late", "shield", "baseline")}
    return [
        ("decisions", f"{tally.n_decisions:,}"),
        (
            "answered = logged",
            f"{'yes' if not lost and not unanswered else 'NO'}: {lost} lost, {unanswered} not answered",
        ),
        ("in the lake", f"{in_lake:,}"),
        ("decided by a release", f"{tally.decided_by['policy']:,}"),
        *((f"decided by {_BY[by]}", f"{n:,}") for by, n in fallbacks.items()),
        *((f"actions taken away by {name}", f"{n:,}") for name, n in sorted(tally.forbidden.items())),
        ("violations", f"{tally.n_violations:,}"),
        ("trainings", f"{n_events['train']}"),
        ("promotions", f"{n_events['promotion']}"),
        ("rollbacks by a canary", f"{n_events['rollback']}"),
    ]


_BY = {
    "guard": "version 0, by the guard",
    "late": "version 0, as scoring was late",
    "shield": "the shield alone",
    "baseline": "version 0, in charge",
}


def _logged_ids(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("served-*.jsonl")):
        with path.open("rb") as file:
            yield from (json.loads(line)["decision_id"] for line in file)


def _notes(story: Story, best: Thresholds) -> Sequence[str]:
    return (
        f"{story.n_days} simulated days of {story.n_episodes:,} service-hours. All curves are true returns on the same "
        "traffic, zones and start-up luck, behind the same shield and cap; what differs is who decides.",
        f"Best fixed thresholds ({best.shown}): found by trying all on other draws of the same days, traffic shift "
        "included, so they know what comes. They never explore, and what they log could judge nobody: the dotted line "
        "is the same controller with the exploration that a release keeps, which is what releases compare with.",
    )


if __name__ == "__main__":
    sys.exit(main())
