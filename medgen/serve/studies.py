"""A tree of studies as the flat folder that MONAI Label wants: it lists files, nothing in folders, and no series."""

import hashlib
import json
import shutil
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from medgen.case import Case
from medgen.read.discover import find_cases
from medgen.read.ophthalmic import EYE_MODALITIES
from medgen.run.private import make_salt
from medgen.write.atomic import writing

_SERIES = ".dicom"  # a folder of this name is an image to MONAI Label, and a series to `find_cases`
KINDS = (".nii.gz", ".nii", ".nrrd", ".jpg", ".jpeg", ".png", ".tif", ".tiff")  # of files
LISTED = tuple(f"*{kind}" for kind in (*KINDS, _SERIES))
_LINKS = "links.json"  # names of the links, by what they lead to


def listed_folder(studies: Path, folder: Path, modalities: Iterable[str]) -> Path:
    """Returns the folder that MONAI Label is to list: the studies themselves if it finds images there, else links.

    Args:
        studies: a folder.
        folder: where links are made: `NAME.nii.gz` for a NIfTI file, `NAME.dicom/` for a series. Links of an earlier
            call keep their names; those to what is gone are removed; labels beside them stay.
        modalities: that bundles take; pictures are images only where one takes eyes.

    Raises:
        OutputError: the links cannot be made.
    """
    if any(fnmatch(path.name, pattern) for path in studies.iterdir() for pattern in LISTED):
        return studies
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    salt = make_salt(folder)
    cases = find_cases(studies, salt=salt, allow_irregular=True)
    if set(EYE_MODALITIES) & set(modalities):
        eyes = find_cases(studies, salt=salt, modality="OPT")
        cases = [*cases, *(case for case in eyes if case.kind == "picture")]
    wanted: dict[str, Case] = {}
    ours = _known(folder)
    taken = {
        path.name for path in folder.iterdir() if path.name not in ours or not (path.is_symlink() or path.is_dir())
    }
    for case in (case for case in cases if case.files and not case.excluded):
        name = _name(case, "")
        free = name not in wanted and name not in taken  # a/b.nii beside a_b.nii; or an upload has the name
        wanted[name if free else _name(case, f"-{_hash(case)}")] = case
    with writing(folder):
        for name in ours - set(wanted) - taken:
            _remove(folder / name)
        for name, case in wanted.items():
            _link(case, folder / name)
        (folder / _LINKS).write_text(json.dumps(sorted(wanted)), encoding="utf-8")
    return folder


def _name(case: Case, tail: str) -> str:
    extension = _SERIES if case.kind == "dicom" else case.extension
    return "_".join(case.stem.parts) + tail + extension


def _hash(case: Case) -> str:
    return hashlib.sha256(str(case.stem).encode("utf-8", "surrogateescape")).hexdigest()[:6]


def _link(case: Case, place: Path) -> None:
    _remove(place)
    if case.kind != "dicom":
        place.symlink_to(case.files[0].resolve())
        return
    place.mkdir()
    for number, file in enumerate(case.files, 1):
        (place / f"{number:06}.dcm").symlink_to(file.resolve())


def _known(folder: Path) -> set[str]:
    try:
        return set(json.loads((folder / _LINKS).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return set()


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
