"""The CT protocol against scikit-image and against numbers that can be worked out."""

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from medgen.errors import IntensityError
from medgen.metrics.hounsfield import _ssim, best_monotone_ct, body_mask, dice, score_ct, score_item


@pytest.fixture
def head() -> np.ndarray:
    """A ball of soft tissue with a shell of bone and a cavity of air."""
    x, y, z = np.indices((24, 26, 28)) - np.reshape([12, 13, 14], (3, 1, 1, 1))
    radius = np.sqrt(x**2 + y**2 + z**2)
    ct = np.full(radius.shape, -1000.0, np.float32)
    ct[radius < 11] = 40
    ct[(radius < 9) & (radius > 7)] = 1200
    ct[np.sqrt(x**2 + y**2 + (z - 4) ** 2) < 3] = -1000
    return ct + np.random.default_rng(0).normal(0, 3, ct.shape).astype(np.float32)


def test_the_truth_itself_is_perfect(head: np.ndarray) -> None:
    score = score_ct(head, head)
    assert (score.mae_hu, score.bone_dice, score.air_dice) == (0, 1, 1)
    assert score.ssim == pytest.approx(1)
    assert score.psnr_db == np.inf


def test_a_constant_error_is_known(head: np.ndarray) -> None:
    score = score_ct(head + 20, head)
    assert score.mae_hu == pytest.approx(20, rel=1e-4)
    assert score.psnr_db == pytest.approx(20 * np.log10(4024 / 20), abs=0.05)


def test_the_cavity_belongs_to_the_body_and_the_air_around_does_not(head: np.ndarray) -> None:
    body = body_mask(head)
    assert body[12, 13, 18]
    assert not body[0, 0, 0]
    padded = np.pad(head, 5, constant_values=-1000)
    assert score_ct(padded + 20 * (padded > -900), padded).voxels == score_ct(head, head).voxels


def test_ssim_is_scikit_images(head: np.ndarray) -> None:
    other = head + np.random.default_rng(1).normal(0, 100, head.shape).astype(np.float32)
    everywhere = np.ones(head.shape, bool)
    clipped = [np.clip(v, -1024, 3000).astype(np.float64) + 1024 for v in (other, head)]
    _, expected = structural_similarity(*clipped, data_range=4024, win_size=7, full=True)
    inner = (slice(4, -4),) * 3
    mask = np.zeros(head.shape, bool)
    mask[inner] = True
    np.testing.assert_allclose(_ssim(*clipped, 4024.0)[inner], expected[inner], rtol=1e-6)
    assert score_ct(other, head, everywhere).ssim == pytest.approx(expected.mean(), abs=0.02)


def test_values_beyond_the_range_count_in_hu_but_not_in_psnr(head: np.ndarray) -> None:
    metal = head.copy()
    metal[12, 13, 14] = 9000
    truth = head.copy()
    truth[12, 13, 14] = 3000
    score = score_ct(metal, truth)
    assert score.psnr_db == np.inf
    assert score.mae_hu > 0


def test_overlaps_are_those_of_the_thresholds(head: np.ndarray) -> None:
    blurred = np.where(head > 250, 240, head)
    assert score_ct(blurred, head).bone_dice == 0
    assert np.isnan(dice(np.zeros(3, bool), np.zeros(3, bool)))


def test_what_cannot_be_compared_is_refused(head: np.ndarray) -> None:
    with pytest.raises(IntensityError, match="one grid"):
        score_ct(head[:-1], head)
    with pytest.raises(IntensityError, match="NaN"):
        score_ct(head * np.nan, head)
    with pytest.raises(IntensityError, match="-500 HU"):
        score_ct(head, np.full_like(head, -1000))


def test_an_items_body_is_used(head: np.ndarray) -> None:
    part = np.zeros(head.shape, bool)
    part[12:] = True
    wrong = head + 50 * (~part)
    assert score_item(wrong, {"target": head, "body": part & body_mask(head)})["mae_hu"] == 0
    assert score_item(wrong, {"target": head, "mask": part.astype(np.float32)})["mae_hu"] == 0  # beyond the CT's view
    assert score_item(wrong, {"target": head})["mae_hu"] > 10


def test_no_order_keeping_mapping_is_nearer_than_the_best(head: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    body = body_mask(head)
    source = np.where(head > 200, 100, np.where(head < -500, 60, 400)) + rng.normal(0, 30, head.shape)  # bone near air
    best = best_monotone_ct(source, head, body)
    order = np.argsort(source[body])
    for sign in (1, -1):
        steps = sign * np.diff(best[body][order])
        if (steps >= 0).all():
            break
    else:
        pytest.fail("the mapping is not monotone")
    error = np.abs(best - head)[body].mean()
    for low, high in ((-1000, 40), (1200, 40), (40, 40)):
        assert error <= np.abs(np.where(source < 200, low, high) - head)[body].mean() + 3  # 256 levels, steps of 4 HU


def test_a_monotone_truth_is_found_whole_in_either_direction(head: np.ndarray) -> None:
    for source in (head * 0.3 + 500, 2000 - head):
        assert np.abs(best_monotone_ct(source, head, np.ones(head.shape)) - head).mean() < 6
