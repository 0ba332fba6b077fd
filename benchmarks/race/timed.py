"""One command, timed from outside: seconds, memory, page faults, and when each of its results was on disk."""

import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STAGES = ("read", "prepare", "compute", "write")
_LAUNCH = str(Path(__file__).with_name("launch.py"))
_SAID = 300  # characters of what a failed command said


@dataclass(frozen=True)
class Turn:
    """How one command went.

    Attributes:
        seconds: from its start to its end.
        user: seconds of all cores in the program.
        system: seconds of all cores in the kernel.
        peak_bytes: the largest resident memory of the process.
        minor_faults: pages that the kernel had to hand out.
        code: exit code.
        done: seconds from the start until each result was on disk, in order.
        said: the end of what it said, if it failed.
    """

    seconds: float
    user: float
    system: float
    peak_bytes: int
    minor_faults: int
    code: int
    done: tuple[float, ...] = ()
    said: str = ""


class Timed:
    """A command that has been started."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log, self._report = log, log.with_name(f"{log.name}.json")
        self._report.unlink(missing_ok=True)
        with log.open("wb") as stream:
            self._process = subprocess.Popen(  # noqa: S603 - our own commands
                [sys.executable, "-I", "-S", _LAUNCH, str(self._report), *command],
                cwd=log.parent,  # what lies where this was started is nobody's package
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

    def end(self, output: Path) -> Turn:
        """Waits for its end; results are looked for below `output`."""
        self._process.wait()
        facts = json.loads(self._report.read_text(encoding="utf-8"))
        begun = facts.pop("begun")
        said = self._log.read_text(errors="replace").strip()[-_SAID:] if facts["code"] else ""
        return Turn(**facts, done=tuple(sorted(path.stat().st_mtime - begun for path in results(output))), said=said)


def results(output: Path) -> list[Path]:
    """Returns the volumes below a folder."""
    return sorted(output.rglob("*.nii.gz"))


def run(command: Sequence[str], env: Mapping[str, str], output: Path, log: Path) -> Turn:
    """Runs a command into an empty folder, once nothing of the command before is left to be written to disk."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    os.sync()
    return Timed(command, env, log).end(output)


def spacing(done: Sequence[float]) -> float:
    """Returns the seconds between one result and the next, on average.

    Example:
        >>> spacing([9.0, 11.0, 15.0])
        3.0
    """
    return (done[-1] - done[0]) / (len(done) - 1)


def slope(many: float, one: float, volumes: int) -> float:
    """Returns the seconds that each volume after the first costs, of a run over many and a run over one.

    Example:
        >>> slope(28.0, 10.0, 4)
        6.0
    """
    return (many - one) / (volumes - 1)


def done_cases(output: Path) -> list[dict[str, str]]:
    """Returns the rows of medgen's `cases.csv` of what it has done; nothing where another program wrote."""
    table = output / "cases.csv"
    if not table.is_file():
        return []
    with table.open(newline="", encoding="utf-8") as stream:
        return [row for row in csv.DictReader(stream) if row["status"] == "done"]


def stages_of(output: Path) -> list[dict[str, float]]:
    """Returns the seconds of each stage of every case that medgen has done."""
    return [{stage: float(row[f"seconds_{stage}"] or 0) for stage in STAGES} for row in done_cases(output)]


def computed_by(output: Path) -> dict[str, Any]:
    """Returns what medgen computed the network with, and what else it tried; nothing where another program wrote."""
    facts = output / "run.json"
    found: dict[str, Any] = json.loads(facts.read_text(encoding="utf-8")) if facts.is_file() else {}
    return dict((found.get("runs") or [{}])[-1].get("computed_by") or {})


def median(values: Sequence[float]) -> float:
    """Returns the median, NaN of nothing."""
    return statistics.median(values) if values else float("nan")
