"""A volume as read: voxels, grid, and what a reader should know; refused when its voxels cannot be real."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medgen.errors import IntensityError
from medgen.geometry import Grid


@dataclass(frozen=True, eq=False)
class Volume:
    """One volume in memory.

    Attributes:
        image: voxels `(X, Y, Z)`, float32; any memory order.
        grid: where they lie.
        modality: DICOM modality where known, else "".
        flags: such as `"regridded"`.
    """

    image: npt.NDArray[np.float32]
    grid: Grid
    modality: str = ""
    flags: tuple[str, ...] = ()


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
