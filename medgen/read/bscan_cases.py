"""B-scans become cases: a picture, a list of pictures that make a volume, a DICOM file of an eye."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from medgen.case import Case
from medgen.errors import InputError
from medgen.read.headers import Plane
from medgen.read.manifest import Listed
from medgen.read.oct import check_pictures
from medgen.read.ophthalmic import EXPECTED, EYE_MODALITIES, bscans_of
from medgen.read.pixels import pixels_sha256

_KEPT_RULES = ("secondary capture",)


def picture_case(image: Listed, relative: PurePosixPath) -> Case:
    """Returns the case of a picture, or of the B-scans of a volume, which is called after the first; reads headers.

    Args:
        image: the files.
        relative: path of the first relative to the input.
    """
    stem = relative.with_name(relative.stem)
    case = Case(str(relative), "picture", image.paths, stem, relative, relative.suffix, spacing_um=image.spacing_um)
    try:
        grid, header, flags = check_pictures(image.paths, image.spacing_um)
    except InputError as error:
        return replace(case, refused=str(error))
    except OSError as error:
        return replace(case, refused=f"{relative.name}: cannot be read: {error.strerror}")
    several = f", {len(image.paths)} files" if len(image.paths) > 1 else ""
    return replace(case, grid=grid, flags=tuple(flags), description=header.describe() + several)


def eye_cases(
    planes: Sequence[Plane], digest: Callable[[str], str], relative: Callable[[Path], PurePosixPath]
) -> list[Case]:
    """Returns a case for each DICOM file of an eye; copies of one instance are one.

    Args:
        planes: of the files, found with `eyes`; those of other classes are not looked at.
        digest: of a text, for the name.
        relative: path of a file relative to the input.
    """
    files: dict[Path, list[Plane]] = defaultdict(list)
    for plane in planes:
        if plane.modality in EYE_MODALITIES:
            files[plane.file].append(plane)
    instances: dict[tuple[str, str], list[list[Plane]]] = defaultdict(list)
    series: dict[str, set[str]] = defaultdict(set)
    for found in files.values():
        first = found[0]
        instances[first.series_uid, first.sop_uid].append(found)
        series[first.series_uid].add(first.sop_uid)
    cases = []
    for (series_uid, sop_uid), copies in instances.items():
        name = f"dicom-{digest(f'{series_uid}|{sop_uid}' if len(series[series_uid]) > 1 else series_uid)}"
        different = {tuple(map(pixels_sha256, c)): c for c in reversed(copies)} if len(copies) > 1 else {(): copies[0]}
        flags = ("duplicates-dropped",) if len(copies) > len(different) else ()
        for found in different.values():
            cases.append(_eye_case(found, name, relative(found[0].file), flags))
    return cases


def refuse_others(case: Case) -> Case:
    """Returns a case that is no B-scan with the reason why it is refused; a screen shot stays left out by rule."""
    if case.excluded in _KEPT_RULES:
        return case
    found = "a NIfTI file" if case.kind == "nifti" else f"DICOM of modality {case.modality or 'unknown'}"
    return replace(case, grid=None, flags=(), excluded="", refused=f"{EXPECTED}, got {found}")


def _eye_case(planes: list[Plane], name: str, relative: PurePosixPath, flags: tuple[str, ...]) -> Case:
    first = planes[0]
    case = Case(
        name=name,
        kind="dicom",
        files=(first.file,),
        stem=PurePosixPath(name),
        relative=relative,
        extension=".dcm",
        modality=first.modality,
        study=first.study_uid,
        description=first.description,
        excluded=first.excluded,
        flags=flags,
    )
    if first.excluded:
        return case
    try:
        bscans = bscans_of(planes)
    except InputError as error:
        return replace(case, refused=str(error).removeprefix(f"{first.file.name}: "))
    return replace(case, grid=bscans.grid, flags=(*flags, *bscans.flags))
