"""Interpolation between grids whose axes are parallel, in numpy alone: three of one axis each, plane by plane.

A plane stays in the processor's cache. Where voxels lie is computed in the steps of MONAI and torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Volume = npt.NDArray[np.float32]

AFFINE_TOLERANCE = 1e-3  # MONAI's `AFFINE_TOL`
# Voxels by which parallel grids may drift apart from the middle to a corner, since headers round their affines. A value
# differs by at most this fraction of the step from one voxel to the next.
_DRIFT_VOXELS = 1e-4
_SNAP_VOXELS = 1e-7  # nearer to a voxel than float32 weights can tell
_TIED_VOXELS = 1e-9  # nearer to the middle of two than float64 sums can tell
PADDINGS = ("border", "zeros", "reflection")


@dataclass(frozen=True)
class How:
    """How to interpolate, as `grid_sample` is told: its mode, its padding mode, and `align_corners`."""

    mode: str
    padding: str
    align_corners: bool


@dataclass(frozen=True, eq=False)
class Line:
    """Where the voxels of one output axis lie on one input axis.

    Attributes:
        low: input index at or below each of them.
        high: the one above; the last again at the end.
        weight: of `high`, float32; None where all are 0.
        fade: what remains of each beyond the edge, where zeros follow; None where all is inside.
        unchanged: whether output and input are the same.
    """

    low: npt.NDArray[np.intp]
    high: npt.NDArray[np.intp]
    weight: Volume | None
    fade: Volume | None
    unchanged: bool


@dataclass(frozen=True, eq=False)
class Way:
    """From one grid to another: the input axis of every output axis, and the voxels along it.

    Attributes:
        axes: input axes.
        lines: of output axes.
        tied: whether the nearest of two voxels rests on the rounding of float64 sums.
    """

    axes: tuple[int, ...]
    lines: tuple[Line, ...]
    tied: bool


def way_between(
    source: Array, target: Array, shape: Sequence[int], size: Sequence[int], how: How, steps: Sequence[Array] = ()
) -> Way | None:
    """Returns the way from voxels of `shape` at `source` to `size` at `target`; None where no axes are parallel.

    Args:
        source: affine of the input, `(4, 4)`.
        target: affine of the output.
        shape: of the input, three axes.
        size: of the output.
        how: to interpolate.
        steps: torch's own `linspace(-1, 1, n)` for each output axis, for its rounding; numpy's where not given.
    """
    if how.padding not in PADDINGS or not is_place(source) or not is_place(target):
        return None
    matrix = np.asarray(np.linalg.solve(source, target), dtype=np.float64)
    axes, drift = _alignment(matrix, size)
    if how.align_corners and min(size) == 1:  # whose one coordinate torch defines as it likes
        return None
    if drift > _DRIFT_VOXELS:
        return None
    steps = steps or [np.linspace(-1, 1, n) for n in size]
    places = _places(matrix, shape, size, axes, how, steps)
    tied = how.mode == "nearest" and any(_is_tied(place, drift) for place in places)
    if tied and drift > 0:
        return None
    lines = tuple(_line(place, shape[axis], how) for place, axis in zip(places, axes, strict=True))
    return Way(tuple(axes), lines, tied)


def is_place(affine: Array) -> bool:
    """Says whether an affine is one of three axes that can be inverted."""
    return affine.shape == (4, 4) and bool(np.isfinite(affine).all()) and bool(np.linalg.det(affine) != 0)


def is_unchanged(source: Array, target: Array) -> bool:
    """Says whether MONAI takes two affines for one, and returns the image as it is."""
    return np.allclose(source, target, atol=AFFINE_TOLERANCE) or np.allclose(
        np.linalg.solve(source, target), np.eye(4), atol=AFFINE_TOLERANCE
    )


def resampled(volumes: Volume, way: Way) -> Volume:
    """Returns volumes `(C, X, Y, Z)`, float32, interpolated along their three axes."""
    turned = np.ascontiguousarray(volumes.transpose(0, *(axis + 1 for axis in way.axes)))  # at half the cost of torch's
    voxels = np.empty((len(turned), *(len(line.low) for line in way.lines)), dtype=np.float32)
    for volume, out in zip(turned, voxels, strict=True):
        _resample(volume, way.lines, out)
    return voxels


def _alignment(matrix: Array, size: Sequence[int]) -> tuple[list[int], float]:
    """The input axis that each output axis runs along, and how far `[voxel]` it strays from it; infinity if askew."""
    aside = np.abs(matrix[:3, :3])
    axes = [int(axis) for axis in aside.argmax(axis=0)]
    if sorted(axes) != [0, 1, 2]:
        return axes, np.inf
    aside[axes, [0, 1, 2]] = 0
    return axes, float((aside @ (np.array(size) - 1)).sum()) / 2


def _places(
    matrix: Array, shape: Sequence[int], size: Sequence[int], axes: Sequence[int], how: How, steps: Sequence[Array]
) -> list[Array]:
    """Input coordinates `[voxel]` along each output axis, through the middle of the others.

    In the steps of MONAI and torch, and so with their rounding: it decides which label a voxel midway between two gets.
    """
    theta = _normalised(shape, how) @ matrix @ np.linalg.inv(_normalised(size, how))
    places = []
    for output_axis, axis in enumerate(axes):
        n, n_out = shape[axis], size[output_axis]
        at = steps[output_axis]
        at = (at if how.align_corners else at * (n_out - 1) / n_out) * theta[axis, output_axis] + theta[axis, 3]
        place = (at + 1) / 2 * (n - 1) if how.align_corners else ((at + 1) * n - 1) / 2
        places.append(_reflected(place, n, how) if how.padding == "reflection" else place)
    return places


def _normalised(shape: Sequence[int], how: How) -> Array:
    """From voxels to `[-1, 1]`, as MONAI's `normalize_transform` has it."""
    sides = np.array(shape, dtype=np.float64)
    matrix = np.eye(4)
    if how.align_corners:
        matrix[[0, 1, 2], [0, 1, 2]] = 2.0 / (np.where(sides <= 1, 2.0, sides) - 1.0)
        matrix[:3, 3] = -1.0
    else:
        matrix[[0, 1, 2], [0, 1, 2]] = 2.0 / sides
        matrix[:3, 3] = 1.0 / sides - 1.0
    return matrix


