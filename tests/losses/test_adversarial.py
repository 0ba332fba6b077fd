"""Closed forms of the adversarial objectives."""

import pytest
import torch

from medgen.losses.adversarial import hinge_d_loss, hinge_g_loss, least_squares_d_loss, least_squares_g_loss

REAL, FAKE = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])


def test_least_squares_in_closed_form() -> None:
    assert least_squares_d_loss(REAL, FAKE).item() == pytest.approx(0.5 * ((1 + 0.25) / 2 + (9 + 1) / 2))
    assert least_squares_g_loss(FAKE).item() == pytest.approx(0.5 * (16 + 0) / 2)


def test_hinge_in_closed_form() -> None:
    assert hinge_d_loss(REAL, FAKE).item() == pytest.approx(0.5 * ((0 + 0.5) / 2 + (0 + 2) / 2))
    assert hinge_g_loss(FAKE).item() == pytest.approx(1.0)


def test_a_perfect_discriminator_has_nothing_to_lose() -> None:
    assert least_squares_d_loss(torch.ones(3), torch.zeros(3)) == 0
    assert hinge_d_loss(torch.full((3,), 1.5), torch.full((3,), -2.0)) == 0


@pytest.mark.parametrize("loss", [least_squares_g_loss, hinge_g_loss])
@pytest.mark.parametrize("value", [-20.0, -1.0, 0.0, 0.9])
def test_the_generator_is_always_pushed_towards_real(loss, value: float) -> None:  # noqa: ANN001
    """Unlike a hinge behind a tanh, neither saturates, however fake the logits."""
    fake = torch.tensor([value], requires_grad=True)
    loss(fake).backward()
    assert fake.grad is not None
    assert fake.grad.item() < -0.04
