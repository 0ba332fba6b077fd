"""Which source images a derived slice comes from, and how the derived series lies with respect to them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medgen.geometry import Grid, Planes, orientation_codes, ras_to_lps
from medgen.read.headers import Plane

Array = npt.NDArray[np.float64]

# A source slice is a derived slice's own if they lie this close along the normal, as a fraction of the slice distance.
_SAME_PLACE = 0.05
_PARALLEL_COSINE = 0.9999
# A NIfTI axis whose steps are longer than the others' by this factor is the one along which slices were acquired.
_THICK = 1.05
# How radiologists look at a patient, as directions (LPS+) along a row, down a column and through the slices.
_VIEWS = {
    "IS": np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float64),  # axial, from the feet
    "PA": np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=np.float64),  # coronal, from the front
    "LR": np.array([[0, 1, 0], [0, 0, -1], [-1, 0, 0]], dtype=np.float64),  # sagittal, from the left
}


@dataclass(frozen=True)
class Reference:
    """A source image as SourceImageSequence names it.

    Attributes:
        sop_uid: the instance.
        frame: its frame from 1 if it is a multi-frame instance, else None.
        instance: its place in the source series.
        thickness_mm: of the slice, or None.
    """

    sop_uid: str
    frame: int | None
    instance: int
    thickness_mm: float | None


def in_slices(
    image: npt.NDArray[np.float32], grid: Grid, source: Sequence[Plane]
) -> tuple[npt.NDArray[np.float32], Grid]:
    """Turns array axes to `(columns, rows, slices)` by permuting and flipping; no voxel moves in space.

    A DICOM source is followed; without one the slices run along the axis with the longest steps, or the third when all
    are alike, and are laid out as a radiologist looks at them.

    Args:
        image: voxels `(X, Y, Z)`.
        grid: on which they lie.
        source: the source slices, if any.

    Returns:
        A view of the image and its grid.
    """
    directions = _source_directions(source) if source else _usual_directions(grid)
    axes = ras_to_lps(grid.affine)[:3, :3] / np.array(grid.spacing_mm)
    cosines = directions @ axes
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    order = max(orders, key=lambda order: sum(abs(cosines[row, axis]) for row, axis in enumerate(order)))
    flips = [cosines[row, axis] < 0 for row, axis in enumerate(order)]
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for row, (axis, flip) in enumerate(zip(order, flips, strict=True)):
        turn[axis, row] = -1 if flip else 1
        turn[axis, 3] = grid.shape[axis] - 1 if flip else 0
    turned = image.transpose(order)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    shape = (turned.shape[0], turned.shape[1], turned.shape[2])
    return turned, Grid(shape, grid.affine @ turn)


def _source_directions(source: Sequence[Plane]) -> Array:
    orientation = np.asarray(source[0].orientation if source[0].orientation is not None else (1, 0, 0, 0, 1, 0))
    along_row, down_column = orientation[:3], orientation[3:]
    return np.stack([along_row, down_column, np.cross(along_row, down_column)])


def _usual_directions(grid: Grid) -> Array:
    spacing = np.array(grid.spacing_mm)
    longest = int(spacing.argmax())
    others = np.delete(spacing, longest)
    through = longest if spacing[longest] > _THICK * others.max() else 2
    code = orientation_codes(grid.affine)[through]
    return next(view for pair, view in _VIEWS.items() if code in pair)


def references_of(source: Sequence[Plane], planes: Planes) -> tuple[tuple[Reference, ...], ...]:
    """Finds for each derived slice its own source slice, or else the ones on both sides of it.

    Args:
        source: in order along their normal.
        planes: of the derived series.

    Returns:
        One tuple per derived slice; all source slices where the two series are not parallel; empty without a source.
        Source slices of as many that do not say where they lie (B-scans) correspond by their order.
    """
    everything = tuple(
        Reference(p.sop_uid, p.frame + 1 if p.coding.frames > 1 else None, p.instance, p.thickness_mm) for p in source
    )
    if not source:
        return ((),) * len(planes.positions)
    if len(source) == len(planes.positions) and all(p.position is None for p in source):
        return tuple((one,) for one in everything)
    through = _source_directions(source)[2]
    normal = np.cross(planes.orientation[:3], planes.orientation[3:])
    if abs(float(through @ normal)) < _PARALLEL_COSINE or any(p.position is None for p in source):
        return (everything,) * len(planes.positions)
    heights = np.array([np.dot(p.position or (), normal) for p in source])
    order = np.argsort(heights, kind="stable")
    tolerance = _SAME_PLACE * planes.spacing_mm
    return tuple(
        tuple(everything[order[i]] for i in _beside(heights[order], float(height), tolerance))
        for height in planes.locations
    )


def _beside(heights: Array, height: float, tolerance: float) -> list[int]:
    """Indices of the sorted heights that equal a height, or else of its neighbours below and above."""
    same = np.flatnonzero(np.abs(heights - height) <= tolerance)
    if len(same):
        return [int(i) for i in same]
    above = int(np.searchsorted(heights, height))
    return [i for i in (above - 1, above) if 0 <= i < len(heights)]


def instance_numbers(references: Sequence[Sequence[Reference]]) -> list[int]:
    """Numbers the derived slices from 1: in the source's order where each has its own source slice, else as they lie.

    Example:
        >>> def of(*instances): return [[Reference(str(i), None, i, None)] for i in instances]
        >>> instance_numbers(of(30, 20, 10))
        [3, 2, 1]
        >>> instance_numbers([[], []])
        [1, 2]
    """
    own = [slice_[0].instance for slice_ in references if len(slice_) == 1]
    if len(own) < len(references) or len(set(own)) < len(own):
        return list(range(1, len(references) + 1))
    rank = {instance: number for number, instance in enumerate(sorted(own), start=1)}
    return [rank[instance] for instance in own]