def _reflected(place: Array, n: int, how: How) -> Array:
    """Coordinates beyond the edge thrown back inside, at the last voxel's middle or at its outer face."""
    low, span = (0.0, n - 1.0) if how.align_corners else (-0.5, float(n))
    if span == 0:
        return np.zeros_like(place)
    beyond = np.abs(place - low)
    flips, extra = np.floor(beyond / span), np.fmod(beyond, span)
    return np.asarray(np.where(flips % 2 == 0, extra + low, span - extra + low))


def _is_tied(place: Array, drift: float) -> bool:
    """Whether a voxel lies so near the middle between two that the drift decides which is nearest."""
    return bool((np.abs(place - np.floor(place) - 0.5) <= 2 * drift + _TIED_VOXELS).any())


def _line(place: Array, n: int, how: How) -> Line:
    if how.mode == "nearest":
        place = np.rint(place)
    whole = np.rint(place)
    place = np.where(np.abs(place - whole) < _SNAP_VOXELS, whole, place)
    fade = np.clip(1 - np.maximum(-place, place - (n - 1)), 0, 1).astype(np.float32)
    place = np.clip(place, 0, n - 1)
    low = np.floor(place).astype(np.intp)
    weight = (place - low).astype(np.float32)
    return Line(
        low=low,
        high=np.minimum(low + 1, n - 1),
        weight=weight if weight.any() else None,
        fade=fade if how.padding == "zeros" and (fade < 1).any() else None,
        unchanged=np.array_equal(low, np.arange(n)) and not weight.any(),
    )


def _resample(volume: Volume, lines: Sequence[Line], out: Volume) -> None:
    """Interpolates a volume `(X, Y, Z)` along its three axes into `out`, one plane of the first at a time."""
    first, second, third = lines
    weights = np.zeros(len(out), np.float32) if first.weight is None else first.weight
    for index, (low, high, weight) in enumerate(zip(first.low, first.high, weights, strict=True)):
        plane = volume[low]
        if weight:
            plane = plane + weight * (volume[high] - plane)
        out[index] = _along(_along(plane, second, 0), third, 1)
    for axis, line in enumerate(lines):
        if line.fade is not None:
            faded = np.flatnonzero(line.fade < 1)
            np.moveaxis(out, axis, 0)[faded] *= line.fade[faded, None, None]


def _along(plane: Volume, line: Line, axis: int) -> Volume:
    """Interpolates a plane `(M, N)` along one axis; where nothing changes, values stay exactly as they are."""
    if line.unchanged:
        return plane
    low = np.take(plane, line.low, axis=axis)
    if line.weight is None:
        return low
    high = np.take(plane, line.high, axis=axis)
    high -= low
    high *= line.weight[:, None] if axis == 0 else line.weight
    low += high
    return low
