"""An uneven or tilted stack of slices becomes a regular perpendicular grid, without moving what the slices show.

Every slice keeps its true plane. A voxel of the new grid is interpolated linearly in the two slices next to it, each at
the place perpendicular to the voxel (so that the lean of a tilted gantry is undone), and linearly between the two.
"""

import numpy as np
import numpy.typing as npt

from medgen.errors import GeometryError
from medgen.geometry import Grid, ras_to_lps
from medgen.read.lattice import SLICE_TOLERANCE, Lattice

Image = npt.NDArray[np.float32]

# A shift smaller than this part of a pixel is rounding.
_WHOLE = 1e-4


def target_grid(lattice: Lattice) -> Grid:
    """Returns the regular perpendicular grid that covers the stack, at its own pixels and nominal slice distance.

    Raises:
        GeometryError: slices lie at the same place, and nothing says which is right; or a single one has no thickness.
    """
    step, length = lattice.nominal_step_mm, float(lattice.heights[-1] - lattice.heights[0])
    if step <= 0:
        raise GeometryError("expected the thickness of a single slice in its header, got none")
    if len(lattice.origins) > 1 and lattice.steps.min() <= SLICE_TOLERANCE * lattice.steps.mean():
        raise GeometryError("several slices lie at the same place, and nothing says which one is right")
    # Whole pixels are added on each side, so that the first slice keeps its own lattice and its values.
    before = np.ceil(-lattice.sideways.min(axis=0) / lattice.pixel_mm - _WHOLE).astype(int)
    after = np.ceil(lattice.sideways.max(axis=0) / lattice.pixel_mm - _WHOLE).astype(int)
    back = before * lattice.pixel_mm
    origin = lattice.origins[0] - back[0] * lattice.across - back[1] * lattice.down
    columns, rows = (np.array(lattice.shape) + before + after).tolist()
    return lattice.grid(origin, step, (columns, rows, int(length / step + SLICE_TOLERANCE) + 1))


def resample(slices: Image, lattice: Lattice, grid: Grid) -> Image:
    """Resamples slices onto the grid that `target_grid` has made for them.

    Args:
        slices: `(N, rows, columns)`.
        lattice: where they lie.
        grid: where the voxels shall lie.

    Returns:
        `(Z, rows, columns)`; voxels that no slice covers have the lowest value in `slices`.
    """
    columns, rows, count = grid.shape
    lowest = float(slices.min())
    relative = lattice.origins - ras_to_lps(grid.affine)[:3, 3]
    # Where each slice's first pixel lies in the new planes, in pixels down and across.
    shifts = np.stack([relative @ lattice.down, relative @ lattice.across], axis=1) / lattice.pixel_mm[::-1]
    heights = lattice.heights - lattice.heights[0]
    out = np.empty((count, rows, columns), dtype=np.float32)
    placed: dict[int, Image] = {}
    for k in range(count):
        height = min(k * grid.spacing_mm[2], float(heights[-1]))
        upper = int(np.clip(np.searchsorted(heights, height, side="right"), 1, len(heights) - 1))
        pair = (upper - 1, upper)
        placed = {n: placed[n] if n in placed else _place(slices[n], shifts[n], (rows, columns), lowest) for n in pair}
        weight = np.float32((height - heights[upper - 1]) / (heights[upper] - heights[upper - 1]))
        out[k] = placed[upper - 1] + weight * (placed[upper] - placed[upper - 1])
    return out


def _place(image: Image, shift: npt.NDArray[np.float64], shape: tuple[int, int], fill: float) -> Image:
    """Puts a slice into a larger plane, moved down and across by a fractional number of pixels, linearly."""
    down, across = float(shift[0]), float(shift[1])
    moved = _shift_rows(image, down, shape[0], fill)
    return _shift_rows(moved.T, across, shape[1], fill).T


def _shift_rows(image: Image, shift: float, length: int, fill: float) -> Image:
    """Moves an image down by `shift >= 0` rows into one of `length` rows."""
    whole = int(np.floor(shift + _WHOLE))
    part = np.float32(max(0.0, shift - whole))
    # One row of fill above, so that the row before each is there to be mixed in.
    padded = np.full((length + 1, image.shape[1]), fill, dtype=np.float32)
    padded[whole + 1 : whole + 1 + len(image)] = image[: length - whole]
    if part <= _WHOLE:
        return padded[1:]
    return np.asarray((1 - part) * padded[1:] + part * padded[:-1], dtype=np.float32)
