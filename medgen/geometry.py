"""Where voxels lie in the patient: affines, spacings, orientations, and whether two grids are the same.

An affine is a float64 `(4, 4)` array that maps voxel indices `(i, j, k)` to millimetres in RAS+ (x to the right, y to
the front, z to the head), as nibabel and MONAI use it. DICOM states positions in LPS+; `ras_to_lps` and `lps_to_ras`
convert.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# Two grids are the same when no voxel centre moves by more than this fraction of the smallest spacing.
SAME_GRID_TOLERANCE = 1e-2
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def ras_to_lps(affine: npt.ArrayLike) -> Array:
    """Turns an affine (or the 4-vectors in its columns) from RAS+ to LPS+; its own inverse.

    Example:
        >>> ras_to_lps(np.eye(4)).diagonal().tolist()
        [-1.0, -1.0, 1.0, 1.0]
    """
    return np.asarray(_LPS @ np.asarray(affine, dtype=np.float64))


lps_to_ras = ras_to_lps


def spacing_mm(affine: npt.ArrayLike) -> Array:
    """Returns the distance between neighbouring voxels along each array axis `[mm]`, shape `(3,)`.

    Example:
        >>> spacing_mm(np.diag([-0.5, 2.0, 3.0, 1.0])).tolist()
        [0.5, 2.0, 3.0]
    """
    return np.asarray(np.linalg.norm(np.asarray(affine, dtype=np.float64)[:3, :3], axis=0))


def orientation_codes(affine: npt.ArrayLike) -> str:
    """Returns the anatomical direction nearest to each array axis, such as `"RAS"` or `"PIR"`.

    Each axis gets its own direction: the assignment that maximises the summed cosines, so that an oblique grid never
    names one twice.

    Example:
        >>> orientation_codes(np.diag([-1.0, 1.0, 2.0, 1.0]))
        'LAS'
    """
    directions = np.asarray(affine, dtype=np.float64)[:3, :3] / spacing_mm(affine)
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    best = max(orders, key=lambda order: sum(abs(directions[row, axis]) for axis, row in enumerate(order)))
    pairs = ("LR", "PA", "IS")
    return "".join(pairs[row][int(directions[row, axis] > 0)] for axis, row in enumerate(best))


def shear_degrees(affine: npt.ArrayLike) -> float:
    """Returns how far the array axes are from being perpendicular, the largest of the three pairs `[degrees]`.

    Example:
        >>> round(shear_degrees([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), 1)
        45.0
    """
    directions = np.asarray(affine, dtype=np.float64)[:3, :3] / spacing_mm(affine)
    cosines = np.abs(directions.T @ directions)[np.triu_indices(3, k=1)]
    return float(np.degrees(np.arcsin(np.clip(cosines, 0.0, 1.0))).max())


@dataclass(frozen=True, eq=False)
class Grid:
    """The lattice on which an image lies.

    Attributes:
        shape: voxels along each array axis, `(X, Y, Z)`.
        affine: voxel indices to RAS+ millimetres, `(4, 4)`.
    """

    shape: tuple[int, int, int]
    affine: Array

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along each array axis `[mm]`."""
        x, y, z = spacing_mm(self.affine)
        return float(x), float(y), float(z)

    @property
    def codes(self) -> str:
        """Anatomical direction of each array axis, such as `"RAS"`."""
        return orientation_codes(self.affine)

    def differs_from(self, other: "Grid") -> str:
        """Says in one line how this grid differs from `other`; an empty string when they are the same.

        The corners of the lattice are compared, since an error of direction grows towards them.
        """
        if self.shape != other.shape:
            return f"shape {self.shape} against {other.shape}"
        ends = np.array([[0, n - 1] for n in self.shape], dtype=np.float64)
        corners = np.stack(np.meshgrid(*ends, indexing="ij")).reshape(3, -1)
        moved = (self.affine - other.affine)[:3, :3] @ corners + (self.affine - other.affine)[:3, 3:]
        distance = float(np.linalg.norm(moved, axis=0).max())
        if distance > SAME_GRID_TOLERANCE * min(self.spacing_mm):
            return f"a corner lies {distance:.3g} mm away"
        return ""

    def describe(self) -> str:
        """Returns the grid in a few words: `"256x256x48 at 0.91x0.91x3 mm, LPS"`."""
        shape = "x".join(str(n) for n in self.shape)
        spacing = "x".join(f"{s:.3g}" for s in self.spacing_mm)
        return f"{shape} at {spacing} mm, {self.codes}"


@dataclass(frozen=True, eq=False)
class Planes:
    """A grid as a classic DICOM series states it, in LPS+ millimetres: one position a slice, one orientation for all.

    Attributes:
        orientation: directions in which the column index and the row index grow, two unit vectors, `(6,)`.
        pixel_spacing: between rows, then between columns, as DICOM orders them `[mm]`.
        positions: centres of the first voxels of the slices, `(slices, 3)`.
        locations: of the slices along their normal, `(slices,)` `[mm]`.

    Source: DICOM PS3.3 C.7.6.2 (Image Plane Module).
    """

    orientation: Array
    pixel_spacing: tuple[float, float]
    positions: Array
    locations: Array

    @classmethod
    def of(cls, grid: Grid) -> "Planes":
        """Reads array axis 0 as the column index, axis 1 as the row index and axis 2 as the slices."""
        lps = ras_to_lps(grid.affine)
        between_columns, between_rows, _ = grid.spacing_mm
        along_row = lps[:3, 0] / between_columns
        down_column = lps[:3, 1] - (lps[:3, 1] @ along_row) * along_row
        down_column /= np.linalg.norm(down_column)
        positions = lps[:3, 3] + np.arange(grid.shape[2])[:, None] * lps[:3, 2]
        locations = np.asarray(positions @ np.cross(along_row, down_column))
        orientation = np.concatenate([along_row, down_column])
        return cls(orientation, (between_rows, between_columns), positions, locations)

    @property
    def spacing_mm(self) -> float:
        """Mean distance between neighbouring slices along their normal; 1 for a single slice."""
        steps = max(len(self.locations) - 1, 1)
        return float(abs(self.locations[-1] - self.locations[0]) / steps) or 1.0

    def grid(self, rows: int, columns: int) -> Grid:
        """Returns the grid that these planes span; of a sheared one only what DICOM can state is left."""
        lps = np.eye(4)
        lps[:3, 0] = self.orientation[:3] * self.pixel_spacing[1]
        lps[:3, 1] = self.orientation[3:] * self.pixel_spacing[0]
        steps = max(len(self.positions) - 1, 1)
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        step = (self.positions[-1] - self.positions[0]) / steps if len(self.positions) > 1 else normal
        lps[:3, 2], lps[:3, 3] = step, self.positions[0]
        return Grid((columns, rows, len(self.positions)), lps_to_ras(lps))
