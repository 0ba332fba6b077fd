"""A trunk by formula: CT numbers where they belong, one person a seed, the same body on any grid."""

import numpy as np

from medgen.geometry import Grid
from medgen.infer.appearance import view_of
from medgen.infer.region import body_measures, region_of
from medgen.simulate.trunk import trunk_hu


def _grid(side_mm: float, shape: tuple[int, int, int]) -> Grid:
    affine = np.diag([side_mm, side_mm, 5.0, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape, affine)


def test_it_is_an_abdomen_in_hu() -> None:
    grid = _grid(2.0, (192, 160, 5))
    trunk = trunk_hu(grid)
    assert trunk.dtype == np.float32
    assert trunk.min() == -1000
    assert 400 < trunk.max() < 700
    assert region_of(body_measures(view_of(trunk, grid.affine, whole=True).image)) == "abdomen"
    liver = trunk[192 // 2 + 30 : 192 // 2 + 36, 80:86, 2]
    assert 80 < np.median(liver) < 160


def test_people_differ_and_stay_themselves() -> None:
    grid = _grid(4.0, (96, 80, 2))
    assert np.array_equal(trunk_hu(grid, 3), trunk_hu(grid, 3))
    assert not np.array_equal(trunk_hu(grid, 3), trunk_hu(grid, 4))


def test_finer_voxels_show_the_same_body() -> None:
    coarse, fine = trunk_hu(_grid(4.0, (80, 60, 3)), 1), trunk_hu(_grid(2.0, (160, 120, 3)), 1)
    blocks = fine.reshape(80, 2, 60, 2, 3).mean(axis=(1, 3))
    assert np.median(np.abs(blocks - coarse)) < 1
    assert np.corrcoef(blocks.ravel(), coarse.ravel())[0, 1] > 0.98
