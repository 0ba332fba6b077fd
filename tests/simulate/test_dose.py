"""The physics of a CT at a lower dose: how much noise, of what kind, and what it must leave alone."""

import numpy as np
import numpy.typing as npt
import pytest

from medgen.errors import GeometryError, IntensityError
from medgen.metrics.ct_noise import noise_power, noise_power_distance
from medgen.simulate.dose import (
    KERNELS,
    CtScanner,
    line_integrals,
    lower_dose,
    missing_noise,
    noise_fields,
    scanned,
)

_PIXEL_MM = 1.2
_SIDE = 192
_QUIET = CtScanner(photons=2e5, electronic=0.0, bow_tie=0.0, views=360)


def _disc(radius_mm: float, hu: float = 0.0, side: int = _SIDE) -> npt.NDArray[np.float32]:
    places = (np.arange(side) - (side - 1) / 2) * _PIXEL_MM
    return np.where(np.hypot(*np.meshgrid(places, places, indexing="ij")) < radius_mm, hu, -1000.0).astype(np.float32)


def _middle(image: npt.NDArray[np.float32], half: int = 32) -> npt.NDArray[np.float32]:
    centre = image.shape[0] // 2
    return image[centre - half : centre + half, centre - half : centre + half]


def test_a_ray_through_water_weighs_its_path() -> None:
    integrals = line_integrals(_disc(80.0), _PIXEL_MM, _QUIET)
    central = integrals[len(integrals) // 2]
    assert np.allclose(central, 160.0 * _QUIET.water_per_mm, rtol=0.02)
    assert np.allclose(integrals[:30], 0.0, atol=1e-3)


def test_pairing_fine_pixels_changes_a_line_integral_little() -> None:
    fine = np.kron(_disc(80.0), np.ones((2, 2), np.float32))
    coarse, paired = (
        line_integrals(image, pixel, _QUIET) for image, pixel in ((_disc(80.0), _PIXEL_MM), (fine, _PIXEL_MM / 2))
    )
    assert np.allclose(paired[len(paired) // 2], coarse[len(coarse) // 2], rtol=0.02)


def test_noise_follows_from_the_photons_that_arrive() -> None:
    """In the middle of a disc every ray brings the same number of photons, and theory gives the variance in HU."""
    kernel = 0.3
    quantum, _ = noise_fields(_disc(80.0), _PIXEL_MM, np.random.default_rng(1), kernel=kernel, scanner=_QUIET)
    photons_per_mm = _QUIET.photons * np.exp(-160.0 * _QUIET.water_per_mm)
    # White noise of a sinogram through ramp and window: pi^2 / views * integral of (ramp * window)^2, times the width
    # of an element (Kak and Slaney, Principles of Computerized Tomographic Imaging, chapter 5).
    frequency = np.linspace(0, kernel, 2001)
    transfer = frequency * (0.5 + 0.5 * np.cos(np.pi * frequency / kernel))
    integral = 2 * np.trapezoid(transfer**2, frequency)
    variance = np.pi**2 / _QUIET.views * integral / photons_per_mm
    expected = 1000 / _QUIET.water_per_mm * variance**0.5
    found = _middle(quantum, 24).std()
    assert found == pytest.approx(expected, rel=0.12)


def test_a_finer_grid_has_the_same_noise() -> None:
    scanner = CtScanner(photons=2e4, electronic=30.0, views=180)
    coarse, fine = (
        noise_fields(image, pixel, np.random.default_rng(1), kernel=0.3, scanner=scanner)
        for image, pixel in ((_disc(80.0), _PIXEL_MM), (np.kron(_disc(80.0), np.ones((2, 2))), _PIXEL_MM / 2))
    )
    for one, other in zip(coarse, fine, strict=True):
        assert _middle(other, 48).std() == pytest.approx(_middle(one, 24).std(), rel=0.12)


def test_named_kernels_differ_where_pixels_can_show_it() -> None:
    fine = 0.3
    places = (np.arange(_SIDE) - (_SIDE - 1) / 2) * fine
    image = np.where(np.hypot(*np.meshgrid(places, places, indexing="ij")) < 25, 0.0, -1000.0).astype(np.float32)
    spectra = {
        name: noise_power(
            [_middle(noise_fields(image, fine, np.random.default_rng(6), kernel=name, scanner=_QUIET)[0])], fine
        )
        for name in KERNELS
    }
    beyond = {name: power.power[power.frequency > 0.85].sum() / power.power.sum() for name, power in spectra.items()}
    assert beyond["soft"] < 0.01
    assert beyond["sharp"] > 0.1


def test_a_quarter_of_the_photons_doubles_the_noise() -> None:
    image = _disc(80.0)
    few, many = (
        noise_fields(image, _PIXEL_MM, np.random.default_rng(2), scanner=CtScanner(photons=n, electronic=0, views=180))
        for n in (5e4, 2e5)
    )
    assert np.allclose(few[0], 2 * many[0], rtol=1e-4, atol=1e-3)


def test_the_variances_of_a_lower_dose_add_up_to_that_of_the_scanner() -> None:
    quantum, electronic = np.float32(3.0), np.float32(5.0)
    for fraction in (0.1, 0.25, 0.5, 1.0):
        missing = (
            missing_noise((quantum, np.float32(0)), fraction),
            missing_noise((np.float32(0), electronic), fraction),
        )
        assert quantum**2 + missing[0] ** 2 == pytest.approx(quantum**2 / fraction)
        assert electronic**2 + missing[1] ** 2 == pytest.approx(electronic**2 / fraction**2, rel=1e-5)


def test_at_full_dose_a_scan_comes_back() -> None:
    scan = np.random.default_rng(3).normal(0, 50, (48, 48, 2)).astype(np.float32)
    assert np.array_equal(lower_dose(scan, (0.8, 0.8), 1.0, np.random.default_rng(4), scanner=_QUIET), scan)
    steps = [
        (lower_dose(scan, (0.8, 0.8), fraction, np.random.default_rng(4), scanner=_QUIET) - scan).std()
        for fraction in (0.5, 0.9, 0.99, 0.999)
    ]
    assert steps == pytest.approx([steps[0] * (1 / f - 1) ** 0.5 for f in (0.5, 0.9, 0.99, 0.999)], rel=1e-2)


def test_water_stays_water_and_padding_stays_padding() -> None:
    scan = _disc(80.0)
    scan[:8] = -2000.0
    low = lower_dose(scan, (_PIXEL_MM, _PIXEL_MM), 0.25, np.random.default_rng(5), scanner=_QUIET)
    assert np.array_equal(low[:8], scan[:8])
    error = _middle(low) - _middle(scan)
    assert error.std() > 10
    assert abs(error.mean()) < 1.0  # HU


def test_the_sharper_the_kernel_the_finer_and_stronger_the_noise() -> None:
    image = _disc(80.0)
    soft, sharp = (
        _middle(noise_fields(image, _PIXEL_MM, np.random.default_rng(6), kernel=kernel, scanner=_QUIET)[0])
        for kernel in (0.25, 0.8)
    )
    assert sharp.std() > 2 * soft.std()
    spectra = [noise_power(noise[None], _PIXEL_MM) for noise in (soft, sharp)]
    assert spectra[1].mean_frequency > 1.3 * spectra[0].mean_frequency


def test_the_noise_has_the_power_spectrum_of_back_projection() -> None:
    """Ramp times window squared: little power at low frequencies, none beyond the kernel, and far from white."""
    image, kernel, rng = _disc(90.0), 0.35, np.random.default_rng(7)
    draws = [_middle(noise_fields(image, _PIXEL_MM, rng, kernel=kernel, scanner=_QUIET)[0]) for _ in range(8)]
    found = noise_power(draws, _PIXEL_MM)
    part = np.minimum(found.frequency / kernel, 1.0)
    shape = found.frequency * (0.5 + 0.5 * np.cos(np.pi * part)) ** 2
    ideal = type(found)(found.frequency, shape * found.power.sum() / shape.sum())
    assert noise_power_distance(found, ideal) < 0.2
    white = noise_power(rng.normal(0, np.std(draws), (8, 64, 64)), _PIXEL_MM)
    assert noise_power_distance(white, ideal) > 0.6


def test_a_thick_patient_is_noisier_in_the_middle_and_the_bow_tie_evens_that_out() -> None:
    def ratio(scanner: CtScanner) -> float:
        noise = noise_fields(_disc(100.0), _PIXEL_MM, np.random.default_rng(8), scanner=scanner)[0]
        rim = (_disc(95.0) > -500) & (_disc(80.0) < -500)
        return float(_middle(noise, 20).std() / noise[rim].std())

    plain = ratio(_QUIET)
    filtered = ratio(CtScanner(photons=2e5, bow_tie_mm=100.0, bow_tie=1.0, views=360))
    assert plain > 1.15
    assert filtered < 0.9 * plain


def test_streaks_lie_along_the_thickest_path() -> None:
    """Two dense discs side by side: between them fewest photons arrive along the line that joins them."""
    image = _disc(90.0)
    places = (np.arange(_SIDE) - (_SIDE - 1) / 2) * _PIXEL_MM
    x, y = np.meshgrid(places, places, indexing="ij")
    image[np.hypot(x - 55, y) < 15] = 1500.0
    image[np.hypot(x + 55, y) < 15] = 1500.0
    noise = noise_fields(image, _PIXEL_MM, np.random.default_rng(9), kernel=0.3, scanner=_QUIET)[0]
    centre = _middle(noise, 16).astype(np.float64)
    along, across = (np.diff(centre, axis=axis).var() for axis in (0, 1))
    assert across > 1.5 * along


def test_counts_that_are_drawn_agree_with_noise_that_is_added() -> None:
    image = _disc(70.0)
    rng = np.random.default_rng(10)
    counted = _middle(scanned(image, (_PIXEL_MM, _PIXEL_MM), 1.0, rng, scanner=_QUIET)) - _middle(image)
    added = _middle(noise_fields(image, _PIXEL_MM, rng, scanner=_QUIET)[0])
    assert counted.std() == pytest.approx(added.std(), rel=0.1)
    assert abs(counted.mean()) < 1.0


def test_between_two_hips_of_metal_noise_stays_what_a_logarithm_can_have() -> None:
    image = _disc(110.0)
    for centre in (-50, 50):
        place = _SIDE // 2 + centre
        image[place - 14 : place + 14, _SIDE // 2 - 14 : _SIDE // 2 + 14] = 8000.0
    scanner, rng = CtScanner(photons=3e5, views=360), np.random.default_rng(3)
    sides = (_PIXEL_MM, _PIXEL_MM)
    for fraction in (0.25, 0.1, 0.01):
        counted = scanned(image, sides, fraction, rng, scanner=scanner) - image
        added = lower_dose(image, sides, fraction, rng, scanner=scanner) - image
        assert 0.4 < _middle(added, 16).std() / _middle(counted, 16).std() < 2.5


def test_few_photons_bias_the_mean_upwards_and_many_do_not() -> None:
    """The logarithm of a small count is not fair: it lies too low, so attenuation comes out high."""
    image = _disc(100.0)
    scanner = CtScanner(photons=2e5, electronic=4.0, bow_tie=0.0, views=180)
    means = {}
    for fraction in (1.0, 1e-3):
        errors = [
            _middle(scanned(image, (_PIXEL_MM,) * 2, fraction, np.random.default_rng(seed), scanner=scanner)).mean()
            for seed in range(4)
        ]
        means[fraction] = float(np.mean(errors))
    assert abs(means[1.0]) < 1.5
    assert means[1e-3] > 10


@pytest.mark.parametrize("fraction", [0.0, -1.0, 1.5])
def test_a_fraction_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(IntensityError, match="fraction of the dose"):
        lower_dose(_disc(20.0, side=32), (1.0, 1.0), fraction, np.random.default_rng(0))


def test_other_wrong_inputs_are_named() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(GeometryError, match="square pixels"):
        lower_dose(_disc(20.0, side=32), (1.0, 2.0), 0.5, rng)
    with pytest.raises(IntensityError, match="soft, sharp"):
        lower_dose(_disc(20.0, side=32), (1.0, 1.0), 0.5, rng, kernel="b30f", scanner=_QUIET)
    with pytest.raises(IntensityError, match="above 0"):
        scanned(_disc(20.0, side=32), (1.0, 1.0), 0.0, rng)
    assert set(KERNELS) == {"soft", "sharp"}


def test_a_slice_need_not_be_square() -> None:
    wide = _disc(35.0, side=96)[16:80]
    low = lower_dose(wide, (_PIXEL_MM, _PIXEL_MM), 0.5, np.random.default_rng(1), scanner=_QUIET)
    assert low.shape == wide.shape
    square = noise_fields(_disc(35.0, side=96), _PIXEL_MM, np.random.default_rng(2), scanner=_QUIET)[0]
    cut = noise_fields(wide, _PIXEL_MM, np.random.default_rng(2), scanner=_QUIET)[0]
    assert np.allclose(square[16:80], cut, atol=1e-3)
