"""Where the retina lies: surfaces of simulated B-scans are found, whatever lesion and pixel; others are refused."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from scipy import ndimage

from medgen.errors import IntensityError
from medgen.prepare.retina import Plane, cheapest_path, find_retina, seen_mask, smooth_hull
from medgen.simulate.oct import simulate_bscan
from medgen.simulate.retina import Lesion
from medgen.simulate.sample import head_grid, simulate_t1


def resized(image: Plane, shape: tuple[int, int]) -> Plane:
    factors = [new / old for new, old in zip(shape, image.shape, strict=True)]
    zoomed = ndimage.zoom(image, factors, order=1, grid_mode=True, mode="nearest")
    return np.asarray(np.clip(np.rint(zoomed), 0, 255), dtype=np.float32)


def noise() -> Plane:
    return np.random.default_rng(0).uniform(0, 255, (512, 496)).astype(np.float32)


def clouds() -> Plane:
    return np.asarray(ndimage.gaussian_filter(noise(), 8), dtype=np.float32)


def deeper_is_brighter() -> Plane:
    return np.tile(np.linspace(0, 255, 496, dtype=np.float32), (512, 1))


def deeper_is_darker() -> Plane:
    return np.ascontiguousarray(deeper_is_brighter()[:, ::-1])


def turned() -> Plane:
    return np.ascontiguousarray(simulate_bscan(0, wedges=False).image.T)


def one_grey() -> Plane:
    return np.full((512, 496), 7.0, np.float32)


@pytest.mark.parametrize("lesion", ["", "drusen", "fluid", "neovascular"])
def test_surfaces_are_found_whatever_lifts_the_retina(lesion: Lesion) -> None:
    for seed in range(3):
        scan = simulate_bscan(seed, lesion=lesion)
        found = find_retina(scan.image)
        assert np.all(found.ilm < found.bruch)
        assert np.median(np.abs(found.ilm - scan.ilm)) < 1.5
        assert np.percentile(np.abs(found.ilm - scan.ilm), 95) < 4
        assert np.median(np.abs(found.bruch - scan.rpe)) < 6
        assert np.abs(found.bruch - scan.rpe).max() < 10


def test_the_bright_band_rises_over_drusen_and_bruchs_membrane_stays_under_them() -> None:
    for seed in (1, 5):
        healthy, ill = (find_retina(simulate_bscan(seed, lesion=lesion).image) for lesion in ("", "drusen"))
        assert (healthy.rpe - ill.rpe).max() > 6
        assert np.abs(healthy.bruch - ill.bruch).max() < 2


def test_wedges_are_found_and_little_else() -> None:
    for seed in (2, 3, 5):
        scan = simulate_bscan(seed)
        found = find_retina(scan.image)
        assert (~scan.seen).mean() > 0.03
        assert found.seen[~scan.seen].mean() < 0.06
        assert found.seen[scan.seen].mean() > 0.98
        assert np.array_equal(found.seen, seen_mask(scan.image))


def test_black_borders_are_not_seen_and_dark_vitreous_is() -> None:
    scan = simulate_bscan(4, wedges=False)
    assert seen_mask(scan.image)[3:-3].all()
    assert not seen_mask(scan.image)[[0, 1, 2, -3, -2, -1]].any()  # where exports have a line
    image = scan.image.copy()
    image[:40], image[:, -25:] = 0, 0
    seen = seen_mask(image)
    assert not seen[:36].any()
    assert not seen[:, -21:].any()
    assert seen[50:-3, :-35].all()


def test_a_lesion_that_is_as_bright_as_a_wedge_is_seen() -> None:
    image = simulate_bscan(4, wedges=False).image
    image[200:260, 200:230] = 255
    image[:10, 240:260] = 255  # a saturated layer that ends at the side
    assert seen_mask(image)[3:-3].all()


def test_another_pixel_size_gives_the_same_surfaces() -> None:
    """Surfaces in um from the picture's upper edge, A-scans half as far apart, pixels a third deeper."""
    for seed in (0, 2):
        scan = simulate_bscan(seed)
        usual = find_retina(scan.image)
        other = find_retina(resized(scan.image, (1024, 372)), axial_um=3.87 * 496 / 372, lateral_um=11.5 / 2)
        assert other.ilm.shape == other.rpe.shape == other.bruch.shape == (1024,)
        assert other.seen.shape == (1024, 372)
        places = (np.arange(1024) + 0.5) / 2 - 0.5
        for name, allowed_um in (("ilm", 4.0), ("rpe", 4.0), ("bruch", 2.0)):
            expected = (np.interp(places, np.arange(512), getattr(usual, name)) + 0.5) * 3.87
            apart = np.abs((getattr(other, name) + 0.5) * 3.87 * 496 / 372 - expected)
            assert np.percentile(apart, 90) < allowed_um


