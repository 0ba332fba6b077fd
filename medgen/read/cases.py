"""A case becomes a volume, whatever the format that it came in."""

from dataclasses import replace

from medgen.case import Case
from medgen.errors import UnreadableError
from medgen.read.dicom import read_dicom
from medgen.read.nifti import read_nifti
from medgen.read.oct import read_pictures
from medgen.read.ophthalmic import EXPECTED, EYE_MODALITIES, read_bscan_dicom
from medgen.read.volume import Volume


def read_case(case: Case, *, allow_irregular: bool = False) -> Volume:
    """Reads a case; the flags are those of the case and of reading, sorted.

    Args:
        case: from `find_cases`.
        allow_irregular: resample uneven or tilted DICOM slices onto a regular grid; the flags then have `"regridded"`.

    Raises:
        InputError: the volume cannot be used; the message says why, with numbers.
    """
    if case.refused.startswith(EXPECTED):  # it could be read, but not for what it is wanted
        raise UnreadableError(case.refused)
    if case.kind == "picture":
        volume = read_pictures(case.files, case.spacing_um)
    elif case.modality in EYE_MODALITIES:
        volume = read_bscan_dicom(case.files[0])
    elif case.kind == "dicom":
        volume = read_dicom(case.files, volume=case.volume, allow_irregular=allow_irregular)
    else:
        volume = read_nifti(case.files[0], allow_irregular=allow_irregular)
    return replace(volume, flags=tuple(sorted({*case.flags, *volume.flags})))
