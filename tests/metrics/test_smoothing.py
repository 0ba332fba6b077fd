"""Total variation as the simple answer: it helps, the weight follows the noise, and scikit-image's is what is meant."""

import numpy as np
import pytest
from skimage.restoration import denoise_tv_chambolle

from medgen.errors import IntensityError
from medgen.metrics import smoothing
from medgen.metrics.smoothing import WEIGHTS_HU, best_total_variation, total_variation


def _steps(noise_hu: float, slices: int = 2) -> tuple[np.ndarray, np.ndarray]:
    truth = np.where(np.indices((48, 48, slices))[0] < 24, 40.0, 100.0)
    return truth, truth + noise_hu * np.random.default_rng(0).normal(size=truth.shape)


def test_every_slice_is_denoised_by_itself() -> None:
    _, noisy = _steps(20.0)
    made = total_variation(noisy, 20.0)
    for z in range(2):
        expected = denoise_tv_chambolle(noisy[..., z].astype(np.float32), weight=20.0)
        np.testing.assert_allclose(made[..., z], expected, rtol=1e-5)


@pytest.mark.parametrize("noise_hu", [5.0, 40.0])
def test_it_comes_nearer_than_the_noisy_image_and_no_other_weight_comes_nearer(noise_hu: float) -> None:
    truth, noisy = _steps(noise_hu)

    def error(image: np.ndarray) -> float:
        return float(np.square(np.clip(image, -160, 240) - truth).mean())

    best = error(best_total_variation(noisy, truth))
    assert best < 0.5 * error(noisy)
    assert best == pytest.approx(min(error(total_variation(noisy, weight)) for weight in WEIGHTS_HU))


def test_more_noise_takes_a_larger_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    plain = smoothing.total_variation
    monkeypatch.setattr(
        smoothing, "total_variation", lambda volume, weight: chosen.append(weight) or plain(volume, weight)
    )
    for noise_hu in (4.0, 40.0):
        truth, noisy = _steps(noise_hu)
        best_total_variation(noisy, truth)
    assert chosen[len(WEIGHTS_HU)] < chosen[-1]


def test_unlike_shapes_are_refused() -> None:
    with pytest.raises(IntensityError, match="one grid"):
        best_total_variation(np.zeros((16, 16, 1)), np.zeros((16, 16, 2)))
