from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from offline_dqn.architecture import Architecture, ImageShape, forward
from offline_dqn.learner import clip_member_gradients
from offline_dqn.networks import initial_parameters, network_values, start_at, to_weights

SHAPES = [
    Architecture(n_inputs=7, n_actions=3, hidden=(16, 8)),
    Architecture(n_inputs=7, n_actions=3, hidden=(), n_members=2),
    Architecture(n_inputs=7, n_actions=3, hidden=(16,), dueling=True, n_members=3, n_quantiles=5),
    Architecture(
        n_inputs=2 * 5 * 6 + 3, n_actions=4, hidden=(8,), n_members=2, image=ImageShape(height=5, width=6, channels=2)
    ),
]


@pytest.mark.parametrize("architecture", SHAPES, ids=["plain", "linear", "dueling quantiles", "image"])
def test_numpy_and_torch_agree(architecture: Architecture) -> None:
    parameters = initial_parameters(architecture, tuple(range(architecture.n_members)))
    assert {name: tuple(p.shape) for name, p in parameters.items()} == architecture.parameter_shapes()
    encoded = np.random.default_rng(0).normal(size=(50, architecture.n_inputs)).astype(np.float32)
    ours = forward(architecture, to_weights(parameters), encoded)
    twin = network_values(architecture, parameters, torch.from_numpy(encoded)).numpy()
    assert ours.shape == (architecture.n_members, 50, architecture.n_actions, architecture.n_quantiles)
    np.testing.assert_allclose(ours, twin, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", SHAPES[1:], ids=["linear", "dueling quantiles", "image"])
def test_each_member_is_a_network_of_its_own(architecture: Architecture) -> None:
    parameters = initial_parameters(architecture, tuple(range(architecture.n_members)))
    encoded = torch.randn(20, architecture.n_inputs)
    together = network_values(architecture, parameters, encoded)
    alone = architecture.model_copy(update={"n_members": 1})
    for member in range(architecture.n_members):
        own = {name: p[member : member + 1] for name, p in parameters.items()}
        torch.testing.assert_close(network_values(alone, own, encoded)[0], together[member], rtol=1e-4, atol=1e-5)


def test_convolution_is_torchs_own() -> None:
    image = ImageShape(height=9, width=7, channels=1)
    architecture = Architecture(n_inputs=image.size, n_actions=2, hidden=(), image=image)
    parameters = initial_parameters(architecture, (0,))
    layers = nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(image.n_features, 2),
    )  # fmt: skip
    with torch.no_grad():
        for layer, name in ((layers[0], "convolution.0"), (layers[2], "convolution.1")):
            layer.weight.copy_(parameters[f"{name}.weight"][0])
            layer.bias.copy_(parameters[f"{name}.bias"][0])
        layers[5].weight.copy_(parameters["head.weight"][0].T)
        layers[5].bias.copy_(parameters["head.bias"][0, 0])
        pictures = torch.rand(4, image.size)
        wanted = layers(pictures.reshape(4, 1, 9, 7))
    torch.testing.assert_close(network_values(architecture, parameters, pictures)[0, ..., 0], wanted)


def test_members_of_one_seed_begin_alike_and_others_do_not() -> None:
    parameters = initial_parameters(SHAPES[1], (5, 5))
    assert torch.equal(parameters["head.weight"][0], parameters["head.weight"][1])
    other = initial_parameters(SHAPES[1], (5, 6))
    assert not torch.equal(other["head.weight"][0], other["head.weight"][1])


def test_silent_inputs_are_not_heard_and_the_level_is_where_it_should_be() -> None:
    for architecture in SHAPES:
        parameters = initial_parameters(architecture, tuple(range(architecture.n_members)))
        silent = torch.zeros(architecture.n_inputs, dtype=torch.bool)
        silent[-2] = True
        start_at(architecture, parameters, -40.0, silent)
        encoded = torch.rand(20, architecture.n_inputs)
        heard = network_values(architecture, parameters, encoded)
        encoded[:, -2] = 100.0
        torch.testing.assert_close(network_values(architecture, parameters, encoded), heard)
        assert (heard + 40.0).abs().max() < 5.0


def test_gradients_are_clipped_for_each_member_alone() -> None:
    parameters = {"a": torch.zeros(2, 3, requires_grad=True), "b": torch.zeros(2, 1, 1, requires_grad=True)}
    parameters["a"].grad = torch.tensor([[3.0, 0.0, 0.0], [0.3, 0.0, 0.0]])
    parameters["b"].grad = torch.tensor([[[4.0]], [[0.4]]])
    assert clip_member_gradients(parameters, 1.0).tolist() == pytest.approx([5.0, 0.5])
    assert parameters["a"].grad[:, 0].tolist() == pytest.approx([0.6, 0.3])
    assert parameters["b"].grad[:, 0, 0].tolist() == pytest.approx([0.8, 0.4])
