"""A case becomes a MetaTensor: inside MONAI's `LoadImaged`, or for `medgen run`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import ImageReader, MetaTensor

from medgen.case import Case
from medgen.errors import UnreadableError
from medgen.read.cases import read_case
from medgen.read.dicom import read_dicom
from medgen.read.headers import looks_like_dicom
from medgen.read.manifest import Listed
from medgen.read.nifti import NIFTI_EXTENSIONS, read_nifti, read_zipped_nifti
from medgen.read.oct import is_picture, read_pictures
from medgen.read.ophthalmic import EXPECTED, read_bscan_dicom
from medgen.read.volume import VOLUME_MARK, Volume

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
_NO_CHANNEL = float("nan")  # as MONAI's own readers say it
_FLAG_SEPARATOR = ";"  # one text: lists of different lengths could not be collated to a batch


class VolumeReader(ImageReader):  # type: ignore[misc]
    """Reads a NIfTI file, a folder with one DICOM series, or the files of one, with medgen's checks.

    Use it as `LoadImaged(keys="image", reader=VolumeReader)`. Voxels come as `(X, Y, Z)` float32 on a RAS+ affine.
    What is wrong with an input is raised from `get_data`, not from `read`: MONAI answers an error in `read` by trying
    its other readers, which would read an irregular series silently.

    Args:
        allow_irregular: resample uneven or tilted DICOM slices onto a regular grid instead of refusing them.
    """

    def __init__(self, allow_irregular: bool = False) -> None:
        super().__init__()
        self.allow_irregular = allow_irregular

    def verify_suffix(self, filename: Paths) -> bool:
        """Any name may be DICOM."""
        return True

    def read(self, data: Paths, **kwargs: Any) -> list[Path]:  # noqa: ANN401 - MONAI's signature
        """Only remembers what to read; see the class."""
        return [Path(p) for p in ([data] if isinstance(data, str | os.PathLike) else data)]

    def get_data(self, img: Sequence[Path]) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Reads voxels and metadata.

        Raises:
            InputError: the volume cannot be used.
        """
        volume = read_volume(img, allow_irregular=self.allow_irregular)
        return volume.image, _metadata(volume, _NO_CHANNEL)


class BScanReader(ImageReader):  # type: ignore[misc]
    """Reads OCT B-scans: a picture, several that make a volume, or one DICOM file of an eye, with medgen's checks.

    Use it as `LoadImaged(keys="image", reader=BScanReader)` on items of `datalist(dataset_dir, modality="OPT")` or of
    `datalist_from_manifest`. Voxels come as `(lateral, depth, B-scan)` float32, values as stored, on the affine that
    `medgen.read.oct` and `medgen.read.ophthalmic` describe. Errors are raised from `get_data`, as by `VolumeReader`.
    """

    def verify_suffix(self, filename: Paths) -> bool:
        """Any name may be DICOM."""
        return True

    def read(self, data: Paths, **kwargs: Any) -> list[str]:  # noqa: ANN401 - MONAI's signature
        """Only remembers what to read; see `VolumeReader`."""
        return [str(path) for path in ([data] if isinstance(data, str | os.PathLike) else data)]

    def get_data(self, img: list[str]) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Reads voxels and metadata.

        Raises:
            InputError: the volume cannot be used.
        """
        volume = read_bscans(Listed.parse(img))
        return volume.image, _metadata(volume, _NO_CHANNEL)


def read_image(case: Case, *, allow_irregular: bool = False) -> MetaTensor:
    """Reads a case as `(1, X, Y, Z)` float32, as `LoadImaged` and `EnsureChannelFirstd` would hand it on.

    Args:
        case: from `find_cases`.
        allow_irregular: resample uneven or tilted DICOM slices onto a regular grid; `meta["medgen_flags"]` then has
            `"regridded"`.

    Raises:
        InputError: the volume cannot be used; the message says why, with numbers.
    """
    return image_of(case, read_case(case, allow_irregular=allow_irregular))


def image_of(case: Case, volume: Volume) -> MetaTensor:
    """Returns a case's volume as `(1, X, Y, Z)`, with its affine and what else `LoadImaged` would say of it."""
    meta = {**_metadata(volume, 0), "filename_or_obj": str(case.files[0])}
    return MetaTensor(torch.from_numpy(volume.image)[None], meta=meta)


def flags_of(image: MetaTensor) -> tuple[str, ...]:
    """Returns what the reader flagged on an image that `read_image`, `VolumeReader` or `BScanReader` has read."""
    return tuple(flag for flag in str(image.meta.get("medgen_flags", "")).split(_FLAG_SEPARATOR) if flag)


def read_bscans(image: Listed) -> Volume:
    """Reads the one volume of B-scans that is listed: pictures, or one DICOM file of an eye.

    Raises:
        InputError: it cannot be used.
    """
    first = image.paths[0]
    if all(map(is_picture, image.paths)):
        return read_pictures(image.paths, image.spacing_um)
    if len(image.paths) > 1:
        raise UnreadableError(f"{first.name}: {EXPECTED}, got {len(image.paths)} files that are not all pictures")
    try:
        dicom = looks_like_dicom(first)
    except OSError as error:
        raise UnreadableError(f"{first.name}: cannot be read: {error.strerror}") from error
    if not dicom:
        raise UnreadableError(f"{first.name}: {EXPECTED}, got another file")
    return read_bscan_dicom(first)


def read_volume(paths: Sequence[Path], *, allow_irregular: bool = False) -> Volume:
    """Reads the one volume at `paths`: a NIfTI file (`.nii`, `.nii.gz`, `.nii.zip`), a folder of DICOM files, or these.

    Raises:
        InputError: it cannot be used, or there is not exactly one.
    """
    marked = [str(p).partition(VOLUME_MARK) for p in paths]
    named, volume = [Path(m[0]) for m in marked], marked[0][2]
    missing = next((p for p in named if not p.exists()), None)
    if missing:
        raise UnreadableError(f"{missing.name}: expected a NIfTI file or DICOM files, got nothing")
    if len(named) == 1 and named[0].name.lower().endswith(".nii.zip"):
        return read_zipped_nifti(named[0], allow_irregular=allow_irregular)
    if len(named) == 1 and named[0].name.lower().endswith(NIFTI_EXTENSIONS):
        return read_nifti(named[0], allow_irregular=allow_irregular)
    files = [f for p in named for f in (_dicom_files(p) if p.is_dir() else [p])]
    return read_dicom(files, volume=volume, allow_irregular=allow_irregular)


def _dicom_files(folder: Path) -> list[Path]:
    """Lists the DICOM files in one folder, not below it."""
    return [f for f in sorted(folder.iterdir()) if f.is_file() and f.name != "DICOMDIR" and looks_like_dicom(f)]


def _metadata(volume: Volume, channel_dim: float) -> dict[str, Any]:
    return {
        "affine": volume.grid.affine.copy(),
        "original_affine": volume.grid.affine.copy(),
        "spatial_shape": np.array(volume.grid.shape),
        "original_channel_dim": channel_dim,
        "space": "RAS",
        "modality": volume.modality,
        "medgen_flags": _FLAG_SEPARATOR.join(volume.flags),
    }
