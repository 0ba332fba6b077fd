"""A result as one file of the format and type that a client asks for, with the values that `medgen run` writes."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK

from medgen.case import Result
from medgen.errors import OutputError
from medgen.write.atomic import atomic_write
from medgen.write.nifti import WHOLE_UNITS, save_nifti, stored_voxels
from medgen.write.rounding import FEWEST_STEPS

EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".mha")
DTYPES = ("float32", "float64", "int16", "uint16", "int32", "uint8", "int8")
_IMAGE_IO = {".nrrd": "NrrdImageIO", ".mha": "MetaImageIO"}
_LPS = np.diag([-1.0, -1.0, 1.0])  # from RAS+, which medgen keeps, to what ITK keeps


def require_known(extension: str, dtype: str) -> None:
    """Refuses what cannot be written.

    Raises:
        OutputError: the format or type is none of `EXTENSIONS` and `DTYPES`.
    """
    if extension not in EXTENSIONS:
        raise OutputError(f"expected a result_extension of {', '.join(EXTENSIONS)}, got {extension!r}")
    if dtype not in DTYPES:
        raise OutputError(f"expected a result_dtype of {', '.join(DTYPES)}, got {dtype!r}")


def write_served(result: Result, path: Path, dtype: str = "float32", *, compress: bool = True) -> None:
    """Writes a result to `path`, whole or not at all.

    Args:
        result: what to write.
        path: with one of `EXTENSIONS`.
        dtype: of `DTYPES`; integers are rounded to, never wrapped or clipped.
        compress: of `.nrrd` and `.mha`.

    Raises:
        OutputError: the values do not fit the type, or it cannot be written.
    """
    voxels = _as_type(stored_voxels(result), dtype, result.kind.unit)
    if path.suffix in _IMAGE_IO:
        with atomic_write(path) as part:
            image = _itk_image(voxels, result)
            SimpleITK.WriteImage(image, str(part), useCompression=compress, imageIO=_IMAGE_IO[path.suffix])
    else:
        save_nifti(result, voxels, path)


def _as_type(voxels: npt.NDArray[np.generic], dtype: str, unit: str) -> npt.NDArray[np.generic]:
    target = np.dtype(dtype)
    if target.kind == "f":
        return voxels.astype(target)
    whole, range_ = np.rint(voxels.astype(np.float64)), np.iinfo(target)
    low, high = float(whole.min()), float(whole.max())
    if low < range_.min or high > range_.max:
        raise OutputError(
            f"expected values that fit {dtype} ({range_.min} to {range_.max}), got {low:g} to {high:g} {unit}; "
            "ask for result_dtype int16 or float32"
        )
    if unit not in WHOLE_UNITS and high - low < FEWEST_STEPS and not np.array_equal(whole, voxels):
        raise OutputError(
            f"expected values that whole numbers can tell apart, got {low:g} to {high:g} {unit}; "
            "ask for result_dtype float32"
        )
    return whole.astype(target)


def _itk_image(voxels: npt.NDArray[np.generic], result: Result) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.T))
    affine, spacing = result.grid.affine, np.asarray(result.grid.spacing_mm, dtype=float)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((_LPS @ affine[:3, 3]).tolist())
    image.SetDirection((_LPS @ (affine[:3, :3] / spacing)).flatten().tolist())
    return image
