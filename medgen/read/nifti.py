"""NIfTI files, checked before their voxels are touched: a header can be wrong in more ways than a reader notices."""

import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip, isal_zlib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from medgen.errors import GeometryError, UnreadableError
from medgen.geometry import Grid, shear_degrees
from medgen.read.memory import require_memory
from medgen.read.volume import SLAB, Volume, put_slab, require_usable

NIFTI_EXTENSIONS = (".nii.gz", ".nii")

# Perpendicular within what float32 header fields can state.
_SHEAR_TOLERANCE_DEGREES = 0.05
_SMALLEST_DETERMINANT_MM3 = 1e-9
_HEADER_BYTES = 348
_MAGIC = slice(344, 347)
_CHUNK_BYTES = 1 << 24
# A damaged gzip raises BadGzipFile (an OSError), EOFError or what its library calls `error`: nibabel reads the header
# with the standard library, and voxels come through isal, whose types take its error for an instance.
_GZIP_ERRORS = (OSError, EOFError, zlib.error, cast("type[Exception]", isal_zlib.error))
_READ_ERRORS = (*_GZIP_ERRORS, ImageFileError, HeaderDataError, ValueError, OverflowError, MemoryError)


@dataclass(frozen=True, eq=False)
class NiftiHeader:
    """What a NIfTI header says, after its checks.

    Attributes:
        image: nibabel's image, voxels not yet read.
        grid: of its three spatial axes.
        flags: what a reader should know: `"sform-qform-differ"`, `"sheared"`, `"orientation-unknown"`, `"unit-micron"`.
    """

    image: nib.Nifti1Image
    grid: Grid
    flags: tuple[str, ...]


def read_nifti(file: Path, *, allow_irregular: bool = False) -> Volume:
    """Reads a 3-D NIfTI file as float32, with the header's slope and intercept applied.

    Memory holds the result and a few slices, whatever the file stores.

    Raises:
        UnreadableError: empty, truncated, no NIfTI, not 3-D, complex or colour.
        GeometryError: no orientation stated (unless `allow_irregular`), or a singular affine.
        IntensityError: voxels are NaN, infinite or constant.
        TooLargeError: it would not fit in memory.
    """
    header = check_header(file, allow_irregular=allow_irregular)
    require_memory(header.grid.shape, file.name)
    try:
        image = _real_values(file, header)
    except _READ_ERRORS as error:
        raise UnreadableError(
            f"{file.name}: expected {header.grid.describe()}, got a truncated or damaged file ({type(error).__name__})"
        ) from error
    require_usable(image, file.name)
    return Volume(image, header.grid, flags=header.flags)


def read_zipped_nifti(file: Path, *, allow_irregular: bool = False) -> Volume:
    """Reads the one NIfTI file in a zip archive, as some data sets are published; see `read_nifti`.

    Raises:
        UnreadableError: no zip archive, or not exactly one NIfTI file in it.
    """
    try:
        with zipfile.ZipFile(file) as archive, tempfile.TemporaryDirectory() as folder:
            names = [name for name in archive.namelist() if name.lower().endswith(NIFTI_EXTENSIONS)]
            if len(names) != 1:
                raise UnreadableError(f"{file.name}: expected one NIfTI file in it, got {len(names)}")
            return read_nifti(Path(archive.extract(names[0], folder)), allow_irregular=allow_irregular)
    except zipfile.BadZipFile as error:
        raise UnreadableError(f"{file.name}: expected a zip archive, got a damaged or other file") from error


def check_header(file: Path, *, allow_irregular: bool = False) -> NiftiHeader:
    """Reads and checks the header only.

    Raises:
        UnreadableError: empty, too short, no NIfTI, not 3-D, complex or colour.
        GeometryError: no orientation stated (unless `allow_irregular`), or a singular affine.
    """
    image = _open(file)
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 2:  # a single slice, stored without a third axis
        shape = (*shape, 1)
    if len(shape) != 3 or min(shape) < 1:
        several = f" ({int(np.prod(shape[3:]))} volumes; split them first)" if len(shape) > 3 else ""
        raise UnreadableError(f"{file.name}: expected one 3-D volume, got shape {tuple(map(int, shape))}{several}")
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        raise UnreadableError(f"{file.name}: expected real numbers, got {'colour' if dtype.fields else dtype.name}")
    needed = image.dataobj.offset + int(np.prod(shape, dtype=object)) * dtype.itemsize
    if file.suffix.lower() == ".nii" and file.stat().st_size < needed:
        raise UnreadableError(f"{file.name}: expected {needed} bytes, got {file.stat().st_size}: the file is truncated")
    grid = Grid((int(shape[0]), int(shape[1]), int(shape[2])), np.asarray(image.affine, dtype=np.float64))
    return NiftiHeader(image, grid, _check_affine(image, grid, file.name, allow_irregular=allow_irregular))


