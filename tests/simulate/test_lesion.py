"""Lesions by formula."""

import numpy as np
import pytest

from medgen.simulate.lesion import LesionRange, add_lesions, draw_lesions

PLACES = np.ones((40, 44, 36), dtype=bool)


def test_the_same_seed_gives_the_same_lesions() -> None:
    first, second = (draw_lesions(PLACES, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("seed", range(8))
def test_cover_is_a_share_and_brightness_is_in_its_range(seed: int) -> None:
    cover, brightness = draw_lesions(PLACES, np.random.default_rng(seed), LesionRange(brightness=(1.1, 1.9)))
    assert 0 <= cover.min() <= cover.max() <= 1
    assert cover.max() > 0.5
    inside = brightness[cover > 0.5]
    assert 0.8 < inside.min() <= inside.max() < 2.2  # the range, and what is uneven about it


def test_without_a_place_there_is_no_lesion() -> None:
    cover, _ = draw_lesions(np.zeros((20, 20, 20), dtype=bool), np.random.default_rng(0))
    assert cover.max() == 0


def test_small_lesions_are_more_frequent_than_large_ones() -> None:
    sizes = []
    for seed in range(60):
        cover, _ = draw_lesions(PLACES, np.random.default_rng(seed), LesionRange(radius_mm=(1.0, 12.0), count=0.0))
        sizes.append((cover > 0.5).sum())
    assert np.median(sizes) < 0.1 * np.max(sizes)


def test_a_lesion_lifts_its_surroundings_and_keeps_their_noise() -> None:
    rng = np.random.default_rng(0)
    image = (1 + 0.05 * rng.normal(size=PLACES.shape)).astype(np.float32)
    cover = np.zeros(PLACES.shape, np.float32)
    cover[10:30, 10:30, 10:30] = 1
    lifted = add_lesions(image, cover, np.full(PLACES.shape, 1.5, np.float32))
    np.testing.assert_array_equal(lifted[cover == 0], image[cover == 0])
    inner = (slice(14, 26),) * 3
    assert lifted[inner].mean() == pytest.approx(1.5, abs=0.01)
    assert lifted[inner].std() == pytest.approx(image[inner].std(), rel=0.15)


def test_what_is_brighter_already_does_not_change() -> None:
    image = np.full(PLACES.shape, 3.0, np.float32)
    np.testing.assert_allclose(add_lesions(image, np.ones_like(image), np.full_like(image, 1.5)), image)
