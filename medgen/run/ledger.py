"""The memory of an output folder: what is done and may be believed, what is being done, and by whom.

    OUTPUT/.medgen/
      records/<case id>.json     how a case ended; written after its outputs are on disk
      records/<case id>.claim0   who is at work on it (see `claims`)
      owners/<process>.json      the living processes
      runs/<process>.json        one entry of run.json each
      salt, paths.private.csv, errors.private.log    for the owner's eyes (see `private`)
    OUTPUT/cases.csv, OUTPUT/run.json    made from the above by every process (see `publish`)

Records and claims share a folder on purpose: a network file system that has just created a claim there looks afresh for
the record beside it.
"""

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from medgen.case import Case
from medgen.errors import InputError, OutputError
from medgen.read.discover import input_sha256
from medgen.run.claims import Claim, Owner
from medgen.run.private import LEDGER_FOLDER, keyed_hash, make_salt
from medgen.run.publish import Publisher, RunInfo
from medgen.run.records import CaseOutcome, Key, Record, case_id
from medgen.write.atomic import atomic_text, remove_leftovers, writing

# Input files that changed less than this ago may change again without their times showing it.
_YOUNG_SECONDS = 2.0


@dataclass(frozen=True)
class Known:
    """A record as found: what it says, and when by the file system's clock it was written `[ns]`."""

    record: Record
    written_ns: int


@dataclass(frozen=True)
class Input:
    """What a case's input is: its part in the key, and the sizes and times by which an unchanged one is known again."""

    key: Key
    stat: str


@dataclass(frozen=True)
class Verdict:
    """Whether a case's outcome stands, and if not, why an earlier one is made again (empty for a new case)."""

    stands: bool
    why: str = ""


