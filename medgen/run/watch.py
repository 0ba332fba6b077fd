"""Studies are worked on as they arrive: in a folder, or at a DICOMweb server, each when it has stopped growing.

Nothing is remembered beside the output folder's own records: a watcher that was killed looks again at everything, waits
until it is quiet, and does what is not done. Nothing that arrives ends it: what cannot be had or sent is tried again
later, with growing pauses.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from medgen.errors import BundleError, DeviceError, MedgenError, NoInputError
from medgen.read.arrivals import Arrivals, joined
from medgen.read.dicomweb import DicomWeb, RemoteSeries
from medgen.read.ophthalmic import EYE_MODALITIES
from medgen.run.catalog import find_bundle
from medgen.run.metadata import read_metadata
from medgen.run.private import LEDGER_FOLDER, log_traceback
from medgen.run.quick_plan import find_plan
from medgen.run.reasons import reason_of
from medgen.run.remote import find_series, marks_of, retrieved, store_results
from medgen.run.request import Listen, RunRequest
from medgen.run.select import pattern_of
from medgen.run.signals import Stop
from medgen.run.start import start
from medgen.run.steps import Event
from medgen.write.atomic import writing

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 60.0, 3600.0
_HOPELESS = (BundleError, DeviceError)  # the next study would end in the same way
_MOST_RUNS = 1000  # entries that run.json keeps; a watcher begins a run at every look that finds something


@dataclass
class Quiet:
    """Which of the things that grow have stopped: those that looked the same for long enough, once each.

    Args:
        settle_s: how long `[s]`.
        clock: seconds, ever growing.
    """

    settle_s: float
    clock: Callable[[], float] = time.monotonic
    _seen: dict[str, tuple[object, float]] = field(default_factory=dict)
    _taken: dict[str, object] = field(default_factory=dict)
    _again: dict[str, "Again"] = field(default_factory=dict)

    def settled(self, state: Mapping[str, object]) -> list[str]:
        """Returns the names of what has settled since the last call, or is to be tried again.

        Args:
            state: by name, something that differs whenever the thing has changed.
        """
        now = self.clock()
        for name, value in state.items():
            if name not in self._seen or self._seen[name][0] != value:
                self._seen[name] = (value, now)
                if self._taken.get(name) != value:  # it may have been away for a while
                    self._again.pop(name, None)
        for name in set(self._seen) - set(state):
            del self._seen[name]
        quiet = [name for name, (_, since) in self._seen.items() if now - since >= self.settle_s]
        ready = [name for name in quiet if self._is_due(name)]
        self._taken |= {name: self._seen[name][0] for name in ready}
        return sorted(ready)

    def try_again(self, names: Iterable[str]) -> None:
        """Has `settled` return things again, after a pause that grows each time."""
        for name in names:
            self._again.setdefault(name, Again(self.clock)).later()

    def succeeded(self, names: Iterable[str]) -> None:
        """Notes that things need not be tried again unless they change."""
        for name in names:
            self._again.pop(name, None)

    def _is_due(self, name: str) -> bool:
        if self._taken.get(name) != self._seen[name][0]:
            return True
        return name in self._again and self._again[name].is_due()


@dataclass
class Again:
    """When something is to be tried again: pauses grow from a minute to an hour."""

    clock: Callable[[], float] = time.monotonic
    due: float = math.inf
    pause_s: float = _FIRST_PAUSE_S

    def is_due(self) -> bool:
        """Returns whether that is now; if so, it is not any more."""
        if self.clock() < self.due:
            return False
        self.due = math.inf
        return True

    def later(self) -> None:
        """Has it tried again after a longer pause than the last time."""
        self.due = self.clock() + self.pause_s
        self.pause_s = min(2 * self.pause_s, _LONGEST_PAUSE_S)

    def now(self) -> None:
        """Has it tried at once."""
        self.due, self.pause_s = self.clock(), _FIRST_PAUSE_S


@dataclass(frozen=True)
class Look:
    """What a look has found to work on.

    Attributes:
        names: of studies.
        request: to run over them.
        incomplete: those of which something could not be had.
    """

    names: list[str]
    request: RunRequest
    incomplete: tuple[str, ...] = ()


class Place(Protocol):
    """Where studies arrive."""

    def look(self) -> Look:
        """Returns what has settled since the last look."""


class FolderPlace:
    """A folder in which studies arrive; cases are called as in a run over the folder.

    Args:
        request: with the folder as its source.
        quiet: what has settled.

    Raises:
        NoInputError: it is no folder, or one in which nothing would be an input.
    """

    def __init__(self, request: RunRequest, quiet: Quiet) -> None:
        if not request.source.is_dir():
            raise NoInputError("expected a folder to watch, or dicomweb+https://..., got neither; check the path")
        if (request.source / LEDGER_FOLDER).exists() or request.source.resolve() == request.output.resolve():
            raise NoInputError("expected a folder with images to watch, got one with results; choose another --output")
        modality = read_metadata(find_bundle(request.bundle).folder).modality_in
        self._arrivals = Arrivals(request.source, pictures=modality in EYE_MODALITIES)
        self._request, self._quiet = request, quiet

    def look(self) -> Look:
        """Returns what has settled since the last look."""
        studies = self._arrivals.look()
        ready = self._quiet.settled({name: study.state for name, study in studies.items()})
        files = tuple(file for name in ready for file in studies[name].files)
        return Look(ready, replace(self._request, among=files, arriving=True))


class ServerPlace:
    """A DICOMweb server at which studies arrive.

    Args:
        request: what to do.
        quiet: what has settled.
        server: where.
        query: of `find_series`.
        listen: is told of progress.
    """

    def __init__(self, request: RunRequest, quiet: Quiet, server: DicomWeb, query: str, listen: Listen) -> None:
        self._request, self._quiet, self._server, self._query, self._listen = request, quiet, server, query, listen
        self._marks = marks_of(request.output)

    def look(self) -> Look:
        """Returns what has settled since the last look, retrieved.

        Raises:
            MedgenError: the server cannot be asked, or the output folder not be written.
        """
        found = find_series(self._request, self._server, self._query, self._marks)
        name_of = joined((one.study, one.series) for one in found if one.series)
        studies: dict[str, list[RemoteSeries]] = {}
        for one in found:
            studies.setdefault(name_of(one.study), []).append(one)
        state = {name: tuple((one.series, one.instances) for one in members) for name, members in studies.items()}
        ready = self._quiet.settled(state)
        if not ready:
            return Look([], self._request)
        # What the server cannot name belongs to every look, lest it be taken for found.
        wanted = dict.fromkeys([*ready, *(name for name in studies if not name)])
        request = self._retrieved(ready, [one for name in wanted for one in studies[name]])
        lost = {series for series, _ in request.lost}
        incomplete = [name for name in ready if any(_is_lost(one, lost) for one in studies[name])]
        return Look(ready, replace(request, arriving=True), tuple(incomplete))

    def _retrieved(self, ready: list[str], series: list[RemoteSeries]) -> RunRequest:
        try:
            return retrieved(self._request, self._server, series, self._listen)
        except Exception:
            self._quiet.try_again(ready)
            raise


class Watcher:
    """Works on what has settled, look after look, until stopped.

    Args:
        place: where studies arrive.
        quiet: what has settled there.
        request: what to do.
        stop: asked to end; a run that is under way ends in its own way.
        server: where results are sent; None sends none.
        listen: is told of progress.
    """

    def __init__(
        self,
        place: Place,
        quiet: Quiet,
        request: RunRequest,
        stop: Stop,
        *,
        server: DicomWeb | None = None,
        listen: Listen = lambda event: None,
    ) -> None:
        self._place, self._quiet, self._request, self._stop = place, quiet, request, stop
        self._server, self._listen, self._said = server, listen, ""
        self._sending = Again(quiet.clock)
        self._sending.now()  # what a watcher that was killed has left

    def watch(self, every_s: float) -> None:
        """Looks until stopped.

        Args:
            every_s: time between two looks `[s]`.

        Raises:
            MedgenError: the bundle cannot be used, now or later.
        """
        require_ready(self._request)
        with writing(self._request.output):  # marked as an output, in case it lies in the folder that is watched
            (self._request.output / LEDGER_FOLDER).mkdir(parents=True, exist_ok=True)
        while not self._stop.asked:
            self.step()
            self._stop.wait(every_s)

    def step(self) -> None:
        """Looks once, works on what has settled, and sends what is to be sent.

        Raises:
            BundleError, DeviceError: no study can be worked on.
        """
        said, self._said = self._said, ""
        look = self._guarded(self._place.look, said)
        if look is not None and look.names and not self._stop.asked:
            self._guarded(lambda: self._work(look), said, failed=lambda: self._quiet.try_again(look.names))
        if self._server is not None and not self._stop.asked and self._sending.is_due():
            self._guarded(self._send, said, failed=self._sending.later)

    def _work(self, look: Look) -> None:
        summary = start(look.request, self._hear)
        if summary.signal is not None:
            self._stop.asked = True
            return
        self._sending.now()
        again = look.names if summary.stopped else look.incomplete
        self._quiet.try_again(again)
        self._quiet.succeeded(set(look.names) - set(again))
        _forget_runs(self._request.output)

    def _send(self) -> None:
        if self._server is None:
            return
        stored = store_results(self._request.output, self._server, self._listen)
        for case, reason in stored.failed.items():
            self._note(f"{case}: {reason}")
        if stored.failed:
            self._sending.later()

    def _guarded(self, work: Callable[[], Any], said: str, failed: Callable[[], None] = lambda: None) -> Any:  # noqa: ANN401
        """Returns what work returns; None where it fails, which is said once and no reason to stop watching."""
        try:
            return work()
        except _HOPELESS:
            raise
        except Exception as error:
            failed()
            if not isinstance(error, MedgenError):
                log_traceback(self._request.output, "", "watch", error)
            reason = reason_of(error)
            if reason != said and not self._stop.asked:
                self._note(reason)
            self._said = reason
            return None

    def _note(self, reason: str) -> None:
        self._listen(Event("note", 0, 0, reason=reason))

    def _hear(self, event: Event) -> None:
        self._listen(event)
        main = threading.current_thread() is threading.main_thread()
        if event.kind == "begin" and self._stop.asked and main:  # asked while the bundle was opened
            signal.raise_signal(signal.SIGTERM)  # the run knows how to end, and now answers signals


def require_ready(request: RunRequest) -> None:
    """Finds out before the first study arrives whether the bundle can be used, and converts it for the back end.

    Raises:
        MedgenError: it cannot.
    """
    pattern_of(request.filters)
    if find_plan(request) is None:
        from medgen.run.backend import with_backend  # noqa: PLC0415 - brings torch and MONAI
        from medgen.run.bundle import open_bundle  # noqa: PLC0415 - as above

        bundle = open_bundle(request.bundle, trust=request.trust, device=request.device, changes=request.changes)
        with_backend(bundle, request.backend, request.precision)


def _is_lost(one: RemoteSeries, lost: set[str]) -> bool:
    return bool(one.problem) or one.series in lost or f"{one.series}|{one.study}" in lost


def _forget_runs(output: Path) -> None:
    """Keeps the list of runs from growing for ever; every case stays on record."""
    entries = sorted((output / LEDGER_FOLDER / "runs").glob("[!.]*.json"), key=lambda path: path.stat().st_mtime)
    for path in entries[:-_MOST_RUNS]:
        path.unlink(missing_ok=True)
