"""The results of one arm against those of another, file by file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from race.timed import done_cases, results


@dataclass(frozen=True)
class Difference:
    """How far a result is from the reference's.

    Attributes:
        name: of the scan that both were made from.
        max_abs: largest absolute difference, as a share of the reference's own range.
        psnr_db: of the same range; infinite where nothing differs.
        same_grid: shape and affine are the same.
    """

    name: str
    max_abs: float
    psnr_db: float
    same_grid: bool = True


def difference(name: str, reference: npt.ArrayLike, got: npt.ArrayLike) -> Difference:
    """Compares two volumes of one shape.

    Example:
        >>> difference("a", [0.0, 100.0], [0.0, 99.0])
        Difference(name='a', max_abs=0.01, psnr_db=43.010299956639813, same_grid=True)
        >>> difference("a", [0.0, 1.0], [0.0, 1.0]).psnr_db
        inf
    """
    true = np.asarray(reference, dtype=np.float64)
    apart = np.abs(np.asarray(got, dtype=np.float64) - true)
    span = float(np.ptp(true)) or 1.0
    error = float(np.square(apart).mean()) / span**2
    return Difference(name, float(apart.max()) / span, -10 * math.log10(error) if error > 0 else math.inf)


def result_of(scan: str, output: Path) -> Path | None:
    """Returns the volume below a folder that was made from a scan.

    medgen says which; else its name begins as the scan's does, but perhaps for the last part of it, `_T1w`.
    """
    for row in done_cases(output):
        if row["input"] == scan:
            return output / row["output"]
    stem = scan.removesuffix(".gz").rpartition(".")[0]
    for start in (stem, stem.rpartition("_")[0] or stem):
        found = [path for path in results(output) if path.name.startswith((f"{start}_", f"{start}."))]
        if len(found) == 1:
            return found[0]
    return None


def compare(scans: Sequence[str], reference: Path, output: Path) -> list[Difference]:
    """Compares what two arms have made of the same scans.

    Raises:
        FileNotFoundError: one of them made nothing of a scan.
    """
    found = []
    for scan in scans:
        paths = [result_of(scan, folder) for folder in (reference, output)]
        if None in paths:
            raise FileNotFoundError(f"expected one result of {scan} in {reference.name} and in {output.name}")
        images = [nib.load(path) for path in paths]
        same = images[0].shape == images[1].shape and np.allclose(images[0].affine, images[1].affine, atol=1e-4)
        if images[0].shape == images[1].shape:
            voxels = [np.asarray(image.dataobj) for image in images]
            apart = difference(scan, *voxels)
            found.append(Difference(scan, apart.max_abs, apart.psnr_db, bool(same)))
        else:
            found.append(Difference(scan, math.nan, math.nan, same_grid=False))
    return found
