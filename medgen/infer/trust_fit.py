"""Makes the reference of an `InputCheck` from labelled scans, and says how well it does on patients it has not seen.

python -m medgen.infer.trust_fit --manifest data_manifests/input-reference.json --data DATA -o input_reference.json

In the manifest the role of a file is its contrast: `t1`, `t1c`, `t2`, `flair`, `ct`, `abdomen`, `oct`, `phantom`;
`csf`, `grey` and `white` are tissue maps to simulate from. Every scan is also shown damaged, and every T1 inverted.
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
from medgen.infer.trust import SCHEMA, Likeness, likeness_to_json
from medgen.read.manifest import load_manifest
from medgen.read.reader import read_volume
from medgen.simulate.signal import (
    Tissue,
    add_rician_noise,
    gradient_echo,
    inversion_recovery,
    mr_image,
    receive_field,
    spin_echo,
)
from medgen.write.atomic import atomic_text

Volume = npt.NDArray[np.float32]

_VIEW = np.diag([VIEW_MM, VIEW_MM, VIEW_MM, 1.0])
_TISSUES = ("csf", "grey", "white")
_SAME = {"t1c": "t1"}  # contrast agent keeps a T1 a T1
# Caught by their size or their CT numbers; shown to the discriminant they would only blur it.
_BY_RULE = ("oct", "phantom", "abdomen")
_VARIANTS = 3
_SIMULATED = {"t1": 16, "t2": 12, "pd": 16, "flair": 16}
_SHRINKAGE = 0.2
_SIMULATED_WEIGHT = 0.5
_SIZE_MARGIN = 1.3
_MISSED = 0.04  # share of accepted scans, of patients not seen, that the threshold may flag


@dataclass(frozen=True)
class Example:
    """One scan, as found or damaged.

    Attributes:
        patient: whose; `"simulated"` for all that come from tissue maps.
        contrast: what it is.
        numbers: its appearance.
        size: of its body.
        original: whether it is the scan as found.
        held: whether its patient is kept out of the fit.
    """

    patient: str
    contrast: str
    numbers: dict[str, float]
    size: dict[str, float]
    original: bool
    held: bool = False


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
    """Returns every scan as found, damaged and inverted, and simulated ones."""
    rng, found = np.random.default_rng(seed), []
    maps: dict[str, Volume] = {}
    for patient, contrast, image, held in read_views(manifest, data):
        if contrast in _TISSUES:
            maps[contrast] = image
            continue
        shown = [(image, contrast, True)]
        if contrast not in _BY_RULE:
            shown += [(damage(image, rng), contrast, False) for _ in range(_VARIANTS)]
        if _SAME.get(contrast, contrast) == "t1":
            shown += [(damage(invert(image), rng), "inverted", False)]
        found += [_example(patient, name, one, original, held) for one, name, original in shown]
    for contrast, count in _SIMULATED.items() if len(maps) == len(_TISSUES) else ():
        images = (damage(simulate(maps, contrast, rng), rng) for _ in range(count))
        found += [_example("simulated", contrast, image, False, False) for image in images]
    return [example for example in found if example.numbers]


def _example(patient: str, contrast: str, image: Volume, original: bool, held: bool) -> Example:
    view = view_of(image, _VIEW)
    return Example(patient, _SAME.get(contrast, contrast), appearance(view), size_of(view), original, held)


def damage(image: Volume, rng: np.random.Generator) -> Volume:
    """Returns the image with another gain curve, shading, slice thickness, noise, side and field of view."""
    low, high = np.percentile(image, [0.5, 99.5])
    unit = np.clip((image - low) / max(high - low, 1e-6), 0, 1.5).astype(np.float32)
    air = unit <= 0
    unit = unit ** np.float32(rng.uniform(0.7, 1.4))
    unit = unit * receive_field(Grid(unit.shape, _VIEW), strength=rng.uniform(0, 0.25), seed=int(rng.integers(2**31)))
    axis, thickness = int(rng.integers(3)), float(rng.uniform(3, 6.5))
    coarse = list(unit.shape)
    coarse[axis] = max(int(unit.shape[axis] * VIEW_MM / thickness), 1)
    slabs = functional.adaptive_avg_pool3d(torch.from_numpy(unit)[None, None], (coarse[0], coarse[1], coarse[2]))
    unit = functional.interpolate(slabs, size=unit.shape, mode="trilinear", align_corners=False)[0, 0].numpy()
    unit = add_rician_noise(unit, rng.uniform(0, 0.04), rng)
    unit[air] *= np.float32(air.mean() < 0.5)  # the air around a brain without skull stays black
    if rng.random() < 0.5:
        unit = unit[::-1]
    return np.ascontiguousarray(unit[:, :, int(rng.integers(0, 1 + unit.shape[2] // 6)) :])


def invert(image: Volume) -> Volume:
    """Returns the body's negative on black air."""
    low, high = np.percentile(image, [0.5, 99.5])
    return np.where(image > low + 0.05 * (high - low), np.maximum(high - image, 0), 0).astype(np.float32)


