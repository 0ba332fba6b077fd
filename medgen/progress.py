"""How far a run is, on standard error: on a terminal a bar with counts and time left, else a plain line a case."""
# A training has its own display: a line an epoch, and whatever its health monitor has to say.

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:  # the command line must answer before numpy is imported
    from medgen.run.steps import Event
    from medgen.run.train import TrainEvent

_SETTLED = ("done", "kept", "failed", "skipped")


class _Display:
    """A bar on a terminal; a context manager.

    Args:
        console: where to; standard error if not given.
        said: name of the field that stands behind the count.
        period_s: over which the time left is estimated.
    """

    def __init__(self, console: Console | None, said: str, period_s: float = 30.0) -> None:
        self._console = console or Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(f"{{task.fields[{said}]}}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            speed_estimate_period=period_s,
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class Progress(_Display):
    """Shows the events of a run; a context manager.

    Args:
        console: where to; standard error if not given.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console, "failed")
        self._failed = 0
        self._began = time.monotonic()

    def hear(self, event: "Event") -> None:
        """Shows one event of `medgen.run.cohort.run_cohort`."""
        if event.kind == "begin":
            if self._task is not None:  # of an earlier run of a watcher
                self._bar.remove_task(self._task)
            self._task, self._failed = self._bar.add_task("starting", total=event.total, failed=""), 0
        self._failed += event.kind == "failed"
        self._line(event)
        if self._task is not None:
            doing = f"{event.stage} {event.case}" if event.kind == "stage" else None
            failed = f"[red]{self._failed} failed[/red]" if self._failed else ""
            self._bar.update(self._task, completed=event.settled, description=doing, failed=failed)

    def _line(self, event: "Event") -> None:
        """Prints what stays on the screen: on a terminal only what needs attention, else every case."""
        said = f": {event.stage + ': ' if event.stage else ''}{event.reason}" if event.reason else ""
        fine = event.kind in ("done", "kept") and not event.reason
        if event.kind in _SETTLED and not (self._console.is_terminal and fine):
            place = f"[{event.settled}/{event.total}, {time.monotonic() - self._began:.0f} s] "
            self._say(f"{place}{event.kind} {event.case}{said}")
        elif event.kind == "note":
            self._say(event.reason)
        elif event.kind in ("redo", "busy", "stop"):
            self._say(f"{event.kind} {event.case}{said}".replace(" :", ":"))


class TrainProgress(_Display):
    """Shows the events of a training; a context manager.

    Args:
        console: where to; standard error if not given.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console, "said", period_s=600)
        self._began, self._first = time.monotonic(), 0

    def hear(self, event: "TrainEvent") -> None:
        """Shows one event of `medgen.run.train.train_job`."""
        said = ", ".join(f"{name} {value:.4g}" for name, value in event.numbers.items())
        if event.kind == "begin":
            self._began, self._first = time.monotonic(), event.epoch - 1
            total, done = event.epochs * event.iterations, self._first * event.iterations
            self._task = self._bar.add_task("training", total=total or None, completed=done, said="")
        elif self._task is not None:
            done = (event.epoch - 1) * event.iterations + event.iteration
            rate = f"{event.samples_per_second:.2g} samples/s"
            self._bar.update(self._task, completed=done, said=f"{said} {rate}", description=f"epoch {event.epoch}")
        if event.kind == "health":
            self._say(f"health: {event.message}")
        elif event.kind == "validation":
            self._say(f"epoch {event.epoch}: validation {said}")
        elif event.kind == "epoch" and not self._console.is_terminal:
            each = (time.monotonic() - self._began) / max(event.epoch - self._first, 1)
            left = f"{each * (event.epochs - event.epoch) / 60:.0f} min left"
            self._say(
                f"epoch {event.epoch} of {event.epochs}: {said}, {event.samples_per_second:.2g} samples/s, {left}"
            )
