"""Autoencoders with a spatial or a dense code."""

import pytest
import torch

from medgen.engines.variational import reconstruct_drawn
from medgen.losses.divergence import VoxelKl, gaussian_kl
from medgen.nets.vae import DenseVAE, SpatialVAE

SIZE = (16, 24, 16)


def spatial() -> SpatialVAE:
    torch.manual_seed(0)
    return SpatialVAE(channels=(8, 16), blocks=(1, 1), latent_channels=4)


def dense() -> DenseVAE:
    torch.manual_seed(0)
    return DenseVAE(SIZE, channels=(8, 16), blocks=(1, 1), latent=12)


@pytest.mark.parametrize("make", [spatial, dense])
def test_encoding_and_reconstructing_draw_nothing_in_any_mode(make: object) -> None:
    network, image = make(), torch.rand(2, 2, *SIZE)  # type: ignore[operator]
    for mode in (True, False):
        network.train(mode)
        with torch.no_grad():
            assert torch.equal(network(image), network(image))
            mean, _ = network.encode(image)
            torch.testing.assert_close(network(image), network.decode(mean))


@pytest.mark.parametrize("make", [spatial, dense])
def test_shapes_of_the_code_and_of_what_it_decodes_to(make: object) -> None:
    network, image = make(), torch.rand(2, 2, *SIZE)  # type: ignore[operator]
    mean, log_variance = network.encode(image)
    assert mean.shape == log_variance.shape == (2, *network.code_shape(SIZE))
    assert network.decode(mean).shape == (2, 2, *SIZE)


def test_a_spatial_code_has_a_size_for_every_multiple_and_says_which_it_has_not() -> None:
    assert spatial().code_shape((8, 12, 40)) == (4, 2, 3, 10)
    with pytest.raises(ValueError, match="multiples of 4, got \\(9, 12, 40\\)"):
        spatial().code_shape((9, 12, 40))


def test_a_dense_code_knows_one_size() -> None:
    with pytest.raises(ValueError, match="window of \\(16, 24, 16\\)"):
        dense().code_shape((16, 16, 16))


@pytest.mark.parametrize("make", [spatial, dense])
def test_a_code_begins_nearly_certain_so_that_it_is_used(make: object) -> None:
    _, log_variance = make().encode(torch.rand(1, 2, *SIZE))  # type: ignore[operator]
    assert float((0.5 * log_variance.detach()).exp().max()) == pytest.approx(0.0498, abs=1e-3)


def test_a_drawn_reconstruction_varies_about_that_of_the_mean() -> None:
    network, image = spatial(), torch.rand(1, 2, *SIZE)
    with torch.no_grad():
        network.log_variance.bias.fill_(0.0)
        torch.manual_seed(1)
        first, mean, log_variance = reconstruct_drawn(network, image)
        second, same, _ = reconstruct_drawn(network, image)
    assert not torch.equal(first, second)
    assert torch.equal(mean, same)
    assert torch.equal(log_variance, torch.zeros_like(mean))


def test_divergence_by_voxel_is_that_of_the_code_over_the_window() -> None:
    mean, log_variance = torch.randn(2, 4, 4, 6, 4), torch.randn(2, 4, 4, 6, 4)
    expected = gaussian_kl(mean, log_variance) / (16 * 24 * 16)
    torch.testing.assert_close(VoxelKl(SIZE)(mean, log_variance), expected)
