"""`cases.csv` and `run.json`: what people read, made from the records of all processes, whole at any instant."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from medgen.provenance import package_versions
from medgen.run.choice import Choice
from medgen.run.plan import WHOLE, Part
from medgen.run.private import LEDGER_FOLDER
from medgen.run.records import Recipe, Record, cases_csv, counts
from medgen.write.atomic import PREFIX, atomic_text

T = TypeVar("T")

_PERIOD_SECONDS = 10.0
_MOST_OF_THE_TIME = 20  # rebuilding takes at most one part in this many of a long run
_PATIENCE = 50  # how often others may change the records while the last table is written


@dataclass(frozen=True)
class RunInfo:
    """What one process was asked to do.

    Attributes:
        recipe: what it does to every case.
        command: its command line, as words.
        device: where the network runs.
        part: which part of the cohort it takes.
        versions: of the packages that touch voxels.
        computed_by: what computes the network, and what else was tried.
    """

    recipe: Recipe
    command: tuple[str, ...] = ()
    device: str = ""
    part: Part = WHOLE
    versions: Mapping[str, str] = field(default_factory=package_versions)
    computed_by: Choice | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the entry as plain JSON types."""
        about = {"command": list(self.command), "part": str(self.part), "device": self.device}
        by = {"computed_by": self.computed_by.to_run_json()} if self.computed_by else {}
        return {**about, **by, **self.recipe.to_json(), "versions": dict(self.versions)}


class Folder(Generic[T]):
    """The JSON files of a folder, each parsed once for as long as it stays the same.

    Args:
        path: the folder.
        parse: turns a file's content into what it means; a file for which it raises is left out.
    """

    def __init__(self, path: Path, parse: Callable[[dict[str, Any]], T]) -> None:
        self._path = path
        self._parse = parse
        self._seen: dict[str, tuple[tuple[int, int, int], T]] = {}

    def read(self) -> tuple[frozenset[tuple[str, tuple[int, int, int]]], list[T]]:
        """Returns a fingerprint of the files, equal only while none has changed, and what they hold."""
        found = {}
        for path in self._path.glob("*.json"):
            if path.name.startswith(PREFIX):  # half-written, or whole but of a process killed before it took its name
                continue
            try:
                stat = path.stat()
                version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
                seen = self._seen.get(path.name)
                unchanged = seen is not None and seen[0] == version
                found[path.name] = seen if seen and unchanged else (version, self._parse(json.loads(path.read_bytes())))
            except (OSError, ValueError, KeyError, TypeError):
                continue  # replaced at this moment, or damaged; a damaged record's case is done again
        self._seen = found
        return frozenset((name, version) for name, (version, _) in found.items()), [item for _, item in found.values()]


def read_records(output: Path) -> list[Record]:
    """Returns what is on record in an output folder, in the order of the cases' names."""
    found = Folder(output / LEDGER_FOLDER / "records", Record.from_json).read()[1]
    return sorted(found, key=lambda record: record.case)


class Publisher:
    """Keeps this process's entry, and makes the two files from the entries and records of all.

    Args:
        output: the output folder.
        folder: the ledger within it.
        run_id: id of this process.
        info: what it was asked to do.
        living: returns the ids of the other living processes.
    """

    def __init__(self, output: Path, folder: Path, run_id: str, info: RunInfo, living: Callable[[], list[str]]) -> None:
        self._output = output
        self._entry = folder / "runs" / f"{run_id}.json"
        self._run_id = run_id
        self._living = living
        self._records = Folder(folder / "records", Record.from_json)
        self._runs: Folder[dict[str, Any]] = Folder(folder / "runs", dict)
        self._about = {
            "id": run_id,
            **info.to_json(),
            "started": _now(),
            "ended": "",
            "seconds": 0.0,
            "state": "running",
        }
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._next = self._began + _PERIOD_SECONDS

    def note(self, facts: Mapping[str, object]) -> None:
        """Sets facts of this process's entry (`state`, `counts`, ...) and writes it."""
        self._about.update(facts)
        self._about.update(seconds=round(time.monotonic() - self._began, 1))
        atomic_text(self._entry, json.dumps(self._about, indent=1))

    def publish_if_due(self, facts: Mapping[str, object]) -> None:
        """Rebuilds both files, if that was long enough ago and nobody else is at it."""
        if time.monotonic() < self._next or not self._lock.acquire(blocking=False):
            return
        try:
            began = time.monotonic()
            self.note(facts)
            self._write()
            self._next = time.monotonic() + max(_PERIOD_SECONDS, _MOST_OF_THE_TIME * (time.monotonic() - began))
        finally:
            self._lock.release()

    def publish(self, facts: Mapping[str, object]) -> None:
        """Rebuilds both files until they hold all that is on record.

        Another process may record a case while this one writes, and write its own, newer table first. So the one that
        wrote last has to look again: whoever finds nothing new after writing has written everything.
        """
        with self._lock:
            self.note(facts)
            for _ in range(_PATIENCE):
                written = self._write()
                if written == (self._records.read()[0], self._runs.read()[0]):
                    return

    def records(self) -> list[Record]:
        """Returns what all processes have on record, in the order of the cases' names."""
        with self._lock:
            return sorted(self._records.read()[1], key=lambda record: record.case)

    def close(self, state: str, facts: Mapping[str, object]) -> None:
        """Publishes for the last time; `state` is "finished" or why not."""
        self.publish({**facts, "state": state, "ended": _now()})

    def _write(self) -> tuple[Any, Any]:
        records_version, records = self._records.read()
        runs_version, runs = self._runs.read()
        atomic_text(self._output / "cases.csv", cases_csv(records))
        atomic_text(self._output / "run.json", json.dumps(self._summary(records, runs), indent=1) + "\n")
        return records_version, runs_version

    def _summary(self, records: list[Record], runs: list[dict[str, Any]]) -> dict[str, Any]:
        living = {self._run_id, *self._living()}
        runs = sorted(runs, key=lambda run: (run["started"], run["id"]))
        for index, run in enumerate(runs):
            if run["state"] == "running" and run["id"] not in living:
                runs[index] = {**run, "state": "killed"}
        latest = runs[-1]
        asked = ("command", "bundle", "bundle_version", "weights_sha256", "device", "settings", "versions")
        running = any(run["state"] == "running" for run in runs)
        return {
            **{name: latest[name] for name in asked},
            "state": "running" if running else latest["state"],
            "counts": counts(records),
            "started": runs[0]["started"],
            "ended": "" if running else max(run["ended"] for run in runs),
            "seconds": round(sum(run["seconds"] for run in runs), 1),
            "runs": runs,
        }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
