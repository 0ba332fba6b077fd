"""A result as a NIfTI file on the grid of its input."""

from collections.abc import Sequence
from pathlib import Path
from typing import IO

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip

import medgen
from medgen.case import Case, Result
from medgen.errors import OutputError
from medgen.geometry import Grid, shear_degrees
from medgen.write.atomic import atomic_write
from medgen.write.rounding import extent_of, rounded

# How a header states its grid; copied bit by bit when the result lies on the grid of a NIfTI file.
_GEOMETRY_FIELDS = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)
WHOLE_UNITS = {"HU", "label"}  # in which a fraction says nothing
_SCANNER = 1  # the sform and qform code for scanner coordinates
_QFORM_SHEAR_DEGREES = 0.01  # a quaternion cannot state more
_NIFTI1_LARGEST = 32767
_FAST = 1  # of isal's levels 0 to 3: as small as zlib's 1 in at most a fifth of its time; 0 writes a quarter more


def write_nifti(result: Result, path: Path, *, keep_float: bool = False) -> None:
    """Writes a result to `path` (`.nii` or `.nii.gz`), whole or not at all; the same result gives the same bytes.

    Beside a NIfTI input the header states the grid exactly as the input's does: shape, sform, qform, their codes,
    units. Voxels are rounded to int16 where that loses nothing: CT numbers and labels always, other values where they
    span at least `rounding.FEWEST_STEPS` and fit. Everything else stays float32.

    Args:
        result: what to write.
        path: where to.
        keep_float: float32 in any case.

    Raises:
        OutputError: it cannot be written, has NaN or infinite voxels, or the header cannot state its grid.
    """
    save_nifti(result, stored_voxels(result, keep_float=keep_float), path)


def save_nifti(result: Result, voxels: npt.NDArray[np.generic], path: Path) -> None:
    """Writes voxels of a result, in whatever type they have; see `write_nifti`.

    Raises:
        OutputError: it cannot be written, or the header cannot state its grid.
    """
    header = _source_header(result.case, result.grid)
    image = _image(voxels, result.grid, header)
    image.header["descrip"] = f"{result.kind.process} {result.kind.suffix}, medgen {medgen.__version__}"[:79].encode(
        "ascii", "replace"
    )
    _save(image, result.grid, path)


def write_volume(volume: npt.ArrayLike, grid: Grid, path: Path) -> None:
    """Writes a volume `(X, Y, Z)` that is nobody's, such as a phantom, as int16, whole or not at all.

    Raises:
        OutputError: it cannot be written, does not fit, or the header cannot state its grid.
    """
    voxels = np.asarray(volume, dtype=np.float32)
    if not extent_of(voxels).fits(np.int16):
        raise OutputError(f"{path.name}: expected values that fit 16 bits, got {voxels.min():g} to {voxels.max():g}")
    _save(_image(rounded(voxels, np.int16), grid, None), grid, path)


def _save(image: nib.Nifti1Image, grid: Grid, path: Path) -> None:
    with atomic_write(path) as part:
        with part.open("wb") as stream:
            _stream(image, stream, compressed=path.name.endswith(".gz"))
        _verify(part, grid)


def stored_voxels(result: Result, *, keep_float: bool = False) -> npt.NDArray[np.generic]:
    """Returns the voxels as they are written: int16 where that loses nothing, else float32."""
    extent = extent_of(result.image)
    whole = result.kind.unit in WHOLE_UNITS or extent.rounds_well
    if whole and extent.fits(np.int16) and not keep_float:
        return rounded(result.image, np.int16)
    return np.asarray(result.image, dtype=np.float32)


def _source_header(case: Case, grid: Grid) -> nib.Nifti1Header | None:
    """The header of a NIfTI input, if the result lies on its grid."""
    if case.kind != "nifti":
        return None
    try:
        image = nib.load(case.files[0])
    except (OSError, nib.filebasedimages.ImageFileError) as error:
        raise OutputError(f"{case.name}: the source can no longer be read; it was there when the run began") from error
    shape = _three(image.shape)
    if shape[:3] != grid.shape or int(np.prod(shape[3:])) != 1:
        return None
    own = Grid(grid.shape, np.asarray(image.affine, dtype=np.float64))
    return image.header if not own.differs_from(grid) else None


def _image(voxels: npt.NDArray[np.generic], grid: Grid, source: nib.Nifti1Header | None) -> nib.Nifti1Image:
    """The image in memory; of the source's header only the geometry is used, since the rest may say whose it is."""
    if source is not None:
        header = type(source)()
        for field in _GEOMETRY_FIELDS:
            header[field] = source[field]
        header.set_data_dtype(voxels.dtype)
        kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
        return kind(voxels.reshape(source.get_data_shape(), order="F"), None, header)
    kind = nib.Nifti2Image if max(grid.shape) > _NIFTI1_LARGEST else nib.Nifti1Image
    image = kind(voxels, grid.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(grid.affine, code=_SCANNER)
    image.set_qform(grid.affine, code=_SCANNER if shear_degrees(grid.affine) <= _QFORM_SHEAR_DEGREES else 0)
    return image


def _stream(image: nib.Nifti1Image, stream: IO[bytes], *, compressed: bool) -> None:
    if not compressed:
        image.to_stream(stream)
        return
    with igzip.IGzipFile(filename="", mode="wb", compresslevel=_FAST, fileobj=stream, mtime=0) as packed:
        image.to_stream(packed)


def _three(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a file, which may hold a single slice without a third axis."""
    return (*(int(n) for n in shape), *(1,) * (3 - len(shape)))


def _verify(path: Path, grid: Grid) -> None:
    """Reads back what the header states, because a wrong grid looks right in every viewer but beside its input."""
    image = nib.load(path)
    x, y, z = _three(image.shape)[:3]
    difference = Grid((x, y, z), np.asarray(image.affine, dtype=np.float64)).differs_from(grid)
    if difference:
        raise OutputError(f"the NIfTI header cannot state the grid {grid.describe()}: {difference}")
