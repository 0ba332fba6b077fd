"""CT at a fraction of their dose as files, beside the scans themselves: pairs for a denoiser, with their manifest."""

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from monai.transforms import Orientation

from medgen.case import Case
from medgen.errors import InputError, NoInputError
from medgen.geometry import Grid
from medgen.metrics.ct_noise import noise_power, uniform_regions
from medgen.prepare.dose import pixel_side_mm
from medgen.read.discover import find_cases
from medgen.read.reader import read_image
from medgen.run.build import Cohort, gather, write_manifest
from medgen.run.steps import Event
from medgen.simulate.dose import CtScanner, line_integrals, lower_dose, noise_fields
from medgen.write.nifti import write_volume

Array = npt.NDArray[np.float32]

_AXES = (("L", "R"), ("P", "A"), ("I", "S"))
# Where noise outweighs anatomy in a uniform region, and the pixels still show it [cycles/mm].
_FIT_FROM, _FIT_TO = 0.25, 0.6
_CUTOFFS = tuple(np.arange(0.5, 2.01, 0.1).round(1).tolist())
_FIT_SLICES = 2
_FEWEST_FREQUENCIES = 4
_LEAST_SHARE = 0.02  # of the variance that 1.5 million photons give: nobody is scanned with fifty times as many
# The most uniform regions, if there are some; anatomy in the others is taken for noise, in part.
_SPREADS_HU, _ENOUGH_REGIONS = (10.0, 15.0, 25.0), 4
# Times the electronic noise: below it the mean of a line integral is off by 0.02 and more: tens of HU in streaks.
_BIASED_BELOW = 5.0
_LEFT_OUT = "left out: "
_EXTREMES_HU = (-32768.0, 32767.0)


@dataclass(frozen=True)
class OwnNoise:
    """The noise that a scan has, as the flux and the kernel that would simulate it.

    Attributes:
        photons: see `CtScanner`.
        kernel: where the Hann window of its filter ends `[cycles/mm]`.
        regions: uniform regions that it was measured in.
    """

    photons: float
    kernel: float
    regions: int


def fit_own_noise(volume: npt.ArrayLike, pixel_mm: float, scanner: CtScanner | None = None) -> OwnNoise | None:
    """Finds the flux and the kernel whose simulated noise has the spectrum that a scan's own noise has.

    Compared from 0.25 to 0.6 cycles/mm in uniform soft tissue, where anatomy no longer counts.

    Args:
        volume: axial slices `(X, Y, Z)` `[HU]`.
        pixel_mm: side of a pixel.
        scanner: all but the flux; default a `CtScanner`.

    Returns:
        the fit, or None where the scan has no uniform region of 64 x 64 pixels, its pixels are too coarse to show the
        spectrum, or it has no noise to speak of, as a phantom or a scan that was smoothed.
    """
    scan, scanner = np.asarray(volume, dtype=np.float32), scanner or CtScanner()
    for spread in _SPREADS_HU:
        places = uniform_regions(scan, low_hu=20.0, high_hu=180.0, spread_hu=spread)
        if len(places) >= _ENOUGH_REGIONS:
            break
    if not places:
        return None
    counts = {z: sum(place[2] == z for place in places) for z in {place[2] for place in places}}
    chosen = sorted(counts, key=lambda z: (-counts[z], z))[:_FIT_SLICES]
    fields = {
        z: noise_fields(scan[..., z], pixel_mm, np.random.default_rng(z), kernel=np.inf, scanner=scanner)[0]
        for z in chosen
    }
    own = noise_power([scan[place] for place in places], pixel_mm)
    drawn = noise_power([fields[place[2]][place[:2]] for place in places if place[2] in fields], pixel_mm)
    band = (own.frequency >= _FIT_FROM) & (own.frequency <= _FIT_TO)
    if band.sum() < _FEWEST_FREQUENCIES:
        return None
    wanted = own.power[band]
    fits = []
    for kernel in _CUTOFFS:
        window = 0.5 + 0.5 * np.cos(np.pi * np.minimum(drawn.frequency / kernel, 1.0))
        shaped = (drawn.power * window**2)[band]
        share = float(wanted @ shaped / (shaped @ shaped))
        fits.append((float(np.linalg.norm(wanted - share * shaped)), share, kernel))
    _, share, kernel = min(fits)
    if share < _LEAST_SHARE:
        return None
    return OwnNoise(scanner.photons / share, kernel, len(places))


