"""The model observer sees what is there, guesses where nothing is, and does as theory says in white noise."""

import numpy as np
import pytest

from medgen.errors import GeometryError, IntensityError
from medgen.metrics.observer import detection, disc, matched_sum


def test_a_disc_has_its_area_wherever_it_lies() -> None:
    for centre in ((20.0, 20.0), (19.6, 21.3)):
        assert disc((41, 41), centre, 6.0, 0.8).sum() * 0.8**2 == pytest.approx(np.pi * 36, rel=0.01)
    with pytest.raises(GeometryError, match="radius"):
        disc((9, 9), (4, 4), 0.0, 1.0)


def test_the_sum_is_nearly_the_contrast_of_a_lesion_and_nothing_else() -> None:
    flat = np.full((40, 40), 57.0)
    assert matched_sum(flat, (20, 20), 4.0, 1.0) == pytest.approx(0.0)
    assert matched_sum(flat + 15 * disc((40, 40), (20, 20), 4.0, 1.0), (20, 20), 4.0, 1.0) == pytest.approx(
        15, rel=0.15
    )
    slope = flat + 3 * np.arange(40)[:, None]
    assert matched_sum(slope, (20, 20), 4.0, 1.0) == pytest.approx(0.0, abs=0.05)
    with pytest.raises(GeometryError, match="from the border"):
        matched_sum(flat, (5, 20), 4.0, 1.0)


def _sums(contrast: float, noise: float, seed: int, radius_mm: float = 3.0) -> list[float]:
    rng = np.random.default_rng(seed)
    lesion = contrast * disc((24, 24), (12, 12), radius_mm, 1.0)
    return [matched_sum(lesion + rng.normal(0, noise, lesion.shape), (12, 12), radius_mm, 1.0) for _ in range(300)]


def test_in_white_noise_the_observer_does_as_theory_says() -> None:
    found = detection(_sums(10.0, 25.0, 0), _sums(0.0, 25.0, 1))
    lesion = disc((24, 24), (12, 12), 3.0, 1.0)
    around = disc((24, 24), (12, 12), 6.0, 1.0) - lesion
    template = lesion / lesion.sum() - around / around.sum()
    expected = 10.0 * (template * lesion).sum() / (25.0 * np.sqrt((template**2).sum()))
    assert found.d_prime == pytest.approx(expected, abs=0.25)
    assert found.lesions == 300


def test_no_lesion_is_a_guess_and_a_strong_one_a_certainty() -> None:
    nothing = detection(_sums(0.0, 20.0, 2), _sums(0.0, 20.0, 3))
    assert nothing.auc == pytest.approx(0.5, abs=0.06)
    assert nothing.visible == pytest.approx(0.05, abs=0.05)
    strong = detection(_sums(80.0, 20.0, 4), _sums(0.0, 20.0, 5))
    assert (strong.auc, strong.visible) == (1.0, 1.0)


def test_more_noise_hides_more_and_size_shows_more() -> None:
    quiet, loud = (detection(_sums(10.0, n, 6), _sums(0.0, n, 7)) for n in (15.0, 45.0))
    assert quiet.auc > loud.auc + 0.1
    assert quiet.visible > loud.visible
    small, large = (detection(_sums(8.0, 25.0, 8, r), _sums(0.0, 25.0, 9, r)) for r in (1.5, 5.0))
    assert large.d_prime > 1.5 * small.d_prime


def test_a_dark_lesion_is_seen_as_one() -> None:
    dark = detection(_sums(-20.0, 20.0, 10), _sums(0.0, 20.0, 11), sign=-1.0)
    assert dark.auc > 0.95


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(IntensityError, match="two finite"):
        detection([1.0], [0.0, 2.0])
    with pytest.raises(IntensityError, match="two finite"):
        detection([1.0, np.nan], [0.0, 2.0])
    same = detection([2.0, 2.0], [1.0, 1.0])
    assert same.d_prime == float("inf")
    assert detection([1.0, 1.0], [1.0, 1.0]).d_prime == 0.0
