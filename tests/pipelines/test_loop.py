"""The drill: its rivals act as the real rules behind the real shield, its picture is whole, and a slice of it runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from datasets.observations import Observations
from datasets.simulators.service import ACTIONS, ZONES
from offline_dqn.shield import Shielded
from pipelines.loop import PAGE, PICTURE, RECORD, VERSION_ZERO, fresh_workspace, run
from pipelines.loop_fleet import CAPPED, Day
from pipelines.loop_page import Curve, draw
from pipelines.loop_rivals import Thresholds, best_thresholds, permitted_by, returns_of
from pipelines.loop_story import Event, Story
from pipelines.workspace import WorkspaceError


def test_the_rules_as_a_rival_act_as_version_zero_behind_the_shield(tmp_path: Path) -> None:
    workspace = fresh_workspace(tmp_path / "drill")
    rng, n = np.random.default_rng(5), 500
    seen = {
        "cpu": rng.random(n).round(2),
        "request_rate": 300 * rng.random(n),
        "replicas": rng.integers(1, 5, n).astype(float),
        "pending": rng.integers(0, 3, n).astype(float),
        "p95_ms": 2000 * rng.random(n),
        "hour": 24 * rng.random(n),
        "zone": rng.integers(0, 3, n).astype(np.int32),
    }
    n_capped = rng.integers(0, 4, n).astype(float)
    rules = workspace.config.baseline
    assert rules is not None
    acting = Shielded(rules.to_policy(workspace.contract), workspace.contract)
    observations = Observations({**seen, f"taken_{CAPPED}": n_capped}, {"zone": ZONES})

    probs = acting.action_probs(observations, np.ones((n, 3), dtype=bool))

    assert acting.actions == ACTIONS
    np.testing.assert_allclose(VERSION_ZERO.probs(seen, permitted_by(seen, n_capped)), probs, atol=1e-12)


def test_a_day_is_the_same_for_everybody_and_days_differ() -> None:
    day = Day(1, 0.6, 240, seed=3)

    first, again = (returns_of(Thresholds(0.9, 0.6), day, seed=1) for _ in range(2))

    np.testing.assert_array_equal(first, again)
    assert returns_of(Thresholds(0.9, 0.6), Day(2, 0.6, 240, seed=3), seed=1).mean() != first.mean()


def test_the_best_thresholds_beat_the_rules_on_days_they_were_not_chosen_on() -> None:
    days = [Day(1, 0.6, 480, seed=3), Day(2, 1.2, 480, seed=3)]

    best = best_thresholds(days, seed=4)

    for day in days:
        assert returns_of(best, day, seed=1).mean() > returns_of(VERSION_ZERO, day, seed=1).mean() + 1.0


def test_the_picture_holds_every_day_and_every_marked_event() -> None:
    curves = [Curve("served", "what was served", [-18.0, -16.0]), Curve("rules", "the rules", [-19.0, -19.5])]
    events = [Event(1.5, "crash", "server killed"), Event(2.0, "promotion", "x"), Event(2.1, "canary", "no mark")]

    svg = draw(curves, [{"0": 600}, {"0": 300, "1": 300}], events)

    root = ElementTree.fromstring(svg)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"server killed", "promotion", "what was served", "the rules", "release 1"} <= set(texts)
    assert "no mark" not in svg
    lines = list(root.iter("{http://www.w3.org/2000/svg}polyline"))
    assert [len(line.attrib["points"].split()) for line in lines] == [2, 2]


def test_a_folder_that_no_drill_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")

    with pytest.raises(WorkspaceError, match="was not made by `make loop`, so it is left alone"):
        fresh_workspace(tmp_path)
    assert (tmp_path / "mine").exists()


@pytest.mark.long
def test_a_slice_of_the_drill_runs_and_loses_nothing(tmp_path: Path) -> None:
    """Two days of few services: served by a real process that is killed once, ingested and judged each night."""
    workspace = fresh_workspace(tmp_path / "drill")
    settings = workspace.root / "offline_dqn.toml"
    settings.write_text(settings.read_text().replace("n_updates = 2000", "n_updates = 40"))
    story = Story(n_days=2, n_episodes=48, shift_on=2, crash_on=1, planted_on=None, switch_on=2)

    counts = dict(run(workspace, story))

    assert counts["decisions"] == f"{2 * 48 * 6:,}"
    assert counts["answered = logged"] == "yes: 0 lost, 0 not answered"
    assert counts["in the lake"] == counts["decisions"]
    assert counts["violations"] == "0"
    assert counts["actions taken away by actions.caps.scale_up"] != "0"
    record = json.loads((workspace.root / RECORD).read_text())
    assert [len(values) for values in record["curves"].values()] == [2, 2, 2, 2]
    assert {"crash", "world", "switch"} <= {event["kind"] for event in record["events"]}
    assert (workspace.root / PICTURE).read_text() in (workspace.root / PAGE).read_text()
    shutil.rmtree(workspace.root)
