"""The examples in docs/examples on the logs they are written for: nothing lost, and refused for the right reason.

What is compared with comes from pandas on the raw files.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd  # type: ignore[import-untyped]  # pandas brings no types
import pytest

from datasets.batches import list_batches
from datasets.replay import GATE, TRAIN, Replay
from datasets.snapshot import open_snapshot
from offline_dqn.streaming import training_source
from pipelines import stages
from pipelines.stages import EvaluateOutcome
from pipelines.training import train
from pipelines.workspace import Workspace, open_workspace, write_workspace
from tests.pipelines.conftest import Run, edit

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
DATA = ROOT.parent / "shared" / "data"
BUS_LOG = DATA / "bus_replacement" / "bus_replacement.csv"
BANDIT_LOGS = {name: DATA / "open_bandit_men" / f"{name}_men.csv.gz" for name in ("random", "bts")}

needs_logs = pytest.mark.skipif(
    not all(path.exists() for path in (BUS_LOG, *BANDIT_LOGS.values())),
    reason=f"the real logs are not part of the project, and not in {DATA}",
)


def workspace_of(example: str, root: Path) -> Workspace:
    """A workspace with an example's two files."""
    write_workspace(root, "blank")
    for name in ("contract.toml", "offline_dqn.toml"):
        shutil.copyfile(EXAMPLES / example / name, root / name)
    return open_workspace(root)


@dataclass(frozen=True)
class Judged:
    """A real log that has gone through the whole loop, with less training than the example has."""

    workspace: Workspace
    replay: Replay
    outcome: EvaluateOutcome


def judged(example: str, root: Path, *logs: Path) -> Judged:
    workspace_of(example, root)
    settings = root / "offline_dqn.toml"
    edit(settings, "n_updates = 2000", "n_updates = 50")
    settings.write_text(settings.read_text() + "\n[evaluate]\nn_replicates = 2000\nfqe = { n_random_features = 100 }\n")
    workspace = open_workspace(root)
    stages.ingest(workspace, logs)
    path, _ = stages.snapshot(workspace)
    release = train(workspace, path).release
    return Judged(workspace, open_snapshot(path)[0], stages.evaluate(workspace, release))


def failed(outcome: EvaluateOutcome) -> list[str]:
    assert outcome.evaluation.decision is not None
    return [check.name for check in outcome.evaluation.decision.checks if not check.passed]


@pytest.mark.parametrize("example", ["bus_replacement", "open_bandit_men"])
def test_the_settings_of_each_example_are_valid(example: str, tmp_path: Path) -> None:
    workspace = workspace_of(example, tmp_path / "workspace")

    assert workspace.contract.name == example.replace("_", "-")
    assert workspace.config.snapshot.train_share == 0.45


# --- buses: sequences without a step, an end or a probability


