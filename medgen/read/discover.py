"""An input becomes cases: every NIfTI file and every DICOM volume below it, each with a name that gives nobody away.

For a bundle of B-scans of eyes they are every picture and every DICOM image of an eye; what else lies there is refused.
"""

import hashlib
import hmac
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from medgen.case import Case
from medgen.errors import InputError, NoInputError, UnreadableError
from medgen.provenance import file_sha256, files_sha256
from medgen.read.bscan_cases import eye_cases, picture_case, refuse_others
from medgen.read.files import Found, find_files
from medgen.read.headers import Plane
from medgen.read.lattice import build_lattice, irregularity
from medgen.read.nifti import NIFTI_EXTENSIONS, check_header
from medgen.read.ophthalmic import EYE_MODALITIES
from medgen.read.planes import read_planes
from medgen.read.scan import scan
from medgen.read.stacks import Stack, build_stacks
from medgen.read.volume import VOLUME_MARK

_log = logging.getLogger(__name__)

_HASH_DIGITS = 12
_TAIL_DIGITS = 6
_DERIVED = "derived by medgen"  # a result beside its source must not become a source
_FOREIGN = "not a format that medgen reads (NIfTI or DICOM)"
_FOREIGN_TO_EYES = "not a format of B-scans (JPEG, PNG, TIFF or DICOM)"

Hash = Callable[[str], str]


def find_cases(
    source: Path,
    *,
    salt: bytes,
    hash_paths: bool = False,
    allow_irregular: bool = False,
    modality: str = "",
    among: Sequence[Path] | None = None,
) -> list[Case]:
    """Finds the cases in an input, reading headers only.

    Nothing is dropped silently: what a rule leaves out is a case with `excluded`, what cannot be used one with
    `refused`. No cases are only files in folders that are neither NIfTI nor DICOM (their number is logged), hidden
    files, DICOM objects without an image, and outputs of earlier runs.

    Args:
        source: a NIfTI or DICOM file, a folder (searched to the bottom), a list of paths (`.txt`, `.tsv`, `.csv`), or a
            data manifest (`.json`).
        salt: secret of the run that goes into the names of DICOM cases.
        hash_paths: call NIfTI files by a hash, too.
        allow_irregular: describe irregular DICOM stacks by the grid that they will be resampled to, instead of refusing
            them.
        modality: of what is looked for, as a bundle's metadata declare it. `"OPT"` or `"OP"`: every picture (JPEG, PNG,
            TIFF) and DICOM image of an eye is a case, what else holds a volume is refused. Any other makes no
            difference: pictures and images of eyes are then left out.
        among: look only at these files, all of them below the folder `source`; cases have the names that they would
            have if nothing else lay there.

    Returns:
        cases in a stable order; names and stems are unique.

    Raises:
        NoInputError: `source` does not exist, or a list cannot be used.
        ManifestError: a manifest is not valid.
    """
    eyes = modality in EYE_MODALITIES
    found = find_files(Path(source), pictures=eyes, among=among)

    def digest(text: str) -> str:
        return _digest(text, salt)

    nifti = [_nifti_case(p, _relative(p, found), allow_irregular) for p in found.nifti]
    if hash_paths:
        nifti = [_renamed(c, f"nifti-{digest(str(c.relative))}") for c in nifti]
    dicom, others = _dicom_cases(found, digest, allow_irregular, eyes=eyes), _other_cases(found, digest, hash_paths)
    if not eyes:
        return _told_apart([*nifti, *dicom, *others])
    pictures = scan(found.pictures, lambda image: picture_case(image, _relative(image.paths[0], found)))
    if hash_paths:
        pictures = [_renamed(c, f"picture-{digest(str(c.relative))}") for c in pictures]
    others = [replace(c, excluded=_FOREIGN_TO_EYES) if c.excluded else c for c in others]
    return _told_apart([*pictures, *map(refuse_others, nifti), *dicom, *others])


def lost_case(series: str, reason: str, *, salt: bytes) -> Case:
    """Accounts for a DICOM series that is known to exist and could not be had, under the name it would have had."""
    name = lost_name(series, salt)
    return Case(name, "dicom", (), PurePosixPath(name), PurePosixPath(name), ".dcm", refused=reason)


