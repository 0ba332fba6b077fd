"""Noise becomes images of the right size and range, without a pattern of its own; a judge gives one logit an image."""

import pytest
import torch

from medgen.nets.dcgan import ImageJudge, LatentEncoder, LatentGenerator


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


def test_a_judge_of_one_size_sees_where_a_feature_lies_and_one_of_any_size_does_not() -> None:
    image = torch.zeros(2, 1, 64, 64)
    image[0, 0, 18, 18], image[1, 0, 34, 42] = 100, 100  # the same place within blocks of 8, far from every border
    torch.manual_seed(0)
    placed, anywhere = (ImageJudge(channels=(8, 8, 8), size=size).eval() for size in ((64, 64), None))
    first, second = placed(image)[0].detach()
    assert abs(float(first - second)) > 1e-3
    first, second = anywhere(image)[0].detach()
    assert float(first) == pytest.approx(float(second), abs=1e-5)


def test_a_judge_of_one_size_takes_no_other() -> None:
    judge = ImageJudge(channels=(8, 16), size=(16, 32))
    assert judge(torch.rand(2, 1, 16, 32))[0].shape == (2, 1)
    with pytest.raises(RuntimeError, match="shapes"):
        judge(torch.rand(2, 1, 32, 32))


@pytest.mark.parametrize("size", [(16, 24), (8, 16, 8)])
def test_an_encoder_is_the_way_back_of_a_generator(size: tuple[int, ...]) -> None:
    generator = LatentGenerator(5, [n // 4 for n in size], (16, 8))
    encoder = LatentEncoder(5, size, (8, 16))
    latents = torch.randn(3, 5)
    image = generator(latents)
    assert image.shape == (3, 1, *size)
    assert encoder(image).shape == latents.shape


def test_an_encoder_learns_to_invert_a_generator() -> None:
    torch.manual_seed(0)
    generator, encoder = LatentGenerator(3, (4, 4), (8,)).eval(), LatentEncoder(3, (8, 8), (16,))
    optimizer = torch.optim.Adam(encoder.parameters(), 5e-3)
    losses = []
    for _ in range(80):
        latents = torch.randn(16, 3)
        loss = (encoder(generator(latents).detach()) - latents).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.8  # of latents whose variance is 1
    assert sum(losses[-10:]) / 10 < 0.3


def test_a_latent_does_not_depend_on_the_batch_nor_on_training_mode() -> None:
    encoder, image = LatentEncoder(5, (16, 16), (8, 16)), torch.rand(4, 1, 16, 16)
    together = encoder(image)
    torch.testing.assert_close(together[:1], encoder(image[:1]))
    assert torch.equal(together, encoder.eval()(image))
