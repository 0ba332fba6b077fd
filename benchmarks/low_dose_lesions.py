"""Does a denoiser keep faint lesions visible and edges sharp? On scans with inserts of known size and contrast.

python benchmarks/low_dose_lesions.py CT [CT ...] [--bundle ct_low_dose_denoising] [--slices 12]

Lesions: discs of 5, 8 and 12 mm, 30, 20 and 15 HU darker than the tissue they are put into, in every uniform region of
the middle slices of the scan at full dose; the scan with them and the scan without are then simulated at the fraction
of the dose, each with noise of its own, the flux and the kernel that fit the scan's own noise, and denoised; twice. A
non-prewhitening observer compares the places with their lesion to the same places without. A lesion is one slice
thick and has no blur of a scanner: harder to see than a real one of its size.
Edges: discs of 20 mm, 20, 100 and 800 HU brighter than water, in a water cylinder of 250 mm: where the transfer
function falls to a half [cycles/mm], over the mean of eight scans of one slice, and contrast over noise.
Total variation has the strength that comes nearest to the truth.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from low_dose import Adjustable, at_its_best, of_bundle
from monai.transforms import Orientation

from medgen.errors import InputError
from medgen.metrics.ct_noise import uniform_regions
from medgen.metrics.observer import detection, disc, matched_sum
from medgen.metrics.sharpness import contrast_to_noise, disc_transfer
from medgen.metrics.smoothing import WEIGHTS_HU, total_variation
from medgen.prepare.dose import pixel_side_mm
from medgen.read.discover import find_cases
from medgen.read.reader import read_image
from medgen.run.bundle import open_bundle
from medgen.run.dose import fit_own_noise
from medgen.simulate.dose import CtScanner, lower_dose, scanned

Volume = npt.NDArray[np.float32]
Denoise = Callable[[Volume], Volume]

LESIONS = ((2.5, -30.0), (4.0, -20.0), (6.0, -15.0))  # radius [mm], contrast [HU]
DRAWS = 2  # of noise
DISCS_HU = (20.0, 100.0, 800.0)
PHANTOM_PIXELS, PHANTOM_MM, SCANS = 384, 0.75, 8
SMOOTHED: Adjustable = (total_variation, WEIGHTS_HU)


def visible(scan: Volume, side: float, fraction: float, slices: int, methods: Mapping[str, Denoise]) -> list[str]:
    """Returns the table of lesions for one scan."""
    fit = fit_own_noise(scan, side)
    if fit is None:
        raise InputError("expected uniform soft tissue of 64 x 64 pixels, found none")
    first = max(0, (scan.shape[2] - slices) // 2)
    full, scanner = scan[..., first : first + slices], replace(CtScanner(), photons=fit.photons)
    places = uniform_regions(full, low_hu=20.0, high_hu=180.0)
    if not places:
        raise InputError(f"expected uniform soft tissue of 64 x 64 pixels in the middle {slices} slices, found none")
    centres = [(x.start + 31.5, y.start + 31.5, z) for x, y, z in places]
    draws = [
        lower_dose(full, (side, side), fraction, np.random.default_rng(n), kernel=fit.kernel, scanner=scanner) - full
        for n in range(2 * DRAWS)
    ]
    series = {"full dose": None, "low dose": np.copy, "total variation": at_its_best(SMOOTHED, full + draws[0], full)}
    series |= methods
    # Without a lesion: the same for all kinds of lesion.
    plain = {name: [method(full + n) for n in draws[:DRAWS]] if method else [full] for name, method in series.items()}
    lines = []
    for radius, contrast in LESIONS:
        marked = full.copy()
        for x, y, z in centres:
            marked[..., z] += np.float32(contrast) * disc(full.shape[:2], (x, y), radius, side).astype(np.float32)
        for name, method in series.items():
            images = [method(marked + n) for n in draws[DRAWS:]] if method else [marked]
            there, not_there = (
                [matched_sum(image[..., z], (x, y), radius, side) for image in group for x, y, z in centres]
                for group in (images, plain[name])
            )
            found = detection(there, not_there, sign=float(np.sign(contrast)))
            lines.append(
                f"{2 * radius:4.0f} mm {contrast:4.0f} HU  {name:16} AUC {found.auc:.3f}  d' {found.d_prime:5.2f}  "
                f"visible {100 * found.visible:3.0f} % of {found.lesions}, "
                f"contrast seen {np.mean(there) - np.mean(not_there):6.1f} HU"
            )
    return lines


def sharp(fraction: float, methods: Mapping[str, Denoise]) -> list[str]:
    """Returns the table of edges, of a water cylinder with a disc in its middle."""
    shape, middle = (PHANTOM_PIXELS, PHANTOM_PIXELS), ((PHANTOM_PIXELS - 1) / 2,) * 2
    lines = []
    for contrast in DISCS_HU:
        plane = -1000 + 1000 * disc(shape, middle, 125.0, PHANTOM_MM) + contrast * disc(shape, middle, 10.0, PHANTOM_MM)
        rng = np.random.default_rng(0)
        series = [scanned(plane, (PHANTOM_MM, PHANTOM_MM), fraction, rng, kernel="soft") for _ in range(SCANS)]
        low = np.stack(series, axis=-1).astype(np.float32)
        truth = np.repeat(plane[..., None], SCANS, axis=-1).astype(np.float32)
        each = {"total variation": at_its_best(SMOOTHED, low, truth), **methods}
        # One by one: no patient offers the same slice eight times.
        images = {"low dose": low} | {
            name: np.concatenate([denoise(low[..., n : n + 1]) for n in range(SCANS)], axis=-1)
            for name, denoise in each.items()
        }
        for name, image in images.items():
            half = disc_transfer(image.mean(axis=-1), middle, 10.0, PHANTOM_MM).half
            ratio = np.mean([contrast_to_noise(image[..., n], middle, 10.0, PHANTOM_MM) for n in range(SCANS)])
            lines.append(
                f"disc of {contrast:3.0f} HU  {name:16} half at {half:.3f} cycles/mm, contrast to noise {ratio:.1f}"
            )
    return lines


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, nargs="+")
    parser.add_argument("--bundle", default="ct_low_dose_denoising")
    parser.add_argument("--trust", action="store_true", help="run a bundle that did not come with medgen")
    parser.add_argument("--fraction", type=float, default=0.25)
    parser.add_argument("--slices", type=int, default=12, help="from the middle of each scan")
    given = parser.parse_args()
    methods: dict[str, Denoise] = {"the bundle": of_bundle(open_bundle(given.bundle, trust=given.trust))}
    for source in given.scans:
        for case in find_cases(source, salt=b""):
            image = Orientation("RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")))(read_image(case))
            scan, side = np.asarray(image[0].numpy(), dtype=np.float32), pixel_side_mm(image)
            sys.stdout.write("\n".join([case.name, *visible(scan, side, given.fraction, given.slices, methods), ""]))
    sys.stdout.write("\n".join([*sharp(given.fraction, methods), ""]))


if __name__ == "__main__":
    main()
