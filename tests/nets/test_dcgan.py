"""Noise becomes images of the right size and range, without a pattern of its own; a judge gives one logit an image."""

import pytest
import torch

from medgen.nets.dcgan import ImageJudge, LatentGenerator


@pytest.mark.parametrize("growth", ["resize", "transposed"])
@pytest.mark.parametrize("start", [(4, 5), (2, 3, 4)])
def test_each_layer_doubles_the_image(growth: str, start: tuple[int, ...]) -> None:
    generator = LatentGenerator(7, start, (16, 8, 8), growth=growth)
    image = generator(torch.randn(3, 7))
    assert image.shape == (3, 1, *[8 * n for n in start])
    assert image.abs().max() <= 1


def test_without_tanh_the_image_is_not_bounded() -> None:
    torch.manual_seed(0)
    generator = LatentGenerator(4, (4, 4), (8,), tanh=False)
    torch.nn.init.constant_(generator.grow[-1].bias, 5.0)
    assert generator(torch.randn(2, 4)).max() > 1


@pytest.mark.parametrize("growth", ["resize", "transposed"])
def test_all_inner_voxels_get_the_same_share(growth: str) -> None:
    """What makes checkerboards is uneven overlap: a constant map through constant weights must stay constant."""
    generator = LatentGenerator(1, (6, 6), (4, 4), growth=growth, tanh=False)
    layer = generator.grow[0]
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    x = torch.ones(1, 4, 6, 6)
    if growth == "resize":
        x = torch.nn.functional.interpolate(x, scale_factor=2.0)
    inner = layer(x)[0, 0, 2:-2, 2:-2]
    assert inner.std() == 0


def test_a_sample_does_not_depend_on_its_batch() -> None:
    generator, latents = LatentGenerator(5, (4, 4), (16, 8)), torch.randn(4, 5)
    assert torch.allclose(generator(latents)[:1], generator(latents[:1]), atol=1e-6)


@pytest.mark.parametrize(("dimensions", "shape"), [(2, (2, 1, 32, 40)), (3, (2, 1, 16, 24, 16))])
def test_one_logit_an_image_and_features_that_halve(dimensions: int, shape: tuple[int, ...]) -> None:
    logits, features = ImageJudge(1, dimensions, (8, 16))(torch.randn(shape))
    assert logits.shape == (2, 1)
    assert [f.shape[1] for f in features] == [8, 16]
    assert list(features[-1].shape[2:]) == [n // 4 for n in shape[2:]]


def test_dropout_blunts_in_training_alone() -> None:
    judge, image = ImageJudge(channels=(16, 16), dropout=0.5), torch.randn(2, 1, 16, 16)
    assert not torch.equal(judge(image)[0], judge(image)[0])
    judge.eval()
    assert torch.equal(judge(image)[0], judge(image)[0])


def test_spectral_norm_bounds_the_judges_slope() -> None:
    judge = ImageJudge(channels=(8, 8))
    for layer in judge.layers:
        torch.nn.init.normal_(layer.parametrizations.weight.original, std=10.0)
    for _ in range(30):
        judge(torch.randn(1, 1, 16, 16))
    sizes = [torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() for layer in judge.layers]
    assert max(sizes) < 1.1


def test_axes_and_growth_are_checked() -> None:
    with pytest.raises(ValueError, match="2 or 3 axes"):
        LatentGenerator(4, (4,))
    with pytest.raises(ValueError, match="growth"):
        LatentGenerator(4, (4, 4), growth="nearest")


def test_the_generator_can_be_scripted() -> None:
    latents = torch.randn(2, 5)
    with pytest.warns(DeprecationWarning, match="jit"):
        scripted = torch.jit.script(LatentGenerator(5, (4, 4), (8, 8)))
    assert scripted(latents).shape == (2, 1, 16, 16)
