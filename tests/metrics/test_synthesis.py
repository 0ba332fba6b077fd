"""The frozen protocol: its invariants, its agreement with scikit-image, and its published numbers on real patients."""

from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from medgen.errors import IntensityError
from medgen.metrics.synthesis import (
    foreground_mask,
    high_frequency_energy,
    match_affine,
    score_synthesis,
    ssim_map,
)

Volume = npt.NDArray[np.float32]
SHAPE = (21, 18, 23)


def scans(seed: int = 0) -> tuple[Volume, Volume]:
    """A source and a truth with an empty rim, as a stripped brain has."""
    rng = np.random.default_rng(seed)
    source, truth = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
    inner = (slice(3, -3), slice(2, -2), slice(4, -3))
    shape = source[inner].shape
    source[inner] = rng.uniform(50, 100, shape)
    truth[inner] = 300 - 2 * source[inner] + rng.normal(0, 10, shape)
    return source, truth


def test_the_truth_itself_scores_best_on_any_rising_scale() -> None:
    source, truth = scans()
    score = score_synthesis(3 * truth + 40, truth, source)
    # What the truth has above its 99.5th percentile is clipped from both.
    assert score.psnr_db > 100
    assert score.ssim == pytest.approx(1, abs=1e-5)
    assert score.hf_ratio == pytest.approx(1, abs=1e-4)


@settings(max_examples=15, deadline=None)
@given(gain=st.floats(0.01, 50), offset=st.floats(-500, 500))
def test_the_scale_of_the_prediction_does_not_matter(gain: float, offset: float) -> None:
    source, truth = scans()
    prediction = truth + np.random.default_rng(1).normal(0, 20, SHAPE).astype(np.float32)
    plain, scaled = (score_synthesis(p, truth, source) for p in (prediction, gain * prediction + offset))
    assert scaled.psnr_db == pytest.approx(plain.psnr_db, abs=1e-2)
    assert scaled.ssim == pytest.approx(plain.ssim, abs=1e-3)


def test_an_inverted_contrast_earns_no_more_than_a_constant() -> None:
    source, truth = scans()
    inverted, constant = score_synthesis(-truth, truth, source), score_synthesis(np.ones(SHAPE), truth, source)
    assert inverted.psnr_db == pytest.approx(constant.psnr_db)
    assert inverted.ssim == pytest.approx(constant.ssim)


def test_what_the_prediction_does_outside_the_mask_does_not_matter() -> None:
    source, truth = scans()
    prediction = truth + np.random.default_rng(2).normal(0, 20, SHAPE).astype(np.float32)
    dirty = np.where(foreground_mask(source, truth), prediction, 9999.0)
    assert score_synthesis(dirty, truth, source) == score_synthesis(prediction, truth, source)


def test_noise_lowers_both_scores_step_by_step() -> None:
    source, truth = scans()
    noise = np.random.default_rng(3).normal(0, 1, SHAPE)
    scores = [score_synthesis(truth + level * noise, truth, source) for level in (5, 20, 60)]
    assert scores[0].psnr_db > scores[1].psnr_db > scores[2].psnr_db
    assert scores[0].ssim > scores[1].ssim > scores[2].ssim


def test_ssim_is_that_of_scikit_image() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.uniform(0, 7, (2, *SHAPE)).astype(np.float32)
    _, expected = structural_similarity(
        a, b, data_range=7.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    np.testing.assert_allclose(ssim_map(a, b, 7.0), expected, atol=2e-5)


def test_the_box_around_the_mask_does_not_change_the_score() -> None:
    source, truth = scans()
    prediction = truth + np.random.default_rng(5).normal(0, 20, SHAPE).astype(np.float32)
    roomy = [np.pad(volume, 30) for volume in (prediction, truth, source)]
    near, far = score_synthesis(prediction, truth, source), score_synthesis(*roomy)
    assert far.psnr_db == pytest.approx(near.psnr_db)
    assert far.ssim == pytest.approx(near.ssim, abs=1e-5)


def test_psnr_is_that_of_scikit_image_in_the_mask() -> None:
    source, truth = scans()
    prediction = truth + np.random.default_rng(6).normal(0, 20, SHAPE).astype(np.float32)
    mask = foreground_mask(source, truth)
    top = np.percentile(truth[mask], 99.5)
    a, b = match_affine(prediction[mask], truth[mask])
    fitted, clipped = np.clip(a * prediction[mask] + b, 0, top), np.clip(truth[mask], 0, top)
    expected = peak_signal_noise_ratio(clipped, fitted, data_range=top)
    assert score_synthesis(prediction, truth, source).psnr_db == pytest.approx(expected, abs=1e-4)


def test_match_is_least_squares_and_never_falls() -> None:
    rng = np.random.default_rng(7)
    x = rng.normal(size=200)
    y = 2.5 * x - 1 + rng.normal(0, 0.1, 200)
    assert match_affine(x, y) == pytest.approx(tuple(np.polyfit(x, y, 1)))
    assert match_affine(-x, y) == (0.0, pytest.approx(y.mean()))
    assert match_affine(np.ones(200), y) == (0.0, pytest.approx(y.mean()))


@pytest.mark.parametrize("length", [16, 17])
def test_sharpness_counts_what_lies_above_half_the_nyquist_frequency(length: int) -> None:
    def wave(cycles_per_voxel: float) -> Volume:
        line = np.cos(2 * np.pi * cycles_per_voxel * np.arange(length, dtype=np.float32))
        return np.broadcast_to(line, (length, length, length)).copy()

    slow, fast = wave(2 / length), wave((length // 2 - 1) / length)
    assert high_frequency_energy(slow) == pytest.approx(0, abs=1e-3)
    assert high_frequency_energy(fast) == pytest.approx(float((fast**2).sum()), rel=1e-4)


def test_blur_lowers_the_sharpness_ratio() -> None:
    source, truth = scans()
    blurred = (truth + np.roll(truth, 1, 0) + np.roll(truth, -1, 0)) / 3
    assert score_synthesis(blurred, truth, source).hf_ratio < 0.9


def test_a_mask_narrows_what_counts() -> None:
    source, truth = scans()
    brain = np.zeros(SHAPE, np.uint8)
    brain[8:12, 8:12, 8:12] = 1
    assert score_synthesis(truth, truth, source, brain).voxels == 64


@pytest.mark.parametrize(
    ("prediction", "truth", "source"),
    [
        (np.full(SHAPE, np.nan), np.ones(SHAPE), np.ones(SHAPE)),
        (np.ones(SHAPE), np.ones(SHAPE), -np.ones(SHAPE)),
        (np.ones(SHAPE), -np.ones(SHAPE), np.ones(SHAPE)),
        (np.ones((4, 5, 6)), np.ones(SHAPE), np.ones(SHAPE)),
    ],
    ids=["nan", "no-source", "no-overlap", "other-grid"],
)
def test_what_cannot_be_scored_is_refused(prediction: Volume, truth: Volume, source: Volume) -> None:
    with pytest.raises(IntensityError, match="expected"):
        score_synthesis(prediction, truth, source)


@pytest.mark.real_data
def test_the_negative_of_t1_scores_as_published(real_data: Path) -> None:
    folder = real_data / "t1_t2" / "glioma-fg6692"
    t1, t2 = (np.asarray(nibabel.load(folder / f"{name}.nii.gz").dataobj, np.float32) for name in ("t1", "t2"))
    score = score_synthesis(-t1, t2, t1)
    assert score.psnr_db == pytest.approx(17.7, abs=0.05)
    assert score.ssim == pytest.approx(0.60, abs=0.01)
