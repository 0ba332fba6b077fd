"""Denoisers side by side on pairs of CT at two doses, as `medgen lowdose` writes them.

python benchmarks/low_dose.py PAIRS/manifest.json [--bundle ct_low_dose_denoising] [--slices 8] [--redcnn WEIGHTS]

RED-CNN is trained as the bundle is, by `medgen train ct_low_dose_denoising --data-root DATA -o RUN
--set "network_def.network={_target_: medgen.nets.redcnn.RedCnn}"`; RUN/model.pt are its weights.

Every method but the networks gets the strength that comes nearest to the truth of the middle slice of the very scan it
is measured on, which no user could choose: total variation, non-local means and the bilateral filter of scikit-image,
and BM3D where the package `bm3d` is installed (it is no dependency).

Prints, mean over pairs: PSNR, SSIM and RMSE from -160 to 240 HU, RMSE from -1024 to 3071 HU; the distance of the noise
power spectrum in uniform tissue from that of the full dose; seconds a slice. Then the mean change against the full dose
by tissue, for the scan as it is and for each method.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt
import torch
from skimage.restoration import denoise_bilateral, denoise_nl_means

from medgen.metrics.ct_noise import TISSUES_HU, score_noise, shift_by_tissue, texture_distance
from medgen.metrics.smoothing import WEIGHTS_HU, total_variation
from medgen.nets.compand import Companded
from medgen.nets.redcnn import RedCnn
from medgen.prepare.intensity import HU_PER_UNIT, hu_to_unit
from medgen.read.reader import read_image
from medgen.run.bundle import OpenBundle, open_bundle
from medgen.run.job import manifest_pairs

Volume = npt.NDArray[np.float32]
Denoise = Callable[[Volume], Volume]
Adjustable = tuple[Callable[[Volume, float], Volume], tuple[float, ...]]

STRENGTHS_HU = (4.0, 6.0, 9.0, 13.0, 19.0, 28.0, 42.0, 63.0, 95.0)


def by_slice(scan: Volume, denoise: Callable[[Volume], npt.NDArray[np.floating]]) -> Volume:
    """Applies a filter of one slice to each slice of a volume."""
    return np.stack([denoise(scan[..., z]) for z in range(scan.shape[2])], axis=-1).astype(np.float32)


def non_local_means(scan: Volume, strength: float, decay: float = 0.8) -> Volume:
    """Patches of 5 pixels within 13 x 13; the strength `[HU]` is the noise, and `decay` of it the filter's."""

    def one(plane: Volume) -> npt.NDArray[np.floating]:
        found: npt.NDArray[np.floating] = denoise_nl_means(
            plane, patch_size=5, patch_distance=6, h=decay * strength, sigma=strength, fast_mode=True
        )
        return found

    return by_slice(scan, one)


def bilateral(scan: Volume, strength: float) -> Volume:
    """Weights by distance (1.5 pixels) and by `[HU]`; the filter wants values above 0."""
    return by_slice(
        scan, lambda s: denoise_bilateral(s - s.min(), sigma_color=strength, sigma_spatial=1.5, win_size=9) + s.min()
    )


def adjustable() -> Mapping[str, Adjustable]:
    """Returns what takes a strength, by name, with the strengths to try."""
    found: dict[str, Adjustable] = {
        "total variation": (total_variation, WEIGHTS_HU),
        "non-local means": (non_local_means, STRENGTHS_HU),
        "bilateral": (bilateral, STRENGTHS_HU),
    }
    try:
        from bm3d import bm3d  # noqa: PLC0415 - optional
    except ImportError:
        sys.stderr.write("BM3D is left out: `pip install bm3d` brings it\n")
    else:
        found["BM3D"] = (lambda scan, strength: by_slice(scan, lambda s: bm3d(s, sigma_psd=strength))), STRENGTHS_HU
    return found


