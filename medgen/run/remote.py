"""A run over a DICOMweb server: series are retrieved, the cohort runs as any other, what is derived is sent back once.

    OUTPUT/.medgen/
      retrieved/<hash of a series>/    its instances as the server has them; a second run does not ask for them again
      stored/<case id>.json            what of a case is at the server, and at which

What cannot be retrieved is a case that failed, like any file that cannot be read. Several processes may share an output
folder: a series is retrieved by one of them, and one at a time sends.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medgen.errors import MedgenError, NoInputError, OutputError, UnreadableError
from medgen.read.dicomweb import LOST, DicomWeb, RemoteSeries, parse_query, uids_of
from medgen.read.discover import lost_name
from medgen.run.catalog import find_bundle
from medgen.run.metadata import read_metadata
from medgen.run.private import LEDGER_FOLDER, make_salt
from medgen.run.publish import Folder, read_records
from medgen.run.records import Record, case_id
from medgen.run.request import Listen, RunRequest
from medgen.run.start import start
from medgen.run.steps import CohortSummary, Event
from medgen.write.atomic import atomic_text, writing

_RETRIEVED, _STORED = "retrieved", "stored"
_UNLISTED, _MOST_UNLISTED = "study {} of those that cannot be listed", 1000


@dataclass(frozen=True)
class Stored:
    """How sending back went.

    Attributes:
        sent: results that went to the server.
        kept: results that were there already.
        failed: results that the server did not take, with the reason, by case.
    """

    sent: int
    kept: int
    failed: Mapping[str, str]


def require_storable(request: RunRequest) -> None:
    """Refuses to send back what no DICOM server takes.

    Raises:
        MedgenError: with what to ask for instead.
    """
    if request.formats == "nifti":
        raise MedgenError("expected --format same, dicom or both beside --store, got nifti, which no server takes")


def marks_of(output: Path) -> Folder[Mapping[str, Any]]:
    """Returns what is remembered of what has been sent."""
    return Folder(output / LEDGER_FOLDER / _STORED, _parsed_mark)


def find_series(
    request: RunRequest, server: DicomWeb, query: str, marks: Folder[Mapping[str, Any]] | None = None
) -> list[RemoteSeries]:
    """Returns the series that a query names; of a bundle that declares a modality, and a query that does not, of that.

    What has been sent there from this output folder is none of them.

    Args:
        request: what is to be done.
        server: where the series are.
        query: as `parse_query` reads it.
        marks: of `marks_of`, kept by someone who asks often.

    Raises:
        NoInputError: the query has another form, or the server cannot be asked.
    """
    own = {series for mark in (marks or marks_of(request.output)).read()[1] for series in mark["series"]}
    return [one for one in server.find(_wanted(request, query)) if one.series not in own]


def require_series(request: RunRequest, server: DicomWeb, query: str) -> list[RemoteSeries]:
    """Returns the series that a query names.

    Raises:
        NoInputError: there are none, or as `find_series`.
    """
    found = find_series(request, server, query)
    if not found:
        said = ", ".join(_wanted(request, query)) or "nothing"
        raise NoInputError(f"expected series at the DICOMweb server that match in {said}, found none; check --query")
    return found


def retrieved(request: RunRequest, server: DicomWeb, series: Sequence[RemoteSeries], listen: Listen) -> RunRequest:
    """Retrieves series, and returns the request to run over them; what cannot be had is in its `lost`.

    Raises:
        OutputError: the output folder cannot be written.
    """
    folder = request.output / LEDGER_FOLDER / _RETRIEVED
    _make_private(folder)
    names = _names_of(series)
    places: list[Path] = []
    lost: dict[str, str] = {}
    # The processes of a cohort in parts begin at different ends, and find there what the others have retrieved.
    begin = len(series) * (request.part.index - 1) // request.part.count
    order = [*zip(series, names, strict=True)]
    for number, (one, name) in enumerate([*order[begin:], *order[:begin]], 1):
        if not (folder / one.folder).is_dir():
            listen(Event("note", 0, 0, reason=f"retrieving series {number} of {len(series)}"))
        try:
            with writing(folder):
                places.append(server.retrieve(one, folder))
        except UnreadableError as error:
            lost[name] = str(error)
    by_now = {*names, *(one.study for one in series), *(_UNLISTED.format(n) for n in range(_MOST_UNLISTED))}
    _forget_lost(request, by_now - set(lost))
    files = [file.absolute() for place in sorted(places) for file in sorted(place.glob("*.dcm"))]
    return replace(request, source=folder, among=tuple(files), lost=tuple(lost.items()))


def run_remote(
    request: RunRequest, server: DicomWeb, query: str, *, store: bool, listen: Listen
) -> tuple[CohortSummary, Stored | None]:
    """Runs a bundle over the series of a server.

    Args:
        request: what is asked for; its `source` does not matter.
        server: where the series are.
        query: of `find_series`.
        store: send what is derived back, unless the run was asked to end.
        listen: is told of progress.

    Raises:
        MedgenError: the run could not start.
    """
    if store:
        require_storable(request)
    request = retrieved(request, server, require_series(request, server, query), listen)
    summary = start(request, listen)
    return summary, store_results(request.output, server, listen) if store and summary.signal is None else None


def store_results(output: Path, server: DicomWeb, listen: Listen = lambda event: None) -> Stored:
    """Sends every DICOM result that the server has not been sent, and remembers it.

    Killed in between, the next call asks the server which instances it has, so that none goes there twice.

    Raises:
        OutputError: what was sent cannot be remembered.
    """
    folder = output / LEDGER_FOLDER / _STORED
    _make_private(folder)
    sent, kept, failed = 0, 0, {}
    with server.patience.lock(folder.with_suffix(".lock")):
        for record in read_records(output):
            names = _dicom_files(record)
            if not names:
                continue
            mark = folder / f"{case_id(record.case)}.json"
            told = {"sha256": record.output_sha256, "server": server.url}
            known = _read(mark)
            if known and known["sent"] and {name: known.get(name) for name in told} == told:
                kept += 1
                continue
            listen(Event("note", 0, 0, reason=f"sending {record.case}"))
            try:
                _send(server, output, record, mark, {**told, "series": known["series"] if known else []})
                sent += 1
            except OutputError as error:
                failed[record.case] = str(error)
    return Stored(sent, kept, failed)


def _send(server: DicomWeb, output: Path, record: Record, mark: Path, told: Mapping[str, Any]) -> None:
    """Sends the result of a case; on record before, lest what a killed process has sent be taken for an input."""
    files = [output / name for name in _dicom_files(record)]
    with _result():
        changed = [file for file in files if file.stat().st_size != record.files[str(file.relative_to(output))]]
        series = sorted({*told["series"], *(uids_of(file)[1] for file in files)})
    if changed:
        raise OutputError("could not be stored at the server: the result has changed since it was made; run again")
    atomic_text(mark, json.dumps({**told, "series": series, "sent": False}))
    server.store(files)
    atomic_text(mark, json.dumps({**told, "series": series, "sent": True}))


@contextmanager
def _result() -> Iterator[None]:
    try:
        yield
    except (OSError, UnreadableError):
        raise OutputError("could not be stored at the server: the result cannot be read; run again") from None


def _wanted(request: RunRequest, query: str) -> dict[str, str]:
    declared = read_metadata(find_bundle(request.bundle).folder).modality_in
    return {**({"Modality": declared} if declared else {}), **parse_query(query)}


def _names_of(series: Sequence[RemoteSeries]) -> list[str]:
    """What the names of series follow from; a series that two studies claim is two, and some the server cannot name."""
    studies = Counter(one.series for one in series)
    unlisted = itertools.count()
    return [
        (f"{one.series}|{one.study}" if studies[one.series] > 1 else one.series)
        if one.series
        else one.study or _UNLISTED.format(next(unlisted))
        for one in series
    ]


def _forget_lost(request: RunRequest, series: Iterable[str]) -> None:
    """Takes from the record what could not be had before, and can: by now it may be cases of other names.

    Of other parts nothing: their processes may not come to do it now.
    """
    salt = make_salt(request.output)
    names = {name for one in series if request.part.holds(name := lost_name(one, salt))}
    for record in read_records(request.output):
        if record.case in names and record.status == "failed" and record.reason.startswith(LOST):
            (request.output / LEDGER_FOLDER / "records" / f"{case_id(record.case)}.json").unlink(missing_ok=True)


def _make_private(folder: Path) -> None:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)


def _dicom_files(record: Record) -> list[str]:
    return [name for name in sorted(record.files) if name.endswith(".dcm")] if record.status == "done" else []


def _parsed_mark(mark: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(mark["series"], list) or not isinstance(mark["sent"], bool):
        raise TypeError
    return mark


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        return _parsed_mark(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
