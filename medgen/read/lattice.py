"""Do the slices form the regular, perpendicular grid that a volume needs? If not: by how much, and where.

All positions here are LPS+ millimetres, as DICOM states them; the grids that come out are RAS+.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medgen.errors import GeometryError
from medgen.geometry import Grid, lps_to_ras
from medgen.read.headers import Plane

Array = npt.NDArray[np.float64]

# Two planes are parallel below this change of a direction cosine: six printed digits and a scanner's rounding stay
# below it, and at the edge of a 250 mm slice it moves a pixel by 0.25 mm.
PARALLEL_TOLERANCE = 1e-3
# A slice may lie this far from its place along the normal: some scanners round positions to a tenth of a millimetre ...
SLICE_TOLERANCE_MM = 0.1
# ... or by this fraction of the slice distance, below anything that an interpolation would notice.
SLICE_TOLERANCE = 0.02
# Sideways a slice may lie off by this fraction of a pixel; more, over the whole stack, is a gantry tilt.
SIDEWAYS_TOLERANCE = 0.25
# Nominal slice distance of an uneven stack: a low quantile, so that the dense part keeps its resolution.
_NOMINAL_QUANTILE = 0.25
_TRY = "try --allow-irregular, which resamples onto a regular grid"


@dataclass(frozen=True, eq=False)
class Lattice:
    """How a stack of parallel slices lies in space, LPS+ millimetres.

    Attributes:
        origins: centre of the first pixel of each slice, `(N, 3)`, in order along the normal.
        across: unit vector along a row; `down` along a column; `normal` perpendicular to both.
        down: see `across`.
        normal: see `across`.
        pixel_mm: pixel distance across and down.
        shape: columns and rows.
        thickness_mm: what the header says of a slice's thickness or distance, 0 when it says nothing.
    """

    origins: Array
    across: Array
    down: Array
    normal: Array
    pixel_mm: tuple[float, float]
    shape: tuple[int, int]
    thickness_mm: float

    @property
    def heights(self) -> Array:
        """Position of each slice along the normal `[mm]`, ascending, shape `(N,)`."""
        return np.asarray(self.origins @ self.normal)

    @property
    def steps(self) -> Array:
        """Distances between neighbouring slices `[mm]`, shape `(N - 1,)`."""
        return np.diff(self.heights)

    @property
    def nominal_step_mm(self) -> float:
        """The slice distance that the stack mostly has."""
        if len(self.origins) < 2:
            return self.thickness_mm
        return float(np.quantile(self.steps, _NOMINAL_QUANTILE, method="nearest"))

    @property
    def sideways(self) -> Array:
        """Shift of each slice in its own plane, across and down, from the first one `[mm]`, shape `(N, 2)`."""
        moved = self.origins - self.origins[0]
        return np.stack([moved @ self.across, moved @ self.down], axis=1)

    def grid(self, origin: Array, step_mm: float, shape: tuple[int, int, int]) -> Grid:
        """Returns the perpendicular grid from `origin` with this stack's directions and pixels."""
        affine = np.eye(4)
        affine[:3, 0] = self.across * self.pixel_mm[0]
        affine[:3, 1] = self.down * self.pixel_mm[1]
        affine[:3, 2] = self.normal * step_mm
        affine[:3, 3] = origin
        return Grid(shape=shape, affine=lps_to_ras(affine))


def sort_along_normal(planes: Sequence[Plane]) -> list[Plane]:
    """Returns the planes in order along the normal of the first; their instance numbers play no part."""
    if any(p.position is None or p.orientation is None for p in planes):
        return sorted(planes, key=lambda p: (p.instance, p.file, p.frame))
    normal = _normal(planes[0])
    return sorted(planes, key=lambda p: (float(np.dot(p.position or (), normal)), p.instance, str(p.file), p.frame))


def are_parallel(first: Plane, second: Plane) -> bool:
    """Says whether two planes have the same directions of row and column."""
    return bool(np.abs(np.subtract(first.orientation or (), second.orientation or ())).max() <= PARALLEL_TOLERANCE)


def _normal(plane: Plane) -> Array:
    orientation = np.asarray(plane.orientation, dtype=np.float64)
    normal = np.cross(orientation[:3], orientation[3:])
    return np.asarray(normal / np.linalg.norm(normal))


def build_lattice(planes: Sequence[Plane]) -> Lattice:
    """Returns how the planes lie in space, sorted along the normal.

    Raises:
        GeometryError: the headers do not say it, or direction, matrix, pixels or frame of reference differ.
    """
    _require_headers(planes)
    _require_agreement(planes)
    ordered = sort_along_normal(planes)
    first = ordered[0]
    across, down = np.array(first.orientation, dtype=np.float64).reshape(2, 3)
    if max(abs(across @ across - 1), abs(down @ down - 1), abs(across @ down)) > 2 * PARALLEL_TOLERANCE:
        raise GeometryError(f"expected perpendicular unit vectors in ImageOrientationPatient, got {first.orientation}")
    normal = _normal(first)
    across = across / np.linalg.norm(across)
    rows_mm, columns_mm = first.pixel_spacing or (0.0, 0.0)
    return Lattice(
        origins=np.array([p.position for p in ordered], dtype=np.float64),
        across=across,
        down=np.cross(normal, across),
        normal=normal,
        pixel_mm=(columns_mm, rows_mm),
        shape=(first.columns, first.rows),
        thickness_mm=first.distance_mm or first.thickness_mm or 0.0,
    )


