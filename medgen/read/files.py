"""Which files an input names: a file, a folder searched to the bottom, a list of paths, or a data manifest."""

import csv
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medgen.errors import NoInputError
from medgen.read.headers import looks_like_dicom
from medgen.read.manifest import Listed, listed_images
from medgen.read.nifti import NIFTI_EXTENSIONS
from medgen.read.oct import is_picture

_log = logging.getLogger(__name__)

_DICOM_EXTENSIONS = (".dcm", ".ima", ".dicom")
_LIST_EXTENSIONS = (".txt", ".tsv", ".csv")
_PATH_COLUMNS = ("path", "image")
_NOT_AN_IMAGE = {"DICOMDIR"}
# A folder in which medgen keeps its own records is an output of an earlier run, and none of its files are inputs.
_OUTPUT_MARK = ".medgen"


@dataclass
class Found:
    """Files that may be images, by kind.

    Attributes:
        base: what names are relative to.
        nifti: paths with a NIfTI extension.
        dicom: paths that look like DICOM, or claim to be.
        broken: paths that cannot be looked at, with the reason.
        pictures: B-scans as pictures, alone or as a volume; none unless they are asked for.
        foreign: paths that were named one by one and are no format that medgen reads.
        ignored: how many other files lie in the folders searched.
        take_pictures: pictures are asked for.
    """

    base: Path
    nifti: list[Path] = field(default_factory=list)
    dicom: list[Path] = field(default_factory=list)
    pictures: list[Listed] = field(default_factory=list)
    broken: list[tuple[Path, str]] = field(default_factory=list)
    foreign: list[Path] = field(default_factory=list)
    ignored: int = 0
    take_pictures: bool = False


def find_files(source: Path, *, pictures: bool = False, among: Sequence[Path] | None = None) -> Found:
    """Lists what `source` names, in a stable order.

    Args:
        source: a file, folder, list or manifest.
        pictures: JPEG, PNG and TIFF files are images too; else they are files like any other.
        among: only these files of a folder; one that is gone by now is left out, as a search would.

    Raises:
        NoInputError: it does not exist, or a list names a path that does not.
        ManifestError: a manifest is not valid.
    """
    source = source.absolute()
    if among is not None:
        found = Found(source, take_pictures=pictures)
        for path in filter(Path.exists, among):
            sort_in(path, found, named=False)
        return found
    if not source.exists():
        raise NoInputError(f"expected a file or folder as input, got nothing at {source.name}")
    if source.is_dir():
        found = Found(source, take_pictures=pictures)
        _search(source, found)
    else:
        found = _from_file(source, pictures=pictures)
    if found.ignored:
        formats = "neither pictures nor NIfTI nor DICOM" if pictures else "neither NIfTI nor DICOM"
        _log.info("%d other files in the input are %s, and are ignored", found.ignored, formats)
    return found


def _from_file(source: Path, *, pictures: bool) -> Found:
    name = source.name.lower()
    if not name.endswith((*_LIST_EXTENSIONS, ".json")):
        found = Found(source.parent, take_pictures=pictures)
        sort_in(source, found, named=True)
        return found
    if name.endswith(".json"):
        base, listed = listed_images(source)
    else:
        base, listed = source.parent, [Listed((path,)) for path in read_list(source)]
    if not listed:
        raise NoInputError(f"{source.name}: expected paths of images, got none")
    found = Found(_common_base(base, [path for image in listed for path in image.paths]), take_pictures=pictures)
    for image in dict.fromkeys(listed):
        _add(image, found)
    return found


def _add(image: Listed, found: Found) -> None:
    """Puts what a list or a manifest names where it belongs."""
    if found.take_pictures and (len(image.paths) > 1 or is_picture(image.paths[0])):
        found.pictures.append(image)
        return
    for path in image.paths:
        if path.is_dir():
            _search(path, found)
        else:
            sort_in(path, found, named=True)


def read_list(file: Path) -> list[Path]:
    """Reads a list of paths: one a line, or a table with a column `path` or `image`; relative to the list's folder.

    Empty lines and lines that begin with `#` say nothing.

    Raises:
        NoInputError: a table has no such column, or the list is no text.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise NoInputError(f"{file.name}: expected a list of paths as UTF-8 text") from error
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if file.suffix.lower() == ".txt":
        return [file.parent / line.strip() for line in lines]
    table = csv.DictReader(lines, delimiter="\t" if file.suffix.lower() == ".tsv" else ",")
    column = next((c for c in _PATH_COLUMNS if c in (table.fieldnames or ())), None)
    if column is None:
        raise NoInputError(
            f"{file.name}: expected a column `path` or `image`, got {', '.join(table.fieldnames or ()) or 'nothing'}"
        )
    return [file.parent / row[column].strip() for row in table if (row[column] or "").strip()]


def _common_base(base: Path, paths: list[Path]) -> Path:
    """Returns the list's own folder when all paths lie in it, else the folder that they share."""
    absolute = [Path(os.path.normpath(p)) for p in paths]
    if all(p.is_relative_to(base) for p in absolute):
        return base
    return Path(os.path.commonpath([p.parent for p in absolute]))


def _search(folder: Path, found: Found) -> None:
    for path in walk(folder, found, set()):
        sort_in(path, found, named=False)


def walk(folder: Path, found: Found, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Yields the files below a folder, sorted; hidden names and medgen's own outputs left out, loops of links cut.

    What cannot be read goes to `found.broken`; `seen` collects folders, and is empty at the start.
    """
    try:
        state = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError as error:
        found.broken.append((folder, f"folder cannot be read: {error.strerror}"))
        return
    if (state.st_dev, state.st_ino) in seen or any(e.name == _OUTPUT_MARK for e in entries):
        return
    seen.add((state.st_dev, state.st_ino))
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if entry.is_dir():
            yield from walk(Path(entry.path), found, seen)
        else:
            yield Path(entry.path)


def sort_in(path: Path, found: Found, *, named: bool) -> None:
    """Puts one file where it belongs; `named` says that the user pointed at it, so that it must be accounted for."""
    name = path.name.lower()
    if name.endswith(NIFTI_EXTENSIONS):
        found.nifti.append(path)
        return
    if found.take_pictures and is_picture(path):
        found.pictures.append(Listed((path,)))
        return
    try:
        dicom = path.name not in _NOT_AN_IMAGE and (name.endswith(_DICOM_EXTENSIONS) or looks_like_dicom(path))
    except OSError as error:
        found.broken.append((path, f"file cannot be read: {error.strerror}"))
        return
    if dicom:
        found.dicom.append(path)
    elif named:
        found.foreign.append(path)
    else:
        found.ignored += 1
