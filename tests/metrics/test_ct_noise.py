"""Errors in a window of HU, and power spectra of noise whose spectrum is known."""

import numpy as np
import pytest

from medgen.errors import GeometryError, IntensityError
from medgen.metrics.ct_noise import (
    noise_power,
    noise_power_distance,
    score_item,
    score_noise,
    shift_by_tissue,
    texture_distance,
    uniform_regions,
)


def test_white_noise_has_flat_power_of_variance_times_area() -> None:
    noise = np.random.default_rng(0).normal(0, 12.0, (40, 64, 64))
    found = noise_power(noise, 0.7)
    assert np.allclose(found.power, 12.0**2 * 0.7**2, rtol=0.2)
    assert found.power.mean() == pytest.approx(12.0**2 * 0.7**2, rel=0.02)
    assert found.frequency[0] == pytest.approx(2 / (64 * 0.7))
    assert found.frequency[-1] == pytest.approx(0.5 / 0.7)


def test_the_integral_of_power_is_the_variance() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 1, (30, 64, 64))
    noise = (noise + np.roll(noise, 1, 1) + np.roll(noise, 1, 2) + np.roll(noise, (1, 1), (1, 2))) * 5.0
    found = noise_power(noise, 0.5)
    step = found.frequency[1] - found.frequency[0]
    integral = (2 * np.pi * found.frequency * found.power * step).sum()
    assert integral == pytest.approx(noise.var(), rel=0.1)


def test_slopes_and_offsets_are_not_noise() -> None:
    x, y = np.meshgrid(np.arange(64.0), np.arange(64.0), indexing="ij")
    assert noise_power((100 + 3 * x - 2 * y)[None], 1.0).power.max() < 1e-18
    noise = np.random.default_rng(2).normal(0, 5, (64, 64))
    assert np.allclose(noise_power((noise + 40 + x)[None], 1.0).power, noise_power(noise[None], 1.0).power)


def test_the_distance_is_relative() -> None:
    noise = np.random.default_rng(3).normal(0, 5, (10, 64, 64))
    reference = noise_power(noise, 1.0)
    assert noise_power_distance(reference, reference) == 0.0
    assert noise_power_distance(noise_power(noise * 0, 1.0), reference) == pytest.approx(1.0)
    assert noise_power_distance(noise_power(noise * 2**0.5, 1.0), reference) == pytest.approx(1.0)
    with pytest.raises(GeometryError, match="one grid"):
        noise_power_distance(noise_power(noise, 0.5), reference)


def test_coarse_grain_has_the_lower_mean_frequency() -> None:
    fine = np.random.default_rng(4).normal(0, 5, (10, 64, 64))
    coarse = fine + np.roll(fine, 1, 1) + np.roll(fine, 1, 2) + np.roll(fine, (1, 1), (1, 2))
    assert noise_power(coarse, 1.0).mean_frequency < 0.8 * noise_power(fine, 1.0).mean_frequency


def test_wrong_regions_are_refused() -> None:
    with pytest.raises(GeometryError, match="64, 64"):
        noise_power(np.zeros((3, 32, 32)), 1.0)
    with pytest.raises(GeometryError, match="64, 64"):
        noise_power(np.zeros((0, 64, 64)), 1.0)
    with pytest.raises(IntensityError, match="finite"):
        noise_power(np.full((1, 64, 64), np.nan), 1.0)


def test_uniform_regions_lie_in_soft_tissue_and_apart() -> None:
    volume = np.full((320, 240, 2), -1000.0)
    volume[10:300, 20:230, 0] = 60.0
    volume[80, 90, 0] = 900.0  # a speck of bone is below the tolerance
    volume[..., 0] += np.random.default_rng(5).normal(0, 80, (320, 240))
    found = uniform_regions(volume)
    assert len(found) >= 2
    assert all(z == 0 for _, _, z in found)
    assert all(volume[place].mean() == pytest.approx(60, abs=10) for place in found)
    taken = np.zeros(volume.shape, int)
    for place in found:
        taken[place] += 1
    assert taken.max() == 1
    assert uniform_regions(np.full((40, 40, 1), 60.0)) == []


def test_a_border_between_two_organs_is_not_uniform() -> None:
    volume = np.full((200, 64, 1), 40.0)
    volume[100:] = 110.0
    found = uniform_regions(volume, spread_hu=1.0)
    assert found
    assert all(np.ptp(volume[place]) == 0 for place in found)
    assert len(uniform_regions(volume[68:132])) == 0
    assert len(uniform_regions(volume[68:132], spread_hu=40.0)) == 1


