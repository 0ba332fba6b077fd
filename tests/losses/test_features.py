"""What a frozen network sees, as a loss."""

from pathlib import Path

import pytest
import torch

from medgen.losses.features import FeatureLoss
from medgen.nets.slices import SliceDenoiser


@pytest.fixture
def network() -> SliceDenoiser:
    torch.manual_seed(3)
    return SliceDenoiser(channels=[8, 12], blocks=[1, 1], polish=2)


@pytest.fixture
def loss(network: SliceDenoiser, tmp_path: Path) -> FeatureLoss:
    torch.save(network.state_dict(), tmp_path / "model.pt")
    return FeatureLoss(network, str(tmp_path / "model.pt"))


def image(seed: int) -> torch.Tensor:
    return torch.randn(1, 1, 16, 16, 3, generator=torch.Generator().manual_seed(seed))


def test_equal_images_have_none_and_noise_has_some(loss: FeatureLoss) -> None:
    everywhere = torch.ones(1, 1, 16, 16, 3)
    assert float(loss(image(0), image(0), everywhere)) == 0
    near, far = (float(loss(image(0) + share * image(1), image(0), everywhere)) for share in (0.1, 1.0))
    assert 0 < near < 0.1 * far


def test_what_lies_outside_the_mask_does_not_count(loss: FeatureLoss) -> None:
    mask = torch.zeros(1, 1, 16, 16, 3)
    mask[:, :, :8] = 1
    changed = torch.where(mask > 0, image(0), image(1))
    assert float(loss(changed, image(0), mask)) == 0


def test_the_eye_stays_what_it_was_while_the_network_learns(loss: FeatureLoss, network: SliceDenoiser) -> None:
    mask, wanted = torch.ones(1, 1, 16, 16, 3), image(0)
    before = float(loss(image(1), wanted, mask))
    with torch.no_grad():
        network.stem.weight.mul_(2)
    assert float(loss(image(1), wanted, mask)) == before
    assert list(loss.parameters()) == []
    guess = image(1).requires_grad_()
    loss(guess, wanted, mask).backward()
    assert guess.grad is not None
    assert float(guess.grad.abs().sum()) > 0


def test_a_training_that_leaves_it_out_needs_no_weights(network: SliceDenoiser, tmp_path: Path) -> None:
    loss = FeatureLoss(network, str(tmp_path / "none.pt"))
    with pytest.raises(FileNotFoundError, match="none"):
        loss(image(0), image(1), torch.ones(1, 1, 16, 16, 3))
