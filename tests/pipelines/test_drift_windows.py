from __future__ import annotations

from typing import Any

import numpy as np

from datasets.replay import Replay
from pipelines import stages
from pipelines.drift_windows import split_nights
from pipelines.workspace import Workspace
from tests.reports.promotion_world import Leaning, logged


def nights_of(*versions: str, first: int = 0) -> Replay:
    """One night per version, "" for a night without episodes; two episodes each."""
    n = len(versions)
    replay = logged(np.random.default_rng(0), Leaning(0.0), n_nights=n, per_night=2, first_night=first)
    of_episode = np.repeat(np.array(versions, dtype=object), 2)
    replay.policy_versions[:] = of_episode
    return replay.subset(of_episode != "")


def split(since: Replay, acting: int | None = 1, **options: Any) -> tuple[list[str], list[str]]:
    live = since.subset(since.nights == since.nights.max())
    frozen_on = options.pop("frozen_on", np.datetime64("2026-02-28"))
    own, recent = split_nights(
        since, live, acting, **{"champion": 1, "min_nights": 3, "frozen_on": frozen_on, **options}
    )
    return [str(night)[8:] for night in own], [str(night)[8:] for night in recent]


def test_first_nights_of_its_own_become_the_reference_once_there_are_enough() -> None:
    assert split(nights_of("1", "1", "1")) == ([], ["01", "02", "03"])
    assert split(nights_of("1", "1", "1", "1")) == (["01", "02", "03"], ["04"])
    assert split(nights_of("1", "1", "1", "1", "1", "1")) == (["01", "02", "03"], ["04", "05", "06"])


def test_nights_in_which_another_policy_acted_are_neither() -> None:
    assert split(nights_of("0", "0", "1", "1", "1", "1")) == (["03", "04", "05"], ["06"])
    assert split(nights_of("1", "1", "0", "1", "1")) == (["01", "02", "04"], ["05"])
    assert split(nights_of("0", "1", "1")) == ([], ["02", "03"])
    assert split(nights_of("0", "2", "2"), acting=2) == ([], ["02", "03"])  # the champion is not what acts


def test_night_without_an_episode_breaks_nothing() -> None:
    assert split(nights_of("1", "", "1", "", "1", "1")) == (["01", "03", "05"], ["06"])


def test_night_that_began_before_the_snapshot_is_no_night_of_its_own() -> None:
    assert split(nights_of("1", "1", "1", "1"), frozen_on=np.datetime64("2026-03-01")) == ([], ["01", "02", "03", "04"])


def test_actor_without_a_number_has_all_nights() -> None:
    assert split(nights_of("blue", "green", "green"), acting=None) == ([], ["01", "02", "03"])


def test_check_compares_what_the_champion_does_and_what_follows(workspace: Workspace) -> None:
    stages.simulate(workspace, n_episodes=300)
    stages.ingest(workspace)
    report = stages.measure(workspace).report
    assert report is not None
    roles = {column.name: column.role for column in report.columns}
    assert roles["episode.return"] == "episode"
    assert roles["propensity"] == "policy"
    assert roles["q_value"] == "policy"
    assert roles["td_error"] == "dynamics"
    assert roles["reward.residual"] == "dynamics"
    assert {column.name for column in report.columns if column.exogenous} >= {"reward.residual"}