def _pair(sigma: float = 20.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(8)
    reference = np.repeat(np.linspace(-100, 180, 64)[:, None, None], 48, axis=1).repeat(3, axis=2)
    return reference + rng.normal(0, sigma, reference.shape), reference


def test_known_noise_has_its_known_error() -> None:
    noisy, reference = _pair()
    score = score_noise(noisy, reference)
    assert score.rmse_hu == pytest.approx(20, rel=0.03)
    assert score.psnr_db == pytest.approx(20 * np.log10(400 / 20), abs=0.3)
    assert 0 < score.ssim < 0.9
    assert abs(score.shift_hu) < 1
    full = score_noise(noisy, reference, window="full")
    assert full.psnr_db == pytest.approx(20 * np.log10(4095 / 20), abs=0.3)


def test_less_noise_scores_better_and_none_perfectly() -> None:
    reference = _pair()[1]
    scores = [score_noise(_pair(sigma)[0], reference) for sigma in (40.0, 20.0, 5.0)]
    assert [s.rmse_hu for s in scores] == sorted((s.rmse_hu for s in scores), reverse=True)
    assert [s.ssim for s in scores] == sorted(s.ssim for s in scores)
    same = score_noise(reference, reference)
    assert (same.rmse_hu, same.psnr_db, same.shift_hu) == (0.0, float("inf"), 0.0)
    assert same.ssim == pytest.approx(1.0)


def test_what_lies_outside_the_window_is_the_same_to_it() -> None:
    noisy, reference = _pair()
    beyond = reference.copy()
    beyond[:8], noisy = -900.0, reference.copy()
    noisy[:8] = -400.0
    assert score_noise(noisy, beyond).rmse_hu == 0.0
    assert score_noise(noisy, beyond, window="full").rmse_hu > 100


def test_only_the_mask_counts() -> None:
    noisy, reference = _pair()
    noisy[:32] += 500.0
    mask = np.zeros(reference.shape)
    mask[44:, :, :2] = 1
    score = score_noise(noisy, reference, mask)
    assert score.rmse_hu == pytest.approx(20, rel=0.1)
    assert score.pixels == mask.sum()


def test_a_shift_is_signed() -> None:
    reference = _pair()[1]
    assert score_noise(reference - 3, reference).shift_hu == pytest.approx(-3)
    assert score_noise(reference[..., 0] + 2, reference[..., 0]).shift_hu == pytest.approx(2)


def test_each_tissue_tells_its_own_shift() -> None:
    reference = np.full((64, 64, 2), -1000.0)
    for start, hu in ((0, -800.0), (16, -100.0), (32, 60.0)):
        reference[start : start + 16] = hu
    image = reference.copy()
    image[16:32] += 3.0
    image[32:48] -= 2.0
    found = shift_by_tissue(image, reference)
    assert found["lung"] == 0
    assert found["fat"] == pytest.approx(3.0)
    assert found["soft"] == pytest.approx(-2.0, abs=0.1)
    assert np.isnan(found["bone"])
    assert np.isnan(shift_by_tissue(image, reference, np.zeros_like(image))["fat"])


def test_texture_is_that_of_uniform_tissue() -> None:
    rng = np.random.default_rng(0)
    reference = 60 + rng.normal(0, 10, (96, 96, 3))
    assert texture_distance(60 + rng.normal(0, 10, reference.shape), reference) < 0.2
    assert texture_distance(np.full_like(reference, 60.0), reference) == pytest.approx(1.0, abs=1e-6)
    assert np.isnan(texture_distance(reference - 900, reference - 900))


def test_what_cannot_be_scored_is_refused() -> None:
    noisy, reference = _pair()
    with pytest.raises(IntensityError, match="one grid"):
        score_noise(noisy[:-1], reference)
    with pytest.raises(IntensityError, match="finite"):
        score_noise(noisy * np.inf, reference)
    with pytest.raises(IntensityError, match="something in it"):
        score_noise(noisy, reference, reference * 0)
    with pytest.raises(IntensityError, match="soft, full"):
        score_noise(noisy, reference, window="lung")


def test_an_item_is_scored_in_the_units_of_its_target() -> None:
    rng = np.random.default_rng(0)
    target = rng.uniform(-100, 200, (24, 24, 2))
    noisy = target + rng.normal(0, 10, target.shape)
    mask = np.zeros(target.shape)
    mask[6:18] = 1
    expected = score_noise(noisy, target, mask)
    scores = score_item(noisy / 1000, {"target": target / 1000, "mask": mask})
    assert scores["psnr_db"] == pytest.approx(expected.psnr_db)
    assert scores["rmse_hu"] == pytest.approx(expected.rmse_hu)
    whole = score_item(noisy, {"target": target}, hu_per_unit=1.0)
    assert whole["ssim"] == pytest.approx(score_noise(noisy, target).ssim)
