"""How well, and how fast, does each way of finding the normal patch tell diseased retinas, beside simple answers?

python benchmarks/oct_scores.py --unseen PATIENT[,PATIENT...]=WEIGHTS [--unseen ...] [--finder NAME ...]
    [--bundle oct_anogan] [--data oct-kermany] [--data-root DIR] [--set KEY=VALUE ...]

Every normal B-scan is scored by weights that were not trained on that person, such as
    medgen train oct_anogan --set "exclude=['655117', '655447']" -o FOLDER
leaves; the simple answers are fitted on the same other people. Diseased B-scans, which no weights have seen, are dealt
out to the weights in turn, so that each is scored once. Times are of one B-scan, all its patches, search and scoring;
`one patch at a time` is the published way, timed on some patches of the first B-scan and multiplied.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.data import MetaTensor

from medgen.infer.anogan import AnoGanScorer, EncoderFinder, Finder, LatentSearch, find_finder
from medgen.infer.regions import SCAN_KEY
from medgen.metrics.screening import NORMAL, screen, table
from medgen.metrics.simple_oct import BASELINES
from medgen.read.manifest import SPLITS, datalist_from_manifest, find_data_root, find_manifest
from medgen.read.reader import read_image
from medgen.run import predict
from medgen.run.bundle import OpenBundle, open_bundle
from medgen.run.calibrate import scored
from medgen.run.job import one_case
from medgen.run.screen import flat_of
from medgen.run.weights import load_weights

FINDERS: dict[str, Callable[[], Finder]] = {
    "encoder": lambda: find_finder("encoder"),
    "encoder, bf16": lambda: EncoderFinder(precision="bf16"),
    "warm-search": lambda: find_finder("warm-search"),
    "warm-search, bf16": lambda: LatentSearch(25, start="encoder", patience=3, tolerance=2e-3, precision="bf16"),
    "search": lambda: find_finder("search"),
    "search, bf16": lambda: LatentSearch(precision="bf16"),
}


@dataclass(frozen=True)
class Scan:
    """A B-scan, whose it is, its class, and which weights score it."""

    patient: str
    kind: str
    name: str
    prepared: predict.Prepared
    image: MetaTensor
    weights: Path


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(prog="oct_scores", description=__doc__)
    parser.add_argument("--unseen", action="append", required=True, metavar="PATIENT[,PATIENT]=WEIGHTS")
    parser.add_argument("--finder", action="append", choices=list(FINDERS), help="default all")
    parser.add_argument("--bundle", default="oct_anogan")
    parser.add_argument("--data", default="oct-kermany")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="KEY=VALUE")
    parser.add_argument("--timed", type=int, default=3, help="patches that are searched one at a time, for the time")
    options = parser.parse_args()
    bundle = open_bundle(options.bundle, changes=options.changes, reference=False)
    groups = [(one.partition("=")[0].split(","), Path(one.partition("=")[2])) for one in options.unseen]
    scans = scans_of(bundle, find_manifest(Path(options.data)), options.data_root, groups)
    kinds, patients = [scan.kind for scan in scans], [scan.patient for scan in scans]
    found = {name: screen(simple_scores(name, scans), kinds, patients) for name in BASELINES}
    seconds = dict.fromkeys(found, 0.0)
    for name in options.finder or list(FINDERS):
        scorer(bundle).finder = FINDERS[name]()
        values, took = scores_of(bundle, scans)
        seconds[name] = took
        found[name] = screen(values, kinds, patients)
        say(
            f"{name}: {took:.3f} s a B-scan; normal {span(values, kinds, normal=True)}, "
            f"others {span(values, kinds, normal=False)}"
        )
    say(table(found))
    speeds(bundle, scans[0], options.timed)


def scorer(bundle: OpenBundle) -> AnoGanScorer:
    """The bundle's inferer."""
    if not isinstance(bundle.inferer, AnoGanScorer):
        raise TypeError(f"expected a bundle with an AnoGanScorer, got {type(bundle.inferer).__name__}")
    return bundle.inferer