def simulate(maps: dict[str, Volume], contrast: str, rng: np.random.Generator) -> Volume:
    """Returns a brain of the tissue maps under a protocol as hospitals use them, drawn at random."""
    tesla = float(rng.choice([1.5, 3.0]))
    return mr_image(maps, _protocol(contrast, tesla, rng), tesla=tesla)


def _protocol(contrast: str, tesla: float, rng: np.random.Generator) -> Callable[[Tissue], float]:
    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    if contrast == "t1":
        tr, te, flip = between(12, 30), between(3, 8), between(20, 35)
        return lambda tissue: gradient_echo(tissue, tr_ms=tr, te_ms=te, flip_degrees=flip)
    if contrast == "flair":
        tr, te = between(8000, 11000), between(80, 140)
        fluid = 2569.0 if tesla < 2 else 4000.0
        ti = between(0.95, 1.1) * fluid * (np.log(2) - np.log1p(np.exp(-tr / fluid)))
        return lambda tissue: inversion_recovery(tissue, tr_ms=tr, ti_ms=ti, te_ms=te)
    tr, te = between(2500, 6000), between(75, 130) if contrast == "t2" else between(10, 30)
    return lambda tissue: spin_echo(tissue, tr_ms=tr, te_ms=te)


def fit(shown: Sequence[Example]) -> Likeness:
    """Returns the linear discriminant with a covariance shrunk towards the identity; all classes weigh the same.

    Source: Friedman, Regularized discriminant analysis, JASA 84:165, 1989.
    """
    names = tuple(shown[0].numbers)
    values = np.array([[one.numbers[name] for name in names] for one in shown])
    weight = np.array([_SIMULATED_WEIGHT if one.patient == "simulated" else 1.0 for one in shown])
    labels = np.array([one.contrast for one in shown])
    classes = tuple(sorted(set(labels.tolist())))
    mean, scale = values.mean(axis=0), values.std(axis=0) + 1e-6
    unit = np.clip((values - mean) / scale, -4, 4)
    centres, covariance = [], np.zeros((len(names), len(names)))
    for name in classes:
        chosen = labels == name
        share = weight[chosen] / weight[chosen].sum()
        centres.append(share @ unit[chosen])
        away = unit[chosen] - centres[-1]
        covariance += (away.T * share) @ away / len(classes)
    shrunk = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * np.eye(len(names))
    weights = np.linalg.solve(shrunk, np.array(centres).T).T
    offsets = -0.5 * np.einsum("kd,kd->k", weights, np.array(centres))
    return Likeness(names, mean, scale, classes, weights, offsets)


def unseen(shown: Sequence[Example], accepted: str) -> list[tuple[Example, float]]:
    """Returns every example with its likeness to `accepted`, by a discriminant that never saw its patient."""
    usable = [one for one in shown if one.contrast not in _BY_RULE and not one.held]
    scored = []
    for patient in sorted({one.patient for one in shown} - {"simulated"}):
        likeness = fit([one for one in usable if one.patient != patient])
        scored += [(one, likeness(one.numbers)[accepted]) for one in shown if one.patient == patient]
    return scored


def table(scored: Sequence[tuple[Example, float]], threshold: float) -> str:
    """Returns, by contrast, how many scans of patients not seen are flagged by the discriminant alone."""
    rows: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for one, likeness in scored:
        rows[one.contrast].append((one.original, likeness < threshold))
    lines = [f"{'contrast':10} {'as found: flagged':>18} {'damaged: flagged':>18}"]
    for contrast, marks in sorted(rows.items()):
        counts = [[flagged for original, flagged in marks if original is wanted] for wanted in (True, False)]
        lines.append(f"{contrast:10} " + " ".join(f"{sum(c):>10} of {len(c):>4}" for c in counts))
    return "\n".join(lines) + "\n"


def reference(shown: Sequence[Example], accepted: str, spacing: tuple[float, float]) -> tuple[dict[str, object], str]:
    """Returns the content of the reference and the table of how it does on patients not seen."""
    scored = unseen(shown, accepted)
    own = [likeness for one, likeness in scored if one.contrast == accepted and one.original and not one.held]
    others = [likeness for one, likeness in scored if one.contrast != accepted and one.original]
    threshold = float(np.quantile(own, _MISSED)) if own and others else 0.5
    sizes = [one.size for one in shown if one.contrast == accepted and one.original and not one.held]
    limits = {
        name: [
            round(min(s[name] for s in sizes) / _SIZE_MARGIN, 2),
            round(max(s[name] for s in sizes) * _SIZE_MARGIN, 2),
        ]
        for name in sizes[0]
    }
    final = fit([one for one in shown if one.contrast not in _BY_RULE and not one.held])
    content = {
        "schema": SCHEMA,
        "accepted": accepted,
        "threshold": round(threshold, 4),
        "spacing_mm": list(spacing),
        "size": limits,
        "likeness": likeness_to_json(final),
    }
    return content, table(scored, threshold)


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
    atomic_text(options.output, json.dumps(content, indent=1) + "\n")
    sys.stdout.write(found)


if __name__ == "__main__":
    main()
