"""How well, and how fast, does each way of finding the normal patch tell diseased retinas, beside simple answers?

python benchmarks/oct_scores.py --unseen PATIENT[,PATIENT...]=WEIGHTS [--unseen ...] [--finder NAME ...]
    [--bundle oct_anogan] [--data oct-kermany] [--data-root DIR] [--set KEY=VALUE ...] [--picture FILE]

Every normal B-scan is scored by weights that were not trained on that person, such as
    medgen train oct_anogan --set "exclude=['655117', '655447']" -o FOLDER
leaves; the simple answers are fitted on the same other people. Diseased B-scans, which no weights have seen, are dealt
out to the weights in turn, so that each is scored once.
Times beside scores are of a B-scan, search and scoring; those of the last table of a patch. All on the CPU.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from medgen.infer.anogan import AnoGanScorer, EncoderFinder, Finder, LatentSearch, find_finder
from medgen.infer.bscans import score_bscan
from medgen.metrics.screening import NORMAL, screen, table
from medgen.metrics.simple_oct import BASELINES
from medgen.prepare.flatten import RETINA_KEY
from medgen.read.manifest import SPLITS, datalist_from_manifest, find_data_root, find_manifest
from medgen.read.reader import read_image
from medgen.run import predict
from medgen.run.bundle import OpenBundle, open_bundle
from medgen.run.job import one_case
from medgen.run.screen import flat_of
from medgen.run.weights import load_weights
from medgen.write.overlay import coloured

_TOGETHER = 64  # patches in a batch, of some five B-scans
_WIDE, _HIGH = 400, 124  # of a B-scan in the picture
FINDERS: dict[str, Callable[[], Finder]] = {
    "encoder": lambda: find_finder("encoder"),  # "auto" is fp32 on the CPU
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
    parser.add_argument("--times-only", action="store_true", help="leave the scores out")
    parser.add_argument("--timed", type=int, default=3, help="patches that are searched one at a time, for the time")
    parser.add_argument("--picture", type=Path, help="a PNG of a B-scan of each class: flat, made normal, its map")
    options = parser.parse_args()
    bundle = open_bundle(options.bundle, device="cpu", changes=options.changes, reference=False)
    groups = [(one.partition("=")[0].split(","), Path(one.partition("=")[2])) for one in options.unseen]
    scans = scans_of(bundle, find_manifest(Path(options.data)), options.data_root, groups)
    kinds, patients = [scan.kind for scan in scans], [scan.patient for scan in scans]
    if options.times_only:
        speeds(bundle, scans, options.timed)
        return
    found = {name: screen(simple_scores(name, scans), kinds, patients) for name in BASELINES}
    for name in options.finder or list(FINDERS):
        scorer(bundle).finder = FINDERS[name]()
        values, took = scores_of(bundle, scans)
        found[name] = screen(values, kinds, patients)
        say(
            f"{name}: {took:.3f} s a B-scan; normal {span(values, kinds, normal=True)}, "
            f"others {span(values, kinds, normal=False)}"
        )
    say(table(found))
    if options.picture:
        write_picture(bundle, [scan for scan in scans if scan.name in shown(scans)], options.picture)
    speeds(bundle, scans, options.timed)


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
            if item["class"] == NORMAL:
                weights = next((file for names, file in groups if item["patient"] in names), None)
                if weights is None:
                    continue
            else:
                weights, dealt = groups[dealt % len(groups)][1], dealt + 1
            prepared = predict.prepare(bundle, case, read_image(case))
            scans.append(Scan(item["patient"], item["class"], case.name, prepared, weights))
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
                heat = bundle.inferer(scan.prepared.item["image"][None], bundle.network)
            took += time.perf_counter() - start
            plane, retina = heat.as_tensor()[0, 0, ..., 0].numpy(), flat_of(scan.prepared)[1]
            values[scan.name] = score_bscan(plane, retina)
    return [values[scan.name] for scan in scans], took / len(scans)


def shown(scans: list[Scan]) -> list[str]:
    """Returns the middle scan of each class, the normal one first."""
    kinds = sorted({scan.kind for scan in scans}, key=lambda kind: (kind != NORMAL, kind))
    groups = [[scan.name for scan in scans if scan.kind == kind] for kind in kinds]
    return [names[len(names) // 2] for names in groups]


def write_picture(bundle: OpenBundle, scans: list[Scan], path: Path) -> None:
    """Writes a row for each scan: the flattened B-scan, the normal one that it is taken for, and the map over it."""
    tool, rows = scorer(bundle), []
    tool.finder = find_finder("encoder")
    for scan in sorted(scans, key=lambda scan: scan.kind != NORMAL):
        load_weights(bundle.network, scan.weights).eval()
        planes = scan.prepared.item["image"].as_tensor().float().movedim(-1, 0)
        with torch.no_grad():
            normal, _ = tool.restored(bundle.network, planes)
            heat = tool(planes[:, :, :, :, None], bundle.network)
        heat = heat[0, 0, ..., 0] * scan.prepared.item[RETINA_KEY][0, ..., 0]
        grey = [_grey(plane) for plane in (planes[0, 0], normal[0, 0])]
        rows.append([grey[0].convert("RGB"), grey[1].convert("RGB"), coloured(grey[0], _grey(heat * 2.5 - 1))])
    page = Image.new("RGB", (3 * _WIDE, _HIGH * len(rows)))
    for number, row in enumerate(rows):
        for column, picture in enumerate(row):
            page.paste(picture.resize((_WIDE - 4, _HIGH - 4)), (column * _WIDE, number * _HIGH))
    page.save(path)


def _grey(plane: torch.Tensor) -> Image.Image:
    """A band `(X, rows)` of -1 to 1 as a picture, 256 columns of it at most."""
    return Image.fromarray(((plane[:256].T + 1) * 127.5).clamp(0, 255).to(torch.uint8).numpy())


def speeds(bundle: OpenBundle, scans: list[Scan], timed: int) -> None:
    """Prints the time of a patch by each way, many at once, beside the published one."""
    tool = scorer(bundle)
    patches = torch.cat([_cut(tool, scan.prepared.item["image"].as_tensor().float().movedim(-1, 0)) for scan in scans])
    patches = patches[:_TOGETHER]

    def seconds(finder: Finder, batch: int = _TOGETHER, count: int = _TOGETHER) -> float:
        finder.batch = batch  # type: ignore[attr-defined]
        some = patches[:count]
        LatentSearch(2, precision=finder.precision, batch=batch)(bundle.network, some)  # type: ignore[attr-defined,arg-type]
        start = time.perf_counter()
        finder(bundle.network, some)  # type: ignore[arg-type]
        return (time.perf_counter() - start) / len(some)

    published = seconds(LatentSearch(precision="fp32"), batch=1, count=timed)
    say(f"a patch, of {len(patches)} together:")
    say(f"  {f'search, 500 steps, one at a time ({timed} timed)':44} {published:9.3f} s")
    for name, make in FINDERS.items():
        one = seconds(make())
        say(f"  {name:44} {one:9.5f} s  {published / one:9.1f} times faster")


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