def scans_of(
    bundle: OpenBundle, manifest: Path, data_root: Path | None, groups: list[tuple[list[str], Path]]
) -> list[Scan]:
    """Returns all B-scans of a manifest with the weights that score each."""
    root = find_data_root(manifest, data_root)
    scans, dealt = [], 0
    for split in SPLITS:
        for item in datalist_from_manifest(manifest, split, data_root):
            case = one_case(root, item["image"], bundle.metadata.modality_in)
            image = read_image(case)
            if item["class"] == NORMAL:
                weights = next((file for names, file in groups if item["patient"] in names), None)
                if weights is None:
                    continue
            else:
                weights, dealt = groups[dealt % len(groups)][1], dealt + 1
            prepared = predict.prepare(bundle, case, image)
            scans.append(Scan(item["patient"], item["class"], case.name, prepared, image, weights))
    return scans


def simple_scores(name: str, scans: list[Scan]) -> list[float]:
    """Returns what a simple answer says of each scan, fitted on the normal people that its weights were trained on."""
    fitted = {
        weights: BASELINES[name](
            [flat_of(scan.prepared) for scan in scans if scan.kind == NORMAL and scan.weights != weights]
        )
        for weights in {scan.weights for scan in scans}
    }
    return [fitted[scan.weights](flat_of(scan.prepared)) for scan in scans]


def scores_of(bundle: OpenBundle, scans: list[Scan]) -> tuple[list[float], float]:
    """Returns the bundle's score of each scan, and the mean time that the network took."""
    values, took = dict[str, float](), 0.0
    for weights in sorted({scan.weights for scan in scans}):
        load_weights(bundle.network, weights).eval()
        for scan in scans:
            if scan.weights != weights:
                continue
            start = time.perf_counter()
            with torch.no_grad():
                bundle.inferer(scan.prepared.item["image"][None], bundle.network)
            took += time.perf_counter() - start
            values[scan.name] = float(scored(bundle, scan.prepared.case, scan.image)[SCAN_KEY])
    return [values[scan.name] for scan in scans], took / len(scans)


def speeds(bundle: OpenBundle, scan: Scan, timed: int) -> None:
    """Prints the time of one B-scan by each way, beside the published one."""
    planes = scan.prepared.item["image"].as_tensor().float().movedim(-1, 0)
    tool = scorer(bundle)
    count = len(_cut(tool, planes))

    def seconds(finder: Finder, batch: int = 64, patches: int = count) -> float:
        finder.batch = batch  # type: ignore[attr-defined]
        some = _cut(tool, planes)[:patches]
        finder(bundle.network, some)  # type: ignore[arg-type]  # warm-up: memory, kernels
        start = time.perf_counter()
        finder(bundle.network, some)  # type: ignore[arg-type]
        return (time.perf_counter() - start) * count / patches

    say(f"a B-scan of {count} patches:")
    published = seconds(LatentSearch(), batch=1, patches=timed)
    say(f"  {'search, 500 steps, one patch at a time':44} {published:9.3f} s")
    for name, make in FINDERS.items():
        one = seconds(make())
        say(f"  {name:44} {one:9.4f} s  {published / one:9.1f} times faster")


def _cut(tool: AnoGanScorer, planes: torch.Tensor) -> torch.Tensor:
    starts = range(0, planes.shape[2] - tool.size[0] + 1, tool.stride)
    return torch.cat([planes[:, :, start : start + tool.size[0]] for start in starts])


def span(values: list[float], kinds: list[str], *, normal: bool) -> str:
    """Returns the lowest and highest score of normal scans, or of the others."""
    some = [value for value, kind in zip(values, kinds, strict=True) if (kind == NORMAL) is normal]
    return f"{min(some):.3f} to {max(some):.3f}"


def say(text: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
