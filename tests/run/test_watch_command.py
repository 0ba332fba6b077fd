"""`medgen watch` as a process: killed, started again, ended; and what it refuses before it begins."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner
from zoo_like import write_bundle

from medgen.cli import app
from medgen.simulate.dicom import write_series

pytestmark = pytest.mark.filterwarnings("ignore:.*labels.*:FutureWarning")

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "double")


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 900, (12, 10, 6))


def push(folder: Path, seed: int) -> list[Path]:
    return write_series(folder, image(seed), AFFINE, seed=seed)


def rows(output: Path) -> dict[str, dict[str, str]]:
    with (output / "cases.csv").open(encoding="utf-8") as stream:
        return {row["case"]: row for row in csv.DictReader(stream)}


def statuses(output: Path) -> list[str]:
    return sorted(row["status"] for row in rows(output).values())


def command(*words: object, home: Path) -> subprocess.Popen[str]:
    code = "import sys, medgen.cli; sys.exit(medgen.cli.main())"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    with (home / "said.log").open("a") as log:
        argv = [sys.executable, "-c", code, *map(str, words)]
        return subprocess.Popen(argv, env=environment, stdout=log, stderr=log, text=True)


def until(holds: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def test_killed_in_the_middle_and_started_again_it_does_everything_once(bundle: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    for seed in range(4):
        push(source / str(seed), seed)
    words = ["watch", bundle, source, "-o", output, "--trust", "--settle", "0.3", "--every", "0.1"]
    process = command(*words, home=tmp_path)
    until(lambda: list((output / ".medgen" / "records").glob("*.json")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.read_bytes() for path in (output / ".medgen" / "records").glob("[!.]*.json")}
    process = command(*words, home=tmp_path)
    until(lambda: (output / "cases.csv").is_file() and statuses(output) == ["done"] * 4)
    push(source / "late", 9)
    until(lambda: statuses(output) == ["done"] * 5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0, (tmp_path / "said.log").read_text()
    for path, content in before.items():
        assert path.read_bytes() == content  # what was done was not done again
    assert "Traceback" not in (tmp_path / "said.log").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "expected a folder to watch"),
        (["."], "got one with results"),
        (["in", "--store"], "beside --query and --store"),
        (["in", "--query", "PatientID=4711"], "beside --query and --store"),
        (["dicomweb+http://127.0.0.1:1", "--query", "Patient=4711"], "expected --query"),
        (["dicomweb+http://127.0.0.1:1", "--store", "--format", "nifti"], "which no server takes"),
    ],
)
def test_what_cannot_be_watched_is_said(
    bundle: Path, tmp_path: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    output = "." if words == ["."] else "out"
    result = CliRunner().invoke(app, ["watch", str(bundle), *words, "-o", output, "--trust"])
    assert result.exit_code == 2
    assert said in result.stderr
    assert "4711" not in result.output


def test_a_bundle_that_nobody_trusts_is_refused_before_a_study_arrives(bundle: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["watch", str(bundle), str(tmp_path), "-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "say --trust" in result.stderr
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
