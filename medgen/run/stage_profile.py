"""Where the time of a run goes: seconds of every stage of every case, and a flame graph of each stage."""

import csv
import io
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyinstrument import Profiler
from pyinstrument.renderers import HTMLRenderer
from pyinstrument.session import Session

from medgen.case import Case
from medgen.run.steps import Steps
from medgen.write.atomic import atomic_text

_INTERVAL_S = 0.002
_STAGES = ("read", "prepare", "compute", "write")


class StageProfile:
    """Watches the steps of a run; they may run in several threads.

    What a step does inside of a library, and in threads of its own, counts as the call that it was.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[str, dict[str, float]] = defaultdict(dict)
        self._profilers: dict[tuple[str, int], Profiler] = {}

    def around(self, steps: Steps) -> Steps:
        """Returns the same steps, watched."""

        def watched(stage: str, step: Callable[[Case, Any], Any]) -> Callable[[Case, Any], Any]:
            def run(case: Case, item: object) -> object:
                with self._watching(stage, case):
                    return step(case, item)

            return run

        return Steps(*(watched(stage, getattr(steps, stage)) for stage in _STAGES))

    def write(self, folder: Path) -> None:
        """Writes `stages.csv`, and `<stage>.html` with a flame graph and call tree for each stage that ran.

        Raises:
            OutputError: it cannot be written.
        """
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["case", *(f"seconds_{stage}" for stage in _STAGES)])
        for case, seconds in sorted(self._seconds.items()):
            rows.writerow([case, *(f"{seconds[stage]:.4f}" if stage in seconds else "" for stage in _STAGES)])
        atomic_text(folder / "stages.csv", text.getvalue())
        for stage in _STAGES:
            session = self._session(stage)
            if session is not None:
                atomic_text(folder / f"{stage}.html", HTMLRenderer().render(session))

    @contextmanager
    def _watching(self, stage: str, case: Case) -> Iterator[None]:
        with self._lock:
            key = (stage, threading.get_ident())
            profiler = self._profilers.setdefault(key, Profiler(_INTERVAL_S, async_mode="disabled"))
        began = time.perf_counter()
        profiler.start()
        try:
            yield
        finally:
            profiler.stop()
            with self._lock:
                known = self._seconds[case.name]
                known[stage] = known.get(stage, 0.0) + time.perf_counter() - began

    def _session(self, stage: str) -> Session | None:
        found: Session | None = None
        for (name, _), profiler in self._profilers.items():
            if name == stage and profiler.last_session is not None:
                found = profiler.last_session if found is None else Session.combine(found, profiler.last_session)
        return found
