"""The transforms of a plan, done in numpy: each a mapping with `do`, its name, and its options; see `quick_compile`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from medgen.errors import NotExactError
from medgen.geometry import Array
from medgen.prepare import values
from medgen.prepare.planes import How, is_place, is_unchanged, resampled, way_between
from medgen.prepare.spaced import spaced_grid
from medgen.read.orientation import codes_of, turn_to, turned

Volume = npt.NDArray[np.float32]
Step = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Moved:
    """One spatial step that was taken.

    Attributes:
        affine: before it.
        shape: before it, three axes.
        how: it was resampled; None if it was turned or cropped.
        start: of what a crop has left, three axes; None if it was none.
    """

    affine: Array
    shape: tuple[int, ...]
    how: How | None = None
    start: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Placed:
    """An image on its way.

    Attributes:
        voxels: `(C, X, Y, Z)`, float32.
        affine: of the voxels, `(4, 4)`.
        moves: that brought it here.
    """

    voxels: Volume
    affine: Array
    moves: tuple[Moved, ...] = ()


_VALUES: dict[str, Callable[..., Volume]] = {
    "scale": values.scaled,
    "range": values.ranged,
    "percentiles": values.ranged_by_percentiles,
    "normalize": values.normalized,
    "shift": values.shifted,
    "sigmoid": values.sigmoid,
    "softmax": values.softmax,
    "discrete": values.discrete,
}


def take_steps(image: Placed, steps: Sequence[Step]) -> Placed:
    """Returns the image after the steps; what it was given stays as it is.

    Raises:
        NotExactError: one cannot be done here exactly.
    """
    for step in steps:
        options = {name: value for name, value in step.items() if name != "do"}
        image = _STEPS[step["do"]](image, **options) if step["do"] in _STEPS else _revalued(image, step["do"], options)
    return image


def _revalued(image: Placed, name: str, options: Mapping[str, Any]) -> Placed:
    return replace(image, voxels=np.asarray(_VALUES[name](image.voxels, **options), dtype=np.float32))


def _turn(image: Placed, codes: str) -> Placed:
    voxels, affine = turned(image.voxels, image.affine, turn_to(image.affine, codes))
    return Placed(voxels, affine, (*image.moves, Moved(image.affine, image.voxels.shape[1:])))


def _crop(image: Placed, margin: Sequence[int], allow_smaller: bool) -> Placed:
    shape, present = image.voxels.shape[1:], np.asarray((image.voxels > 0).any(axis=0))
    if not present.any():
        raise NotExactError("an image without foreground")
    starts, ends = [], []
    for axis, beside in enumerate(margin):
        found = np.flatnonzero(present.any(axis=tuple({0, 1, 2} - {axis})))
        start, end = int(found[0]) - beside, int(found[-1]) + beside + 1
        starts.append(max(start, 0) if allow_smaller else start)
        ends.append(min(end, shape[axis]) if allow_smaller else end)
    if min(starts) < 0 or any(end > side for end, side in zip(ends, shape, strict=True)):
        raise NotExactError("a margin beyond the image")
    voxels = image.voxels[(slice(None), *map(slice, starts, ends))]
    moved = Moved(image.affine, shape, start=tuple(starts))
    return Placed(voxels, _shifted(image.affine, starts), (*image.moves, moved))


def _shifted(affine: Array, by: Sequence[int]) -> Array:
    """The affine of voxels that begin at another one of these."""
    step = np.eye(4)
    step[:3, 3] = by
    return np.asarray(affine @ step)


def _space(image: Placed, pixdim: Sequence[float], diagonal: bool, how: Sequence[Any]) -> Placed:
    if not is_place(image.affine):
        raise NotExactError("an affine without an inverse")
    shape = image.voxels.shape[1:]
    target, size = spaced_grid(image.affine, shape, pixdim, diagonal=diagonal)
    moved = Moved(image.affine, shape, how=How(*how))
    return replace(_resample(image, target, size, How(*how)), moves=(*image.moves, moved))


def _invert(image: Placed, nearest: bool) -> Placed:
    for move in reversed(image.moves):
        if move.start is not None:
            image = _uncropped(image, move.shape, move.start)
        elif move.how is None:
            turn = turn_to(image.affine, codes_of(move.affine))
            image = Placed(*turned(image.voxels, image.affine, turn))
        else:
            how = replace(move.how, mode="nearest", align_corners=False) if nearest else move.how
            image = _resample(image, move.affine, move.shape, how)
    return replace(image, moves=())


def _uncropped(image: Placed, shape: tuple[int, ...], start: tuple[int, ...]) -> Placed:
    sizes = zip(start, image.voxels.shape[1:], shape, strict=True)
    widths = [(before, whole - before - size) for before, size, whole in sizes]
    return Placed(np.pad(image.voxels, [(0, 0), *widths]), _shifted(image.affine, [-before for before in start]))


def _resample(image: Placed, target: Array, size: tuple[int, ...], how: How) -> Placed:
    if image.voxels.shape[1:] == size and is_unchanged(image.affine, target):
        return image
    way = way_between(image.affine, target, image.voxels.shape[1:], size, how)
    if way is None or way.tied:
        raise NotExactError("grids whose axes are not parallel, or voxels midway between two labels")
    return Placed(resampled(image.voxels, way), image.affine @ np.linalg.solve(image.affine, target), image.moves)


_STEPS: dict[str, Callable[..., Placed]] = {"turn": _turn, "space": _space, "crop": _crop, "invert": _invert}
