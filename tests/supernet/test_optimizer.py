"""The optimizer: which weights learn how, and that what is not used stays as it is."""

from typing import Any

import torch
from torch import nn

from bignas.supernet.layers import ElasticUnit
from bignas.supernet.network import Supernet
from bignas.supernet.optimizer import SupernetOptimizer
from bignas.supernet.space import SearchSpace

SETTINGS: dict[str, Any] = {
    "rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "orthogonal_decay": 0.0,
    "keep_norms": False,
}


def random_gradients(network: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        assert parameter.grad is not None
        parameter.grad.normal_(generator=generator)


def test_without_an_orthogonal_rate_it_is_sgd(tiny_space: SearchSpace) -> None:
    ours, theirs = Supernet(tiny_space), Supernet(tiny_space)
    optimizer = SupernetOptimizer(ours, orthogonal_rate=0.0, **SETTINGS)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    for step in range(3):
        random_gradients(ours, step)
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert mine.grad is not None
            other.grad = mine.grad.clone()
        optimizer.step(0.5)
        reference.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other)


def test_dense_weights_move_orthogonally_and_others_by_sgd(tiny_space: SearchSpace) -> None:
    network = Supernet(tiny_space)
    optimizer = SupernetOptimizer(network, orthogonal_rate=0.02, **SETTINGS)
    random_gradients(network)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    optimizer.step(1.0)
    for old, gradient, parameter in zip(before, gradients, network.parameters(), strict=True):
        moved = parameter.detach() - old
        if moved.ndim > 1 and moved.shape[1] > 1:
            matrix = moved.flatten(1)
            longer = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
            values = torch.linalg.svdvals(matrix) / (0.02 * longer)
            assert 0.5 < float(values.min()) <= float(values.max()) < 1.3
        else:
            assert torch.allclose(moved, -0.1 * 1.9 * gradient, atol=1e-6)


def test_decay_of_dense_weights_is_a_share_of_their_rate(tiny_space: SearchSpace) -> None:
    """Where the gradient is zero, others stay."""
    network = Supernet(tiny_space)
    settings = {**SETTINGS, "orthogonal_decay": 0.5}
    optimizer = SupernetOptimizer(network, orthogonal_rate=0.2, **settings)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer.step(0.5)
    for old, parameter in zip(before, network.parameters(), strict=True):
        dense = parameter.ndim > 1 and parameter.shape[1] > 1
        assert torch.allclose(parameter, old * (0.95 if dense else 1.0))


def test_weights_before_a_batch_norm_may_turn_only(gated_space: SearchSpace) -> None:
    """By the rate, at equal norm; the classifier and those of squeeze-excite move as before."""
    network, other = Supernet(gated_space), Supernet(gated_space)
    other.load_state_dict(network.state_dict())
    turning = SupernetOptimizer(
        network, orthogonal_rate=0.02, **{**SETTINGS, "keep_norms": True, "orthogonal_decay": 0.5}
    )
    moving = SupernetOptimizer(other, orthogonal_rate=0.02, **{**SETTINGS, "orthogonal_decay": 0.5})
    random_gradients(network)
    random_gradients(other)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    turning.step(1.0)
    moving.step(1.0)
    turned = 0
    moved = dict(other.named_parameters())
    for name, parameter in network.named_parameters():
        owner = network.get_submodule(name.rpartition(".")[0])
        if (
            isinstance(owner, ElasticUnit)
            and owner.scale is not None
            and parameter.ndim == 4
            and parameter.shape[1] > 1
        ):
            turned += 1
            old = before[name]
            share = float((parameter.detach() - old).norm() / old.norm())
            assert 0.01 < share < 0.025
            assert torch.isclose(parameter.norm(), old.norm(), rtol=1e-5)
        else:
            assert torch.equal(parameter, moved[name])
    assert turned > 3


def test_a_weight_of_zeros_stays_finite(tiny_space: SearchSpace) -> None:
    network = Supernet(tiny_space)
    optimizer = SupernetOptimizer(network, orthogonal_rate=0.02, **{**SETTINGS, "keep_norms": True})
    random_gradients(network)
    with torch.no_grad():
        network.stem.weight.zero_()
    optimizer.step(1.0)
    assert not network.stem.weight.any()


def test_what_has_no_gradient_stays(tiny_space: SearchSpace) -> None:
    network = Supernet(tiny_space)
    optimizer = SupernetOptimizer(network, orthogonal_rate=0.02, **SETTINGS)
    random_gradients(network)
    weight = next(p for p in network.parameters() if p.ndim > 1 and p.shape[1] > 4)
    assert weight.grad is not None
    weight.grad[-2:] = 0
    weight.grad[:, -3:] = 0
    before = weight.detach().clone()
    optimizer.step(1.0)
    assert torch.equal(weight[-2:], before[-2:])
    assert torch.equal(weight[:, -3:], before[:, -3:])
    assert not torch.equal(weight, before)


def test_momenta_come_in_the_order_of_the_parameters(tiny_space: SearchSpace) -> None:
    network = Supernet(tiny_space)
    optimizer = SupernetOptimizer(network, orthogonal_rate=0.02, **SETTINGS)
    random_gradients(network)
    gradients = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    optimizer.step(1.0)
    momenta = optimizer.momenta()
    assert all(torch.equal(one, other) for one, other in zip(momenta, gradients, strict=True))
    optimizer.zero_gradients()
    assert all(not p.grad.any() for p in network.parameters() if p.grad is not None)
