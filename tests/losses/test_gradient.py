"""Edges: equal edges cost nothing, missing ones their square."""

import pytest
import torch

from medgen.losses.gradient import masked_gradient_difference, normalised_gradient_distance


def step(axis: int, height: float = 1.0) -> torch.Tensor:
    shape = [1, 1, 1, 1, 1]
    shape[axis] = 6
    return (torch.arange(6.0) >= 3).float().reshape(shape).expand(1, 1, 6, 6, 6) * height


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_a_missing_edge_costs_its_square(axis: int) -> None:
    target, ones = step(axis, 2.0), torch.ones(1, 1, 6, 6, 6)
    loss = masked_gradient_difference(torch.zeros_like(target), target, ones)
    assert loss.item() == pytest.approx(36 * 4 / (3 * 5 * 36))


def test_brightness_and_sign_do_not_matter_edges_do() -> None:
    target, ones = step(2), torch.ones(1, 1, 6, 6, 6)
    assert masked_gradient_difference(target + 5, target, ones) == 0
    assert masked_gradient_difference(-target, target, ones) == 0
    assert masked_gradient_difference(0.5 * target, target, ones) > 0


def test_edges_at_the_border_of_the_mask_do_not_count() -> None:
    target = step(2)
    mask = (torch.arange(6) < 3).float().reshape(1, 1, 6, 1, 1).expand_as(target)
    assert masked_gradient_difference(torch.zeros_like(target), target, mask) == 0
    assert torch.isfinite(masked_gradient_difference(target, target, 0 * mask))


def test_edges_in_one_place_are_near_whatever_their_sign_and_height() -> None:
    image = step(2)
    for other in (image, 1 - image, 4 * image + 3):
        assert normalised_gradient_distance(image, other, noise=1e-3) == pytest.approx(0, abs=1e-3)
    for other in (step(3), torch.zeros_like(image)):
        assert normalised_gradient_distance(image, other, noise=1e-3) == pytest.approx(1, abs=1e-3)


def test_it_pulls_an_edge_to_where_the_image_has_one() -> None:
    image = step(2)
    flat = (0.5 * image).requires_grad_()
    normalised_gradient_distance(image, flat, noise=1.0).backward()
    assert (flat.grad[:, :, 3] < 0).float().mean() > 0.5  # brighter behind the edge lowers the distance
    assert torch.isfinite(normalised_gradient_distance(torch.zeros_like(image), flat))