@pytest.fixture(scope="module")
def buses(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    return judged("bus_replacement", tmp_path_factory.mktemp("buses") / "workspace", BUS_LOG)


@pytest.fixture(scope="module")
def bus_rows() -> pd.DataFrame:
    return pd.read_csv(BUS_LOG).sort_values(["bus", "month"], ignore_index=True)


@needs_logs
def test_every_bus_row_is_in_the_lake_as_it_was_logged(buses: Judged, bus_rows: pd.DataFrame) -> None:
    (batch,) = list_batches(buses.workspace.open_lake())
    assert (batch.status, batch.counts.n_in, batch.counts.n_lake) == ("lake", 15_568, 15_568)

    answer = buses.workspace.query(
        """SELECT episode_id AS bus, strftime(timestamp, '%Y-%m') AS month, observation.model AS model,
            observation.miles_since_engine AS miles_since_engine, observation.miles_last_month AS miles_last_month,
            action AS decision, reward AS utility, behavior_prob IS NULL AND step IS NULL AS unlogged
        FROM steps ORDER BY bus, month"""
    )
    lake = pd.DataFrame(answer.rows, columns=list(answer.columns))
    assert lake.pop("unlogged").all()
    pd.testing.assert_frame_equal(lake, bus_rows, check_dtype=False, check_exact=True)


@needs_logs
def test_no_bus_terminates_and_each_keeps_the_order_of_its_months(buses: Judged, bus_rows: pd.DataFrame) -> None:
    replay = buses.replay
    assert (replay.n_steps, replay.n_episodes) == (15_568, 162)
    assert not replay.terminated.any()
    assert replay.truncated.sum() == 162
    assert (replay.next_row[replay.offsets[1:] - 1] == -1).all()
    for bus, begin, end in zip(replay.episode_ids, replay.offsets, replay.offsets[1:], strict=False):
        logged = bus_rows[bus_rows.bus == bus]
        assert (replay.rewards[begin:end] == logged.utility).all()


@needs_logs
def test_buses_are_refused_because_the_weights_miss_what_the_candidate_does(
    buses: Judged, bus_rows: pd.DataFrame
) -> None:
    evaluation = buses.outcome.evaluation

    assert not buses.outcome.passed
    assert {"mean weight of the candidate", "agreement of estimators"} <= set(failed(buses.outcome))
    assert evaluation.propensities.kind == "estimated"
    weighted = [e for e in evaluation.estimates if e.estimator not in {"on_policy", "direct"}]
    assert weighted
    assert all(e.value is None and e.refused for e in weighted)

    gate = set(buses.replay.of_split(GATE).episode_ids)
    rows = bus_rows[bus_rows.bus.isin(gate)]
    discounted = rows.utility * 0.9999 ** rows.groupby("bus").cumcount()
    log = evaluation.estimate("on_policy", "log")
    assert log is not None
    assert log.value == pytest.approx(discounted.groupby(rows.bus).sum().mean(), rel=1e-12)


@needs_logs
def test_a_newest_month_that_is_now_leaves_the_last_buses_open(buses: Judged, tmp_path: Path) -> None:
    shutil.copytree(buses.workspace.root, tmp_path / "workspace")
    edit(tmp_path / "workspace" / "offline_dqn.toml", 'as_of = "now"', 'as_of = "newest"')
    _, summary = stages.snapshot(open_workspace(tmp_path / "workspace"))

    assert (summary.n_episodes, summary.n_open) == (158, 4)


@needs_logs
def test_a_bus_log_said_to_have_probabilities_is_held_and_the_way_out_works(run: Run, tmp_path: Path) -> None:
    workspace = workspace_of("bus_replacement", tmp_path / "workspace")
    contract = tmp_path / "workspace" / "contract.toml"
    edit(contract, 'propensity = "estimated"', 'propensity = "logged"')

    held = run(workspace, "ingest", BUS_LOG)
    (batch,) = list_batches(open_workspace(workspace.root).open_lake())
    assert (batch.status, batch.counts.n_held, batch.counts.n_lake) == ("held", 15_568, 0)
    assert "15,568 rows break the contract: behavior_prob is missing" in held.err
    assert "set behavior.propensity = 'estimated' in the contract" in held.err
    assert "set behavior.propensity = 'estimated' in the contract" in batch.note  # what a nightly run shows
    assert "offline-dqn batches list" in run(workspace, "plan").err

    edit(contract, 'propensity = "logged"', 'propensity = "estimated"')
    assert run(workspace, "batches", "reject", batch.batch_id).code == 0
    assert run(workspace, "ingest", BUS_LOG, "--json").json["batch"]["n_lake"] == 15_568
    assert open_workspace(workspace.root).query("SELECT count(*) FROM steps").rows == ((15_568,),)


# --- the bandit: one step, 34 actions by number, dashes in names, tiny probabilities


@pytest.fixture(scope="module")
def bandit(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    return judged("open_bandit_men", tmp_path_factory.mktemp("bandit") / "workspace", *BANDIT_LOGS.values())


@pytest.fixture(scope="module")
def impressions() -> pd.DataFrame:
    return pd.concat([pd.read_csv(path).assign(log=name) for name, path in BANDIT_LOGS.items()], ignore_index=True)


@needs_logs
def test_every_impression_is_in_the_lake_with_its_own_probability(bandit: Judged, impressions: pd.DataFrame) -> None:
    (batch,) = list_batches(bandit.workspace.open_lake())
    assert (batch.counts.n_in, batch.counts.n_lake) == (20_000, 20_000)
    assert batch.dropped_columns == ("__column_1",)  # the row number, which has no name

    affinities = [f"user-item_affinity_{item}" for item in range(34)]
    features = ["user_feature_0", "user_feature_1", "user_feature_2", "user_feature_3", *affinities]
    answer = bandit.workspace.query(
        f"""SELECT CASE WHEN source LIKE '%random%' THEN 'random' ELSE 'bts' END AS log, timestamp,
            action::BIGINT AS item_id, observation.position::BIGINT AS position, reward AS click,
            behavior_prob AS propensity_score, {", ".join(f'observation."{name}" AS "{name}"' for name in features)}
        FROM steps ORDER BY log DESC, source_line"""
    )
    lake = pd.DataFrame(answer.rows, columns=list(answer.columns))
    lake["timestamp"] = pd.to_datetime(lake.timestamp, utc=True)
    raw = impressions.assign(timestamp=pd.to_datetime(impressions.timestamp, utc=True))[list(answer.columns)]
    pd.testing.assert_frame_equal(lake, raw, check_dtype=False, check_exact=True)


@needs_logs
def test_click_rates_of_the_two_policies_are_those_of_the_raw_files(bandit: Judged) -> None:
    answer = bandit.workspace.query(
        "SELECT source LIKE '%random%', count(*), sum(reward), min(behavior_prob) FROM steps GROUP BY 1 ORDER BY 1"
    )

    assert answer.rows == ((False, 10_000, 69.0, 0.000165), (True, 10_000, 46.0, pytest.approx(1 / 34)))


@needs_logs
def test_each_impression_is_an_episode_that_ended(bandit: Judged) -> None:
    replay = bandit.replay

    assert (replay.n_steps, replay.n_episodes) == (20_000, 20_000)
    assert replay.terminated.all()
    assert not replay.truncated.any()


@needs_logs
def test_hashed_labels_are_learned_from_the_training_split(bandit: Judged, impressions: pd.DataFrame) -> None:
    source = training_source(bandit.replay, bandit.replay.split == TRAIN, bandit.workspace.config.train)
    codes = bandit.replay.of_split(TRAIN).observations.columns["user_feature_2"]
    vocabulary = bandit.replay.observations.vocabularies["user_feature_2"]
    assert set(vocabulary) == set(impressions.user_feature_2)
    known = source.encoder.features["user_feature_2"].labels
    assert set(known) == {vocabulary[code] for code in np.unique(codes)}


@needs_logs
def test_the_bandit_is_refused_and_its_on_policy_value_is_the_click_rate(
    bandit: Judged, impressions: pd.DataFrame
) -> None:
    gate = bandit.replay.of_split(GATE)
    log = bandit.outcome.evaluation.estimate("on_policy", "log")
    assert log is not None
    assert not bandit.outcome.passed
    assert log.value == pytest.approx(gate.rewards.mean(), rel=1e-12)
    assert bandit.replay.rewards.sum() == impressions.click.sum() == 115


@needs_logs
def test_a_night_after_logs_came_by_path_finds_nothing_new(bandit: Judged) -> None:
    report = stages.ingest(bandit.workspace)

    assert (report.batch, report.damaged) == (None, ())
