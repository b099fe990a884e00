"""The list of metrics: what the loop emits, what `METRICS` explains and what docs/training.md says are the same."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np

from datasets.encoding import fit_encoder
from offline_dqn.learner import fit
from offline_dqn.metrics import METRICS, split_name
from offline_dqn.sampling import InMemorySource
from offline_dqn.train_config import TrainConfig
from tests.offline_dqn.worlds import TabularWorld

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text()


def emitted() -> set[str]:
    world = TabularWorld.random(n_states=4, n_actions=2, gamma=0.9, end_prob=0.1, seed=1)
    replay = world.roll(np.full((4, 2), 0.5), 30, horizon=12, seed=0)
    config = TrainConfig(
        n_updates=10, batch_size=8, hidden=(8,), log_every=5, target_gaps=(0.5,), n_members=2, settled_share=0.01
    )
    source = InMemorySource(replay, config, encoder=fit_encoder(replay.contract, replay.observations))
    return {name for metrics in fit(source, config).history for name in metrics} - {"step"}


def test_every_emitted_metric_is_explained_and_every_explained_one_is_emitted() -> None:
    found: dict[str, set[str]] = {}
    for name in emitted():
        learner, metric = split_name(name)
        found.setdefault(metric, set()).add(learner)
    assert set(found) == {metric.name for metric in METRICS}
    values = {"dqn", "cql 1", "cql 4", "bcq 0.3", "cql gap 0.5"}
    owners = {
        "every learner": values | {"bc"}, "Q-learners": values, "ensembles": values, "target gaps": {"cql gap 0.5"},
        "the run": {""},
    }  # fmt: skip
    assert {metric.name: found[metric.name] for metric in METRICS} == {m.name: owners[m.of] for m in METRICS}


def test_the_page_lists_the_metrics_as_they_are_explained() -> None:
    rows = [f"| `{m.name}` | {m.of} | {m.unit} | {m.meaning} |" for m in METRICS]
    assert [line for line in PAGE.splitlines() if line in rows] == rows


def test_each_metric_names_the_function_that_computes_it() -> None:
    for metric in METRICS:
        module, name = metric.computed_by.rsplit(".", 1)
        assert hasattr(importlib.import_module(module), name)


def test_the_page_lists_every_setting_with_its_default() -> None:
    section = PAGE.split("## Settings")[1].split("\n## ")[0]
    listed = dict(re.findall(r"^\| `(\w+)` \| (`[^`]*`|not set) \|", section, flags=re.MULTILINE))
    defaults = {name: _toml(field.default) for name, field in TrainConfig.model_fields.items()}
    assert listed == defaults


def _toml(value: object) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"