def _open(file: Path) -> nib.Nifti1Image:
    try:
        size = file.stat().st_size
        if size == 0:
            raise UnreadableError(f"{file.name}: expected a NIfTI file, got an empty one")
        image = nib.load(file)
        if not isinstance(image, nib.Nifti1Image):  # a NIfTI-2 image is one, too
            raise ImageFileError(type(image).__name__)
    except FileNotFoundError as error:
        raise UnreadableError(f"{file.name}: expected a NIfTI file, got nothing") from error
    except PermissionError as error:
        raise UnreadableError(f"{file.name}: may not be read; check its permissions") from error
    except _READ_ERRORS as error:
        raise UnreadableError(f"{file.name}: expected a NIfTI file, got {_what_it_is(file)} ({size} bytes)") from error
    return image


def _what_it_is(file: Path) -> str:
    """Says what a file that cannot be read as NIfTI seems to be."""
    with file.open("rb") as stream:
        start = stream.read(_HEADER_BYTES)
    if start[:2] == b"\x1f\x8b":
        try:
            with igzip.open(file) as packed:
                return "a damaged header" if len(packed.read(_HEADER_BYTES)) == _HEADER_BYTES else "too few bytes"
        except _READ_ERRORS:
            return "truncated or damaged gzip"
    if start[_MAGIC] in (b"n+1", b"ni1"):
        packed_name = file.suffix.lower() == ".gz"
        return "one that is not compressed (call it .nii)" if packed_name else "one with a damaged header"
    return "text" if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start) else "something else"


def _check_affine(image: nib.Nifti1Image, grid: Grid, name: str, *, allow_irregular: bool) -> tuple[str, ...]:
    """Refuses an affine that does not say where voxels lie, and flags one that two tools could read differently."""
    determinant = np.linalg.det(grid.affine[:3, :3])
    if not (np.isfinite(grid.affine).all() and abs(determinant) > _SMALLEST_DETERMINANT_MM3):
        raise GeometryError(f"{name}: expected an affine with an inverse, got one with determinant {determinant:.3g}")
    sform, qform = int(image.header["sform_code"]), int(image.header["qform_code"])
    if sform == 0 and qform == 0 and not allow_irregular:
        raise GeometryError(
            f"{name}: sform and qform code are 0, so left and right are unknown; set one, or try --allow-irregular"
        )
    unit = image.header.get_xyzt_units()[0]
    found = {
        "orientation-unknown": sform == 0 and qform == 0,
        # nibabel, and so this package, takes the sform.
        "sform-qform-differ": sform > 0 and qform > 0 and _forms_differ(image, grid),
        "sheared": shear_degrees(grid.affine) > _SHEAR_TOLERANCE_DEGREES,
        f"unit-{unit}": unit not in ("mm", "unknown"),
    }
    return tuple(flag for flag, present in found.items() if present)


def _forms_differ(image: nib.Nifti1Image, grid: Grid) -> bool:
    try:
        qform = np.asarray(image.header.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        return True
    return bool(Grid(grid.shape, qform).differs_from(grid))


def _real_values(file: Path, header: NiftiHeader) -> npt.NDArray[np.float32]:
    """Streams the voxels, scaled, into place; a gzip to its end, since only there its checksum is verified."""
    proxy, (columns, rows, count) = header.image.dataobj, header.grid.shape
    slope, intercept = float(proxy.slope), float(proxy.inter)
    scaled = (slope, intercept) != (1.0, 0.0)
    out = np.empty((columns, rows, count), dtype=np.float32)
    with _opened(file) as stream, np.errstate(over="ignore", invalid="ignore"):  # overflow becomes infinite: refused
        stream.read(proxy.offset)
        for first in range(0, count, SLAB):
            depth = min(SLAB, count - first)
            stored = np.frombuffer(stream.read(depth * rows * columns * proxy.dtype.itemsize), proxy.dtype)
            slab = stored.reshape(depth, rows, columns)  # ValueError when the file ends here
            put_slab(out, first, slab * slope + intercept if scaled else slab)
        while file.suffix.lower() == ".gz" and stream.read(_CHUNK_BYTES):
            pass
    return out


def _opened(file: Path) -> BinaryIO | igzip.IGzipFile:
    return igzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb")