def lost_name(series: str, salt: bytes) -> str:
    """Returns what a DICOM series is called that is one volume, or of which nobody knows how many it is.

    Args:
        series: its SeriesInstanceUID; where several studies claim it, followed by `|` and the StudyInstanceUID.
        salt: see `find_cases`.
    """
    return f"dicom-{_digest(series, salt)}"


def require_cases(dataset: Any) -> None:  # noqa: ANN401 - any sized thing: a list of cases, a MONAI dataset
    """Refuses to start on nothing.

    Raises:
        NoInputError: `dataset` is empty.
    """
    if len(dataset) == 0:
        raise NoInputError("expected images as input (NIfTI, DICOM; of eyes also pictures), found none; check the path")


def datalist(dataset_dir: str, modality: str = "") -> list[dict[str, Any]]:
    """Lists the cases below a folder for a bundle's `dataset`.

    Localizers and the like are left out, and logged; what is refused is listed, so that reading it raises the reason.
    A missing or empty folder gives an empty list, because MONAI builds the dataset of a bundle whose data are
    elsewhere; `require_cases` is for when the work starts.

    Args:
        dataset_dir: the folder.
        modality: see `find_cases`; with `"OPT"` the items are for `BScanReader`.

    Returns:
        items with `image` (a path, or the paths of a series, for `VolumeReader`) and `stem` (`Case.stem` as text; for a
        DICOM series a hash without salt).
    """
    if not dataset_dir or not Path(dataset_dir).is_dir():
        return []
    items: list[dict[str, Any]] = []
    for case in find_cases(Path(dataset_dir), salt=b"", modality=modality):
        if case.excluded:
            _log.info("%s is left out: %s", case.name, case.excluded)
            continue
        paths = [str(f) + (f"{VOLUME_MARK}{case.volume}" if case.volume else "") for f in case.files]
        items.append({"image": paths[0] if len(paths) == 1 else paths, "stem": str(case.stem)})
    return items


def input_sha256(case: Case) -> str:
    """Returns the hash of a case's content: its files, which volume in them, and of B-scans their order and spacing.

    Raises:
        UnreadableError: a file cannot be read.
    """
    several = case.kind == "picture" and len(case.files) > 1
    try:
        content = " ".join(map(file_sha256, case.files)) if several else files_sha256(case.files)
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror}") from error
    beside = f"{case.volume}{case.spacing_um or ''}"
    return hashlib.sha256(f"{content}{beside}".encode()).hexdigest() if beside or several else content


def _digest(text: str, salt: bytes) -> str:
    return hmac.new(salt, text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:_HASH_DIGITS]


def _relative(path: Path, found: Found) -> PurePosixPath:
    return (
        PurePosixPath(path.relative_to(found.base).as_posix())
        if path.is_relative_to(found.base)
        else PurePosixPath(path.name)
    )


def _nifti_case(file: Path, relative: PurePosixPath, allow_irregular: bool) -> Case:
    extension = next(e for e in NIFTI_EXTENSIONS if file.name.lower().endswith(e))
    stem = relative.with_name(relative.name[: -len(extension)] or relative.name)
    case = Case(str(relative), "nifti", (file,), stem, relative, extension)
    try:
        header = check_header(file, allow_irregular=allow_irregular)
    except InputError as error:
        return replace(case, refused=str(error))
    except OSError as error:
        return replace(case, refused=f"{file.name}: cannot be read: {error.strerror}")
    return replace(case, grid=header.grid, flags=header.flags)


def _renamed(case: Case, name: str) -> Case:
    """Hides a path: its hash becomes name and stem, and no message repeats the file's name."""
    refused = case.refused
    for file in case.files:
        refused = refused.replace(file.name, name)
    return replace(case, name=name, stem=PurePosixPath(name), refused=refused)


def _dicom_cases(found: Found, digest: Hash, allow_irregular: bool, *, eyes: bool) -> list[Case]:
    planes, broken = _scan(found.dicom, eyes=eyes)
    cases = _series_cases(
        [p for p in planes if p.modality not in EYE_MODALITIES or not eyes], found, digest, allow_irregular
    )
    if eyes:
        cases = [*eye_cases(planes, digest, lambda file: _relative(file, found)), *map(refuse_others, cases)]
    return cases + [_broken_case(p, reason, f"dicom-{digest(str(_relative(p, found)))}", found) for p, reason in broken]


