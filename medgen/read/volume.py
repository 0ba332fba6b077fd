"""A volume as read: voxels, grid, and what a reader should know; refused when its voxels cannot be real."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medgen.errors import IntensityError
from medgen.geometry import Grid

# As many slices as fill a cache line with float32: the fastest slab to transpose, of 8, 16, 32 and 64.
SLAB = 16

# Names one of several volumes in one multi-frame file: `scan.dcm#volume:echo=4.9`.
VOLUME_MARK = "#volume:"
# States the size of a picture's pixels: `scan.png#spacing_um:11.5,3.9,240` (lateral, axial, between B-scans).
SPACING_MARK = "#spacing_um:"


@dataclass(frozen=True, eq=False)
class Volume:
    """One volume in memory.

    Attributes:
        image: voxels `(X, Y, Z)`, float32, in C order.
        grid: where they lie.
        modality: DICOM modality where known, else "".
        flags: such as `"regridded"`.
    """

    image: npt.NDArray[np.float32]
    grid: Grid
    modality: str = ""
    flags: tuple[str, ...] = ()


def put_slab(volume: npt.NDArray[np.float32], first: int, slab: npt.NDArray[Any]) -> None:
    """Writes slices `(n, Y, X)` to `volume[:, :, first : first + n]`.

    Row by row, because that keeps both sides of the transposition in the cache: over four times as fast as one
    `ascontiguousarray` of the whole, and no second volume in memory.
    """
    depth = len(slab)
    for row in range(volume.shape[1]):
        volume[:, row, first : first + depth] = slab[:, row, :].T


def require_usable(image: npt.NDArray[np.float32], where: str) -> None:
    """Refuses voxels from which nothing can be computed.

    Raises:
        IntensityError: NaN, infinite, or all the same; the message counts them.
    """
    low, high = float(image.min()), float(image.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        nans, infinite = int(np.isnan(image).sum()), int(np.isinf(image).sum())
        raise IntensityError(f"{where}: expected finite voxels, got {nans} NaN and {infinite} infinite of {image.size}")
    if low == high:
        raise IntensityError(f"{where}: expected an image, got {image.size} voxels that are all {low:g}")
