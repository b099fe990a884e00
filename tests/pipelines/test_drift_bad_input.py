"""Nights that cannot be compared as they are: from log files to the sentence that a person reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from datasets.replay import GATE
from datasets.simulators.autoscaler_logs import simulate_logs
from datasets.snapshot import current_snapshot, open_snapshot
from drift.records import ColumnDrift
from pipelines import erasing, stages
from pipelines.drift_history import record_check
from pipelines.training import train
from pipelines.workspace import Workspace, open_workspace
from tests.pipelines.conftest import Run, edit, write_small_workspace

Row = dict[str, Any]
FEATURES = """
[features.version]
type = "numeric"
exogenous = true

[features.sensor]
type = "numeric"
nullable = true
exogenous = true
"""


def observed(row: Row, **values: object) -> Row:
    both = {name: {**row[name], **values} for name in ("observation", "final_observation") if row.get(name)}
    return {**row, **both}


def as_always(row: Row) -> Row:
    """`version` is 5 in every row; `sensor` is missing in a tenth of them."""
    cpu = row["observation"]["cpu"]
    return observed(row, version=5.0, sensor=None if int(1e4 * cpu) % 10 == 0 else round(10 * cpu, 3))


def simulated(
    workspace: Workspace, change: Callable[[Row], Row], n_episodes: int = 400, night: int | None = None
) -> Path:
    """A night that the threshold rules write: the champion would ask for features that the simulator has not."""
    log = simulate_logs(
        workspace.logs_path, night=night, n_episodes=n_episodes, seed=1, traffic=1.0, trace_path=None, policy=None,
        policy_version="0",
    ).path  # fmt: skip
    rows = [change(as_always(json.loads(line))) for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return log


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose release 1 acts, judged on a night in which `version` was constant. Not to be changed."""
    workspace = write_small_workspace(tmp_path_factory.mktemp("bad-input") / "workspace")
    contract, settings = workspace.root / "contract.toml", workspace.root / "offline_dqn.toml"
    contract.write_text(contract.read_text() + FEATURES)
    edit(settings, "n_updates = 800", "n_updates = 20")
    edit(settings, "[snapshot]", "[validate]\nmax_null_share = 1.0\n\n[snapshot]")
    workspace = open_workspace(workspace.root)
    simulated(workspace, unchanged, n_episodes=800)
    stages.ingest(workspace)
    release = train(workspace, stages.snapshot(workspace)[0]).release
    with workspace.registry._opened() as seen:  # these tests ask nothing of its gate
        workspace.registry._make_champion("promote", release, "Ada", "", None, seen)
    return workspace.root


@pytest.fixture
def acting(judged: Path, tmp_path: Path) -> Workspace:
    """A copy of it, to be changed at will."""
    shutil.copytree(judged, tmp_path / "workspace")
    return open_workspace(tmp_path / "workspace")


@dataclass(frozen=True)
class Found:
    """What a check found."""

    outcome: stages.DriftOutcome

    @property
    def sentence(self) -> str:
        return self.outcome.decision.sentence

    def column(self, name: str) -> ColumnDrift:
        assert self.outcome.report is not None, self.sentence
        return next(column for column in self.outcome.report.columns if column.name == name)


def unchanged(row: Row) -> Row:
    return row


def after(
    workspace: Workspace, change: Callable[[Row], Row] = unchanged, n_episodes: int = 400, night: int | None = None
) -> Found:
    """What is found once another night came in."""
    simulated(workspace, change, n_episodes, night)
    stages.ingest(workspace)
    return Found(stages.measure(workspace))


def test_a_feature_that_was_constant_drifts_once_it_moves_and_only_then(acting: Workspace) -> None:
    still = after(acting).column("observation.version")
    assert (still.status, still.psi) == ("stable", pytest.approx(0.0, abs=1e-9))

    moved = after(acting, lambda row: observed(row, version=6.0 if row["step"] % 2 else 5.0))
    assert moved.column("observation.version").status == "drifted"
    assert "observation.version (PSI " in moved.sentence


def test_a_sensor_that_is_missing_all_night_drifts_by_what_is_missing(acting: Workspace) -> None:
    found = after(acting, lambda row: observed(row, sensor=None))

    column = found.column("observation.sensor")
    assert (column.status, column.live_missing_share, column.wasserstein) == ("drifted", 1.0, None)
    assert 0 < (column.reference_missing_share or 0) < 0.3
    assert "observation.sensor (PSI " in found.sentence


def test_a_new_category_is_unseen_and_drifts(acting: Workspace) -> None:
    found = after(acting, lambda row: observed(row, zone="d" if row["observation"]["zone"] == "c" else "a"))

    column = found.column("observation.zone")
    assert column.status == "drifted"
    assert column.unseen_share == pytest.approx(1 / 3, abs=0.1)
    assert found.outcome.decision.cause == "drift"


def test_an_empty_live_window_says_when_there_is_something_to_compare(acting: Workspace, run: Run) -> None:
    nothing = run(acting, "drift")
    assert nothing.code == 0
    assert "no complete episode has begun since 2026-01-05 23:50 UTC" in " ".join(nothing.out.split())

    edit(acting.root / "offline_dqn.toml", '[ingest]\nas_of = "newest"', "[ingest]")
    simulated(acting, unchanged, n_episodes=48)
    for day, hour in ((6, 22), (7, 1)):  # the night goes on, or its last episodes may
        at = open_workspace(acting.root, datetime(2026, 1, day, hour, tzinfo=UTC))
        stages.ingest(at)
        found = stages.measure(at)
        assert (found.report, found.decision.cause) == (None, "not enough data")
        assert "that of 2026-01-06 is still going on, and can be compared from 2026-01-07 02:00 UTC on" in (
            found.decision.sentence
        )
    assert stages.measure(open_workspace(acting.root, datetime(2026, 1, 7, 2, 1, tzinfo=UTC))).report is not None


