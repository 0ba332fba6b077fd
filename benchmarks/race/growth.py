"""How time and memory grow with the size of a scan, the number of scans and the number of processes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib

from race.arms import Arm
from race.heads import enlarged, gather
from race.timed import Timed, Turn, results, run, stages_of

SIZES, COHORTS = (1, 2, 4, 8), (1, 2, 4, 8)
Row = dict[str, Any]
Say = Callable[[str], None]


class Growth:
    """Runs of some arms on inputs of all sizes, one after the other."""

    def __init__(self, places: Mapping[str, str], env: Mapping[str, str], folder: Path, say: Say) -> None:
        self._places, self._env, self._folder, self._say = dict(places), dict(env), folder, say

    def by_size(self, arms: Sequence[Arm], scan: Path, sizes: Sequence[int] = SIZES) -> list[Row]:
        """Returns a row a size and arm, of runs over one scan with so many times the voxels."""
        rows = []
        inputs = self._folder / "sizes"
        inputs.mkdir(parents=True, exist_ok=True)
        for size in sizes:
            larger = enlarged(scan, inputs / f"times{size}.nii.gz", size)
            voxels = nib.load(larger).header["dim"][1:4].astype(int).prod() / 1e6
            source = gather([larger], self._folder / "input")
            for arm in arms:
                turn, output = self._run(arm, source)
                row = {"arm": arm.name, "million voxels": float(voxels), **_of(turn)}
                rows.append({**row, "compute, s": sum(stage["compute"] for stage in stages_of(output)) or ""})
                self._say(f"size x{size}, {arm.name}: {turn.seconds:.1f} s, {turn.peak_bytes / 1e9:.2f} GB {turn.said}")
        return rows

    def by_cohort(self, arms: Sequence[Arm], scans: Sequence[Path], counts: Sequence[int] = COHORTS) -> list[Row]:
        """Returns a row a number of scans and arm."""
        rows = []
        for count in counts:
            source = gather(_repeated(scans, count, self._folder / "cohort"), self._folder / "input")
            for arm in arms:
                turn, _ = self._run(arm, source)
                rows.append({"arm": arm.name, "scans": count, **_of(turn)})
                self._say(f"{count} scans, {arm.name}: {turn.seconds:.1f} s {turn.said}")
        return rows

    def by_processes(self, arm: Arm, scans: Sequence[Path], count: int = 8) -> list[Row]:
        """Returns a row a way to share a cohort between processes that are started together on one output folder."""
        source = gather(_repeated(scans, count, self._folder / "cohort"), self._folder / "input")
        ways: dict[str, list[str]] = {
            "one": [""],
            "two, the same command": ["", ""],
            "two, --part": ["--part 1/2", "--part 2/2"],
        }
        rows = []
        for way, options in ways.items():
            output = gather([], self._folder / "output")
            running = []
            for number, option in enumerate(options):
                one = Arm(arm.name, (*arm.words, *option.split()), arm.env)
                places = {**self._places, "input": source, "output": output}
                log = self._folder / f"process-{number}.log"
                running.append(Timed(one.command(places), {**self._env, **one.env}, log))
            turns = [one.end(output) for one in running]
            row = {"processes": way, "scans done": len(results(output)), "s": max(turn.seconds for turn in turns)}
            row["peak of all, GB"] = sum(turn.peak_bytes for turn in turns) / 1e9
            rows.append({**row, "failed": sum(turn.code != 0 for turn in turns)})
            self._say(f"processes {way}: {row['s']:.1f} s, {row['scans done']} done")
        return rows

    def _run(self, arm: Arm, source: Path) -> tuple[Turn, Path]:
        output = self._folder / "output"
        places = {**self._places, "input": source, "output": output}
        return run(arm.command(places), {**self._env, **arm.env}, output, self._folder / "log"), output


def _of(turn: Turn) -> Row:
    facts = {"s": turn.seconds, "user, s": turn.user, "system, s": turn.system, "peak, GB": turn.peak_bytes / 1e9}
    return {**facts, "failed": "yes" if turn.code else ""}


def _repeated(scans: Sequence[Path], count: int, folder: Path) -> list[Path]:
    """Returns so many scans: the given ones, again and again under other names."""
    gather([], folder)
    found = []
    for number in range(count):
        target = folder / f"scan-{number:02d}.nii.gz"
        target.hardlink_to(gather([scans[number % len(scans)]], folder / "link") / scans[number % len(scans)].name)
        found.append(target)
    return found
