"""Patches of flattened B-scans: of one size, drawn by the transform's own random numbers, each plausible."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medgen.prepare.patches import RandPatchd

STILL = {"stretch": 0.0, "thicken": 0.0, "shift": 0.0, "tilt": 0.0, "gain": 0.0, "gamma": 0.0}
BRUCH = 53


def ramp(columns: int = 200, bscans: int = 1) -> Tensor:
    """Bands whose value says where a pixel lies: 0.004 a column, and a number of its own each row."""
    rows = torch.rand(64, generator=torch.Generator().manual_seed(0)) - 0.9
    plane = 0.004 * torch.arange(columns)[:, None] + rows[None]
    return plane[None, ..., None].expand(-1, -1, -1, bscans)


def retina(columns: int = 200, bscans: int = 1) -> Tensor:
    """Vitreous, an even retina from row 20 down to Bruch's membrane, darker choroid."""
    plane = torch.full((columns, 64), -1.0)
    plane[:, 20:BRUCH], plane[:, BRUCH:] = 0.2, -0.6
    return plane[None, ..., None].repeat(1, 1, 1, bscans)


def draw(band: Tensor, seed: int = 0, **settings: Any) -> Tensor:
    transform = RandPatchd("image", **settings).set_random_state(seed)
    patch: Tensor = transform({"image": band})["image"]
    return patch


@pytest.mark.parametrize("width", [32, 64])
def test_a_patch_has_one_shape_and_range_whatever_the_band(width: int) -> None:
    for columns, bscans in ((width, 1), (200, 3), (300, 1)):
        for seed in range(5):
            patch = draw(retina(columns, bscans), seed, width=width)
            assert patch.shape == (1, width, 64)
            assert patch.dtype == torch.float32
            assert patch.min() >= -1
            assert patch.max() <= 1


def test_the_same_random_state_draws_the_same_patch_and_another_draws_another() -> None:
    band = retina() + 0.05 * torch.rand(1, 200, 64, 1, generator=torch.Generator().manual_seed(1))
    assert torch.equal(draw(band, 3), draw(band, 3))
    assert not torch.equal(draw(band, 3), draw(band, 4))
    transform = RandPatchd("image").set_random_state(3)
    first, second = (transform({"image": band})["image"] for _ in range(2))
    assert torch.equal(first, draw(band, 3))
    assert not torch.equal(first, second)


def test_without_variation_a_patch_is_a_plain_crop_or_its_mirror_image() -> None:
    band = ramp()
    seen = set()
    for seed in range(12):
        patch = draw(band, seed, **STILL)[0]
        step = (patch[1] - patch[0]).mean()
        assert float(step.abs()) == pytest.approx(0.004, abs=1e-5)
        seen.add(bool(step > 0))
        crop = patch if step > 0 else patch.flip(0)
        start = float((crop[0] - band[0, 0, :, 0]).mean()) / 0.004  # anywhere, between columns too
        assert -0.51 <= start <= 200 - 64 + 0.51
        inside = slice(1, 63)  # at the band's very end half a column is repeated
        expected = band[0, 0, :, 0] + 0.004 * (start + torch.arange(64)[inside, None])
        torch.testing.assert_close(crop[inside], expected, atol=3e-3, rtol=0)
    assert seen == {True, False}


def test_a_patch_is_of_one_bscan_and_each_has_its_turn() -> None:
    band = torch.stack([torch.full((100, 64), value) for value in (-0.5, 0.0, 0.5)], dim=-1)[None]
    drawn = [draw(band, seed, **STILL) for seed in range(20)]
    assert all(float(patch.std()) < 1e-6 for patch in drawn)
    assert {round(float(patch.mean()), 3) for patch in drawn} == {-0.5, 0.0, 0.5}


def test_the_vitreous_stays_dark_however_it_is_lit() -> None:
    for seed in range(10):
        patch = draw(retina(), seed, **{**STILL, "gain": 0.3, "gamma": 0.3})
        assert torch.equal(patch[..., :19], torch.full((1, 64, 19), -1.0))
        assert float(patch[..., 30].std()) < 1e-6
    lit = {round(float(draw(retina(), seed, **{**STILL, "gain": 0.1})[0, 0, 30]), 4) for seed in range(10)}
    assert len(lit) == 10


def test_bruchs_membrane_stays_where_it_is_and_the_surface_moves() -> None:
    """Stretching in depth is about Bruch's membrane: its edge stays, the surface 33 rows above it moves by 10 %."""
    surface, bruch = [], []
    for seed in range(20):
        profile = draw(retina(), seed, **{**STILL, "thicken": 0.1})[0].mean(dim=0)
        surface.append(int((profile > -0.4).int().argmax()))
        bruch.append(64 - int((profile.flip(0) > -0.2).int().argmax()))
    assert set(bruch) == {BRUCH}
    assert max(surface) - min(surface) >= 4
    assert 16 <= min(surface) < 20 < max(surface) <= 24


def test_a_tilt_raises_one_side_and_lowers_the_other() -> None:
    heights = []
    for seed in range(20):
        patch = draw(retina(), seed, **{**STILL, "tilt": 3.0})[0]
        bruch = np.array([float((column[40:] > -0.2).sum()) for column in (patch[:8].mean(0), patch[-8:].mean(0))])
        heights.append(bruch[0] - bruch[1])
    assert max(heights) > 0 > min(heights)
