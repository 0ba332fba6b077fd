"""A cohort run that keeps its word: every case done once, or honestly accounted for, however the run ends.

Reading the next case (reader threads), computing this one (the calling thread) and writing the last (writer threads)
overlap. A case takes one of `2 * jobs + 1` slots from before it is read until its outcome is on record, which bounds
memory by the largest few cases.

An error costs the case in which it happens. What ends the run early: a full disk, since every further case would fail
in the same way; a signal; and with `fail_fast` the first failure. Cases in flight are then dropped as if never begun,
except one that is being written, and the next run takes them up.
"""

import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from medgen.case import Case
from medgen.errors import InputError, MedgenError, OutputError
from medgen.run.claims import Claim
from medgen.run.ledger import Input, Ledger
from medgen.run.plan import plan
from medgen.run.private import log_traceback, write_paths
from medgen.run.reasons import is_disk_full, reason_of
from medgen.run.records import Record, Stage
from medgen.run.signals import on_first_signal
from medgen.run.steps import CohortSummary, Event, Kind, Options, Settled, Steps

_BUSY_PAUSE_SECONDS = 0.5
_POLL_SECONDS = 0.1
_READER_GRACE_SECONDS = 30.0


@dataclass
class _Flight:
    """A case on its way through the stages."""

    case: Case
    claim: Claim
    input: Input | None = None
    item: Any = None
    redone: str = ""
    recorded: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def found(self) -> Input:
        """What the input is; known once the case has been looked at."""
        if self.input is None:
            raise RuntimeError("a case was worked on before its input was looked at")
        return self.input


class _Interrupted(BaseException):
    """Takes the computing step out of its work; no `except Exception` on the way holds it up."""


def run_cohort(cases: Sequence[Case], steps: Steps, ledger: Ledger, options: Options | None = None) -> CohortSummary:
    """Does every case of the ledger's part, resuming what an earlier run has left, and accounts for each.

    Called from the main thread, it answers SIGINT and SIGTERM by ending in an orderly way; a second signal ends at
    once, which is as safe. Returns when each case has an outcome, those too that another process is at.

    Args:
        cases: the whole cohort, as found; the part is taken from it here.
        steps: what is done to a case.
        ledger: of the output folder, open.
        options: how.

    Raises:
        NoInputError: if there is no case.
        MedgenError: if two cases have one name.
        OutputError: if the folder cannot be written at the start.
    """
    run = _Run(cases, steps, ledger, options or Options())
    with on_first_signal(run.on_signal):
        return run.go()


