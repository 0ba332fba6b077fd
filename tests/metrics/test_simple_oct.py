"""Simple answers on flattened B-scans: what is like the normal ones scores low, and nothing else is learnt from."""

import numpy as np
import pytest

from medgen.metrics.simple_oct import (
    BASELINES,
    Flat,
    greatest_thickness,
    mean_bscan,
    principal_components,
    thickness,
)

COLUMNS, ROWS, TOP = 80, 16, 5


def flat(seed: int, top: int = TOP, columns: int = COLUMNS) -> Flat:
    """A band of two layers below the vitreous, a little other in each person, with noise."""
    random = np.random.default_rng(seed)
    rows = np.arange(ROWS)
    level = np.where(rows < top, -1.0, np.where(rows < top + 4, 0.4, -0.3))
    waves = 0.1 * np.sin(2 * np.pi * np.arange(columns) / 40 + random.uniform(0, 6))[:, None] * (rows >= top)
    band = level + waves + 0.03 * random.normal(size=(columns, ROWS))
    return band.astype(np.float32), np.broadcast_to((rows >= top) & (rows < ROWS - 2), band.shape)


def with_block(seed: int) -> Flat:
    """The same with something bright in its retina."""
    band, retina = flat(seed)
    changed = band.copy()
    changed[30:42, 8:13] = 1.0
    return changed, retina


NORMAL = [flat(seed) for seed in range(6)]


@pytest.mark.parametrize("name", ["thickness", "greatest thickness"])
def test_a_thicker_retina_scores_higher(name: str) -> None:
    fitted = BASELINES[name](NORMAL)
    assert fitted(flat(20)) < fitted(flat(20, top=TOP - 2))


@pytest.mark.parametrize("name", ["mean B-scan", "30 principal components", "80 principal components"])
@pytest.mark.parametrize("abnormal", ["block", "thicker"])
def test_what_is_not_like_normal_scans_scores_higher(name: str, abnormal: str) -> None:
    # Few of the tests' bands are learnt from: as many components as there are patches would restore anything.
    fitted = BASELINES[name](NORMAL)
    changed = with_block(20) if abnormal == "block" else flat(20, top=TOP - 2)
    assert fitted(changed) > 1.3 * fitted(flat(20))


def test_thickness_is_the_distance_from_the_usual_in_rows() -> None:
    fitted = thickness([flat(0, top=4), flat(1, top=6)])
    assert [fitted(flat(2, top=top)) for top in (4, 5, 6, 8)] == [1.0, 0.0, 1.0, 3.0]


def test_greatest_thickness_is_a_number_of_rows_whatever_is_normal() -> None:
    band, retina = flat(0)
    bulged = retina.copy()
    bulged[40, TOP - 3 :] = True
    assert greatest_thickness(NORMAL)((band, retina)) == ROWS - 2 - TOP
    assert greatest_thickness([])((band, bulged)) == ROWS - TOP + 3


def test_columns_without_a_retina_do_not_count_as_thin() -> None:
    band, retina = flat(0)
    cut = retina.copy()
    cut[:30] = False
    assert thickness(NORMAL)((band, cut)) == thickness(NORMAL)((band, retina)) == 0.0
    assert greatest_thickness(NORMAL)((band, np.zeros_like(retina))) == 0.0


def test_the_mean_scan_is_compared_from_the_middle_on_and_in_the_retina_alone() -> None:
    band, retina = flat(20)
    fitted = mean_bscan(NORMAL)
    outside = np.where(retina, band, np.float32(9))
    assert fitted((outside, retina)) == fitted((band, retina))
    wide, mask = flat(20, columns=COLUMNS + 20)
    assert fitted((wide, mask)) == pytest.approx(fitted((wide[10:-10], mask[10:-10])))
    assert fitted((band[8:-8], retina[8:-8])) < 1.2 * fitted((band, retina))
    assert mean_bscan([(band, retina)])((band, retina)) == 0.0


def test_more_components_restore_better_what_was_and_was_not_learnt_from() -> None:
    few, many = (principal_components(NORMAL, components, size=8) for components in (2, 80))
    for seed in (0, 20):
        assert many(flat(seed)) < 0.8 * few(flat(seed))
    assert many(with_block(20)) > 1.5 * many(flat(20))


def test_the_baselines_have_as_many_components_as_they_are_called_by() -> None:
    for components in (30, 80):
        named = BASELINES[f"{components} principal components"](NORMAL)
        assert named(flat(20)) == principal_components(NORMAL, components)(flat(20))
    assert BASELINES["30 principal components"](NORMAL)(flat(20)) != principal_components(NORMAL, 80)(flat(20))


def test_the_last_columns_are_scored_too() -> None:
    band, retina = flat(20, columns=COLUMNS + 3)
    changed = band.copy()
    changed[-2:, 8:13] = 1.0
    fitted = principal_components(NORMAL, 10, size=8)
    assert fitted((changed, retina)) > fitted((band, retina))


@pytest.mark.parametrize("name", list(BASELINES))
def test_nothing_is_learnt_from_what_is_scored(name: str) -> None:
    fitted = BASELINES[name](NORMAL)
    first = fitted(flat(20))
    for seed in range(30, 34):
        fitted(with_block(seed))
    assert fitted(flat(20)) == first
    assert all(np.array_equal(band, flat(seed)[0]) for seed, (band, _) in enumerate(NORMAL))
