"""The simulated brain: fractions add up, anatomy belongs to the seed and not to the grid, and it looks like a brain."""

from collections.abc import Mapping

import numpy as np
import pytest

from medgen.geometry import Grid
from medgen.simulate.brain import TISSUES, Array, simulate_brain
from medgen.simulate.sample import head_grid, sagittal
from medgen.simulate.signal import t1_weighted, t2_weighted

OBLIQUE = head_grid((72, 84, 70), (2.3, 2.35, 2.2), tilt_degrees=17.0)


def cut(grid: Grid, start: tuple[int, int, int], shape: tuple[int, int, int]) -> Grid:
    """A part of a grid."""
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ start
    return Grid(shape, affine)


START, SHAPE = (24, 30, 28), (20, 22, 18)
PART = cut(OBLIQUE, START, SHAPE)
INSIDE = tuple(slice(begin, begin + count) for begin, count in zip(START, SHAPE, strict=True))


@pytest.fixture(scope="module")
def brain() -> Mapping[str, Array]:
    return simulate_brain(OBLIQUE, seed=3)


def test_fractions_lie_between_0_and_1_and_leave_the_rest_to_air(brain: Mapping[str, Array]) -> None:
    assert set(brain) == set(TISSUES)
    total = sum(brain.values())
    assert all(part.min() >= 0 and part.shape == OBLIQUE.shape and part.dtype == np.float32 for part in brain.values())
    assert total.max() <= 1 + 1e-5
    assert total[0, 0, -1] == 0  # a corner above the head is air


def test_same_seed_same_person_other_seed_another(brain: Mapping[str, Array]) -> None:
    again, other = simulate_brain(PART, seed=3), simulate_brain(PART, seed=4)
    assert all(np.allclose(again[name], brain[name][INSIDE], atol=1e-3) for name in TISSUES)
    assert np.abs(again["grey"] - other["grey"]).mean() > 0.01


def test_anatomy_does_not_depend_on_how_the_grid_is_stored() -> None:
    turned = simulate_brain(sagittal(PART), seed=3)["white"]
    expected = simulate_brain(PART, seed=3)["white"].transpose(1, 2, 0)[::-1, ::-1, ::-1]
    np.testing.assert_allclose(turned, expected, atol=1e-3)


def test_a_thick_slice_is_the_mean_of_the_thin_ones_in_it() -> None:
    thin = head_grid((60, 12, 40), (2.3, 2.2, 1.5))
    affine = thin.affine.copy()
    affine[:3, 2] *= 4
    affine[:3, 3] += 1.5 * thin.affine[:3, 2]
    thick = simulate_brain(Grid((60, 12, 10), affine), seed=1)["csf"]
    mean = simulate_brain(thin, seed=1)["csf"].reshape(60, 12, 10, 4).mean(axis=3)
    assert np.abs(thick - mean).mean() < 0.01


def test_volumes_are_those_of_an_adult(brain: Mapping[str, Array]) -> None:
    millilitres = {name: float(part.sum()) * np.prod(OBLIQUE.spacing_mm) / 1000 for name, part in brain.items()}
    assert 900 < millilitres["grey"] + millilitres["white"] < 1600
    assert 0.6 < millilitres["grey"] / millilitres["white"] < 1.8
    assert 100 < millilitres["csf"] < 500


def test_without_head_nothing_lies_outside_the_brain() -> None:
    shell = cut(OBLIQUE, (0, 40, 20), (72, 4, 30))
    stripped = simulate_brain(shell, seed=3, head=False)
    assert simulate_brain(shell, seed=3)["bone"].max() > 0.9
    assert stripped["bone"].max() == stripped["fat"].max() == stripped["muscle"].max() == 0


def test_t1_and_t2_order_the_tissues_as_radiologists_know_them(brain: Mapping[str, Array]) -> None:
    pure = {name: brain[name] > 0.95 for name in ("csf", "grey", "white")}
    t1, t2 = t1_weighted(brain), t2_weighted(brain)
    mean = {(name, which): image[pure[name]].mean() for name in pure for which, image in (("t1", t1), ("t2", t2))}
    assert mean["white", "t1"] > mean["grey", "t1"] > mean["csf", "t1"]
    assert mean["white", "t2"] < mean["grey", "t2"] < mean["csf", "t2"]
