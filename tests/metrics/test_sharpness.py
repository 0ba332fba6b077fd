"""Sharpness on a disc: a known blur gives the known curve, whatever the contrast; noise is what contrast is over."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medgen.errors import GeometryError, IntensityError
from medgen.metrics.observer import disc
from medgen.metrics.sharpness import contrast_to_noise, disc_transfer

_PIXEL_MM = 0.7
_SHAPE, _CENTRE, _RADIUS_MM = (96, 96), (47.3, 48.6), 15.0


def _blurred(sigma_mm: float, contrast: float = 100.0) -> np.ndarray:
    return 40 + contrast * gaussian_filter(disc(_SHAPE, _CENTRE, _RADIUS_MM, _PIXEL_MM), sigma_mm / _PIXEL_MM)


@pytest.mark.parametrize("contrast", [-30.0, 500.0])
@pytest.mark.parametrize("sigma_mm", [0.8, 1.5])
def test_a_gaussian_blur_gives_its_own_curve(sigma_mm: float, contrast: float) -> None:
    transfer = disc_transfer(_blurred(sigma_mm, contrast), _CENTRE, _RADIUS_MM, _PIXEL_MM)
    assert transfer.value[0] == pytest.approx(1.0)
    low = transfer.frequency < 0.35
    # A pixel shows its own mean.
    expected = np.exp(-2 * (np.pi * sigma_mm * transfer.frequency) ** 2) * np.sinc(transfer.frequency * _PIXEL_MM)
    np.testing.assert_allclose(transfer.value[low], expected[low], atol=0.04)
    assert transfer.half == pytest.approx(np.sqrt(np.log(2) / 2) / (np.pi * sigma_mm), rel=0.08)


def test_a_sharper_disc_has_the_higher_half() -> None:
    halves = [disc_transfer(_blurred(sigma), _CENTRE, _RADIUS_MM, _PIXEL_MM).half for sigma in (0.0, 0.8, 1.6)]
    assert halves == sorted(halves, reverse=True)


def test_contrast_to_noise_is_that_of_the_noise_put_in() -> None:
    noise = np.random.default_rng(0).normal(0, 8, _SHAPE)
    assert contrast_to_noise(_blurred(0.5, 40.0) + noise, _CENTRE, _RADIUS_MM, _PIXEL_MM) == pytest.approx(5.0, rel=0.1)


def test_a_disc_beyond_the_slice_or_without_contrast_is_refused() -> None:
    with pytest.raises(GeometryError, match="25 mm around"):
        disc_transfer(_blurred(1.0), (20.0, 48.0), _RADIUS_MM, _PIXEL_MM)
    with pytest.raises(GeometryError, match="30 mm around"):
        contrast_to_noise(_blurred(1.0), (20.0, 48.0), _RADIUS_MM, _PIXEL_MM)
    with pytest.raises(IntensityError, match="differs"):
        disc_transfer(np.full(_SHAPE, 7.0), _CENTRE, _RADIUS_MM, _PIXEL_MM)
