"""Studies that are arriving in a folder: which files each has by now, known again without reading them twice."""

import hashlib
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pydicom

from medgen.read.files import Found, sort_in, walk

_State = tuple[int, int, int]
_Place = tuple[str, str]  # to which study a file belongs, and to which series of it, where it says
_BIDS_NAME = re.compile(r"(sub-[^_]+(?:_ses-[^_]+)?)_.*", re.DOTALL)


@dataclass(frozen=True)
class Study:
    """What belongs together.

    Attributes:
        files: of it, absolute, sorted.
        state: differs whenever a file has come, gone or changed.
    """

    files: tuple[Path, ...]
    state: str


class Arrivals:
    """A folder that is being filled.

    Args:
        folder: searched to the bottom; hidden files and medgen's own outputs are left out.
        pictures: JPEG, PNG and TIFF files are images too.
    """

    def __init__(self, folder: Path, *, pictures: bool = False) -> None:
        self.folder = folder.absolute()
        self._pictures = pictures
        self._known: dict[Path, _Place | None] = {}
        self._states: dict[Path, _State] = {}

    def look(self) -> dict[str, Study]:
        """Returns the studies that are there by now, by a name for each.

        The DICOM files of one study belong together wherever they lie, and so do studies that claim one series. Other
        images are a study each, but for those of one BIDS subject in a folder, and those that differ in their extension
        alone. A file that says no study yet is one of its own.
        """
        states: dict[Path, _State] = {}
        known: dict[Path, _Place | None] = {}
        for path in walk(self.folder, Found(self.folder), set()):
            try:
                stat = path.stat()
            except OSError:  # moved away at this moment
                continue
            states[path] = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
            same = self._states.get(path) == states[path]
            known[path] = self._known[path] if same else self._look_into(path)
        self._known, self._states = known, states
        places = {path: place for path, place in known.items() if place}
        name_of = joined(place for place in places.values() if place[1])
        found: dict[str, list[Path]] = defaultdict(list)
        for path, (study, _) in places.items():
            found[name_of(study)].append(path)
        return {name: Study(tuple(paths), _digest(paths, states)) for name, paths in found.items()}

    def _look_into(self, path: Path) -> _Place | None:
        """Returns where a file belongs; None for what is no image."""
        found = Found(self.folder, take_pictures=self._pictures)
        sort_in(path, found, named=False)
        if found.dicom:
            return _study_of(path)
        if found.nifti or found.pictures or found.broken:
            return self._alone(path), ""
        return None

    def _alone(self, path: Path) -> str:
        subject = _BIDS_NAME.fullmatch(path.name)
        name = subject[1] if subject else path.name.partition(".")[0]
        return f"file {path.with_name(name).relative_to(self.folder)}".casefold()


def joined(claims: Iterable[tuple[str, str]]) -> Callable[[str], str]:
    """Returns what calls studies that claim the same series by one name, and the others by their own.

    A series' name follows from its UID alone unless two studies claim it, which is only seen of both together.

    Args:
        claims: study and series.
    """
    first: dict[str, str] = {}
    same: dict[str, str] = {}

    def name_of(study: str) -> str:
        while study in same:
            study = same[study]
        return study

    for study, series in sorted(set(claims)):
        one, other = name_of(first.setdefault(series, study)), name_of(study)
        if one != other:
            same[max(one, other)] = min(one, other)
    return name_of


def _digest(paths: Iterable[Path], states: Mapping[Path, _State]) -> str:
    return hashlib.sha256(repr([(str(path), states[path]) for path in paths]).encode("utf-8", "replace")).hexdigest()


def _study_of(path: Path) -> _Place:
    """Returns the study and the series of a DICOM file; of one whose header is not whole, a study of its own."""
    wanted = ["StudyInstanceUID", "SeriesInstanceUID"]
    try:
        with warnings.catch_warnings(action="ignore"):  # they quote values
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=wanted, force=True)
            study, series = (str(header.get(keyword) or "") for keyword in wanted)
    except Exception:  # whatever a half-written header makes of pydicom
        study = series = ""
    return (f"study {study}", series) if study else (f"file {path}", "")
