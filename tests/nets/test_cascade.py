"""The chain of generators: shapes, coarse to fine, no dependence on where a window was cut, and export."""

import pytest
import torch
from torch import Tensor

from medgen.nets.cascade import (
    CascadeGenerator,
    ChannelNorm,
    StageUNet,
    average_neighbours,
    depth_to_space,
    space_to_depth,
)


def small(seed: int = 0, polish: int = 0) -> CascadeGenerator:
    """A small cascade whose every weight matters: the blocks that begin as the identity are stirred."""
    torch.manual_seed(seed)
    network = CascadeGenerator((4, 6), (1, 1), (8,), (1,), polish=polish).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def test_blocks_go_to_channels_and_back() -> None:
    x = torch.rand(2, 3, 4, 6, 8)
    folded = space_to_depth(x, 2)
    assert folded.shape == (2, 24, 2, 3, 4)
    assert torch.equal(depth_to_space(folded, 2), x)
    assert torch.equal(folded[0, :8, 0, 0, 0], x[0, 0, :2, :2, :2].flatten())


def test_channel_norm_looks_at_one_voxel_at_a_time() -> None:
    norm, x = ChannelNorm(5), torch.rand(1, 5, 3, 4, 2, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[..., 0] *= 7
    # Not to the bit: how a sum is vectorised hangs on where the tensor lies in memory.
    torch.testing.assert_close(norm(x)[..., 1], norm(changed)[..., 1], atol=1e-6, rtol=0)
    torch.testing.assert_close(norm(x).mean(1), torch.zeros(1, 3, 4, 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(8, 12, 16), (16, 8, 8)])
def test_the_chain_goes_from_coarse_to_fine_and_ends_in_the_translation(shape: tuple[int, int, int]) -> None:
    network, source = small(), torch.rand(2, 1, *shape)
    coarse, fine = network.chain(source)
    assert coarse.shape == (2, 1, *(n // 2 for n in shape))
    assert fine.shape == source.shape
    assert torch.equal(network(source), fine)


def test_the_fine_stage_adds_to_the_coarse_image() -> None:
    """With its head at zero, the refining stage hands the coarse image through."""
    network, source = small(), torch.rand(1, 1, 8, 8, 12)
    for parameter in network.fine.unet.head.parameters():
        parameter.data.zero_()
    coarse, fine = network.chain(source)
    expected = torch.nn.functional.interpolate(coarse, scale_factor=2.0, mode="trilinear", align_corners=False)
    assert torch.equal(fine, expected)


@pytest.mark.parametrize("antialias", [False, True])
def test_phases_that_differ_leave_no_pattern_with_antialias(antialias: bool) -> None:
    """A refining stage that adds another constant to each of the eight phases of a block: a checkerboard by itself."""
    network, source = small(), torch.rand(1, 1, 8, 8, 8)
    network.fine.antialias = antialias
    head = network.fine.unet.head[-1]
    head.weight.data.zero_()
    head.bias.data = torch.arange(8.0)
    coarse, fine = network.chain(source)
    detail = fine - torch.nn.functional.interpolate(coarse, scale_factor=2.0, mode="trilinear", align_corners=False)
    assert detail.mean().item() == pytest.approx(3.5, abs=1e-4)
    assert (detail.std().item() < 1e-4) == antialias


def test_averaging_neighbours_keeps_what_is_smooth() -> None:
    ramp = torch.arange(8.0).reshape(1, 1, 8, 1, 1).expand(1, 1, 8, 8, 8)
    assert torch.equal(average_neighbours(ramp)[0, 0, 1:, 0, 0], torch.arange(8.0)[1:] - 0.5)
    assert torch.equal(average_neighbours(torch.full((1, 1, 4, 4, 4), 3.0)), torch.full((1, 1, 4, 4, 4), 3.0))


def test_polish_begins_as_nothing_and_then_tells_neighbours_apart() -> None:
    """What averaging wipes out, an edge from one voxel to the next, the convolutions at full resolution can draw."""
    network, source = CascadeGenerator((4,), (1,), (8,), (1,), antialias=True, polish=2), torch.rand(1, 1, 8, 8, 8)
    plain = network(source)
    network.fine.polishes = False
    assert torch.equal(network(source), plain)
    network.fine.polishes = True
    stripes = (torch.arange(8) % 2).float().reshape(1, 1, 8, 1, 1).expand(1, 1, 8, 8, 8)
    optimizer = torch.optim.Adam(network.fine.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        loss = (network(stripes) - stripes).abs().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


@pytest.mark.parametrize("polish", [0, 2])
def test_both_stages_learn(polish: int) -> None:
    network = small(polish=polish)
    network(torch.rand(1, 1, 8, 8, 8)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters() if p.ndim > 1)


def test_windows_agree_where_they_overlap_away_from_their_rims() -> None:
    """No statistics over space: the same voxels come out the same in two windows, so there are no seams to blend."""
    network, volume = small(), torch.rand(1, 1, 136, 8, 8)
    with torch.no_grad():
        left, right = network(volume[:, :, :120]), network(volume[:, :, 16:])
    torch.testing.assert_close(left[:, :, 64:72], right[:, :, 48:56], atol=1e-5, rtol=0)
    assert not torch.allclose(left[:, :, 112:120], right[:, :, 96:104])  # at the rim, padding is seen


def test_brightness_elsewhere_in_the_window_does_not_leak() -> None:
    network, volume = small(), torch.rand(1, 1, 96, 8, 8)
    bright = volume.clone()
    bright[:, :, 80:] *= 10
    with torch.no_grad():
        torch.testing.assert_close(network(volume)[:, :, :16], network(bright)[:, :, :16], atol=1e-5, rtol=0)


def test_unet_of_one_level_keeps_odd_sizes() -> None:
    assert StageUNet(2, 3, (4,), (1,))(torch.rand(1, 2, 5, 7, 3)).shape == (1, 3, 5, 7, 3)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("polish", [0, 2])
def test_it_can_be_scripted(polish: int) -> None:
    network, source = small(polish=polish), torch.rand(1, 1, 8, 16, 8)
    scripted = torch.jit.script(network)
    with torch.no_grad():
        expected: Tensor = network(source)
        torch.testing.assert_close(scripted(source), expected)


def test_the_first_stage_alone_makes_what_it_makes_in_the_chain() -> None:
    network = CascadeGenerator([4, 8], [1, 1], [4], [1])
    source = torch.rand(1, 1, 16, 16, 16)
    coarse = torch.nn.functional.avg_pool3d(source, 2)
    assert torch.allclose(network.first(coarse)[0], network.chain(source)[0], atol=1e-6)


def test_refining_leaves_the_first_stage_alone() -> None:
    torch.manual_seed(0)
    network = small()
    source = torch.rand(1, 1, 16, 16, 16)
    coarse, fine = network.refine(source)
    assert all(torch.equal(a, b) for a, b in zip((coarse, fine), network.chain(source), strict=True))
    assert not coarse.requires_grad
    fine.sum().backward()
    assert all(p.grad is None for p in network.coarse.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.fine.parameters())