def at_its_best(method: Adjustable, low: Volume, full: Volume) -> Denoise:
    """Returns a method with the strength that has the highest PSNR on the middle slice."""
    apply, strengths = method
    middle = slice(low.shape[2] // 2, low.shape[2] // 2 + 1)
    noisy, clean = low[..., middle], full[..., middle]
    chosen = max(strengths, key=lambda strength: score_noise(apply(noisy, strength), clean).psnr_db)
    return lambda scan: apply(scan, chosen)


def redcnn(weights: Path, bundle: OpenBundle) -> Denoise:
    """Returns the plain network on the scale of the bundle's, slice by slice in a loop."""
    network = Companded(RedCnn(), *(getattr(bundle.network, name) for name in ("low", "high", "slope", "gain"))).eval()
    network.load_state_dict(torch.load(weights, weights_only=True))

    def one(plane: Volume) -> npt.NDArray[np.floating]:
        with torch.no_grad():
            unit = torch.from_numpy(hu_to_unit(plane))[None, None, ..., None]
            return np.asarray(network(unit)[0, 0, ..., 0].numpy() * HU_PER_UNIT)

    return lambda scan: by_slice(scan, one)


def of_bundle(bundle: OpenBundle) -> Denoise:
    """Returns what a bundle's network and window inference make of a scan in memory."""

    def denoise(scan: Volume) -> Volume:
        with torch.no_grad():
            result = bundle.inferer(torch.from_numpy(hu_to_unit(scan))[None, None], bundle.network)
        return np.asarray(result[0, 0].float().numpy() * HU_PER_UNIT, dtype=np.float32)

    return denoise


def measured(denoise: Denoise, low: Volume, full: Volume) -> tuple[list[float], list[float]]:
    """Returns the columns of the two tables for one pair."""
    start = perf_counter()
    image = denoise(low)
    seconds = (perf_counter() - start) / image.shape[2]
    soft, wide = (score_noise(image, full, window=window) for window in ("soft", "full"))
    columns = [soft.psnr_db, soft.ssim, soft.rmse_hu, wide.rmse_hu, texture_distance(image, full), seconds]
    return columns, list(shift_by_tissue(image, full).values())


def main() -> None:
    """Measures every method on every pair and prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--bundle", default="ct_low_dose_denoising")
    parser.add_argument("--trust", action="store_true", help="run a bundle that did not come with medgen")
    parser.add_argument("--slices", type=int, default=8, help="from the middle of each scan; 0 for all")
    parser.add_argument("--redcnn", type=Path, help="weights of RED-CNN")
    given = parser.parse_args()
    networks: dict[str, Denoise] = {"as scanned": np.copy}
    bundle = open_bundle(given.bundle, trust=given.trust)
    if given.redcnn:
        networks["RED-CNN"] = redcnn(given.redcnn, bundle)
    networks["the bundle"] = of_bundle(bundle)
    rows: dict[str, list[tuple[list[float], list[float]]]] = {}
    for pair in manifest_pairs(given.manifest, "test"):
        image = read_image(pair.case)
        low, full = (np.asarray(v[0].numpy(), dtype=np.float32) for v in (image, read_image(pair.truth)))
        first = max(0, (low.shape[2] - given.slices) // 2) if given.slices else 0
        part = slice(first, first + given.slices if given.slices else None)
        low, full = low[..., part], full[..., part]
        tuned = {name: at_its_best(method, low, full) for name, method in adjustable().items()}
        for name, denoise in {**networks, **tuned}.items():
            rows.setdefault(name, []).append(measured(denoise, low, full))
    for part_, titles in enumerate((("PSNR", "SSIM", "RMSE", "RMSE full", "NPS", "s/slice"), tuple(TISSUES_HU))):
        sys.stdout.write(f"{'':16}" + "".join(f"{title:>10}" for title in titles) + "\n")
        for name, values in rows.items():
            mean = np.nanmean(np.array([value[part_] for value in values]), axis=0)
            sys.stdout.write(f"{name:16}" + "".join(f"{number:10.3f}" for number in mean) + "\n")


if __name__ == "__main__":
    main()
