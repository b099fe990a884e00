"""The scratch workspace of a drill: small, simulated, one night old, with the logs of a second night waiting."""

from __future__ import annotations

import json
from pathlib import Path

from datasets.duck import duck, literal
from pipelines import stages
from pipelines.training import train
from pipelines.workspace import Workspace, open_workspace, write_workspace

_SETTINGS = """# A scratch workspace of `offline-dqn drill`.
[simulate]
scenario = "autoscaler"
n_episodes = 2000

[ingest]
as_of = "newest"

[snapshot]
train_share = 0.45
select_share = 0.05

[train]
n_updates = {n_updates}
hidden = [32, 32]
penalty_weights = 0.1
bcq_thresholds = []
candidates_at = 1.0
exploration = 0.7
n_threads = 1
checkpoint_every = {checkpoint_every}

[evaluate]
n_replicates = 2000
n_folds = 2
placebo_halves = 400
fqe = {{ n_random_features = 100 }}
deciding = {{ estimator = "dr" }}

[gate]
alpha = 0.05
overlap = {{ largest_tail_index = 0.95, largest_share = 0.5, smallest_sample_size = 10 }}

[baseline]{baseline}"""

N_EPISODES = 120
"""Episodes of the night that is disturbed."""

REVIEWER = "the drill"


def write_scratch_workspace(root: Path) -> Workspace:
    """A workspace whose first night is over, with a champion where its gate passed, and whose second night's logs
    wait: half of them as JSON Lines with a few bad and repeated lines, half as Parquet."""
    write_workspace(root, "autoscaler")
    settings = root / "offline_dqn.toml"
    baseline = settings.read_text(encoding="utf-8").partition("[baseline]")[2]
    settings.write_text(_SETTINGS.format(n_updates=800, checkpoint_every=800, baseline=baseline), encoding="utf-8")
    workspace = open_workspace(root)
    stages.simulate(workspace)
    stages.ingest(workspace)
    snapshot, _ = stages.snapshot(workspace)
    release = train(workspace, snapshot).release
    passed = stages.evaluate(workspace, release).passed
    workspace.registry.promote(release if passed else 0, reviewer=REVIEWER, note="before the faults")
    log = stages.simulate(workspace, n_episodes=N_EPISODES, traffic=1.3).path
    _split_log(log)
    settings.write_text(_SETTINGS.format(n_updates=30, checkpoint_every=10, baseline=baseline), encoding="utf-8")
    return open_workspace(root)


def _split_log(log: Path) -> None:
    lines = log.read_text(encoding="utf-8").splitlines()
    episodes = sorted({json.loads(line)["episode_id"] for line in lines})
    late = set(episodes[len(episodes) // 2 :])
    early_lines = [line for line in lines if json.loads(line)["episode_id"] not in late]
    late_lines = [line for line in lines if json.loads(line)["episode_id"] in late]
    beside = log.with_name("late.part")
    beside.write_text("\n".join(late_lines) + "\n", encoding="utf-8")
    with duck() as connection:
        connection.execute(
            f"COPY (SELECT * FROM read_json({literal(str(beside))}, format = 'newline_delimited')) "
            f"TO {literal(str(log.with_name(f'{log.stem}-late.parquet')))} (FORMAT parquet)"
        )
    beside.unlink()
    bad = ['{"episode_id": "cut off', early_lines[0].replace('"hold"', '"halt"').replace('"scale_up"', '"jump"')]
    repeated = early_lines[5:8]
    log.write_text("\n".join([*early_lines, *repeated, *bad]) + "\n", encoding="utf-8")
