"""How fast is `medgen run` beside `python -m monai.bundle run`, on the same bundle, scans and windows, and how exact?

python benchmarks/speed.py [--quick] [--resample] [--growth] [--bundles] [--device cuda] [--input FOLDER]

Two networks, light and heavy, in bundles laid out as those of the MONAI model zoo; scans are simulated, or your own.
Everything is written into OUTPUT: speed.json (all raw numbers), speed.md (the tables, and how they were measured) and
speed.png. The rounds of both networks take some 40 minutes on two cores; --quick a quarter of that.
"""

import argparse
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from race.arms import REFERENCE, Arm, common_env, zoo_arms
from race.bundles import NETWORKS, ROI, find_bundle, network_of
from race.chart import write_chart
from race.contest import Contest, Race
from race.growth import Growth
from race.heads import find_scans
from race.machine import flop_of, machine_of, peaks_of
from race.own import OWN, own_arms, places_of
from race.table import page

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medgen-bench"


class Benchmark:
    """What has been measured so far, and where it is written."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.output: Path = options.output.resolve()
        self.work: Path = options.work.resolve()
        caches = self.output / "run" / "caches"
        shutil.rmtree(self.output / "run", ignore_errors=True)
        caches.mkdir(parents=True)
        self.env = common_env(options.device, caches, options.threads)
        machine = machine_of(options.device)
        self.raw: dict[str, Any] = {"machine": machine, "peaks": [], "loads": [], "contests": [], "growth": {}}

    def scans(self, kind: str, count: int) -> list[Path]:
        """Returns scans of a kind; for heads, the user's own if there are any."""
        if kind == "head" and self.options.input:
            found = sorted(self.options.input.resolve().glob("*.nii.gz"))[:count]
            if len(found) < 2:
                sys.exit(f"expected at least 2 files *.nii.gz in {self.options.input}, got {len(found)}")
            return found
        return find_scans(self.work, kind, count, say)

    def zoo(self, name: str, kind: str) -> None:
        """Times a bundle from elsewhere."""
        bundle = find_bundle(self.work, name, say)
        title = f"{name} network" + (", resampled" if kind == "sagittal" else "")
        window = (1, 1, ROI, ROI, ROI)
        facts = {"flop_per_window": flop_of(network_of(NETWORKS[name]), window), "window_voxels": ROI**3}
        places = {"bundle": str(bundle), "name": str(bundle)}
        arms = zoo_arms(self.options.device, self.options.arm)
        scans = self.scans(kind, self.options.volumes)
        self._hold(title, places, scans, arms, facts)

    def own(self, name: str) -> None:
        """Times a bundle that comes with medgen."""
        kind, count = OWN[name]
        scans = self.scans(kind, max(2, count // 2) if self.options.quick else count)
        self._hold(name, places_of(name), scans, own_arms(self.options.device), {})

    def grow(self) -> None:
        """Measures growth, with the light network."""
        bundle = find_bundle(self.work, "light", say)
        arms = {arm.name: arm for arm in zoo_arms(self.options.device)}
        both, scans = [arms[REFERENCE], arms["medgen auto"]], self.scans("head", self.options.volumes)
        places = {"bundle": str(bundle), "name": str(bundle)}
        growth = Growth(places, self.env, self.output / "run" / "growth", say)
        few = slice(0, 2) if self.options.quick else slice(None)
        self._look()
        growth.by_cohort(both[1:], scans, [1])  # networks are converted here
        self.raw["growth"]["voxels of one scan"] = growth.by_size(both, scans[0], (1, 2, 4, 8)[few])
        self.raw["growth"]["scans"] = growth.by_cohort(both, scans, (1, 2, 4, 8)[few])
        self.raw["growth"]["processes"] = growth.by_processes(both[1], scans, 4 if self.options.quick else 8)
        self.write()

    def _hold(
        self, title: str, places: dict[str, str], scans: list[Path], arms: list[Arm], facts: dict[str, Any]
    ) -> None:
        folder = self.output / "run" / title.replace(", ", "-").replace(" ", "-")
        race = Race(Contest(title, places, scans, arms, self.env, folder, facts), say)
        self._look()
        race.warm_up()
        self.raw["contests"].append({})
        for number in range(self.options.rounds):
            self._look()
            race.round(number)
            self.raw["contests"][-1] = race.to_json()
            self.write()
        race.clear()

    def _look(self) -> None:
        """Measures what the machine can do now, and how busy it is besides."""
        self.raw["loads"].append(round(os.getloadavg()[0], 2))
        self.raw["peaks"].append(peaks_of(self.options.device))
        found = ", ".join(f"{kind} {value:.0f}" for kind, value in self.raw["peaks"][-1].items())
        say(f"matrix products GFLOP/s and copies GB/s: {found}; load {self.raw['loads'][-1]}")

    def write(self) -> None:
        """Writes what there is."""
        write_results(self.raw, self.output)


def write_results(raw: dict[str, Any], output: Path) -> None:
    """Writes the raw numbers, the page and the chart."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "speed.json").write_text(json.dumps(_plain(raw), indent=1), encoding="utf-8")
    (output / "speed.md").write_text(page(raw), encoding="utf-8")
    write_chart(raw["contests"], output / "speed.png")


def _plain(value: Any) -> Any:  # noqa: ANN401 - JSON
    """JSON knows no infinity: what is identical has no PSNR there."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def say(text: str) -> None:
    """Tells how far it is."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def given() -> argparse.Namespace:
    """Returns what was asked for."""
    parser = argparse.ArgumentParser(
        prog="speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("speed_results"))
    parser.add_argument(
        "--work", type=Path, default=_CACHE, help="bundles and scans are kept here; default %(default)s"
    )
    parser.add_argument("--input", type=Path, help="a folder of your own *.nii.gz instead of simulated heads")
    parser.add_argument("--volumes", type=int, default=4, help="scans in the run over all, at least 2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round, two scans")
    parser.add_argument("--nets", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--resample", action="store_true", help="also scans of 0.94 mm, which have to be resampled")
    parser.add_argument("--growth", action="store_true", help="also larger scans, more scans, more processes")
    parser.add_argument("--bundles", nargs="*", choices=list(OWN), help="also these that come with medgen, or all")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="of each arm; 0 leaves it to the libraries")
    parser.add_argument("--redraw", action="store_true", help="only write OUTPUT's tables and chart again")
    parser.add_argument("--arm", action="append", default=[], metavar="NAME=OPTIONS", help="another arm of medgen")
    options = parser.parse_args()
    if options.quick:
        options.volumes, options.rounds = 2, 1
    if options.volumes < 2:
        parser.error("expected at least 2 volumes: what a scan costs is told from what a second one adds")
    return options


def main() -> None:
    """Runs what was asked for."""
    options = given()
    if options.redraw:
        write_results(json.loads((options.output / "speed.json").read_text(encoding="utf-8")), options.output)
        return
    benchmark = Benchmark(options)
    jobs: list[Callable[[], None]] = [lambda name=name: benchmark.zoo(name, "head") for name in options.nets]
    jobs += [lambda: benchmark.zoo("light", "sagittal")] if options.resample else []
    jobs += [benchmark.grow] if options.growth else []
    jobs += (
        [lambda name=name: benchmark.own(name) for name in options.bundles or OWN]
        if options.bundles is not None
        else []
    )
    for job in jobs:
        job()
    sys.stdout.write((benchmark.output / "speed.md").read_text(encoding="utf-8") if jobs else "nothing was asked for\n")


if __name__ == "__main__":
    main()
