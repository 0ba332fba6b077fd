"""Seams: none in a smooth image, whatever its slopes; steps at the windows' borders show, and overlap removes them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from medgen.errors import GeometryError
from medgen.infer.cut import window_starts
from medgen.infer.windows import WindowInferer
from medgen.metrics.seams import seam_score, window_borders


def _smooth(*shape: int, noise: float = 0.0) -> np.ndarray:
    axes = np.meshgrid(*[np.linspace(0, 5, n) for n in shape], indexing="ij")
    image = sum(np.sin((1 + 0.3 * k) * axis + k) for k, axis in enumerate(axes))
    return image + noise * np.random.default_rng(0).standard_normal(shape)


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("shape", [(64, 60), (48, 64, 56)])
def test_a_smooth_image_has_no_seams_and_steps_at_borders_show(shape: tuple[int, ...], noise: float) -> None:
    image, places = _smooth(*shape, noise=noise), [17, 30]
    borders = [places] * len(shape)
    assert seam_score(image, borders) == pytest.approx(1, abs=0.1)
    for axis in range(len(shape)):
        for place in places:
            np.moveaxis(image, axis, 0)[place:] += 0.3
    assert seam_score(image, borders) > 2


@given(scale=st.floats(0.01, 100), offset=st.floats(-1000, 1000))
def test_it_has_no_unit(scale: float, offset: float) -> None:
    image = _smooth(40, 40, noise=0.05)
    expected = seam_score(image, [[20], [12, 28]])
    assert seam_score(image * scale + offset, [[20], [12, 28]]) == pytest.approx(expected, rel=1e-6)


def test_a_masked_background_does_not_count() -> None:
    image = _smooth(60, 60, noise=0.05)
    image[:, :40] = 0
    image[30:, 40:] += 0.5
    assert seam_score(image, [[30], []]) > 3


def test_a_step_in_a_flat_image_is_infinite_and_a_flat_image_is_seamless() -> None:
    flat = np.zeros((30, 30))
    assert seam_score(flat, [[15], []]) == 1
    flat[15:] = 1
    assert seam_score(flat, [[15], []]) == float("inf")


@pytest.mark.parametrize(("borders", "told"), [([[15]], "each of 2 axes"), ([[0, 30], []], "larger steps")])
def test_borders_that_cannot_be_compared_are_refused(borders: list[list[int]], told: str) -> None:
    with pytest.raises(GeometryError, match=told):
        seam_score(_smooth(30, 30), borders)


def test_overlap_and_weights_remove_what_instance_normalisation_leaves() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1), nn.InstanceNorm3d(8), nn.ReLU(), nn.Conv3d(8, 1, 3, padding=1)
    ).eval()
    image = torch.from_numpy(_smooth(56, 56, 56, noise=0.02)).float()[None, None]

    def score(overlap: float, mode: str) -> float:
        output = WindowInferer(24, overlap, mode, precision="fp32")(image, network)[0, 0].numpy()
        return seam_score(output, [window_borders(window_starts(56, 24, overlap), 24, 56)] * 3)

    apart, blended = score(0.0, "constant"), score(0.5, "gaussian")
    assert apart > 4
    assert blended < 0.4 * apart