def _require_headers(planes: Sequence[Plane]) -> None:
    for name, key in (
        ("ImagePositionPatient", "position"),
        ("ImageOrientationPatient", "orientation"),
        ("PixelSpacing", "pixel_spacing"),
    ):
        missing = sum(getattr(p, key) is None for p in planes)
        if missing:
            raise GeometryError(f"{missing} of {len(planes)} slices lack a valid {name}: where they lie is unknown")


def _require_agreement(planes: Sequence[Plane]) -> None:
    first, count = planes[0], len(planes)
    frames = {p.frame_of_reference for p in planes}
    if len(frames) > 1:
        raise GeometryError(
            f"the {count} slices have {len(frames)} frames of reference: their positions are not comparable"
        )
    turned = [p for p in planes if not are_parallel(first, p)]
    if turned:
        angle = max(angle_degrees(first, p) for p in turned)
        raise GeometryError(
            f"mixed orientations: {len(turned)} of {count} slices are turned by up to {angle:.1f} degrees"
        )
    sizes = {(p.columns, p.rows) for p in planes}
    if len(sizes) > 1:
        raise GeometryError(
            f"the {count} slices have {len(sizes)} matrices: {', '.join(f'{c}x{r}' for c, r in sorted(sizes))}"
        )
    spacings = np.array([p.pixel_spacing for p in planes])
    if np.ptp(spacings, axis=0).max() > PARALLEL_TOLERANCE * spacings.min():
        raise GeometryError(f"the {count} slices have pixel spacings from {spacings.min():g} to {spacings.max():g} mm")


def angle_degrees(first: Plane, second: Plane) -> float:
    """Returns the larger of the angles between two planes' rows and columns `[degrees]`."""
    a, b = (np.array(p.orientation, dtype=np.float64).reshape(2, 3) for p in (first, second))
    return float(np.degrees(np.arccos(np.clip((a * b).sum(axis=1), -1.0, 1.0))).max())


def irregularity(lattice: Lattice) -> str:
    """Says with numbers why the slices form no regular perpendicular grid; an empty string when they do."""
    count = len(lattice.origins)
    if count == 1:
        return "" if lattice.thickness_mm > 0 else "a single slice, and its header states no thickness"
    return "; ".join(filter(None, (_uneven(lattice), _tilted(lattice))))


def _uneven(lattice: Lattice) -> str:
    heights, steps, count = lattice.heights, lattice.steps, len(lattice.origins)
    mean = (heights[-1] - heights[0]) / (count - 1)
    if mean <= 0 or steps.min() < SLICE_TOLERANCE * mean:
        return f"{int((steps < SLICE_TOLERANCE * mean).sum()) + 1} of {count} slices lie at the same place"
    off = np.abs(heights - heights[0] - mean * np.arange(count)).max()
    if off <= max(SLICE_TOLERANCE_MM, SLICE_TOLERANCE * mean):
        return ""
    nominal = lattice.nominal_step_mm
    places = np.rint(steps / nominal)
    gaps = places > 1
    if np.abs(steps - places * nominal).max() <= max(SLICE_TOLERANCE_MM, SLICE_TOLERANCE * nominal):
        where = int(np.argmax(gaps)) + 1
        return (
            f"{int((places - 1).sum())} slices missing: {count} slices mostly {nominal:.3g} mm apart, "
            f"but {steps[where - 1]:.3g} mm between slices {where} and {where + 1}"
        )
    return f"uneven slices: {count} slices lie {steps.min():.3g} to {steps.max():.3g} mm apart"


def _tilted(lattice: Lattice) -> str:
    drift = np.abs(lattice.sideways).max(axis=0)
    if (drift <= SIDEWAYS_TOLERANCE * np.asarray(lattice.pixel_mm)).all():
        return ""
    extent = lattice.heights[-1] - lattice.heights[0]
    angle = float(np.degrees(np.arctan2(np.linalg.norm(lattice.sideways[-1]), extent)))
    return f"gantry tilt: the stack leans {angle:.1f} degrees from the slices' normal ({drift.max():.3g} mm in all)"


def regular_grid(lattice: Lattice) -> Grid:
    """Returns the grid that the slices form.

    Raises:
        GeometryError: they form none; the message holds the numbers.
    """
    problem = irregularity(lattice)
    if problem:
        raise GeometryError(f"{problem}; {_TRY}" if len(lattice.origins) > 1 else problem)
    count = len(lattice.origins)
    step = lattice.thickness_mm if count == 1 else float(lattice.heights[-1] - lattice.heights[0]) / (count - 1)
    return lattice.grid(lattice.origins[0], step, (*lattice.shape, count))
