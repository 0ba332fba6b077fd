"""Series of a DICOMweb server: found by QIDO-RS, retrieved by WADO-RS, sent by STOW-RS; patiently, and without a word.

A server that restarts is waited for. What identifies a patient or opens a door stays out of messages and logs: errors
name neither addresses nor UIDs nor queries, and credentials come from the environment or `~/.netrc`, never from a URL.
Instances pass as the bytes that they are.

Source: DICOM PS3.18, chapters 8 and 10.
"""

import hashlib
import json
import shutil
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import requests
from pydicom.datadict import tag_for_keyword

from medgen.errors import NoInputError, OutputError, UnreadableError
from medgen.read.connection import Connection
from medgen.read.headers import open_header
from medgen.read.multipart import body_of, boundary_of, parts_of
from medgen.read.patience import AnswerError, Patience, Pause, parsed, status_of, why

SCHEME, LOST = "dicomweb+", "could not be retrieved from the server"
# As it is stored: an image that the server transcodes is another one.
_INSTANCES = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_JSON = "application/dicom+json"
_NAME = "SeriesInstanceUID"
_SERIES_KEYS = {
    *("Modality", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "BodyPartExamined"),
    *("PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime", "ProtocolName"),
}
_PAGE = 100  # results of a query at a time
_BATCH, _BATCH_BYTES = 64, 64 << 20  # instances sent at a time
_MOST_FAILURES = 10  # of a server before it gives anything, one by one
_CHUNK, _MARK = 1 << 20, ".series.json"  # bytes; in the folder of a series that was retrieved whole
_STUDY, _SERIES, _MODALITY, _COUNT = "0020000D", "0020000E", "00080060", "00201209"
_INSTANCE, _REFERENCED, _FAILED, _REFERENCED_UID = "00080018", "00081199", "00081198", "00081155"
Ask = Callable[[Callable[[], Any]], Any]
_TROUBLE = (requests.RequestException, AnswerError)


@dataclass(frozen=True)
class RemoteSeries:
    """A series on a server.

    Attributes:
        study: StudyInstanceUID; keep it out of records.
        series: SeriesInstanceUID; likewise.
        modality: as the server says.
        instances: how many it has, as the server says; 0 where it does not.
        problem: why the server cannot name it; then there is no `series`, and perhaps no `study`.
    """

    study: str
    series: str
    modality: str = ""
    instances: int = 0
    problem: str = ""

    @property
    def folder(self) -> str:
        """Name of its folder: a hash, so that no listing shows an identifier."""
        return hashlib.sha256(f"{self.study} {self.series}".encode()).hexdigest()[:24]


def parse_query(text: str) -> dict[str, str]:
    """Reads `Modality=MR,StudyDate=20250101-` as attributes to match.

    Raises:
        NoInputError: it has another form, or names what DICOM does not have.
    """
    found = {}
    for number, part in enumerate(filter(None, (part.strip() for part in text.split(","))), 1):
        name, _, value = (word.strip() for word in part.partition("="))
        known = name.isalnum() and tag_for_keyword(name) is not None
        if not known or not value:
            # Not quoted: behind a comma in a patient's name comes a part of it.
            what = f"{name} without a value" if known else f"another word in place {number}"
            raise NoInputError(
                f"expected --query with keywords of DICOM, such as Modality=MR,StudyDate=20250101-, got {what}"
            )
        found[name] = value
    return found


