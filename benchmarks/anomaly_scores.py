"""Which score finds lesions best, voxel by voxel, and is any better than brightness alone or the distance to an atlas?

python benchmarks/anomaly_scores.py --unseen PATIENT=WEIGHTS [--unseen ...] [--bundle brain_vae_anomaly]
    [--contrast FLAIR] [--score NAME ...] [--smoothing VOXELS] [--data-root DIR]

Every patient is scored by weights that were not trained on him, such as
    medgen train brain_vae_anomaly --set "exclude=['ms-mni07']" -o FOLDER
leaves, and judged in the whole brain by the protocol of `medgen.metrics.detection`. `atlas` is the distance to the mean
of an atlas: the tissue fractions of `eve-template.json`, registered to the scan (affine, then splines) by mutual
information, each worth the median that it has in this scan.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813  # the name that SimpleITK's own documentation uses
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter

from medgen.case import Case
from medgen.infer.latent import SCORES, find_score
from medgen.infer.windows import WindowInferer
from medgen.metrics.detection import bare_brain, brightnesses, score_detection
from medgen.prepare.pairing import register, resample, to_sitk
from medgen.read.manifest import datalist_from_manifest, find_data_root, find_manifest
from medgen.read.reader import read_image
from medgen.run import predict
from medgen.run.bundle import OpenBundle, open_bundle
from medgen.run.calibrate import on_grid_of
from medgen.run.job import manifest_pairs, one_case
from medgen.run.weights import load_weights

Volume = npt.NDArray[np.float32]
MANIFESTS = {"FLAIR": "brain-lesions-flair", "T2w": "brain-lesions-t2"}
TISSUES = {"csf": 0.2, "grey": 1.1, "white": 1.0}  # as bright as on FLAIR: only where registration begins
SLOW = ("restoration",)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(prog="anomaly_scores", description=__doc__)
    parser.add_argument("--unseen", action="append", required=True, metavar="PATIENT=WEIGHTS")
    parser.add_argument("--bundle", default="brain_vae_anomaly")
    parser.add_argument("--contrast", choices=list(MANIFESTS), default="FLAIR")
    parser.add_argument("--score", action="append", choices=list(SCORES), help=f"default all but {', '.join(SLOW)}")
    parser.add_argument("--smoothing", type=float, default=0.7)
    parser.add_argument("--data-root", type=Path)
    options = parser.parse_args()
    bundle = open_bundle(options.bundle, changes=[f"contrast={options.contrast}", "erode_mm=0"], reference=False)
    pairs = manifest_pairs(find_manifest(Path(MANIFESTS[options.contrast])), "train", options.data_root)
    weights = dict(one.split("=", 1) for one in options.unseen)
    for pair in pairs:
        if pair.patient not in weights:
            continue
        load_weights(bundle.network, Path(weights[pair.patient])).eval()
        image = read_image(pair.case)
        lesion, brain = on_grid_of(image, read_image(pair.truth)) > 0.5, bare_brain(image[0].numpy())
        say(f"{pair.patient} {options.contrast}: {lesion[brain].mean():.4f} of the brain is lesion")
        say(f"  {'':42} AUROC  AUPRC  best Dice  seconds")
        maps = {name: (0.0, one) for name, one in brightnesses(image[0].numpy(), brain).items()}
        start = time.perf_counter()
        maps["atlas"] = (0.0, atlas_distance(image, brain, options.smoothing, options.data_root))
        maps["atlas"] = (time.perf_counter() - start, maps["atlas"][1])
        for name, (seconds, heat) in maps.items():
            say(line(name, seconds, heat, lesion, brain))
        for name in options.score or [one for one in SCORES if one not in SLOW]:
            start = time.perf_counter()
            heat = heat_of(bundle, name, options.smoothing, pair.case, image)
            say(line(name, time.perf_counter() - start, heat, lesion, brain))


def say(text: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def line(name: str, seconds: float, heat: Volume, lesion: npt.ArrayLike, brain: npt.ArrayLike) -> str:
    """Returns a row of the table."""
    score = score_detection(heat, lesion, brain)
    return f"  {name:42} {score.auroc:5.3f}  {score.auprc:5.3f}  {score.best_dice:9.3f}  {seconds:7.1f}"


def heat_of(bundle: OpenBundle, name: str, smoothing: float, case: Case, image: MetaTensor) -> Volume:
    """Returns the map of a score on the grid of the image."""
    bundle.inferer.score, bundle.inferer.smoothing = find_score(name), smoothing  # type: ignore[attr-defined]
    windows: WindowInferer = bundle.inferer.windows  # type: ignore[attr-defined]
    # Slopes and restorations keep what they passed through: a whole brain of that does not fit everybody's memory.
    windows.roi_size = (96, 96, 96) if "gradient" in name or name in {"cevae", "restoration"} else (192, 224, 192)
    return predict.finish(bundle, predict.compute(bundle, predict.prepare(bundle, case, image))).image


def atlas_distance(image: MetaTensor, brain: npt.NDArray[np.bool_], smoothing: float, data_root: Path | None) -> Volume:
    """Returns how much brighter the image is than the mean of the atlas."""
    manifest = find_manifest(Path("eve-template"))
    case, root = datalist_from_manifest(manifest, "train", data_root)[0], find_data_root(manifest, data_root)
    parts = {name: as_sitk(read_image(one_case(root, Path(case[name])))) for name in TISSUES}
    moving = sum((parts[name] * shade for name, shade in TISSUES.items()), start=parts["csf"] * 0)
    fixed = as_sitk(image)
    place = with_splines(fixed, moving, register(fixed, moving, "affine"))
    fractions = [resample(part, fixed, place) for part in parts.values()]
    values = image[0].numpy()
    usual = [float(np.median(values[(part > 0.8) & brain])) for part in fractions]
    expected = sum(share * value for share, value in zip(fractions, usual, strict=True))
    return np.asarray(gaussian_filter((values - expected) * brain, smoothing), dtype=np.float32)


def as_sitk(image: MetaTensor) -> sitk.Image:
    """Returns an image `(1, X, Y, Z)` as SimpleITK has it."""
    return to_sitk(image[0].numpy(), np.asarray(image.affine, dtype=np.float64))


def with_splines(fixed: sitk.Image, moving: sitk.Image, affine: sitk.Transform) -> sitk.Transform:
    """Returns where each place of one image lies in the other, a grid of splines bent after an affine motion."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(48)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.1, seed=7)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel([4])
    method.SetSmoothingSigmasPerLevel([2])
    method.SetOptimizerAsLBFGSB(numberOfIterations=60)
    method.SetMovingInitialTransform(affine)
    splines = sitk.BSplineTransformInitializer(fixed, [6, 6, 6])
    method.SetInitialTransform(splines, inPlace=True)
    method.Execute(fixed, moving)
    return sitk.CompositeTransform([affine, splines])


if __name__ == "__main__":
    main()