def _series_cases(planes: Sequence[Plane], found: Found, digest: Hash, allow_irregular: bool) -> list[Case]:
    stacks = build_stacks(planes)
    studies: dict[str, set[str]] = {}
    for stack in stacks:
        studies.setdefault(stack.planes[0].series_uid, set()).add(stack.planes[0].study_uid)
    cases = []
    for stack in stacks:
        first = stack.planes[0]
        # A series that two studies claim is two series; excluded parts of a series must not take its name.
        parts = [
            first.series_uid,
            first.study_uid if len(studies[first.series_uid]) > 1 else "",
            stack.key,
            stack.excluded,
        ]
        name = f"dicom-{digest('|'.join(filter(None, parts)))}"
        cases.append(_dicom_case(stack, name, _relative(first.file, found), allow_irregular))
    return cases


def _scan(files: Sequence[Path], *, eyes: bool) -> tuple[list[Plane], list[tuple[Path, str]]]:
    """Reads the headers of many files; those that cannot be read come back with the reason."""

    def look(file: Path) -> list[Plane] | str:
        try:
            return read_planes(file, eyes=eyes)
        except UnreadableError as error:
            return str(error)

    planes: list[Plane] = []
    broken: list[tuple[Path, str]] = []
    for file, result in zip(files, scan(files, look), strict=True):
        if isinstance(result, str):
            broken.append((file, result.removeprefix(f"{file.name}: ")))
        else:
            planes += result
    return planes, broken


def _dicom_case(stack: Stack, name: str, relative: PurePosixPath, allow_irregular: bool) -> Case:
    first = stack.planes[0]
    files = tuple(dict.fromkeys(p.file for p in stack.planes))
    case = Case(
        name=name,
        kind="dicom",
        files=files,
        stem=PurePosixPath(name),
        relative=relative if len(files) == 1 else relative.parent,
        extension=".dcm",
        modality=first.modality,
        study=first.study_uid,
        volume=stack.key if first.coding.frames > 1 else "",
        description=", ".join(filter(None, (first.description, stack.key))),
        excluded=stack.excluded or (_DERIVED if first.by_medgen else ""),
        flags=stack.flags,
    )
    if stack.excluded:
        return case
    try:
        grid = stack.grid(allow_irregular=allow_irregular)
    except InputError as error:
        return replace(case, refused=str(error))
    regridded = ("regridded",) if len(stack.planes) > 1 and irregularity(build_lattice(stack.planes)) else ()
    single = ("single-slice",) if len(stack.planes) == 1 else ()
    return replace(case, grid=grid, flags=(*case.flags, *regridded, *single))


def _broken_case(path: Path, reason: str, name: str, found: Found) -> Case:
    """Accounts for what cannot be looked at; its path is hidden, because it may be part of a DICOM export."""
    return Case(name, "dicom", (path,), PurePosixPath(name), _relative(path, found), path.suffix, refused=reason)


def _other_cases(found: Found, digest: Hash, hash_paths: bool) -> list[Case]:
    """Accounts for what was named one by one and is no image that medgen reads, and for what cannot be opened."""
    cases = [
        _broken_case(p, reason, f"unreadable-{digest(str(_relative(p, found)))}", found) for p, reason in found.broken
    ]
    for path in found.foreign:
        relative = _relative(path, found)
        name = f"file-{digest(str(relative))}" if hash_paths else str(relative)
        cases.append(Case(name, "nifti", (path,), PurePosixPath(name), relative, path.suffix, excluded=_FOREIGN))
    return cases


def _told_apart(cases: list[Case]) -> list[Case]:
    """Gives each case its own name and stem: those that collide (`a.nii`, `a.nii.gz`) get a hash of their path."""
    stems = Counter(str(c.stem).casefold() for c in cases)
    names = Counter(c.name for c in cases)
    apart = []
    for case in cases:
        path = str(case.relative).encode("utf-8", "surrogateescape")
        tail = f"-{hashlib.sha256(path).hexdigest()[:_TAIL_DIGITS]}"
        stem = case.stem.with_name(case.stem.name + tail) if stems[str(case.stem).casefold()] > 1 else case.stem
        apart.append(replace(case, stem=stem, name=case.name + tail if names[case.name] > 1 else case.name))
    return apart
