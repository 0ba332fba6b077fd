"""Closed forms of the adversarial objectives, and which way and how hard they push."""

import math

import pytest
import torch
from torch import Tensor

from medgen.losses.adversarial import (
    hinge_d_loss,
    hinge_g_loss,
    least_squares_d_loss,
    least_squares_g_loss,
    minimax_d_loss,
    minimax_g_loss,
    non_saturating_g_loss,
    wasserstein_d_loss,
    wasserstein_g_loss,
)

REAL, FAKE = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_minimax_in_closed_form() -> None:
    real = -(math.log(sigmoid(2.0)) + math.log(sigmoid(0.5))) / 2
    fake = -(math.log(1 - sigmoid(-3.0)) + math.log(1 - sigmoid(1.0))) / 2
    assert minimax_d_loss(REAL, FAKE).item() == pytest.approx(real + fake, rel=1e-5)
    assert minimax_g_loss(FAKE).item() == pytest.approx(-fake, rel=1e-5)
    assert non_saturating_g_loss(FAKE).item() == pytest.approx(
        -(math.log(sigmoid(-3.0)) + math.log(sigmoid(1.0))) / 2, rel=1e-5
    )


def test_least_squares_in_closed_form() -> None:
    assert least_squares_d_loss(REAL, FAKE).item() == pytest.approx(0.5 * ((1 + 0.25) / 2 + (9 + 1) / 2))
    assert least_squares_g_loss(FAKE).item() == pytest.approx(0.5 * (16 + 0) / 2)


def test_hinge_in_closed_form() -> None:
    assert hinge_d_loss(REAL, FAKE).item() == pytest.approx(0.5 * ((0 + 0.5) / 2 + (0 + 2) / 2))
    assert hinge_g_loss(FAKE).item() == pytest.approx(1.0)


def test_wasserstein_in_closed_form() -> None:
    assert wasserstein_d_loss(REAL, FAKE).item() == pytest.approx(-1.0 - 1.25)
    assert wasserstein_g_loss(FAKE).item() == pytest.approx(1.0)


def test_a_perfect_discriminator_has_nothing_to_lose() -> None:
    assert least_squares_d_loss(torch.ones(3), torch.zeros(3)) == 0
    assert hinge_d_loss(torch.full((3,), 1.5), torch.full((3,), -2.0)) == 0
    assert minimax_d_loss(torch.full((3,), 40.0), torch.full((3,), -40.0)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("label", [0.9, 0.7])
def test_a_smoothed_label_is_what_real_logits_are_drawn_to(label: float) -> None:
    """The minimum over the real logit lies where the sigmoid (or the logit itself) is the label."""
    logits = torch.linspace(-4, 4, 8001)
    cross_entropy = [minimax_d_loss(x, torch.tensor(0.0), label).item() for x in logits[::8]]
    assert torch.sigmoid(logits[::8][int(torch.tensor(cross_entropy).argmin())]).item() == pytest.approx(
        label, abs=1e-2
    )
    squares = [least_squares_d_loss(x, torch.tensor(0.0), label).item() for x in logits[::8]]
    assert logits[::8][int(torch.tensor(squares).argmin())].item() == pytest.approx(label, abs=1e-2)


def slope(loss, value: float) -> float:  # noqa: ANN001
    fake = torch.tensor([value], requires_grad=True)
    total: Tensor = loss(fake)
    total.backward()  # type: ignore[no-untyped-call]
    assert fake.grad is not None
    return fake.grad.item()


@pytest.mark.parametrize("loss", [least_squares_g_loss, hinge_g_loss, wasserstein_g_loss, non_saturating_g_loss])
@pytest.mark.parametrize("value", [-20.0, -1.0, 0.0, 0.9])
def test_the_generator_is_always_pushed_towards_real(loss, value: float) -> None:  # noqa: ANN001
    """Unlike a hinge behind a tanh, none saturates, however fake the logits."""
    assert slope(loss, value) < -0.04


def test_minimax_leaves_the_generator_alone_where_it_is_worst() -> None:
    """The vanishing gradient in one line: the surer the discriminator, the weaker the push."""
    assert slope(minimax_g_loss, -20.0) > -1e-8
    assert slope(minimax_g_loss, 0.0) == pytest.approx(-0.5)
