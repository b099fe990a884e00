"""Trains a d3rlpy learner on a log: run by the interpreter of the peers' environment, not by the project's.

    python d3rlpy_fit.py LOG.npz RESULT.npz '{"learner": "cql", "alpha": 1.0, "n_updates": 8000, ...}'

LOG.npz: observations (M, D) float32, encoded; actions (T,); rewards (T,); terminated (T,) bool; next_row (T,); offsets
(N + 1,), as in `datasets.replay.Replay`. RESULT.npz: weight_0 (out, in), bias_0 ... of a ReLU network whose largest
output is the action that d3rlpy takes, and `seconds`, of wall and of CPU time, that the updates took.
"""

import json
import sys
import time

import d3rlpy
import numpy as np
import torch
from d3rlpy.logging import NoopAdapterFactory


def episodes_of(log):
    """d3rlpy leaves out the last step of a cut episode, for want of what follows: here it follows, as one more step."""
    episodes = []
    for start, stop in zip(log["offsets"][:-1], log["offsets"][1:], strict=True):
        observations = log["observations"][start:stop]
        actions, rewards = log["actions"][start:stop], log["rewards"][start:stop]
        terminated = bool(log["terminated"][stop - 1])
        if not terminated:
            observations = np.concatenate([observations, log["observations"][log["next_row"][stop - 1]][None]])
            actions, rewards = np.append(actions, 0), np.append(rewards, 0.0)
        episodes.append(
            d3rlpy.dataset.Episode(
                observations=observations,
                actions=actions.astype(np.int32)[:, None],
                rewards=rewards.astype(np.float32)[:, None],
                terminated=terminated,
            )
        )
    return episodes


def learner_of(asked):
    """DiscreteCQL or DiscreteBC with the network, batch and learning rate that were asked for, else its defaults."""
    common = {
        "encoder_factory": d3rlpy.models.VectorEncoderFactory(hidden_units=asked["hidden"]),
        "learning_rate": asked["learning_rate"],
        "batch_size": asked["batch_size"],
    }
    if asked["learner"] == "bc":
        return d3rlpy.algos.DiscreteBCConfig(**common).create(device="cpu")
    config = d3rlpy.algos.DiscreteCQLConfig(
        alpha=asked["alpha"], gamma=asked["gamma"], target_update_interval=asked["target_sync_every"], **common
    )
    return config.create(device="cpu")


def train(learner, dataset, n_updates):
    """Updates without files, bars or evaluation."""
    learner.fit(
        dataset,
        n_steps=n_updates,
        n_steps_per_epoch=n_updates,
        logger_adapter=NoopAdapterFactory(),
        show_progress=False,
    )


def layers_of(learner, observations):
    """Weights and biases in their order, after a check that they act as the learner does."""
    modules = learner.impl.modules
    network = modules.imitator if hasattr(modules, "imitator") else modules.q_funcs[0]
    linear = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
    layers = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in linear]
    outputs = observations
    for weight, bias in layers[:-1]:
        outputs = np.maximum(outputs @ weight.T + bias, 0.0)
    outputs = outputs @ layers[-1][0].T + layers[-1][1]
    largest = np.sort(outputs, axis=1)
    clear = largest[:, -1] - largest[:, -2] > 1e-4 * np.abs(outputs).max()
    taken = learner.predict(observations)
    if (outputs.argmax(axis=1)[clear] != taken[clear]).any():
        raise SystemExit("the layers that were read out do not act as d3rlpy's learner does")
    return layers


def main():
    log_path, result_path, asked = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    torch.set_num_threads(asked["n_threads"])
    d3rlpy.seed(asked["seed"])
    with np.load(log_path) as file:
        log = {name: file[name] for name in file.files}
    dataset = d3rlpy.dataset.create_infinite_replay_buffer(episodes_of(log))
    learner = learner_of(asked)
    learner.build_with_dataset(dataset)
    if asked.get("warm_up"):
        train(learner, dataset, asked["warm_up"])
    wall, cpu = time.perf_counter(), time.process_time()
    train(learner, dataset, asked["n_updates"])
    seconds = np.array([time.perf_counter() - wall, time.process_time() - cpu])
    layers = layers_of(learner, log["observations"][:2000])
    arrays = {}
    for i, (weight, bias) in enumerate(layers):
        arrays |= {f"weight_{i}": weight, f"bias_{i}": bias}
    np.savez(result_path, seconds=seconds, **arrays)


if __name__ == "__main__":
    main()
