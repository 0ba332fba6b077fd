"""How a cohort run is asked for, followed and summed up: plain data between `cohort` and its callers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from medgen.case import Case
from medgen.run.records import CaseOutcome

Settled = Literal["done", "kept", "failed", "skipped"]
Kind = Settled | Literal["note", "begin", "stage", "redo", "busy", "stop", "end"]


@dataclass(frozen=True)
class Steps:
    """What is done to one case. What a step returns goes into the next; only this module's caller knows what it is.

    Attributes:
        read: case and SHA-256 of its input -> voxels; in a reader thread.
        prepare: -> what the network takes; in a reader thread.
        compute: -> what the network makes; in the calling thread, one case at a time.
        write: writes all files of the case for good; in a writer thread.
    """

    read: Callable[[Case, str], Any]
    prepare: Callable[[Case, Any], Any]
    compute: Callable[[Case, Any], Any]
    write: Callable[[Case, Any], CaseOutcome]


@dataclass(frozen=True)
class Event:
    """What a progress display is told; never from two threads at once.

    Attributes:
        kind: `note` (before it begins; `reason` is for people), `begin` (once), `stage` (a case enters one), `redo` (an
            earlier result is made again, `reason` says why), `busy` (another process is at this case), `done`, `kept`
            (was done before), `failed`, `skipped`, `stop` (the run ends early, `reason` says why), `end` (once).
        total: cases that this process takes.
        settled: how many of them are done, kept, failed or skipped by now.
        case: name of the case.
        stage: where it is, or where it failed.
        reason: why; of what is done or kept, its quality flags.
    """

    kind: Kind
    total: int
    settled: int
    case: str = ""
    stage: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Options:
    """How a cohort is run; none of it changes an output.

    Attributes:
        jobs: reader threads, and as many writer threads.
        overwrite: does everything again.
        fail_fast: stops at the first failure.
        limit: takes at most so many cases.
        on_event: is told of progress; must not raise.
    """

    jobs: int = 1
    overwrite: bool = False
    fail_fast: bool = False
    limit: int | None = None
    on_event: Callable[[Event], None] = lambda event: None


@dataclass
class CohortSummary:
    """How a run ended.

    Attributes:
        total: cases that this process took.
        usable: cases of the whole cohort that no rule leaves out.
        done: cases made by this process.
        kept: cases that were done already, or by another process meanwhile.
        failed: cases that failed.
        skipped: cases that a rule left out.
        flagged: of those done and kept, those with quality flags.
        stopped: why the run ended early; empty if it did not.
        signal: the signal that ended it.
        seconds: how long it took.
    """

    total: int = 0
    usable: int = 0
    done: int = 0
    kept: int = 0
    failed: int = 0
    skipped: int = 0
    flagged: int = 0
    stopped: str = ""
    signal: int | None = None
    seconds: float = 0.0

    @property
    def settled(self) -> int:
        """Cases that have an outcome."""
        return self.done + self.kept + self.failed + self.skipped

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some not, 2 nothing could start (rules left out every case), 128 + n ended by signal n."""
        if self.signal is not None:
            return 128 + self.signal
        if not self.usable:
            return 2
        return 1 if self.failed or self.stopped else 0

    def counts(self) -> dict[str, int]:
        """Returns the counts of this process for its entry in `run.json`."""
        names = ("total", "done", "kept", "failed", "skipped")
        return {name: getattr(self, name) for name in names}