def test_fewer_episodes_than_it_takes_say_how_many_nights_would_be_enough(acting: Workspace) -> None:
    found = after(acting, n_episodes=12)

    assert found.outcome.decision.cause == "not enough data"
    assert (
        "the live window holds 12 episodes, and it takes 30; a night brings about 12, so set [drift] live_nights = 3"
        in (found.sentence)
    )


def test_fewer_rows_than_bins_are_compared_on_the_bins_that_there_are(acting: Workspace) -> None:
    settings = acting.root / "offline_dqn.toml"
    settings.write_text(settings.read_text() + "\n[drift]\nn_bins = 100\nmin_live_episodes = 5\n")
    found = after(open_workspace(acting.root), n_episodes=12)  # 72 rows

    column = found.column("observation.cpu")
    assert column.live_rows == 72
    assert len(column.bins) > 72
    assert column.status == "stable", "72 rows in 100 bins are far from the reference, and so is every such night"
    assert (column.psi or 0) > 0.1


@pytest.mark.parametrize("infinity", ["Infinity", "-Infinity", "1e999"])
def test_infinity_never_reaches_the_lake_and_its_episodes_are_not_compared(acting: Workspace, infinity: str) -> None:
    """In one step of every tenth episode: fewer rows than would hold the batch."""

    def marked(row: Row) -> Row:
        return observed(row, version=-123.0) if row["step"] == 2 and row["episode_id"].endswith("7") else row

    log = simulated(acting, marked)
    log.write_text(log.read_text().replace("-123.0", infinity))
    stages.ingest(acting)
    found = Found(stages.measure(acting))

    assert acting.query("SELECT count(*) FROM steps WHERE NOT isfinite(observation.version)").rows == ((0,),)
    ((n_rows, reason),) = acting.query("SELECT count(*), min(reason) FROM quarantine").rows
    assert n_rows == 40
    assert "version" in reason
    assert found.outcome.report is not None
    assert found.outcome.report.live_episodes == 400 - 40  # what is quarantined may well be an episode's worst part
    assert found.column("observation.version").psi == pytest.approx(0.0, abs=1e-9)


def test_a_reference_whose_snapshot_is_gone_says_so_and_how_to_go_on(acting: Workspace, run: Run) -> None:
    simulated(acting, unchanged)
    stages.ingest(acting)
    shutil.rmtree(stages.snapshot_of(acting, 1))

    answer = run(acting, "drift")
    said = " ".join(answer.out.split())

    assert answer.code == 0
    assert "what the champion was judged on cannot be read, so nothing can be compared (" in said
    assert "`offline-dqn nightly --force-train` trains a successor with a reference of its own" in said
    assert stages.measure(acting, forced=True).decision.cause == "forced"
    late = open_workspace(acting.root, datetime(2099, 1, 1, tzinfo=UTC))
    assert stages.measure(late).decision.cause == "age"  # it ages all the same


def test_a_redacted_reference_is_compared_with_what_is_left_of_it(acting: Workspace) -> None:
    gate = open_snapshot(stages.snapshot_of(acting, 1))[0].of_split(GATE)
    erasing.erase(acting, episode=str(gate.episode_ids[0]), named=None)
    assert current_snapshot(stages.snapshot_of(acting, 1)) != stages.snapshot_of(acting, 1)

    left = after(open_workspace(acting.root))

    assert left.outcome.report is not None
    assert left.outcome.report.reference_episodes == gate.n_episodes - 1
    assert left.outcome.report.status == "stable"


def test_nights_that_are_missing_from_the_calendar_are_no_nights(acting: Workspace) -> None:
    simulated(acting, unchanged)
    found = after(acting, night=9)  # a week without logs

    assert found.outcome.live_nights is not None
    assert [str(night) for night in found.outcome.live_nights] == ["2026-01-13", "2026-01-13"]
    assert found.outcome.report is not None
    assert found.outcome.report.nightly is not None
    assert set(found.outcome.report.nightly.nights) <= {"2026-01-06", "2026-01-13"}
    record_check(acting.drift_path, found.outcome.to_json(), as_of=datetime(2026, 1, 13, tzinfo=UTC), champion=1)
    assert acting.query("SELECT count(DISTINCT night) FROM drift_history").rows == ((1,),)


def test_a_contract_that_gained_a_feature_and_an_action_compares_what_both_have(acting: Workspace) -> None:
    contract = acting.root / "contract.toml"
    contract.write_text(contract.read_text() + '\n[features.queue]\ntype = "numeric"\nnullable = true\n')
    edit(contract, '"scale_up"]\n', '"scale_up", "restart"]\n')

    grown = open_workspace(acting.root)
    found = after(grown, lambda row: observed(row, queue=float(row["step"])))

    queue = found.column("observation.queue")
    assert (queue.status, queue.reason) == ("not enough data", "only the live window has this column")
    assert found.column("observation.cpu").psi is not None
    restarted = after(grown, lambda row: {**row, "action": "restart"} if row["step"] == 3 else row)
    action = restarted.column("action")
    assert action.unseen_share == pytest.approx(1 / 6, abs=0.01)
    assert action.status == "drifted"
