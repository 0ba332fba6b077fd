"""Reconstruction and structure in a mask, and their sum over a chain."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from medgen.losses.chain import ChainLoss, masked_pool
from medgen.losses.reconstruction import LogErrorLoss, MaskedReconstructionLoss, StretchedLoss, match_affine
from medgen.losses.structure import MaskedSSIMLoss

SHAPE = (2, 1, 12, 14, 16)


def images(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    mask = torch.zeros(SHAPE)
    mask[..., 2:-2, 3:-3, 1:-4] = 1
    return torch.rand(SHAPE), torch.rand(SHAPE), mask


def test_match_is_that_of_numpy_for_each_sample() -> None:
    prediction, target, mask = images()
    target = 0.7 * prediction + 0.2 + 0.05 * target
    fitted = match_affine(prediction, target, mask)
    for n in range(2):
        inside = mask[n] > 0
        a, b = np.polyfit(prediction[n][inside].numpy(), target[n][inside].numpy(), 1)
        torch.testing.assert_close(fitted[n], (a * prediction[n] + b).float(), atol=2e-3, rtol=0)


def test_match_never_turns_a_contrast_over() -> None:
    prediction, _, mask = images()
    fitted = match_affine(prediction, 1 - prediction, mask)
    assert fitted[0].std() == pytest.approx(0, abs=1e-6)


def test_a_wholly_matched_loss_forgives_scale_and_an_unmatched_one_does_not() -> None:
    prediction, _, mask = images()
    target = 0.5 * prediction + 0.3
    assert MaskedReconstructionLoss(matched=1.0)(prediction, target, mask) < 1e-3
    assert MaskedReconstructionLoss(matched=0.0)(prediction, target, mask) > 0.05


def test_unmatched_is_l1_plus_weighted_l2_in_the_mask() -> None:
    prediction, target, mask = images()
    difference = (prediction - target)[mask > 0]
    expected = difference.abs().mean() + 3 * difference.square().mean()
    torch.testing.assert_close(MaskedReconstructionLoss(0.0, 3.0)(prediction, target, mask), expected)


@pytest.mark.parametrize("loss", [MaskedReconstructionLoss(0.5, 3.0), MaskedSSIMLoss()])
def test_nothing_outside_the_mask_counts(loss: torch.nn.Module) -> None:
    prediction, target, mask = images()
    spoiled = torch.where(mask > 0, prediction, torch.full_like(prediction, 50.0))
    torch.testing.assert_close(loss(spoiled, target, mask), loss(prediction, target, mask))


@pytest.mark.parametrize("loss", [MaskedReconstructionLoss(0.5, 3.0), MaskedSSIMLoss()])
def test_an_empty_mask_gives_a_finite_loss_and_gradient(loss: torch.nn.Module) -> None:
    prediction, target, mask = images()
    prediction.requires_grad_()
    value = loss(prediction, target, torch.zeros_like(mask))
    value.backward()
    assert torch.isfinite(value)
    assert prediction.grad is not None
    assert torch.isfinite(prediction.grad).all()


def test_ssim_of_a_whole_image_is_that_of_scikit_image_away_from_the_border() -> None:
    torch.manual_seed(1)
    a, b = torch.rand(2, 1, 1, 24, 22, 26)
    inner = torch.zeros(1, 1, 24, 22, 26)
    inner[..., 5:-5, 5:-5, 5:-5] = 1
    _, expected = structural_similarity(
        a[0, 0].numpy(),
        b[0, 0].numpy(),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    loss = MaskedSSIMLoss()
    everywhere = torch.ones_like(inner)
    ours = 1 - loss(a, b, everywhere)
    assert ours.item() == pytest.approx(float(expected.mean()), abs=5e-3)  # the borders are padded differently
    assert loss(a, a, everywhere).item() == pytest.approx(0, abs=1e-5)


def test_a_stretched_loss_weighs_what_lies_in_the_window_more() -> None:
    plain = MaskedReconstructionLoss(matched=0.0, squared=0.0)
    stretched = StretchedLoss(plain, low=-0.15, high=0.1, gain=3.0)
    mask = torch.ones(1, 1, 2, 2, 2)

    def loss(prediction: float, target: float) -> float:
        return float(stretched(mask * prediction, mask * target, mask))

    assert loss(0.0, 0.03) == pytest.approx(3 * 0.03, abs=1e-6)
    assert loss(1.2, 0.7) == pytest.approx(0.5, abs=1e-6)
    assert loss(-1.0, -0.8) == pytest.approx(0.2, abs=1e-6)
    assert loss(0.0, 0.3) == pytest.approx(3 * 0.1 + 0.2, abs=1e-6)


def test_what_is_best_for_l1_stays_best_when_stretched() -> None:
    torch.manual_seed(0)
    target = torch.cat([0.04 + 0.01 * torch.randn(60), 0.8 + 0.2 * torch.randn(41)])
    guesses = target.sort().values
    best = {
        name: min(guesses, key=lambda guess: float(loss(guess.expand_as(target), target)))
        for name, loss in (("plain", torch.nn.L1Loss()), ("stretched", StretchedLoss(torch.nn.L1Loss())))
    }
    assert best["plain"] == best["stretched"] == target.median()


def test_the_log_of_the_error_counts_the_same_for_quiet_and_noisy_slices() -> None:
    target, mask = torch.zeros(2, 1, 8, 8, 2), torch.ones(2, 1, 8, 8, 2)
    mask[0, :, :4] = 0
    prediction = torch.full_like(target, 0.1)
    prediction[1, ..., 1] = 1.0
    prediction[0, :, :4] = 50.0  # outside
    loss = LogErrorLoss(floor=0.0)
    assert float(loss(prediction, target, mask)) == pytest.approx(np.log([0.01, 0.01, 0.01, 1.0]).mean(), abs=1e-5)
    less = [prediction.clone() for _ in range(2)]
    less[0][1, ..., 0] *= 0.9
    less[1][1, ..., 1] *= 0.9
    quiet, noisy = (float(loss(one, target, mask)) for one in less)
    assert quiet == pytest.approx(noisy, abs=1e-6)
    nothing = LogErrorLoss()(prediction.requires_grad_(), prediction.detach(), mask)
    nothing.backward()
    assert torch.isfinite(prediction.grad).all()


def test_pooling_averages_the_target_over_the_mask_only() -> None:
    target, mask = torch.full((1, 1, 4, 4, 4), 3.0), torch.zeros(1, 1, 4, 4, 4)
    mask[..., :1] = 1
    target[..., 1:] = 99
    pooled, share = masked_pool(target, mask, (2, 2, 2))
    assert torch.equal(pooled[..., 0], torch.full((1, 1, 2, 2), 3.0))
    assert torch.equal(share[..., 0], torch.full((1, 1, 2, 2), 0.5))
    assert share[..., 1].sum() == 0


def test_the_chain_is_the_sum_of_its_stages() -> None:
    def plain(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        return (mask * (prediction - target).abs()).sum() / mask.sum()

    fine, target = torch.zeros(1, 1, 8, 8, 8), torch.ones(1, 1, 8, 8, 8)
    coarse, mask = torch.full((1, 1, 4, 4, 4), 0.75), torch.ones(1, 1, 8, 8, 8)
    loss = ChainLoss(plain, plain, structure_weight=0.1, coarse_weight=0.5, structure_box=4)
    assert loss([coarse, fine], target, mask).item() == pytest.approx(1 + 0.5 * 0.25 + 0.1 * 1)


def test_the_box_of_the_structure_loss_lies_inside_and_moves() -> None:
    loss = ChainLoss(lambda p, t, m: p.sum() * 0, None, structure_box=5)
    torch.manual_seed(0)
    boxes = [loss._box((9, 5, 30)) for _ in range(40)]
    assert all(box[3] == slice(0, 5) for box in boxes)
    assert {box[2].start for box in boxes} == set(range(5))
    assert max(box[4].stop for box in boxes) <= 30
