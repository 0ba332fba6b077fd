"""Studies as they come in, small ones; what a run wrote of them; and commands as processes of their own."""

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from medgen.simulate.dicom import write_series

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


def image(seed: int) -> np.ndarray:
    """Of 12 x 10 x 6 voxels."""
    return np.random.default_rng(seed).integers(1, 900, (12, 10, 6))


def push(folder: Path, seed: int) -> list[Path]:
    """A DICOM series of six instances, a study and a patient for every seed."""
    return write_series(folder, image(seed), AFFINE, seed=seed)


def save_nifti(path: Path, seed: int = 0) -> None:
    """The same image as NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(image(seed).astype(np.int16), AFFINE), path)


def rows(output: Path) -> dict[str, dict[str, str]]:
    """What cases.csv says of each case; nothing where there is none yet."""
    if not (output / "cases.csv").is_file():
        return {}
    with (output / "cases.csv").open(encoding="utf-8") as stream:
        found = list(csv.DictReader(stream))
    by_case = {row["case"]: row for row in found}
    assert len(by_case) == len(found), "a case is there twice"
    return by_case


def statuses(output: Path) -> list[str]:
    """How the cases ended, sorted."""
    return sorted(row["status"] for row in rows(output).values())


def command(*words: object, home: Path) -> subprocess.Popen[bytes]:
    """`medgen` as a process; what it says goes to `said.log` in `home`."""
    code = "import sys, medgen.cli; sys.exit(medgen.cli.main())"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    with (home / "said.log").open("ab") as log:
        argv = [sys.executable, "-c", code, *map(str, words), "--trust"]
        return subprocess.Popen(argv, env=environment, stdout=log, stderr=log)


def said(home: Path) -> str:
    """What the commands of `home` said."""
    return (home / "said.log").read_text(encoding="utf-8")


def until(holds: Callable[[], object], seconds: float = 60.0) -> None:
    """Waits for something to become true."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)
