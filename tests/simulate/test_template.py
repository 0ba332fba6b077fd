"""An averaged head becomes labels: skull around fluid around brain, air where there is air."""

import numpy as np
import pytest

from medgen.errors import IntensityError
from medgen.simulate.head import LABELS
from medgen.simulate.template import cormack_to_hu, halve_voxels, template_labels


@pytest.fixture(scope="module")
def head() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Scalp, skull, a gap, a brain with white matter inside, and a cavity that opens to nothing."""
    x, y, z = np.indices((60, 60, 60)) - 29.5
    radius = np.sqrt(x**2 + y**2 + z**2)
    ct = np.where(radius < 28, 30.0, -1024.0)
    ct[(radius < 25) & (radius > 21)] = 900.0
    ct[np.sqrt(x**2 + y**2 + (z + 26) ** 2) < 2] = -1000.0
    white, all_brain = (radius < 10).astype(float), (radius < 18).astype(float)
    return ct, {"white": white, "grey": all_brain - white, "csf": np.zeros_like(white)}


def test_tissues_lie_in_their_order(head: tuple[np.ndarray, dict[str, np.ndarray]]) -> None:
    labels = template_labels(*head)
    along = labels[30:, 30, 30]
    order = [int(value) for n, value in enumerate(along) if n == 0 or value != along[n - 1]]
    assert order == [LABELS[name] for name in ("white", "grey", "csf", "bone", "soft")] + [0]
    assert labels[30, 30, 4] == LABELS["air"]
    assert set(np.unique(labels[0])) == {0}


def test_a_volume_without_a_head_is_refused() -> None:
    with pytest.raises(IntensityError, match="head"):
        template_labels(np.full((4, 4, 4), -1024.0), {name: np.zeros((4, 4, 4)) for name in ("csf", "grey", "white")})


def test_cormack_units_rise_and_stretch_soft_tissue() -> None:
    units = np.arange(0, 4000, 10.0)
    hu = cormack_to_hu(units)
    steps = np.diff(hu)
    assert (steps > 0).all()
    assert steps[100] == pytest.approx(10 / 11, rel=1e-3)
    assert steps[10] == steps[-1] == pytest.approx(10)


def test_halving_keeps_what_is_linear_and_the_first_voxel() -> None:
    ramp = np.add.outer(np.add.outer(np.arange(4.0), 10 * np.arange(5.0)), 100 * np.arange(3.0))
    fine = halve_voxels(ramp)
    assert fine.shape == (7, 9, 5)
    assert np.abs(fine[::2, ::2, ::2] - ramp).max() < 1e-4
    assert fine[1, 1, 1] == pytest.approx(0.5 + 5 + 50, abs=1e-4)


def test_fluid_fills_the_gap_to_the_bone_and_nothing_where_there_is_none(
    head: tuple[np.ndarray, dict[str, np.ndarray]],
) -> None:
    ct, maps = head
    open_below = ct.copy()
    open_below[:, :, :22] = np.where(open_below[:, :, :22] > 500, 30.0, open_below[:, :, :22])
    labels = template_labels(open_below, maps)
    assert labels[30, 30, 30 + 19] == LABELS["csf"]
    assert labels[30, 30, 30 - 20] == LABELS["soft"]


def test_thin_bone_that_averaging_blurred_is_found_beside_thick_bone(
    head: tuple[np.ndarray, dict[str, np.ndarray]],
) -> None:
    ct, maps = head
    blurred = ct.copy()
    blurred[28:32, 28:32, 28:32] = 150.0  # low, but the highest for a centimetre around
    blurred[30, 30, 51] = 300.0  # higher, but less than half of the thick bone that it touches
    labels = template_labels(blurred, maps)
    assert (labels[28:32, 28:32, 28:32] == LABELS["bone"]).all()
    assert labels[30, 30, 51] != LABELS["bone"]


def test_plates_that_averaging_left_at_sixty_are_found_where_soft_tissue_of_sixty_is_not(
    head: tuple[np.ndarray, dict[str, np.ndarray]],
) -> None:
    ct, maps = head
    faded = ct.copy()
    faded[29:31, 24:36, 24:36] = 60.0
    labels = template_labels(faded, maps)
    assert (labels[29:31, 26:34, 26:34] == LABELS["bone"]).all()
    faded[20:40, 20:40, 20:40] = 60.0
    assert (template_labels(faded, maps)[24:36, 24:36, 24:36] != LABELS["bone"]).all()
