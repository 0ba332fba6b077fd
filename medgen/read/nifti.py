"""NIfTI files, checked before their voxels are touched: a header can be wrong in more ways than a reader notices."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from medgen.errors import GeometryError, UnreadableError
from medgen.geometry import Grid, shear_degrees
from medgen.read.volume import Volume, require_usable

# Perpendicular within what float32 header fields can state.
_SHEAR_TOLERANCE_DEGREES = 0.05
_HEADER_BYTES = 348
_READ_ERRORS = (OSError, EOFError, zlib.error, ImageFileError, HeaderDataError, ValueError, OverflowError, MemoryError)


@dataclass(frozen=True, eq=False)
class NiftiHeader:
    """What a NIfTI header says, after its checks.

    Attributes:
        image: nibabel's image, voxels not yet read.
        grid: of its three spatial axes.
        flags: what a reader should know, such as `"sform-qform-differ"`.
    """

    image: nib.Nifti1Image
    grid: Grid
    flags: tuple[str, ...]


def read_nifti(file: Path, *, allow_irregular: bool = False) -> Volume:
    """Reads a 3-D NIfTI file as float32, with the header's slope and intercept applied.

    Raises:
        UnreadableError: empty, truncated, no NIfTI, not 3-D, complex or colour.
        GeometryError: no orientation stated, or a singular affine.
        IntensityError: voxels are NaN, infinite or constant.
    """
    header = check_header(file, allow_irregular=allow_irregular)
    try:
        image = _real_values(header.image).reshape(header.grid.shape, order="F")
    except _READ_ERRORS as error:
        raise UnreadableError(
            f"{file.name}: expected {header.grid.describe()}, got {file.stat().st_size} bytes that end too early or are damaged"
        ) from error
    require_usable(image, file.name)
    return Volume(image, header.grid, flags=header.flags)


def check_header(file: Path, *, allow_irregular: bool = False) -> NiftiHeader:
    """Reads and checks the header only.

    Raises:
        UnreadableError: empty, no NIfTI, not 3-D, complex or colour.
        GeometryError: no orientation stated (unless `allow_irregular`), or a singular affine.
    """
    image = _open(file)
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        several = f" ({int(np.prod(shape[3:]))} volumes; split them first)" if len(shape) > 3 else ""
        raise UnreadableError(
            f"{file.name}: expected one 3-D volume, got shape {tuple(int(n) for n in shape)}{several}"
        )
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        raise UnreadableError(f"{file.name}: expected real numbers, got {'colour' if dtype.fields else dtype.name}")
    grid = Grid((int(shape[0]), int(shape[1]), int(shape[2])), np.asarray(image.affine, dtype=np.float64))
    return NiftiHeader(image, grid, _check_affine(image, grid, file.name, allow_irregular=allow_irregular))


def _open(file: Path) -> nib.Nifti1Image:
    size = file.stat().st_size
    if size == 0:
        raise UnreadableError(f"{file.name}: expected a NIfTI file, got an empty one")
    try:
        image = nib.load(file)
        if not isinstance(image, nib.Nifti1Image):  # Nifti2Image is one too
            raise ImageFileError(type(image).__name__)
    except _READ_ERRORS as error:
        raise UnreadableError(f"{file.name}: expected a NIfTI file, got {_what_it_is(file)} ({size} bytes)") from error
    return image


def _what_it_is(file: Path) -> str:
    """Says what a file that is no NIfTI seems to be."""
    with file.open("rb") as stream:
        start = stream.read(_HEADER_BYTES)
    if start[:2] == b"\x1f\x8b":
        try:
            with gzip.open(file) as stream:
                return (
                    "gzip of something else"
                    if len(stream.read(_HEADER_BYTES)) == _HEADER_BYTES
                    else "gzip that is too short"
                )
        except _READ_ERRORS:
            return "truncated or damaged gzip"
    return "text" if start and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start) else "something else"


def _check_affine(image: nib.Nifti1Image, grid: Grid, name: str, *, allow_irregular: bool) -> tuple[str, ...]:
    """Refuses an affine that places no voxel, and flags one that two tools could read differently."""
    affine = grid.affine
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise GeometryError(
            f"{name}: expected an invertible affine, got one with determinant {np.linalg.det(affine[:3, :3]):.3g}"
        )
    sform, qform = int(image.header["sform_code"]), int(image.header["qform_code"])
    if sform == 0 and qform == 0:
        if not allow_irregular:
            raise GeometryError(
                f"{name}: sform and qform code are 0, so left and right are unknown; set one, or try --allow-irregular"
            )
        return ("orientation-unknown",)
    flags = []
    if sform > 0 and qform > 0 and _forms_differ(image, grid):
        flags.append("sform-qform-differ")  # nibabel, and so this package, uses the sform
    if shear_degrees(affine) > _SHEAR_TOLERANCE_DEGREES:
        flags.append("sheared")
    return tuple(flags)


def _forms_differ(image: nib.Nifti1Image, grid: Grid) -> bool:
    try:
        qform = np.asarray(image.header.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        return True
    return bool(Grid(grid.shape, qform).differs_from(grid))


def _real_values(image: nib.Nifti1Image) -> npt.NDArray[np.float32]:
    """Reads and scales slice by slice, so that no more than the stored values and the result are in memory."""
    proxy = image.dataobj
    stored: npt.NDArray[np.generic] = np.asanyarray(proxy.get_unscaled())
    if isinstance(stored, np.memmap):
        stored = np.array(stored, order="K", subok=False)
    slope, intercept = float(proxy.slope), float(proxy.inter)
    if stored.dtype == np.float32 and stored.dtype.isnative and (slope, intercept) == (1.0, 0.0):
        return stored.view(np.float32)
    out = np.empty(stored.shape, dtype=np.float32, order="F")
    for k in range(stored.shape[-1]):
        np.multiply(stored[..., k], slope, out=out[..., k], casting="unsafe")
        out[..., k] += np.float32(intercept)
    return out