class _Run:
    """One call of `run_cohort`: the cases that wait, the queues between the stages, and the counts."""

    def __init__(self, cases: Sequence[Case], steps: Steps, ledger: Ledger, options: Options) -> None:
        mine = plan(cases, ledger.info.part, options.limit)
        self._steps = steps
        self._ledger = ledger
        self._options = options
        self._jobs = max(options.jobs, 1)
        self._summary = CohortSummary(total=len(mine), usable=sum(not case.excluded for case in cases))
        self._waiting: deque[tuple[float, Case]] = deque((0.0, case) for case in mine)  # not before, case
        self._put_off_once: set[str] = set()
        self._slots = threading.Semaphore(2 * self._jobs + 1)
        self._to_compute: queue.SimpleQueue[_Flight | None] = queue.SimpleQueue()
        self._to_write: queue.SimpleQueue[_Flight | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards the summary, the waiting cases and the order of events
        self._crash: BaseException | None = None
        # Plain flags, since a signal handler that waits for a lock may wait for the very thread that it has stopped.
        self._stopping = False
        self._computing = False
        write_paths(ledger.output, cases)

    def go(self) -> CohortSummary:
        """Runs the stages until every case has an outcome, or the run ends early."""
        began = time.monotonic()
        self._tell("begin")
        self._ledger.publisher.publish({"counts": self._summary.counts()})
        readers = [self._start(self._read_all, f"medgen-reader-{n}") for n in range(self._jobs)]
        writers = [self._start(self._write_all, f"medgen-writer-{n}") for n in range(self._jobs)]
        try:
            self._compute_all(len(readers))
        except BaseException:
            self._stopping = True
            raise
        finally:
            for _ in writers:
                self._to_write.put(None)
            for writer in writers:
                writer.join()
        for reader in readers:
            reader.join(_READER_GRACE_SECONDS)
        if self._crash is not None:
            raise self._crash
        self._summary.seconds = round(time.monotonic() - began, 3)
        return self._close()

    # The three stages, each in its thread.

    def _read_all(self) -> None:
        try:
            while not self._stopping:
                if not self._slots.acquire(timeout=_POLL_SECONDS):
                    continue
                case = self._next()
                if case is None:
                    self._slots.release()
                    return
                flight = self._take(case)
                if flight is None:
                    self._slots.release()
                elif self._read(flight):
                    self._to_compute.put(flight)
                else:
                    self._land(flight)
                self._refresh()
        finally:
            self._to_compute.put(None)

    def _compute_all(self, readers: int) -> None:
        while readers:
            flight = self._to_compute.get()
            if flight is None:
                readers -= 1
            elif self._compute(flight):
                self._to_write.put(flight)
            else:
                self._land(flight)

    def _write_all(self) -> None:
        while (flight := self._to_write.get()) is not None:
            # A process that slept for long may have lost the case to another one.
            if not self._ledger.owner.holds(flight.claim):
                self._settle("kept", flight.case, reason="another process took it over")
            elif not self._stopping:
                self._attempt(flight, "write", self._finish)
            self._land(flight)
            self._refresh()

    # What the stages do with one case.

    def _next(self) -> Case | None:
        """Returns the next case to look at; None when there is none left, or the run ends."""
        while not self._stopping:
            with self._lock:
                if not self._waiting:
                    return None
                if self._waiting[0][0] <= time.monotonic():
                    return self._waiting.popleft()[1]
            time.sleep(_POLL_SECONDS)
        return None

    def _take(self, case: Case) -> _Flight | None:
        """Claims a case; None if it needs no work, or another process is at it."""
        if case.refused and not case.excluded:
            self._fail(case, "read", InputError(case.refused), None)
            return None
        try:
            if case.excluded:
                self._ledger.record_skipped(case)
                self._settle("skipped", case, reason=case.excluded)
                return None
            known, found = self._ledger.find(case), None
            if known and known.record.status == "done":
                found = self._ledger.input_of(case, known)
                if self._ledger.verdict(known, found, overwrite=self._options.overwrite).stands:
                    self._settle("kept", case, flags=known.record.flags)
                    return None
            claim = self._ledger.claim(case)
        except Exception as error:
            self._fail(case, "read", error, None)
            return None
        if claim is None:
            self._put_off(case)
            return None
        return _Flight(case, claim, found)

    def _put_off(self, case: Case) -> None:
        """Leaves a case for later, when the process that is at it has finished or died."""
        if case.name not in self._put_off_once:
            self._put_off_once.add(case.name)
            self._tell("busy", case, reason="another process is at it")
        with self._lock:
            self._waiting.append((time.monotonic() + _BUSY_PAUSE_SECONDS, case))

    def _read(self, flight: _Flight) -> bool:
        """Reads and prepares a case, unless another process has settled it since it was looked at."""
        if not self._attempt(flight, "read", self._look):
            return False
        if isinstance(flight.item, Record):
            kind: Literal["kept", "failed"] = "kept" if flight.item.status == "done" else "failed"
            self._settle(kind, flight.case, flight.item.stage, flight.item.reason, flags=flight.item.flags)
            return False
        if flight.redone:
            self._tell("redo", flight.case, reason=flight.redone)
        return self._attempt(flight, "read", self._read_step) and self._attempt(flight, "prepare", self._prepare_step)

    def _look(self, flight: _Flight) -> Record | None:
        known = self._ledger.find(flight.case)
        flight.input = flight.input or self._ledger.input_of(flight.case, known)
        verdict = self._ledger.verdict(known, flight.input, overwrite=self._options.overwrite)
        flight.redone = verdict.why
        return known.record if known and verdict.stands else None

    def _read_step(self, flight: _Flight) -> object:
        found = flight.found
        item = self._steps.read(flight.case, found.key.input_sha256)
        self._ledger.require_unchanged(flight.case, found)
        return item

    def _prepare_step(self, flight: _Flight) -> object:
        return self._steps.prepare(flight.case, flight.item)

    def _compute(self, flight: _Flight) -> bool:
        try:
            return self._attempt(flight, "compute", self._compute_step)
        except _Interrupted:
            return False

    def _compute_step(self, flight: _Flight) -> object:
        self._computing = True
        try:
            return self._steps.compute(flight.case, flight.item)
        finally:
            self._computing = False

    def _finish(self, flight: _Flight) -> None:
        began = time.perf_counter()
        outcome = self._steps.write(flight.case, flight.item)
        seconds = {**flight.seconds, "write": time.perf_counter() - began}
        self._ledger.record_done(flight.case, flight.found, outcome, seconds=seconds, redone=flight.redone)
        flight.recorded = True
        self._settle("done", flight.case, flags=outcome.flags)

    def _attempt(self, flight: _Flight, stage: Stage, work: Callable[[_Flight], object]) -> bool:
        """Takes a case through a stage; an error in it costs the case."""
        if self._stopping:
            return False
        if stage not in flight.seconds:
            self._tell("stage", flight.case, stage)
        began = time.perf_counter()
        try:
            flight.item = work(flight)
        except Exception as error:
            flight.seconds[stage] = flight.seconds.get(stage, 0.0) + time.perf_counter() - began
            self._fail(flight.case, stage, error, flight)
            return False
        flight.seconds[stage] = flight.seconds.get(stage, 0.0) + time.perf_counter() - began
        return True

    def _fail(self, case: Case, stage: Stage, error: Exception, flight: _Flight | None) -> None:
        """Puts a failure on record, and ends the run if every further case would fail too."""
        reason = reason_of(error)
        if not isinstance(error, MedgenError):
            log_traceback(self._ledger.output, case.name, stage, error)
        try:
            self._ledger.record_failed(
                case, stage, reason, found=flight.input if flight else None, seconds=flight.seconds if flight else None
            )
        except OutputError as trouble:
            self._end(f"a failure cannot be recorded: {reason_of(trouble)}")
        else:
            if flight:
                flight.recorded = True
        self._settle("failed", case, stage, reason)
        if is_disk_full(error):
            self._end(reason)
        elif self._options.fail_fast:
            self._end(f"{case.name} failed, and the first failure was to end the run")

    def _land(self, flight: _Flight) -> None:
        """Gives a case's claim, memory and slot free, whatever became of it."""
        flight.item = None
        self._ledger.owner.release(flight.claim, recorded=flight.recorded)
        self._slots.release()

    # Accounts.

    def _settle(self, kind: Settled, case: Case, stage: str = "", reason: str = "", flags: Sequence[str] = ()) -> None:
        doubted = bool(flags) and kind in ("done", "kept")
        with self._lock:
            setattr(self._summary, kind, getattr(self._summary, kind) + 1)
            self._summary.flagged += doubted
        self._tell(kind, case, stage, reason or ("flagged " + ", ".join(flags) if doubted else ""))

    def _tell(self, kind: Kind, case: Case | None = None, stage: str = "", reason: str = "") -> None:
        with self._lock:
            name = case.name if case else ""
            self._options.on_event(Event(kind, self._summary.total, self._summary.settled, name, stage, reason))

    def _refresh(self) -> None:
        try:
            self._ledger.publisher.publish_if_due({"counts": self._summary.counts()})
        except OutputError as error:
            self._end(reason_of(error))

    def _end(self, reason: str) -> None:
        """Lets no further case begin."""
        with self._lock:
            if self._summary.stopped:
                return
            self._summary.stopped = reason
        self._stopping = True
        self._tell("stop", reason=reason)

    def _close(self) -> CohortSummary:
        if self._summary.signal is not None:
            self._end(f"stopped by {signal.Signals(self._summary.signal).name}")
        state = f"stopped: {self._summary.stopped}" if self._summary.stopped else "finished"
        try:
            self._ledger.publisher.close(state, {"counts": self._summary.counts()})
        except OutputError as error:
            self._end(reason_of(error))
            self._summary.stopped += "; cases.csv and run.json will be up to date after the next run"
        self._tell("end", reason=self._summary.stopped)
        return self._summary

    # Threads and signals.

    def _start(self, work: Callable[[], None], name: str) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # raised again by the calling thread
                self._crash = error
                self._stopping = True

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    def on_signal(self, number: int) -> None:
        """Ends the run; the case that is being computed is dropped at once."""
        self._summary.signal = number
        self._stopping = True
        if self._computing:
            raise _Interrupted
