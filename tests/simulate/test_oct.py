"""B-scans by formula: one person a seed, surfaces in order, and truth that says what was changed and what is seen."""

from typing import get_args

import numpy as np
import pytest

from medgen.errors import GeometryError, IntensityError
from medgen.simulate.oct import BScan, simulate_bscan
from medgen.simulate.retina import LAYERS, Lesion, healthy_retina

LESIONS: tuple[Lesion, ...] = tuple(lesion for lesion in get_args(Lesion) if lesion)


def _mean(scan: BScan, above_rpe: tuple[float, float]) -> float:
    """Mean grey value of what is seen between two distances from Bruch's membrane [pixels upwards]."""
    away = scan.rpe[:, None] - np.arange(scan.image.shape[1])
    return float(scan.image[(away >= above_rpe[0]) & (away < above_rpe[1]) & scan.seen].mean())


def test_a_seed_is_a_person() -> None:
    first, again, other = simulate_bscan(3), simulate_bscan(3), simulate_bscan(4)
    for name in ("image", "ilm", "rpe", "lesion", "seen"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("shape", [(512, 496), (768, 496), (64, 200)])
def test_the_form(shape: tuple[int, int]) -> None:
    scan = simulate_bscan(1, shape)
    assert scan.image.shape == scan.lesion.shape == scan.seen.shape == shape
    assert scan.ilm.shape == scan.rpe.shape == shape[:1]
    assert scan.image.dtype == scan.ilm.dtype == scan.rpe.dtype == np.float32
    assert np.array_equal(scan.image, np.rint(scan.image))
    assert scan.image.min() >= 0
    assert scan.image.max() <= 255


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(GeometryError, match="at least 32 x 200"):
        simulate_bscan(0, (512, 100))
    with pytest.raises(IntensityError, match="'neovascular', got 'hole'"):
        simulate_bscan(0, lesion="hole")  # type: ignore[arg-type]


@pytest.mark.parametrize("lesion", ["", *LESIONS])
def test_surfaces_are_in_order_and_in_the_image(lesion: Lesion) -> None:
    for seed in range(12):
        scan = simulate_bscan(seed, lesion=lesion)
        assert np.all(scan.ilm > 0)
        assert np.all(scan.rpe < scan.image.shape[1])
        assert np.all(scan.rpe - scan.ilm > 150 / 3.87)


def test_layers_never_cross() -> None:
    for seed in range(12):
        retina = healthy_retina((512, 496), np.random.default_rng(seed))
        assert np.all(np.diff(retina.edges(), axis=0) >= -1e-3)
        assert len(retina.thickness) == len(LAYERS)


def test_healthy_adults_are_as_thick_as_real_ones() -> None:
    """On 15 real B-scans: 221 um at the fovea's bottom, 341 um (302 to 363) 1 mm away, Bruch's membrane included."""
    lowest, rim = [], []
    for seed in range(60):
        scan = simulate_bscan(seed, wedges=False)
        thick = (scan.rpe - scan.ilm) * 3.87
        fovea = 100 + int(thick[100:412].argmin())
        if thick[fovea] < 250:
            lowest.append(thick[fovea])
            rim.append(thick[fovea + 87 if fovea < 256 else fovea - 87])
    assert len(lowest) > 20
    assert 210 < np.mean(lowest) < 240
    assert 315 < np.mean(rim) < 355


def test_layers_have_the_brightness_that_they_have() -> None:
    for seed in range(8):
        scan = simulate_bscan(seed, wedges=False)
        pigment, outer_nuclear = _mean(scan, (2, 7)), _mean(scan, (23, 32))
        inside = (scan.rpe - scan.ilm)[:, None]
        away = scan.rpe[:, None] - np.arange(496)
        plexiform = scan.image[(away > 55) & (away < 65) & (inside > 75)].mean()
        vitreous = scan.image[away > inside + 40].mean()
        assert vitreous < outer_nuclear < plexiform < pigment
        assert pigment > 2.5 * outer_nuclear
        assert scan.image[away > inside + 40].min() == 0
        assert _mean(scan, (-150, -120)) < _mean(scan, (-40, -20)) < pigment


def test_white_is_what_is_not_seen() -> None:
    wedged = [simulate_bscan(seed) for seed in range(8)]
    for scan in wedged:
        assert np.array_equal(scan.image == 255, ~scan.seen)
    assert max(np.mean(~scan.seen) for scan in wedged) > 0.03
    whole = simulate_bscan(5, wedges=False)
    assert whole.seen.all()
    assert np.array_equal(whole.image[wedged[5].seen], wedged[5].image[wedged[5].seen])


@pytest.mark.parametrize("lesion", LESIONS)
def test_a_lesion_changes_the_image_where_it_says(lesion: Lesion) -> None:
    for seed in range(6):
        healthy, ill = simulate_bscan(seed, wedges=False), simulate_bscan(seed, lesion=lesion, wedges=False)
        assert not healthy.lesion.any()
        assert 100 < ill.lesion.sum() < 0.12 * ill.lesion.size
        assert np.array_equal(healthy.rpe, ill.rpe)
        change = np.abs(healthy.image - ill.image)
        assert change[ill.lesion].mean() > 10
        # Beside it nothing: a mound is smooth, so what it lifts reaches farther than the truth, yet not far.
        columns = np.flatnonzero(ill.lesion.any(axis=1))
        beside = np.ones(512, np.bool_)
        beside[max(columns[0] - 90, 0) : columns[-1] + 90] = False
        assert not change[beside].any()
        # Nor in the vitreous above either retina, nor below Bruch's membrane.
        rows = np.arange(496)
        assert not change[rows < (np.minimum(healthy.ilm, ill.ilm) - 6)[:, None]].any()
        assert change[rows > (healthy.rpe + 6)[:, None]].max() <= 12


def test_lesions_lie_where_anatomy_has_them() -> None:
    for seed in range(6):
        rows = np.arange(496)
        for lesion in LESIONS:
            scan = simulate_bscan(seed, lesion=lesion, wedges=False)
            assert not scan.lesion[(rows < scan.ilm[:, None]) | (rows > scan.rpe[:, None])].any()
        fluid, drusen = simulate_bscan(seed, lesion="fluid"), simulate_bscan(seed, lesion="drusen")
        healthy = simulate_bscan(seed)
        assert fluid.image[fluid.lesion].mean() < 45
        assert np.min(fluid.ilm - healthy.ilm) < -5
        above = fluid.rpe[:, None] - rows
        assert above[fluid.lesion].min() > 10
        assert (drusen.rpe[:, None] - rows)[drusen.lesion].min() < 3