def write_low_dose(
    source: Path,
    output: Path,
    *,
    fraction: float,
    kernel: str = "own",
    photons: float = 0.0,
    slices: int = 0,
    seed: int = 0,
    listen: Callable[[Event], None] = lambda event: None,
) -> tuple[Cohort, dict[str, str]]:
    """Writes every CT of an input at full and at a lower dose, as `output/NAME/NAME_full.nii.gz` and `NAME_low.nii.gz`.

    Both are in RAS+ orientation. `output/manifest.json` pairs them, the scan at the lower dose as `image`, the scan as
    it is as `target`; every case counts as a patient.

    Args:
        source: as for `medgen run`; DICOM series of other modalities are passed over.
        output: folder.
        fraction: of the dose, above 0 and at most 1.
        kernel: `soft`, `sharp`, or `own` for the one that fits the scan's own noise best. With another than its own,
            the flux is still the one that its own noise speaks for.
        photons: incident flux, see `CtScanner`; 0 fits it to the scan's own noise.
        slices: from the middle of each scan; 0 takes all.
        seed: of the noise.
        listen: told of progress.

    Returns:
        what was written, and by case what its noise was made of, or why there is none.

    Raises:
        NoInputError: there is no CT, or none that can be used.
    """
    cases = [c for c in find_cases(source, salt=b"") if not c.excluded and c.modality in {"", "CT"}]
    if not cases:
        raise NoInputError(f"expected CT as NIfTI or DICOM in {source.name}, found none")
    listen(Event("begin", len(cases), 0))
    told: dict[str, str] = {}
    names = _names(cases)
    for number, case in enumerate(cases):
        listen(Event("stage", len(cases), number, case.name, "lower the dose"))
        try:
            told[case.name] = _write_one(case, output / names[case.name], (fraction, kernel, photons, slices, seed))
        except InputError as error:
            reason = str(error).removeprefix(f"{case.files[0].name}: ")
            told[case.name] = f"{_LEFT_OUT}{reason}"
            listen(Event("failed", len(cases), number + 1, case.name, "lower the dose", reason))
    listen(Event("end", len(cases), len(cases)))
    if all(what.startswith(_LEFT_OUT) for what in told.values()):
        raise NoInputError(
            f"expected a CT that can be used, got {len(told)} that cannot; {cases[0].name}: "
            f"{told[cases[0].name].removeprefix(_LEFT_OUT)}"
        )
    found = gather([output], {"image": "{patient}/{patient}_low.nii.gz", "target": "{patient}/{patient}_full.nii.gz"})
    # The folder may hold pairs of an earlier call, of another dose.
    written = {names[case.name] for case in cases if not told[case.name].startswith(_LEFT_OUT)}
    cohort = replace(found, cases=[case for case in found.cases if case["patient"] in written])
    write_manifest(
        cohort, output / "manifest.json", {"test": 1.0}, source="simulated", data_license="that of the scans"
    )
    return cohort, told


def _write_one(case: Case, folder: Path, how: tuple[float, str, float, int, int]) -> str:
    fraction, kernel, photons, slices, seed = how
    if case.refused:
        raise InputError(case.refused)
    image = Orientation("RAS", labels=_AXES)(read_image(case))
    side = pixel_side_mm(image)
    first = max(0, (image.shape[-1] - slices) // 2) if slices else 0
    scan = image[0, ..., first : first + slices if slices else None].numpy().astype(np.float32)
    scanner, told = CtScanner(), ""
    chosen: str | float = kernel
    if kernel == "own" or not photons:
        fit = fit_own_noise(image[0].numpy(), side, scanner)  # of all slices: some have no uniform tissue
        if fit is None:
            raise InputError(
                "expected noise in uniform soft tissue of 64 x 64 pixels, pixels of 1 mm or so, to fit flux and kernel "
                "to, found none; try --photons with --kernel soft or sharp"
            )
        photons, told = photons or fit.photons, f", fitted in {fit.regions} regions"
        chosen = fit.kernel if kernel == "own" else kernel
    scanner = replace(scanner, photons=photons)
    told += _starved(scan[..., scan.shape[-1] // 2], side, fraction, scanner)
    rng = np.random.default_rng([seed, zlib.crc32(folder.name.encode())])  # scans do not share their noise
    low = lower_dose(scan, (side, side), fraction, rng, kernel=chosen, scanner=scanner)
    affine = np.asarray(image.affine, dtype=np.float64).copy()
    affine[:3, 3] += affine[:3, 2] * first
    for volume, what in ((low, "low"), (scan, "full")):
        _write(volume, affine, folder / f"{folder.name}_{what}.nii.gz")
    return f"{scan.shape[-1]} slices, {photons:.3g} photons, kernel {chosen}{told}"


def _starved(plane: Array, side: float, fraction: float, scanner: CtScanner) -> str:
    """Says what share of a slice's rays is left with so few photons that their logarithm is biased, if any is."""
    integrals = line_integrals(plane, side, scanner)
    photons = fraction * scanner.incident(len(integrals), side)[:, None] * np.exp(-integrals)
    share = float((photons < _BIASED_BELOW * scanner.read_out(side)).mean())
    return (
        f"; {100 * share:.2g} % of the rays of its middle slice are so dark that HU are biased there" if share else ""
    )


def _names(cases: Sequence[Case]) -> dict[str, str]:
    """What each case's files are called: by its whole path, as two folders may hold files of one name; no two alike."""
    names: dict[str, str] = {}
    for case in cases:
        plain = name = re.sub(r"[^A-Za-z0-9-]", "-", str(case.stem))
        count = 1
        while name in names.values():
            count += 1
            name = f"{plain}-{count}"
        names[case.name] = name
    return names


def _write(volume: Array, affine: npt.NDArray[np.float64], path: Path) -> None:
    x, y, z = volume.shape
    write_volume(np.clip(volume, *_EXTREMES_HU), Grid((x, y, z), affine), path)
