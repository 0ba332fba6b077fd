"""Air stays air, and nothing else is asked for."""

import pytest
import torch

from medgen.losses.background import BackgroundLoss


def half_dark() -> torch.Tensor:
    source = torch.ones(1, 1, 8, 8, 16)
    source[..., :8] = 0.0
    return source


def test_only_far_from_what_is_bright_the_translation_is_held() -> None:
    source, loss = half_dark(), BackgroundLoss(below=0.1, voxels=5, level=-1.0)
    right = torch.where(torch.arange(16) < 5, -1.0, 7.0).expand_as(source)  # 1 by the mean of 3, 2 by the cube of 5
    assert loss(source, right) == 0
    assert loss(source, -right).item() == pytest.approx((5 * 2 + 0) / 5)


def test_what_is_dark_but_thin_is_free() -> None:
    source, loss = torch.ones(1, 1, 9, 9, 9), BackgroundLoss(below=0.1, voxels=5, level=-1.0)
    source[..., 3:6] = 0.0
    assert loss(source, torch.full_like(source, 9.0)) == 0


def test_the_gradient_reaches_the_translation_alone() -> None:
    source = half_dark().requires_grad_()
    translation = torch.zeros_like(source, requires_grad=True)
    BackgroundLoss(below=0.1, voxels=3, level=-1.0)(source, translation).backward()
    assert source.grad is None
    assert translation.grad is not None
    assert translation.grad[..., 0].abs().sum() > 0
    assert translation.grad[..., 8:].abs().sum() == 0
