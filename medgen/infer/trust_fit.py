"""Makes the reference of an `InputCheck` from labelled scans, and says how well it does on patients it has not seen.

python -m medgen.infer.trust_fit --manifest data_manifests/input-reference.json --data DATA -o input_reference.json

In the manifest the role of a file is its contrast: `t1`, `t1c`, `t2`, `flair`, `ct`, `abdomen`, `oct`, `phantom`;
`csf`, `grey` and `white` are tissue maps to simulate from. Every scan is also shown damaged; every T1 is also
inverted, which is never fitted: it tests what the check makes of a contrast that it does not know.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional

from medgen.geometry import Grid
from medgen.infer.appearance import VIEW_MM, appearance, size_of, view_of
from medgen.infer.trust import SCHEMA, Distance, Likeness, to_json
from medgen.read.manifest import load_manifest
from medgen.read.reader import read_volume
from medgen.simulate.signal import Tissue, add_rician_noise, mr_image, receive_field, spin_echo

Volume = npt.NDArray[np.float32]

_VIEW = np.diag([VIEW_MM, VIEW_MM, VIEW_MM, 1.0])
_TISSUES = ("csf", "grey", "white")
_SAME = {"t1c": "t1"}  # contrast agent keeps a T1 a T1
# Caught by their size or their CT numbers; shown to the discriminant they would only blur it.
_BY_RULE = ("oct", "phantom", "abdomen")
_VARIANTS = 2
_SIMULATED = {"pd": 12}  # the contrasts of which there are no scans
_SHRINKAGE = 0.1
_DISTANCE_SHRINKAGE = 0.3
# Leave-one-patient-out, nearly all scans of both sides lie far from these; see the table that this command prints.
_LEAST_LIKENESS = 0.3
_MOST_DISTANCE = 1.7
_SIZE_MARGIN = 1.3


@dataclass(frozen=True)
class Example:
    """One scan, as found or damaged.

    Attributes:
        patient: whose; `"simulated"` for all that come from tissue maps.
        contrast: what it is.
        numbers: its appearance.
        size: of its body.
        original: whether it is the scan as found.
        weight: in the fit; 0 keeps a patient out of it.
    """

    patient: str
    contrast: str
    numbers: dict[str, float]
    size: dict[str, float]
    original: bool
    weight: float = 1.0


def read_views(manifest: Path, data: Path) -> Iterator[tuple[str, str, Volume, bool]]:
    """Yields patient, contrast, the image at the check's resolution, and whether the patient is held out of the fit."""
    for case in load_manifest(manifest)["cases"]:
        for contrast, file in case["files"].items():
            path = data / file["path"]
            if path.suffix == ".jpeg":
                with Image.open(path) as picture:
                    image, affine = np.asarray(picture.convert("L"), dtype=np.float32).T[..., None], np.eye(4)
            else:
                volume = read_volume([path], allow_irregular=True)
                image, affine = volume.image, volume.grid.affine
            yield case["patient"], contrast, view_of(image, affine, whole=True).image, case["split"] != "train"


def examples(manifest: Path, data: Path, seed: int = 0) -> list[Example]:
    """Returns every scan as found and damaged, every T1 inverted, and simulated scans."""
    rng, found = np.random.default_rng(seed), []
    maps: dict[str, Volume] = {}
    for patient, contrast, image, held in read_views(manifest, data):
        if contrast in _TISSUES:
            maps[contrast] = image
            continue
        shown = [(contrast, image, 1.0)]
        if contrast not in _BY_RULE:
            shown += [(contrast, damage(image, rng), 0.3) for _ in range(_VARIANTS)]
        if contrast == "t1":
            shown += [("inverted", invert(image), 0.0)]
        found += [_example(patient, name, one, 0.0 if held else weight, weight == 1) for name, one, weight in shown]
    for contrast, count in _SIMULATED.items() if len(maps) == len(_TISSUES) else ():
        images = (simulate(maps, contrast, rng) for _ in range(count))
        found += [_example("simulated", contrast, image, 0.3, False) for image in images]
    return [example for example in found if example.numbers]