class DicomWeb:
    """A DICOMweb server.

    Args:
        address: `dicomweb+http://host:port/dicom-web`, or with https.
        patience_s: how long a server that does not answer is waited for `[s]`.
        timeout_s: how long it may stay silent once it is connected `[s]`.
        pause: see `Patience`.

    Raises:
        NoInputError: the address has another form, or holds credentials.
    """

    def __init__(
        self, address: str, *, patience_s: float = 300.0, timeout_s: float = 60.0, pause: Pause = time.sleep
    ) -> None:
        self._server = Connection(address.removeprefix(SCHEME), timeout_s)
        self.url = self._server.url
        self.patience = Patience(patience_s, pause)

    def find(self, query: Mapping[str, str]) -> list[RemoteSeries]:
        """Returns the series that match, sorted; all that the server has where nothing is asked.

        Args:
            query: DICOM keywords and values as QIDO-RS matches them: exactly, by `*` and `?`, dates by ranges.

        Raises:
            NoInputError: the server cannot be reached, or refuses.
        """
        of_series = {name: value for name, value in query.items() if name in _SERIES_KEYS}
        of_study = {name: value for name, value in query.items() if name not in _SERIES_KEYS}
        wanted = of_series.get("Modality", "")
        broken: list[str] = []
        found = []
        try:
            if (named := self._named(of_series, of_study)) is not None:
                return named
            for study in self._listed("studies", of_study, _STUDY, broken=broken):
                found += self._series_of(study, of_series)
        except _TROUBLE as error:
            raise NoInputError(f"expected a DICOMweb server at the address: {why(error)}") from None
        found += [RemoteSeries("", "", problem=f"a study of it cannot be listed: {said}") for said in broken]
        kept = [one for one in found if not wanted.isalnum() or one.modality in {"", wanted}]  # some ignore it
        return sorted(kept, key=lambda one: (one.study, one.series))

    def retrieve(self, series: RemoteSeries, folder: Path) -> Path:
        """Writes a series' instances below a folder, whole or not at all; what is there already stays.

        Several processes may do so at once: one of them retrieves a series, the others wait for it.

        Args:
            series: as `find` returned it; one that has more instances by now is retrieved again.
            folder: for all series; each has one of its own.

        Returns:
            the folder of the series.

        Raises:
            UnreadableError: the server cannot give it, or gives what is no DICOM.
            OSError: it cannot be written.
        """
        if series.problem:
            raise UnreadableError(f"{LOST}: {series.problem}")
        place = folder / series.folder
        unfinished = place.with_suffix(".part")
        try:
            if _is_whole(place, series):
                return place
            with self.patience.lock(place.with_suffix(".lock")):
                if not _is_whole(place, series):
                    self._fetch(series, unfinished)
                    shutil.rmtree(place, ignore_errors=True)
                    unfinished.rename(place)
        except (*_TROUBLE, UnreadableError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            said = "it is no DICOM" if isinstance(error, UnreadableError) else why(error)
            raise UnreadableError(f"{LOST}: {said}") from None
        return place

    def store(self, files: Sequence[Path]) -> int:
        """Sends instances, of any series, except those that the server has.

        Returns:
            how many were sent.

        Raises:
            OutputError: the server does not take one of them, or one cannot be read.
        """
        groups: dict[tuple[str, str], list[tuple[str, Path]]] = defaultdict(list)
        sent = 0
        try:
            for file in files:
                study, series, instance = uids_of(file)
                groups[study, series].append((instance, file))
            for (study, series), members in groups.items():
                path = f"studies/{_quoted(study)}/series/{_quoted(series)}/instances"
                for batch in _batches(members):
                    sent += self._store_missing(batch, path)
        except _TROUBLE as error:
            raise OutputError(f"could not be stored at the server: {why(error)}") from None
        except (OSError, UnreadableError):
            raise OutputError("could not be stored at the server: the result cannot be read; run again") from None
        return sent

    def _named(self, of_series: Mapping[str, str], of_study: Mapping[str, str]) -> list[RemoteSeries] | None:
        """Returns a series by its UID without asking for every study; None where it is not named, or cannot be."""
        if of_study or _NAME not in of_series:
            return None
        try:
            page = self.patience(lambda: self._page("series", of_series))[0]
        except requests.HTTPError:  # not every server can; it will say what else is wrong
            return None
        uids = of_series[_NAME].split("\\")
        if any(_value(one, _SERIES) not in uids or not _value(one, _STUDY) for one in page):
            return None
        return [self._series(_value(one, _STUDY), _value(one, _SERIES), one) for one in page]

    def _series_of(self, study: str, filters: Mapping[str, str]) -> list[RemoteSeries]:
        try:
            listed = self._listed(f"studies/{_quoted(study)}/series", filters, _SERIES)
            return [self._series(study, series, about) for series, about in listed.items()]
        except requests.HTTPError as error:
            if not _is_its_fault(error):
                raise
            return [RemoteSeries(study, "", problem=f"the study's series cannot be listed: {why(error)}")]

    def _series(self, study: str, series: str, about: Mapping[str, Any]) -> RemoteSeries:
        count = _value(about, _COUNT)
        if not count.isdecimal():  # optional, and how else to know whether the series still grows
            path = f"studies/{_quoted(study)}/series/{_quoted(series)}/instances"
            count = str(len(self._listed(path, {}, _INSTANCE)))
        return RemoteSeries(study, series, _value(about, _MODALITY), int(count))

    def _fetch(self, series: RemoteSeries, folder: Path) -> None:
        """Retrieves a series into a folder that nobody else uses, and marks it as whole."""

        def step() -> int:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, mode=0o700)
            path = f"studies/{_quoted(series.study)}/series/{_quoted(series.series)}"
            with self._server.asked("GET", path, headers={"Accept": _INSTANCES}, stream=True) as answer:
                boundary = boundary_of(answer.headers.get("Content-Type", ""))
                for count, part in enumerate(parts_of(answer.iter_content(_CHUNK), boundary), 1):
                    (folder / f"{count:06}.dcm").write_bytes(part)
                    self.patience.wait()
            return len({uids_of(file)[2] for file in folder.iterdir()})

        count = self.patience(step)
        if count < max(series.instances, 1):
            raise AnswerError(f"{count} of {series.instances} instances came")
        held = {"instances": max(count, series.instances), "files": len(list(folder.iterdir()))}
        (folder / _MARK).write_text(json.dumps(held), encoding="utf-8")

    def _store_missing(self, batch: Sequence[tuple[str, Path]], path: str) -> int:
        """Sends what the server does not have; asked again at every try, since one that broke off may have arrived."""

        def step() -> int:
            self.patience.wait()
            present = self._listed(path, {}, _INSTANCE, ask=lambda step: step())
            missing = {uid: file for uid, file in batch if uid not in present}
            if missing:
                body, kind = body_of([file.read_bytes() for file in missing.values()])
                headers = {"Content-Type": kind, "Accept": _JSON}
                with self._server.asked("POST", "studies", data=body, headers=headers) as answer:
                    _require_stored(missing, parsed(answer.content))
            return len(missing)

        return self.patience(step)

    def _listed(
        self,
        path: str,
        filters: Mapping[str, str],
        key: str,
        *,
        ask: Ask | None = None,
        broken: list[str] | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Returns all results of a search by their key, page by page where the server has pages.

        Args:
            path: what is searched.
            filters: what is asked for.
            key: tag of the attribute that names a result.
            ask: does a step; patiently if not given.
            broken: takes, for each result that the server itself fails at, what it says; None has that raised.
        """
        found: dict[str, dict[str, Any]] = {}
        ask, offset, more = ask or self.patience, 0, True
        while more:
            query = {**filters, "limit": _PAGE, "offset": offset}
            try:
                page, more = ask(lambda query=query: self._page(path, query))  # type: ignore[misc]
            except requests.HTTPError as error:
                if broken is None or not _is_its_fault(error):
                    raise
                page, more = self._one_by_one(path, query, broken)
                offset += _PAGE - len(page)
            if offset and found.keys() >= {_value(one, key) for one in page}:
                # The end, or a server that knows no offset, or knows it only without some filters, as Orthanc 1.10.
                page, more = ask(lambda: self._page(path, filters))[0], False
            offset += len(page)
            found |= {_value(one, key): one for one in page}
        return {name: about for name, about in found.items() if name}

    def _one_by_one(self, path: str, query: Mapping[str, Any], broken: list[str]) -> tuple[list[dict[str, Any]], bool]:
        """Returns the results of a page without those that make the server fail, and whether there may be more."""
        page: list[dict[str, Any]] = []
        failed: list[str] = []
        more = True
        for offset in range(query["offset"], query["offset"] + _PAGE):
            try:
                one = self._page(path, {**query, "limit": 1, "offset": offset})[0]
            except requests.HTTPError as error:
                failed.append(why(error))
                if not _is_its_fault(error) or (len(failed) == _MOST_FAILURES and not page):
                    raise  # it is not this one result
                continue
            if not one:
                more = False
                break
            page += one
        broken += failed
        return page, more

    def _page(self, path: str, query: Mapping[str, object]) -> tuple[list[dict[str, Any]], bool]:
        """Returns a page of results, and whether there may be more: a server with a limit of its own says so."""
        words = urlencode(query, safe="*?^\\", quote_via=quote)  # Orthanc 1.10 takes an encoded star for a letter
        with self._server.asked("GET", path, params=words, headers={"Accept": _JSON}) as answer:
            page = parsed(answer.content)
            said = answer.headers.get("Warning", "").startswith("299")
        if not isinstance(page, list) or not all(isinstance(one, dict) for one in page):
            raise AnswerError("expected a list of results, got something else; check the address")
        return page, bool(page) and (said or len(page) >= int(str(query.get("limit", len(page) + 1))))


def _is_its_fault(error: Exception) -> bool:
    return (status_of(error) or 0) >= 500


def uids_of(file: Path) -> tuple[str, str, str]:
    """Returns the UIDs of the study, the series and the instance in a file.

    Raises:
        UnreadableError: it is no DICOM.
    """
    with warnings.catch_warnings(action="ignore"):  # they quote values
        header = open_header(file)[0]
    study, series, instance = (header.text(f"{what}InstanceUID") for what in ("Study", "Series", "SOP"))
    if not instance:
        raise UnreadableError(f"{file.name}: expected a DICOM instance, got one without a UID")
    return study, series, instance


def _require_stored(sent: Iterable[str], answer: object) -> None:
    """Makes sure that the server says of each instance that it has it.

    Raises:
        AnswerError: it does not.
    """
    told = answer if isinstance(answer, dict) else {}
    refused = {_value(item, _REFERENCED_UID) for item in _items(told, _FAILED)}
    taken = {_value(item, _REFERENCED_UID) for item in _items(told, _REFERENCED)}
    missing = [uid for uid in sent if uid in refused or uid not in taken]
    if missing or refused:
        raise AnswerError(f"it did not take {max(len(missing), len(refused))} instances")


def _batches(members: Sequence[tuple[str, Path]]) -> Iterator[list[tuple[str, Path]]]:
    """Cuts instances into what is sent at a time."""
    batch: list[tuple[str, Path]] = []
    held = 0
    for uid, file in members:
        size = file.stat().st_size
        if batch and (len(batch) == _BATCH or held + size > _BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append((uid, file))
        held += size
    yield batch


def _is_whole(place: Path, series: RemoteSeries) -> bool:
    try:
        held = json.loads((place / _MARK).read_text(encoding="utf-8"))
        return bool(held["instances"] >= series.instances and held["files"] == len(list(place.glob("*.dcm"))))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _quoted(uid: str) -> str:
    return quote(uid, safe="")


def _items(answer: Mapping[str, Any], tag: str) -> list[Mapping[str, Any]]:
    """The items of a sequence in the DICOM JSON model."""
    sequence = answer.get(tag)
    items = sequence.get("Value") if isinstance(sequence, dict) else None
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _value(item: Mapping[str, Any], tag: str) -> str:
    """The first value of an attribute in the DICOM JSON model."""
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return str(values[0]) if isinstance(values, list) and values else ""
