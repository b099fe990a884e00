"""A network that sees: from logged images to a policy that acts on them."""

from __future__ import annotations

from typing import Any

import numpy as np

from datasets.contract import contract_from_json
from datasets.encoding import fit_encoder
from datasets.observations import Observations, observations_from_records
from offline_dqn.learner import fit
from offline_dqn.rule_policy import Rule, RulePolicy
from offline_dqn.sampling import InMemorySource
from offline_dqn.train_config import TrainConfig
from tests.offline_dqn.worlds import make_replay

CONTRACT = contract_from_json(
    {
        "name": "lamp",
        "gamma": 0.5,
        "features": {
            "heat": {"type": "numeric"},
            "frame": {"type": "image", "shape": [8, 6, 2], "nullable": True},
        },
        "actions": {"names": ["up", "down"]},
    },
    "test",
)


def frames(upper: list[bool], rng: np.random.Generator) -> Observations:
    """Noise with a lamp in the upper or the lower half of the second channel."""
    records: list[dict[str, Any]] = []
    for is_upper in upper:
        image = rng.integers(0, 100, (8, 6, 2))
        row = int(rng.integers(0, 3)) + (0 if is_upper else 4)
        image[row : row + 2, 2:4, 1] = 255
        records.append({"heat": float(rng.normal()), "frame": image.tolist()})
    return observations_from_records(CONTRACT, records)


def test_the_learner_looks_where_the_lamp_is() -> None:
    rng = np.random.default_rng(0)
    upper, actions = rng.random(600) < 0.5, rng.integers(2, size=600)
    replay = make_replay(
        CONTRACT, frames(upper.tolist(), rng), actions, (actions == ~upper).astype(float), np.ones(600, np.int64)
    )
    encoder = fit_encoder(CONTRACT, replay.observations)
    config = TrainConfig(
        n_updates=250, batch_size=64, learning_rate=2e-3, hidden=(32,), penalty_weights=(0.0,), bcq_thresholds=(),
        precision="fp32", log_every=250, candidates_at=(1.0,),
    )  # fmt: skip

    trained = fit(InMemorySource(replay, config, encoder=encoder), config)
    policy = trained.policy(trained.network("dqn"))

    assert policy.architecture.image is not None
    fresh = rng.random(200) < 0.5
    q_values = policy.q_values(frames(fresh.tolist(), rng))
    assert q_values is not None
    assert (q_values.argmax(axis=1) == ~fresh).mean() > 0.95


def test_rules_may_look_at_the_numbers_of_an_image() -> None:
    bright = Rule("list_avg(observation.frame) > 100", "up")
    policy = RulePolicy(CONTRACT, (bright,), otherwise="down")
    records = [{"heat": 0, "frame": frame} for frame in ([200] * 96, [0] * 96, None)]

    probs = policy.action_probs(observations_from_records(CONTRACT, records), np.ones((3, 2), dtype=bool))

    assert probs.argmax(axis=1).tolist() == [0, 1, 1]