def _example(patient: str, contrast: str, image: Volume, weight: float, original: bool) -> Example:
    view = view_of(image, _VIEW)
    return Example(patient, _SAME.get(contrast, contrast), appearance(view), size_of(view), original, weight)


def damage(image: Volume, rng: np.random.Generator) -> Volume:
    """Returns the image with another gain curve, shading, slice thickness, noise, side and field of view."""
    low, high = np.percentile(image, [0.5, 99.5])
    unit = np.clip((image - low) / max(high - low, 1e-6), 0, 1.5).astype(np.float32)
    air = unit <= 0
    unit = unit ** np.float32(rng.uniform(0.75, 1.3))
    unit = unit * receive_field(Grid(unit.shape, _VIEW), strength=rng.uniform(0, 0.25), seed=int(rng.integers(2**31)))
    axis, thickness = int(rng.choice(3, p=[0.2, 0.2, 0.6])), float(rng.uniform(VIEW_MM, 5.5))
    coarse = list(unit.shape)
    coarse[axis] = max(int(unit.shape[axis] * VIEW_MM / thickness), 1)
    slabs = functional.adaptive_avg_pool3d(torch.from_numpy(unit)[None, None], (coarse[0], coarse[1], coarse[2]))
    unit = functional.interpolate(slabs, size=unit.shape, mode="trilinear", align_corners=False)[0, 0].numpy()
    unit = add_rician_noise(unit, rng.uniform(0, 0.015), rng)
    unit[air] *= np.float32(air.mean() < 0.5)  # the air around a brain without skull stays black
    if rng.random() < 0.5:
        unit = unit[::-1]
    return np.ascontiguousarray(unit[:, :, int(rng.integers(0, 1 + unit.shape[2] // 7)) :])


def invert(image: Volume) -> Volume:
    """Returns the body's negative on black air."""
    low, high = np.percentile(image, [0.5, 99.5])
    return np.where(image > low + 0.05 * (high - low), np.maximum(high - image, 0), 0).astype(np.float32)


def simulate(maps: dict[str, Volume], contrast: str, rng: np.random.Generator) -> Volume:
    """Returns a brain of the tissue maps in a spin echo of the contrast, with times as hospitals set them."""
    tesla = float(rng.choice([1.5, 3.0]))
    return mr_image(maps, _protocol(contrast, rng), tesla=tesla)


def _protocol(contrast: str, rng: np.random.Generator) -> Callable[[Tissue], float]:
    tr, te = float(rng.uniform(2500, 6000)), float(rng.uniform(75, 130) if contrast == "t2" else rng.uniform(10, 30))
    return lambda tissue: spin_echo(tissue, tr_ms=tr, te_ms=te)


def fit(shown: Sequence[Example]) -> Likeness:
    """Returns the linear discriminant with a covariance shrunk towards the identity; all classes are as likely.

    Source: Friedman, Regularized discriminant analysis, JASA 84:165, 1989.
    """
    names = tuple(shown[0].numbers)
    values = np.array([[one.numbers[name] for name in names] for one in shown])
    weight = np.array([one.weight for one in shown])
    labels = np.array([one.contrast for one in shown])
    classes = tuple(sorted(set(labels.tolist())))
    mean = weight @ values / weight.sum()
    scale = np.sqrt(weight @ (values - mean) ** 2 / weight.sum()) + 1e-6
    unit = np.clip((values - mean) / scale, -4, 4)
    centres, covariance = [], np.zeros((len(names), len(names)))
    for name in classes:
        chosen = labels == name
        share = weight[chosen] / weight[chosen].sum()
        centres.append(share @ unit[chosen])
        away = unit[chosen] - centres[-1]
        covariance += (away.T * weight[chosen]) @ away / weight.sum()
    shrunk = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * np.eye(len(names))
    weights = np.linalg.solve(shrunk, np.array(centres).T).T
    offsets = -0.5 * np.einsum("kd,kd->k", weights, np.array(centres))
    return Likeness(names, mean, scale, classes, weights, offsets)


def fit_distance(shown: Sequence[Example]) -> Distance:
    """Returns the distance from what is shown, with a correlation shrunk towards the identity."""
    names = tuple(shown[0].numbers)
    values = np.array([[one.numbers[name] for name in names] for one in shown])
    weight = np.array([one.weight for one in shown]) / sum(one.weight for one in shown)
    mean = weight @ values
    scale = np.sqrt(weight @ (values - mean) ** 2) + 1e-6
    unit = (values - mean) / scale
    correlation = (unit.T * weight) @ unit
    shrunk = (1 - _DISTANCE_SHRINKAGE) * correlation + _DISTANCE_SHRINKAGE * np.eye(len(names))
    return Distance(names, mean, scale, np.linalg.inv(shrunk))


def learn(shown: Sequence[Example], accepted: str, without: str = "") -> tuple[Likeness, Distance]:
    """Returns what is learnt from all examples but those of one patient."""
    usable = [one for one in shown if one.contrast not in _BY_RULE and one.weight > 0 and one.patient != without]
    return fit(usable), fit_distance([one for one in usable if one.contrast == accepted])


def unseen(shown: Sequence[Example], accepted: str) -> list[tuple[Example, bool]]:
    """Returns every example with whether it is flagged by what was learnt without its patient, size aside."""
    marked = []
    for patient in sorted({one.patient for one in shown} - {"simulated"}):
        likeness, distance = learn(shown, accepted, without=patient)
        for one in shown:
            if one.patient == patient:
                unlike = likeness(one.numbers)[accepted] < _LEAST_LIKENESS
                marked.append((one, unlike or distance(one.numbers) > _MOST_DISTANCE))
    return marked


def table(marked: Sequence[tuple[Example, bool]]) -> str:
    """Returns, by contrast, how many scans of patients not seen are flagged."""
    rows: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for one, flagged in marked:
        rows[one.contrast].append((one.original, flagged))
    lines = [f"{'contrast':10} {'as found: flagged':>18} {'damaged: flagged':>18}"]
    for contrast, marks in sorted(rows.items()):
        counts = [[flagged for original, flagged in marks if original is wanted] for wanted in (True, False)]
        lines.append(f"{contrast:10} " + " ".join(f"{sum(c):>10} of {len(c):>4}" for c in counts))
    return "\n".join(lines) + "\n"


def reference(shown: Sequence[Example], accepted: str, spacing: tuple[float, float]) -> tuple[dict[str, object], str]:
    """Returns the content of the reference and the table of how it does on patients not seen."""
    sizes = [one.size for one in shown if one.contrast == accepted and one.original and one.weight > 0]
    limits = {
        name: [
            round(min(s[name] for s in sizes) / _SIZE_MARGIN, 2),
            round(max(s[name] for s in sizes) * _SIZE_MARGIN, 2),
        ]
        for name in sizes[0]
    }
    likeness, distance = learn(shown, accepted)
    content = {
        "schema": SCHEMA,
        "accepted": accepted,
        "least_likeness": _LEAST_LIKENESS,
        "most_distance": _MOST_DISTANCE,
        "spacing_mm": list(spacing),
        "size": limits,
        "likeness": to_json(likeness),
        "distance": to_json(distance),
    }
    return content, table(unseen(shown, accepted))


def main() -> None:
    """Reads the arguments, fits, writes the reference, and shows the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="what the paths of the manifest are relative to")
    parser.add_argument("--accepted", default="t1", help="the contrast that the bundle takes")
    parser.add_argument("--spacing-mm", type=float, nargs=2, default=(0.35, 6.5), help="finest and coarsest voxel side")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    shown = examples(options.manifest, options.data)
    content, found = reference(shown, options.accepted, (options.spacing_mm[0], options.spacing_mm[1]))
    options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(found)


if __name__ == "__main__":
    main()
