"""Runs are killed at random instants, alone and several at once; in the end every case is done once, and intact."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import cohort_worker
import numpy as np
import pytest

from medgen.write.atomic import PREFIX

IN_FLIGHT = 3  # slots of a run with one job


def start(source: Path, output: Path, part: str = "1/1", pause: float = 0.02) -> subprocess.Popen[bytes]:
    command = [sys.executable, cohort_worker.__file__, str(source), str(output), part, str(pause), "1", "0.1.0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with (output.parent / "errors.log").open("ab") as errors:
        return subprocess.Popen(command, env=environment, stderr=errors)


def owners(output: Path) -> set[str]:
    return {path.name for path in (output / ".medgen" / "owners").glob("*")}


def said(folder: Path) -> str:
    return (folder / "errors.log").read_text(encoding="utf-8")


def require_coherent(output: Path) -> list[dict[str, str]]:
    """At any instant the table is whole, and what it and the records call done is there to the last byte."""
    for path in (output / ".medgen" / "records").glob("[!.]*.json"):
        record = json.loads(path.read_bytes())
        assert {name: (output / name).stat().st_size for name in record["files"]} == record["files"]
    if not (output / "cases.csv").is_file():
        return []
    with (output / "cases.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    json.loads((output / "run.json").read_bytes())
    assert all(row["status"] == "done" for row in rows)
    assert len({row["case"] for row in rows}) == len(rows)
    return rows


def require_intact(source: Path, output: Path) -> None:
    for index, case in enumerate(cohort_worker.find(source)):
        folder = output / case.stem.parent / "scan_double"
        voxels = np.concatenate([np.frombuffer(path.read_bytes(), np.int16) for path in sorted(folder.iterdir())])
        np.testing.assert_array_equal(voxels, np.full(cohort_worker.VOXELS, 2 * index))


def batter(tmp_path: Path, *, cases: int, kills: int, parts: list[str], seed: int, pause: float = 0.02) -> None:
    """Kills runs of all parts at random instants, lets them finish, and looks at what they leave."""
    chance = random.Random(seed)
    source, output = tmp_path / "in", tmp_path / "out"
    cohort_worker.make_input(source, cases)
    interrupted = 0
    for _ in range(kills):
        before = owners(output)
        running = [start(source, output, part, pause) for part in parts]
        while not owners(output) - before and running[0].poll() is None:
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, 0.4))
        for process in running:
            process.send_signal(chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
        codes = [process.wait(timeout=30) for process in running]
        assert set(codes) <= {0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM}, said(tmp_path)
        interrupted += sum(code != 0 for code in codes)
        require_coherent(output)
    assert interrupted > kills // 2, "the kills came too late to test anything"
    last = [start(source, output, part, pause=0.0) for part in parts]
    assert [process.wait(timeout=300) for process in last] == [0] * len(parts), said(tmp_path)

    rows = require_coherent(output)
    assert [row["case"] for row in rows] == [case.name for case in cohort_worker.find(source)]
    require_intact(source, output)
    assert not list(output.rglob(f"{PREFIX}*")), "something half-written was left behind"
    computed = Counter((tmp_path / "computed.log").read_text(encoding="utf-8").splitlines())
    assert set(computed) == {row["case"] for row in rows}
    assert sum(computed.values()) <= cases + IN_FLIGHT * kills * len(parts)
    told = json.loads((output / "run.json").read_bytes())
    assert told["counts"] == {"done": cases, "failed": 0, "skipped": 0}
    assert told["state"] == "finished"


def test_a_run_killed_again_and_again_does_every_case_once_and_intact(tmp_path: Path) -> None:
    batter(tmp_path, cases=32, kills=6, parts=["1/1"], seed=1)


def test_two_parts_killed_together_leave_one_coherent_record(tmp_path: Path) -> None:
    batter(tmp_path, cases=32, kills=3, parts=["1/2", "2/2"], seed=2)


def test_the_same_command_started_twice_shares_the_work(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    cohort_worker.make_input(source, 16)
    both = [start(source, output), start(source, output)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    computed = Counter((tmp_path / "computed.log").read_text(encoding="utf-8").splitlines())
    assert sorted(computed.values()) == [1] * 16
    assert len(require_coherent(output)) == 16
    require_intact(source, output)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [["1/1"], ["1/2", "2/2"], ["1/1", "1/1"]])
def test_a_hundred_kills(tmp_path: Path, parts: list[str]) -> None:
    batter(tmp_path, cases=400, kills=100 // len(parts), parts=parts, seed=3, pause=0.1)