def test_grey_values_may_have_any_scale() -> None:
    image = simulate_bscan(1).image
    usual, other = find_retina(image), find_retina(image / np.float32(255) - np.float32(3))
    assert np.array_equal(usual.seen, other.seen)
    for name in ("ilm", "rpe", "bruch"):
        np.testing.assert_allclose(getattr(usual, name), getattr(other, name), atol=0.5)


@pytest.mark.parametrize("picture", [noise, clouds, deeper_is_brighter, deeper_is_darker, turned, one_grey])
def test_what_is_no_bscan_is_refused(picture: Callable[[], Plane]) -> None:
    with pytest.raises(IntensityError, match="expected a B-scan of a retina"):
        find_retina(picture())


def test_a_bscan_that_stands_on_its_head_is_refused() -> None:
    for seed in range(4):
        image = simulate_bscan(seed, wedges=False).image
        with pytest.raises(IntensityError, match="without a dark vitreous above"):
            find_retina(np.ascontiguousarray(image[:, ::-1]))


def test_a_bscan_in_black_on_white_is_refused() -> None:
    for seed in range(4):
        with pytest.raises(IntensityError, match="bright on a dark background"):
            find_retina(255 - simulate_bscan(seed).image)


@pytest.mark.parametrize("head", [True, False])
def test_slices_of_a_brain_are_refused(head: bool) -> None:
    volume = simulate_t1(head_grid((40, 50, 42), (4.0, 4.0, 4.0)), seed=0, head=head)
    for plane in (volume[20], volume[:, 25], volume[:, :, 21]):
        with pytest.raises(IntensityError, match="expected a B-scan of a retina"):
            find_retina(resized(plane * (255 / plane.max()), (512, 496)))


@pytest.mark.parametrize("slope", [1, 2])
def test_the_cheapest_path_is_cheaper_than_all_others(slope: int) -> None:
    def price(cost: Plane, path: tuple[int, ...]) -> float:
        steps = np.abs(np.diff(path))
        way = float(cost[np.arange(len(path)), list(path)].sum() + 0.02 * steps.sum())
        return way if steps.max() <= slope else np.inf

    for seed in range(6):
        cost = np.random.default_rng(seed).random((5, 6), dtype=np.float32)
        path = cheapest_path(cost, slope)
        cheapest = min(price(cost, way) for way in product(range(6), repeat=5))
        assert price(cost, tuple(path.tolist())) == pytest.approx(cheapest)


def test_a_path_goes_straight_where_all_ways_cost_the_same() -> None:
    assert len(set(cheapest_path(np.ones((20, 9)), 3).tolist())) == 1


def test_the_hull_follows_the_deep_side_under_a_bump() -> None:
    x = np.arange(400)
    base = 200 + 0.05 * x + 30 * ((x - 200) / 200.0) ** 2
    wavering = base + np.random.default_rng(0).normal(0, 0.5, 400)
    bump = 25 * np.exp(-(((x - 130) / 25.0) ** 2))
    trusted = np.ones(400, np.bool_)
    above, below = (smooth_hull(wavering + sign * bump, trusted, 2) for sign in (-1, 1))
    assert np.abs(above - base).max() < 1.5
    # A dent is held for the deep side itself, until it is an outlier: it draws the curve more than a bump does.
    assert np.abs(below - base).max() > np.abs(above - base).max()
    plain = np.polyval(np.polyfit(x, wavering - bump, 2), x)
    assert np.abs(plain - base).max() > 4


def test_the_hull_stays_below_several_bumps_that_lift_half_of_the_line() -> None:
    x = np.arange(400)
    base = 200 + 0.05 * x + 30 * ((x - 200) / 200.0) ** 2
    bumps = sum(12 * np.exp(-(((x - place) / 25) ** 2)) for place in (90, 200, 310))
    wavering = base + np.random.default_rng(0).normal(0, 0.5, 400)
    assert np.mean(np.asarray(bumps) > 1.5) > 0.5
    assert np.abs(smooth_hull(wavering - bumps, np.ones(400, np.bool_), 2) - base).max() < 2


def test_the_hull_does_not_look_at_points_that_are_not_trusted() -> None:
    x = np.arange(300)
    line, trusted = 100 + 0.1 * x, x >= 80
    astray = np.where(trusted, line, 400.0)
    np.testing.assert_allclose(smooth_hull(astray, trusted, 2), line, atol=1e-6)


def test_a_wedge_that_cuts_the_retina_does_not_bend_its_base() -> None:
    for seed in range(4):
        scan = simulate_bscan(seed, wedges=False)
        image = scan.image.copy()
        x, y = np.indices(image.shape)
        image[y > scan.rpe.max() + 60 - 1.2 * (x - 300)] = 255  # a slanted one that covers the retina on the right
        covered = (image == 255)[np.arange(len(image)), np.rint(scan.rpe).astype(int)]
        assert 0.1 < covered.mean() < 0.6
        found, usual = find_retina(image), find_retina(scan.image)
        assert np.abs(found.bruch - usual.bruch)[~covered].max() < 6
