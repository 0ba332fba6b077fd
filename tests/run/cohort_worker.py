"""A cohort of cheap cases with real files, for tests in this process and, run as a script, in one that may be killed.

    python cohort_worker.py INPUT OUTPUT PART SECONDS_PER_STAGE JOBS VERSION

Each computation leaves a line in OUTPUT/../computed.log, so that a test can count them over many processes.
"""

import os
import sys
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path, PurePosixPath

import numpy as np

from medgen.case import Case
from medgen.run.cohort import run_cohort
from medgen.run.ledger import Ledger
from medgen.run.plan import Part
from medgen.run.publish import RunInfo
from medgen.run.records import CaseOutcome, Recipe
from medgen.run.steps import CohortSummary, Options, Steps
from medgen.write.atomic import atomic_folder, atomic_text

VOXELS = 4096


def make_input(folder: Path, count: int) -> None:
    """Writes `count` cases, with spaces and umlauts in their paths."""
    for index in range(count):
        path = folder / f"sub-{index:03d} Größe" / "scan.raw"
        path.parent.mkdir(parents=True)
        path.write_bytes(np.full(VOXELS, index, dtype=np.int16).tobytes())
        os.utime(path, (1_600_000_000, 1_600_000_000))


def find(folder: Path) -> list[Case]:
    """Returns the cases that `make_input` wrote."""
    return [case_of(folder, path) for path in sorted(folder.rglob("*.raw"))]


def case_of(folder: Path, path: Path) -> Case:
    relative = PurePosixPath(path.relative_to(folder).as_posix())
    return Case(str(relative), "nifti", (path,), relative.with_suffix(""), relative, ".raw")


def info(version: str = "0.1.0", part: str = "1/1", **settings: object) -> RunInfo:
    recipe = Recipe("double", version, "ab" * 32, settings)
    return RunInfo(recipe, ("medgen", "run", "double"), "cpu", Part.parse(part), {"medgen": "0"})


def doubling(output: Path, pause: float = 0.0) -> Steps:
    """Doubles every voxel; writes each case as a folder of two files and a sidecar, one after the other."""

    def read(case: Case, _sha: str) -> np.ndarray:
        time.sleep(pause)
        return np.frombuffer(case.files[0].read_bytes(), dtype=np.int16)

    def compute(case: Case, item: np.ndarray) -> np.ndarray:
        with (output.parent / "computed.log").open("a", encoding="utf-8") as log:
            log.write(f"{case.name}\n")
        time.sleep(pause)
        return item * 2

    def write(case: Case, item: np.ndarray) -> CaseOutcome:
        folder = case.stem.parent / f"{case.stem.name}_double"
        names = [folder / "0001.raw", folder / "0002.raw"]
        with atomic_folder(output / folder) as part:
            for name, half in zip(names, np.split(item, 2), strict=True):
                time.sleep(pause / 4)
                (part / name.name).write_bytes(half.tobytes())
        digest = sha256(item.tobytes()).hexdigest()
        sidecar = folder.with_suffix(".json")
        atomic_text(output / sidecar, digest)
        return CaseOutcome(folder, (*names, sidecar), digest)

    return Steps(read, lambda _case, item: item, compute, write)


def run(
    source: Path,
    output: Path,
    about: RunInfo | None = None,
    *,
    steps: Steps | None = None,
    cases: Sequence[Case] | None = None,
    options: Options | None = None,
) -> CohortSummary:
    """Runs the cohort in this process, as one call of a command would."""
    with Ledger(output, about or info()) as ledger:
        return run_cohort(find(source) if cases is None else cases, steps or doubling(output), ledger, options)


if __name__ == "__main__":
    given_source, given_output, given_part, given_pause, given_jobs, given_version = sys.argv[1:]
    if "torch" in sys.modules:
        sys.exit("torch was imported for nothing")
    ended = run(
        Path(given_source),
        Path(given_output),
        info(given_version, given_part),
        steps=doubling(Path(given_output), float(given_pause)),
        options=Options(jobs=int(given_jobs)),
    )
    sys.exit(ended.exit_code)
