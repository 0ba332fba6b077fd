"""B-scans in DICOM: one file of Ophthalmic Tomography, or of Ophthalmic Photography, is a volume, each frame a B-scan.

Such a file says less of its place than a CT does. Where every frame has position and orientation, and they are parallel
and regular, the volume lies in the patient's own space. Else it has a space of its own, which is no more than its
pixels: lateral to the left, depth to the back, B-scans upwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medgen.errors import GeometryError, UnreadableError
from medgen.geometry import Grid, lps_to_ras
from medgen.read.headers import Plane
from medgen.read.lattice import PARALLEL_TOLERANCE, are_parallel
from medgen.read.memory import require_memory
from medgen.read.pixels import fill_real_values
from medgen.read.planes import read_planes
from medgen.read.volume import SLAB, Volume, put_slab, require_usable

Array = npt.NDArray[np.float64]

EYE_MODALITIES = ("OPT", "OP")
EXPECTED = "expected OCT B-scans (JPEG, PNG, TIFF, or DICOM OPT/OP)"
LEAST_PIXELS = 64  # on a side; a smaller picture is an icon
SPACING_FLAG = "spacing-unknown"
BETWEEN_FLAG = "spacing-between-unknown"
UNEVEN_FLAG = "bscans-uneven"
# B-scans lie at regular places within this part of their distance, and this many pixels sideways: eyes move.
_UNEVEN, _SIDEWAYS = 0.25, 1.0


@dataclass(frozen=True, eq=False)
class BScans:
    """The frames of one file as a volume.

    Attributes:
        planes: in the order of the third array axis. Of one that has a space of its own, none has a position.
        grid: lateral, depth, B-scan.
        flags: `"spacing-unknown"` (1 mm stands for each pixel), `"spacing-between-unknown"` (1 mm stands for the
            distance of B-scans), `"bscans-uneven"` (they lie where no regular grid has them, so their places are not
            used).
    """

    planes: tuple[Plane, ...]
    grid: Grid
    flags: tuple[str, ...]


def picture_grid(shape: tuple[int, int, int], spacing_mm: Sequence[float] = ()) -> tuple[Grid, tuple[str, ...]]:
    """Returns the grid of B-scans that do not say where they lie, and its flags.

    Args:
        shape: lateral, depth, B-scans.
        spacing_mm: lateral, axial and, where known, between B-scans; empty where nothing is known.

    Example:
        >>> grid, flags = picture_grid((512, 496, 19), (0.0115, 0.0039))
        >>> grid.affine.diagonal().tolist(), flags
        ([-0.0115, -0.0039, 1.0, 1.0], ('spacing-between-unknown',))
    """
    known = [*spacing_mm, *(1.0,) * (3 - len(spacing_mm))]
    flags = (SPACING_FLAG,) if not spacing_mm else (BETWEEN_FLAG,) if len(spacing_mm) < 3 and shape[2] > 1 else ()
    return Grid(shape, np.diag([-known[0], -known[1], known[2], 1.0])), flags


def require_size(columns: int, rows: int, where: str) -> None:
    """Refuses pictures too small to be B-scans.

    Raises:
        GeometryError: a side has fewer than 64 pixels.
    """
    if min(columns, rows) < LEAST_PIXELS:
        raise GeometryError(
            f"{where}: expected B-scans of {LEAST_PIXELS} x {LEAST_PIXELS} pixels or more, got {columns} x {rows}"
        )


def bscans_of(planes: Sequence[Plane]) -> BScans:
    """Puts the planes of one file together, as `read_planes(file, eyes=True)` has found them.

    Raises:
        GeometryError: too small, or frames with different pixels.
        UnreadableError: values that cannot be turned into real ones, or another number of frames than stated.
    """
    first, name = planes[0], planes[0].file.name
    if first.coding.problem or first.coding.bits_allocated > 16:
        problem = first.coding.problem or f"expected 8 or 16 bits a pixel, got {first.coding.bits_allocated}"
        raise UnreadableError(problem)
    if len(planes) != first.coding.frames:
        raise UnreadableError(f"{name}: expected {first.coding.frames} frames as stated, got {len(planes)} described")
    require_size(first.columns, first.rows, name)
    if first.pixel_spacing is None or _spread(planes) > PARALLEL_TOLERANCE:
        if any(p.pixel_spacing is not None for p in planes):
            raise GeometryError(f"{name}: expected one pixel spacing for all {len(planes)} B-scans, got several")
        grid, flags = picture_grid((first.columns, first.rows, len(planes)))
        return BScans(_unplaced(planes), grid, flags)
    return _placed(planes) or _measured(planes, first.pixel_spacing)


def read_bscan_dicom(file: Path) -> Volume:
    """Reads one file as a volume `(lateral, depth, B-scan)`, values as stored, rescaled where it says so.

    Raises:
        UnreadableError: no B-scans, broken, or the codec is missing.
        GeometryError: too small, or frames with different pixels.
        IntensityError: NaN, infinite or constant.
        TooLargeError: it would not fit in memory.
    """
    planes = read_planes(file, eyes=True)
    rule = planes[0].excluded if planes else "no image"
    if rule or planes[0].modality not in EYE_MODALITIES:
        raise UnreadableError(f"{file.name}: {EXPECTED}, got {rule or f'a DICOM image of {planes[0].modality}'}")
    bscans = bscans_of(planes)
    shape = bscans.grid.shape
    require_memory(shape, file.name)
    image = np.empty(shape, dtype=np.float32)
    slices = np.empty((SLAB, shape[1], shape[0]), dtype=np.float32)
    for first in range(0, shape[2], SLAB):
        some = bscans.planes[first : first + SLAB]
        for plane, out in zip(some, slices, strict=False):
            fill_real_values(plane, out)
        put_slab(image, first, slices[: len(some)])
    require_usable(image, file.name)
    return Volume(image, bscans.grid, planes[0].modality, bscans.flags)


def _spread(planes: Sequence[Plane]) -> float:
    """How much the pixel spacings differ, as a fraction; infinite where some frames have none."""
    if any(p.pixel_spacing is None for p in planes):
        return np.inf
    spacings = np.array([p.pixel_spacing for p in planes])
    return float((np.ptp(spacings, axis=0) / spacings.min(axis=0)).max())


def _unplaced(planes: Sequence[Plane]) -> tuple[Plane, ...]:
    return tuple(replace(plane, position=None, orientation=None) for plane in planes)


def _measured(planes: Sequence[Plane], pixel_mm: Sequence[float]) -> BScans:
    """A volume in a space of its own, with the spacing that the file states."""
    first = planes[0]
    between = first.distance_mm if len(planes) > 1 else first.thickness_mm
    spacing = (pixel_mm[1], pixel_mm[0], *((between,) if between and between > 0 else ()))
    grid, flags = picture_grid((first.columns, first.rows, len(planes)), spacing)
    uneven = (UNEVEN_FLAG,) if len(planes) > 1 and all(p.position and p.orientation for p in planes) else ()
    return BScans(_unplaced(planes), grid, (*flags, *uneven))


def _placed(planes: Sequence[Plane]) -> BScans | None:
    """The volume in the patient's space; None where the frames do not say one, or form no regular grid there."""
    first = planes[0]
    if any(p.position is None or p.orientation is None or not are_parallel(first, p) for p in planes):
        return None
    across, down = np.array(first.orientation, dtype=np.float64).reshape(2, 3)
    if np.abs([across @ across - 1, down @ down - 1, across @ down]).max() > 2 * PARALLEL_TOLERANCE:
        return None
    across = across / np.linalg.norm(across)
    normal = np.cross(across, down) / np.linalg.norm(np.cross(across, down))
    down = np.cross(normal, across)
    origins = np.array([p.position for p in planes], dtype=np.float64)
    heights = origins @ normal
    if not (np.diff(heights) < 0).all():  # as stored where they lie in order, either way; else sorted
        order = np.argsort(heights, kind="stable")
        planes, origins, heights = [planes[i] for i in order], origins[order], heights[order]
    step = (heights[-1] - heights[0]) / (len(planes) - 1) if len(planes) > 1 else first.thickness_mm or 1.0
    rows_mm, columns_mm = first.pixel_spacing or (1.0, 1.0)
    ideal = origins[0] + np.arange(len(planes))[:, None] * step * normal
    off = np.abs((origins - ideal) @ np.stack([across, down, normal], axis=1)).max(axis=0)
    if step == 0 or (off > [_SIDEWAYS * columns_mm, _SIDEWAYS * rows_mm, _UNEVEN * abs(step)]).any():
        return None
    affine = np.eye(4)
    affine[:3, :3] = np.stack([across * columns_mm, down * rows_mm, normal * step], axis=1)
    affine[:3, 3] = origins[0]
    return BScans(tuple(planes), Grid((first.columns, first.rows, len(planes)), lps_to_ras(affine)), ())