class Ledger:
    """Opens the ledger of an output folder for one process; a context manager.

    Args:
        output: the output folder; made if missing.
        info: what this process was asked to do.

    Raises:
        OutputError: if the folder cannot be written.
    """

    def __init__(self, output: Path, info: RunInfo) -> None:
        self.output = output
        self.info = info
        folder = output / LEDGER_FOLDER
        self._records = folder / "records"
        with writing(output):
            for part in (self._records, folder / "owners", folder / "runs"):
                part.mkdir(parents=True, exist_ok=True)
            self._salt = make_salt(output)
            self.owner = Owner(folder / "owners")
            self.id = self.owner.identity.id
            if not self.owner.living_others():
                remove_leftovers(output)
        self.publisher = Publisher(output, folder, self.id, info, self.owner.living_others)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.owner.close()
        # Processes that began together each left the other's leftovers alone; whoever leaves last tidies up.
        if not self.owner.living_others():
            with contextlib.suppress(OutputError):
                remove_leftovers(self.output)

    def find(self, case: Case) -> Known | None:
        """Returns what is on record about a case; None if nothing is, or nothing that can be read."""
        path = self._path(case)
        try:
            with path.open(encoding="utf-8") as stream:
                written_ns = path.stat().st_mtime_ns
                return Known(Record.from_json(json.load(stream)), written_ns)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            return None  # damaged: then the case is done again

    def records(self) -> list[Record]:
        """Returns how every case ended so far, of all processes, in the order of their names."""
        return self.publisher.records()

    def claim(self, case: Case) -> Claim | None:
        """Takes a case for this process; None while a living process holds it."""
        return self.owner.try_claim(self._records / case_id(case.name))

    def input_of(self, case: Case, known: Known | None = None) -> Input:
        """Returns what the case's input is, hashing its content unless sizes and times are those on record.

        Raises:
            OSError, UnreadableError: if it cannot be read.
        """
        stat, youngest = self._stat(case)
        record = known.record if known else None
        content = record.key.input_sha256 if record and record.key and stat == record.input_stat else input_sha256(case)
        place = keyed_hash(self._salt, f"{case.name}\0{case.relative}\0{case.stem}")
        proof = stat if time.time() - youngest > _YOUNG_SECONDS else ""
        return Input(Key(content, place, self.info.recipe), proof)

    def verdict(self, known: Known | None, found: Input, *, overwrite: bool = False) -> Verdict:
        """Decides whether the outcome on record stands.

        It stands if it is done, was made from the same input by the same recipe, and its outputs are there. A failed
        one is tried again, and with `overwrite` everything is done again, but nothing that has been recorded since this
        process began: processes that share a cohort also share its failures.
        """
        if known is None:
            return Verdict(stands=False)
        record = known.record
        changes = found.key.changes_since(record.key) if record.key else "input changed"
        lost = self._lost_output(record) if record.status == "done" else ""
        if known.written_ns > self.owner.began_ns and not changes and not lost:
            return Verdict(stands=True)
        if overwrite:
            return Verdict(stands=False, why="asked to overwrite")
        if record.status != "done":
            return Verdict(stands=False, why=f"{record.status} before")
        if changes or lost:
            return Verdict(stands=False, why=changes or f"output {lost} is missing or changed")
        return Verdict(stands=True)

    def require_unchanged(self, case: Case, found: Input) -> None:
        """Makes sure that what was hashed is what was read.

        Raises:
            InputError: if a file has changed in between.
        """
        if found.stat and self._stat(case)[0] != found.stat:
            raise InputError("the input changed while it was read; run again when it is complete")

    def record_done(
        self, case: Case, found: Input, outcome: CaseOutcome, *, seconds: Mapping[str, float], redone: str = ""
    ) -> Record:
        """Records a case as done, and removes what an earlier version of it left beside the new outputs.

        Raises:
            OutputError: if an output is not there, or the record cannot be written.
        """
        with writing(self.output / outcome.output):
            files = {str(file): (self.output / file).stat().st_size for file in outcome.files}
        record = Record(
            case=case.name,
            status="done",
            output=str(outcome.output),
            output_sha256=outcome.sha256,
            files=files,
            key=found.key,
            input_stat=found.stat,
            seconds=dict(seconds),
            flags=outcome.flags,
            score=outcome.score,
            redone=redone,
        ).on(outcome.grid)
        known = self.find(case)
        self._remove_superseded(known.record if known else None, record)
        return self._save(case, record)

    def record_failed(
        self,
        case: Case,
        stage: str,
        reason: str,
        *,
        found: Input | None = None,
        seconds: Mapping[str, float] | None = None,
    ) -> Record:
        """Records a case as failed; the files of an earlier success stay on record, for a later one to replace.

        Raises:
            OutputError: if the record cannot be written.
        """
        known = self.find(case)
        record = Record(
            case=case.name,
            status="failed",
            stage=stage,
            reason=reason,
            files=known.record.files if known else {},
            key=found.key if found else None,
            input_stat=found.stat if found else "",
            seconds=dict(seconds or {}),
            flags=case.flags,
        ).on(case.grid)
        return self._save(case, record)

    def record_skipped(self, case: Case) -> Record:
        """Records a case that a rule leaves out.

        Raises:
            OutputError: if the record cannot be written.
        """
        record = Record(case=case.name, status="skipped", reason=case.excluded).on(case.grid)
        known = self.find(case)
        if known and replace(known.record, ended="", run="") == record:
            return known.record
        return self._save(case, record)

    def _save(self, case: Case, record: Record) -> Record:
        record = replace(record, ended=datetime.now(UTC).isoformat(timespec="seconds"), run=self.id)
        atomic_text(self._path(case), json.dumps(record.to_json(), indent=1))
        return record

    def _path(self, case: Case) -> Path:
        return self._records / f"{case_id(case.name)}.json"

    def _stat(self, case: Case) -> tuple[str, float]:
        """Returns a keyed hash of the input files' sizes and times, and when the youngest changed `[s]`."""
        stats = [path.stat() for path in case.files]
        facts = sorted((stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino) for stat in stats)
        return keyed_hash(self._salt, repr(facts)), max(max(stat.st_mtime, stat.st_ctime) for stat in stats)

    def _lost_output(self, record: Record) -> str:
        """Returns the first output that is not there as it was left; empty when all are."""
        for name, size in record.files.items():
            try:
                if (self.output / name).stat().st_size != size:
                    return name
            except OSError:
                return name
        return ""

    def _remove_superseded(self, old: Record | None, new: Record) -> None:
        """Deletes files of an earlier version that the new one does not have, lest someone take them for its own."""
        for name in sorted(set(old.files if old else ()) - set(new.files)):
            path = self.output / name
            if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
                continue
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty
                path.parent.rmdir()
