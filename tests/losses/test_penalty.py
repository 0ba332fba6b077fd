"""Penalties on a discriminator whose slope is known."""

import pytest
import torch
from torch import Tensor

from medgen.losses.divergence import gaussian_kl
from medgen.losses.penalty import gradient_penalty, r1_penalty


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(3, 1, 2, 3, 4, generator=generator), torch.randn(3, 1, 2, 3, 4, generator=generator)


@pytest.mark.parametrize("steep", [0.0, 0.5, 1.0, 3.0])
def test_the_penalties_of_a_plane_are_known_everywhere(images: tuple[Tensor, Tensor], steep: float) -> None:
    direction = torch.ones(1, 2, 3, 4) / 24**0.5
    plane = lambda x: (steep * direction * x).flatten(1).sum(1)  # noqa: E731
    assert gradient_penalty(plane, *images).item() == pytest.approx(10 * (steep - 1) ** 2, abs=1e-4)
    assert r1_penalty(plane, *images, weight=4.0).item() == pytest.approx(2 * steep**2, abs=1e-4)


def test_the_points_lie_between_real_and_fake() -> None:
    seen: list[Tensor] = []

    def judge(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.flatten(1).sum(1)

    gradient_penalty(judge, torch.ones(64, 1, 2), torch.zeros(64, 1, 2))
    assert ((seen[0] > 0) & (seen[0] < 1)).all()
    assert seen[0].flatten(1).std(1).max() == 0  # one share an image
    assert seen[0].std() > 0.2


def test_logits_in_a_map_count_as_their_mean(images: tuple[Tensor, Tensor]) -> None:
    one = gradient_penalty(lambda x: x.flatten(1).sum(1), images[0], images[0])
    many = gradient_penalty(lambda x: x.flatten(1).sum(1, keepdim=True).repeat(1, 7), images[0], images[0])
    torch.testing.assert_close(one, many)


def test_the_penalty_moves_the_discriminator(images: tuple[Tensor, Tensor]) -> None:
    steep = torch.tensor(3.0, requires_grad=True)
    gradient_penalty(lambda x: steep * x.flatten(1).mean(1), *images).backward()  # type: ignore[no-untyped-call]
    assert steep.grad is not None
    assert steep.grad.item() != 0


def test_kl_of_known_gaussians() -> None:
    zeros = torch.zeros(5, 4, 2)
    assert gaussian_kl(zeros, zeros) == 0
    # 0.5 * (sigma^2 + mu^2 - 1 - ln sigma^2) a latent, with sigma^2 = e and mu = 2
    each = 0.5 * (4 + torch.e - 1 - 1)
    assert gaussian_kl(zeros + 2, zeros + 1).item() == pytest.approx(8 * each)
    assert gaussian_kl(zeros + 2, zeros + 1, "mean").item() == pytest.approx(each)
