"""Grids: conversions go there and back, and a difference of grids is found wherever it lies."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medgen.geometry import Grid, lps_to_ras, orientation_codes, ras_to_lps, shear_degrees, spacing_mm


def oblique(spacing: tuple[float, float, float], angles: tuple[float, float, float]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    affine[:3, 3] = [-80.5, 31.25, 12.0]
    return affine


spacings = st.tuples(*[st.floats(0.3, 8.0)] * 3)
angles = st.tuples(*[st.floats(-180.0, 180.0)] * 3)


@given(spacings, angles)
def test_spacing_survives_any_rotation(spacing: tuple[float, float, float], turn: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(spacing_mm(oblique(spacing, turn)), spacing, rtol=1e-9)


@given(spacings, angles)
def test_ras_and_lps_go_there_and_back(spacing: tuple[float, float, float], turn: tuple[float, float, float]) -> None:
    affine = oblique(spacing, turn)
    np.testing.assert_allclose(lps_to_ras(ras_to_lps(affine)), affine)


@given(angles)
def test_orientation_names_every_axis_once(turn: tuple[float, float, float]) -> None:
    codes = orientation_codes(oblique((0.7, 1.3, 5.0), turn))
    assert sorted("RL".find(c) >= 0 for c in codes).count(True) == 1
    assert sorted("AP".find(c) >= 0 for c in codes).count(True) == 1
    assert sorted("SI".find(c) >= 0 for c in codes).count(True) == 1


@pytest.mark.parametrize(("matrix", "codes"), [(np.diag([1, 1, 1, 1]), "RAS"), (np.diag([-1, -1, 1, 1]), "LPS")])
def test_orientation_of_the_two_conventions(matrix: np.ndarray, codes: str) -> None:
    assert orientation_codes(matrix) == codes


@given(spacings, angles)
def test_a_rotation_has_no_shear(spacing: tuple[float, float, float], turn: tuple[float, float, float]) -> None:
    assert shear_degrees(oblique(spacing, turn)) < 1e-4


def test_a_tilted_gantry_shows_as_shear() -> None:
    affine = np.diag([0.5, 0.6, 4.0, 1.0])
    affine[1, 2] = -4.0 * np.tan(np.radians(18.5))
    assert shear_degrees(affine) == pytest.approx(18.5)


@given(spacings, angles)
def test_a_grid_is_the_same_as_itself(spacing: tuple[float, float, float], turn: tuple[float, float, float]) -> None:
    grid = Grid((7, 9, 5), oblique(spacing, turn))
    assert grid.differs_from(Grid((7, 9, 5), grid.affine.copy())) == ""


def test_a_small_turn_shows_at_the_far_corner() -> None:
    straight = Grid((256, 256, 40), oblique((0.9, 0.8, 3.0), (0, 0, 0)))
    turned = Grid((256, 256, 40), oblique((0.9, 0.8, 3.0), (0, 0, 0.1)))
    assert "corner" in straight.differs_from(turned)


def test_another_shape_is_another_grid() -> None:
    assert "shape" in Grid((2, 3, 4), np.eye(4)).differs_from(Grid((2, 3, 5), np.eye(4)))


def test_a_grid_describes_itself() -> None:
    assert Grid((256, 224, 26), np.diag([-0.9, 0.95, 5.5, 1])).describe() == "256x224x26 at 0.9x0.95x5.5 mm, LAS"
