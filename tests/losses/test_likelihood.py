"""The error of a reconstruction, and the error that it expects."""

import pytest
import torch

from medgen.losses.likelihood import ExpectedErrorLoss

SHAPE = (1, 1, 4, 4, 4)


def test_one_channel_is_the_weighted_error_alone() -> None:
    loss = ExpectedErrorLoss(absolute=1.0, squared=2.0)
    made, target, mask = torch.full(SHAPE, 0.5), torch.zeros(SHAPE), torch.ones(SHAPE)
    assert float(loss([made], target, mask)) == pytest.approx(0.5 + 2 * 0.25)
    mask[..., :2] = 0
    made[..., :2] = 100.0
    assert float(loss([made], target, mask)) == pytest.approx(0.5 + 2 * 0.25)


def test_the_best_scale_is_the_logarithm_of_the_mean_error() -> None:
    loss = ExpectedErrorLoss(absolute=0.0, squared=0.0, scale=1.0)
    target, mask = torch.zeros(SHAPE), torch.ones(SHAPE)

    def at(scale: float) -> float:
        return float(loss([torch.cat([torch.full(SHAPE, 0.2), torch.full(SHAPE, scale)], dim=1)], target, mask))

    best = float(torch.tensor(0.2).log())
    assert at(best) < min(at(best - 0.1), at(best + 0.1))


def test_the_scale_does_not_pull_at_the_reconstruction() -> None:
    made = torch.full((1, 2, 4, 4, 4), 0.3, requires_grad=True)
    ExpectedErrorLoss(absolute=0.0, squared=0.0)([made], torch.zeros(SHAPE), torch.ones(SHAPE)).backward()
    assert made.grad is not None
    assert made.grad[:, 0].abs().max() == 0
    assert made.grad[:, 1].abs().max() > 0


def test_a_doubtful_lesion_is_taken_off_as_far_as_it_is_probable() -> None:
    """Of what is there in one of four images, the squared error's best answer takes off a quarter."""
    lesion = torch.tensor([1.0, 0.0, 0.0, 0.0]).reshape(4, 1, 1, 1, 1)
    answers = torch.linspace(0, 1, 101)
    loss = ExpectedErrorLoss(absolute=0.0, squared=1.0)
    costs = [float(loss([torch.full_like(lesion, float(a))], lesion, torch.ones_like(lesion))) for a in answers]
    assert float(answers[int(torch.tensor(costs).argmin())]) == pytest.approx(0.25)
