"""Turning a volume into slices moves no voxel in space."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from medgen.geometry import Grid, ras_to_lps
from medgen.read.headers import PixelCoding, Plane
from medgen.simulate.sample import head_grid
from medgen.write.sources import in_slices


def plane(orientation: tuple[float, ...]) -> Plane:
    coding = PixelCoding("", 0, 16, 16, 15, signed=False, frames=1, problem="")
    return Plane(
        file=Path("x"), frame=0, sop_uid="1", study_uid="2", series_uid="3", frame_of_reference="4", modality="MR",
        description="", excluded="", rows=1, columns=1, position=(0, 0, 0), orientation=orientation,
        pixel_spacing=(1, 1), thickness_mm=1, distance_mm=1, instance=1, labels=(), slope=1, intercept=0, coding=coding,
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(2, 6)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6.0)] * 3),
    tilt=st.floats(-40, 40),
    order=st.permutations([0, 1, 2]),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    follows_source=st.booleans(),
)
def test_every_voxel_stays_where_it_was(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    tilt: float,
    order: list[int],
    signs: tuple[int, int, int],
    follows_source: bool,
) -> None:
    affine = head_grid((3, 3, 3), spacing, tilt_degrees=tilt).affine
    affine[:3, :3] = (affine[:3, :3] * signs)[:, order]
    grid = Grid(shape, affine)
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(np.float32)
    places = np.tensordot(affine[:3, :3], indices, axes=1) + affine[:3, 3].reshape(3, 1, 1, 1)
    source = [plane((1, 0, 0, 0, 0, -1))] if follows_source else []
    for axis in range(3):
        turned, onto = in_slices(places[axis].astype(np.float32), grid, source)
        moved = np.stack(np.meshgrid(*map(np.arange, turned.shape), indexing="ij"))
        expected = np.tensordot(onto.affine[axis, :3], moved, axes=1) + onto.affine[axis, 3]
        np.testing.assert_allclose(turned, expected, atol=1e-3)


def test_a_volume_that_lies_as_its_source_is_left_alone() -> None:
    grid = head_grid((4, 5, 6), (1.0, 1.5, 4.0), tilt_degrees=20.0)
    lps = ras_to_lps(grid.affine)[:3, :3] / grid.spacing_mm
    image = np.arange(120, dtype=np.float32).reshape(4, 5, 6)
    turned, onto = in_slices(image, grid, [plane((*lps[:, 0], *lps[:, 1]))])
    assert np.shares_memory(turned, image)
    np.testing.assert_array_equal(turned, image)
    assert onto.differs_from(grid) == ""
