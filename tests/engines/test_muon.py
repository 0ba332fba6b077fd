"""The optimizer: steps of unit spectral norm for convolutions, Adam for the rest, and exact resumption."""

import copy

import pytest
import torch
from torch import nn

from medgen.engines.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
def test_singular_values_are_drawn_to_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_directions_are_kept() -> None:
    torch.manual_seed(1)
    left, values, right = torch.linalg.svd(torch.randn(16, 30), full_matrices=False)
    matrix = left @ torch.diag(values.clamp(0.5, 2)) @ right
    assert torch.diagonal(left.T @ orthogonalised(matrix) @ right.T).min() > 0.6


def test_convolutions_and_the_rest_are_told_apart() -> None:
    network = nn.Sequential(nn.Conv3d(1, 16, 3), nn.Conv3d(16, 16, 3), nn.Conv3d(16, 1, 3))
    orthogonal, rest = Muon(network).param_groups
    assert [p.shape for p in orthogonal["params"]] == [network[1].weight.shape]  # neither the stem nor the head
    assert len(rest["params"]) == 5


def test_a_step_does_not_depend_on_the_size_of_the_gradient() -> None:
    moved = []
    for scale in (1e-3, 1e3):
        torch.manual_seed(2)
        network = nn.Conv3d(16, 16, 3, bias=False)
        before = network.weight.detach().clone()
        network.weight.grad = scale * torch.randn_like(network.weight)
        Muon(network, lr=0.1, weight_decay=0.0).step()
        moved.append(network.weight.detach() - before)
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-3, atol=1e-5)
    assert torch.linalg.matrix_norm(moved[0].flatten(1), 2) == pytest.approx(0.1, rel=0.3)


def test_weights_grow_without_end_unless_they_decay() -> None:
    def largest(weight_decay: float, steps: int) -> float:
        torch.manual_seed(4)
        network = nn.Conv3d(16, 16, 1, bias=False)
        optimizer = Muon(network, lr=0.1, weight_decay=weight_decay)
        for _ in range(steps):
            network.weight.grad = torch.randn_like(network.weight)
            optimizer.step()
        return float(torch.linalg.matrix_norm(network.weight.detach().flatten(1), 2))

    assert largest(0.0, 400) > 1.5 * largest(0.0, 100)
    assert largest(1.0, 400) < 1.1 * largest(1.0, 100)


def test_the_rest_follows_adam() -> None:
    torch.manual_seed(3)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    optimizers = Muon(ours, adam_lr=0.01), torch.optim.Adam(theirs.parameters(), 0.01, betas=(0.9, 0.99))
    for _ in range(4):
        x = torch.rand(5, 3)
        for network, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            network(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_it_learns_and_resumes_exactly() -> None:
    torch.manual_seed(4)
    network, x = nn.Sequential(nn.Conv3d(2, 16, 3, padding=1), nn.Conv3d(16, 16, 1)), torch.rand(1, 2, 4, 5, 6)

    def train(model: nn.Module, optimizer: Muon, steps: int) -> float:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (model(x) - 1).square().mean()
            loss.backward()
            optimizer.step()
        return loss.item()

    optimizer = Muon(network, lr=0.1)
    first = train(network, optimizer, 1)
    train(network, optimizer, 5)
    twin = copy.deepcopy(network)
    resumed = Muon(twin, lr=0.1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    last = train(network, optimizer, 20)
    assert train(twin, resumed, 20) == last
    assert last < 0.5 * first
