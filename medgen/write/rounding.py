"""Voxel values as a file stores them: rounded to the nearest integer, never truncated, never wrapped around."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medgen.errors import OutputError

# Values that span fewer steps than a display has greys (a bundle whose output lies in [0, 1]) would lose contrast.
FEWEST_STEPS = 256


@dataclass(frozen=True)
class Extent:
    """The smallest and the largest voxel."""

    low: float
    high: float

    @property
    def rounds_well(self) -> bool:
        """Whether whole numbers are fine enough a scale for these values."""
        return self.high - self.low >= FEWEST_STEPS

    def fits(self, dtype: npt.DTypeLike) -> bool:
        """Whether all values, rounded, are within an integer type."""
        limits = np.iinfo(dtype)
        return limits.min - 0.5 <= self.low and self.high < limits.max + 0.5


def extent_of(image: npt.NDArray[np.float32]) -> Extent:
    """Returns the extent of an image.

    Raises:
        OutputError: if it has no voxels, or some that are NaN or infinite.
    """
    if image.size == 0:
        raise OutputError(f"expected voxels to write, got an image of shape {image.shape}")
    low, high = float(image.min()), float(image.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        count = int(np.count_nonzero(~np.isfinite(image)))
        raise OutputError(f"expected finite voxels to write, got {count} that are NaN or infinite")
    return Extent(low, high)


def rounded(image: npt.NDArray[np.float32], dtype: npt.DTypeLike) -> npt.NDArray[np.integer]:
    """Returns the image as integers, slice by slice so that no second float copy of a large one is made.

    Example:
        >>> rounded(np.array([[[0.6, -0.6, 1.2]]], dtype=np.float32), np.int16).tolist()
        [[[1, -1, 1]]]
    """
    out = np.empty(image.shape, dtype=dtype, order="F")
    for k in range(image.shape[-1]):
        out[..., k] = np.rint(image[..., k])
    return out
