"""What denoising without learning can do at best: total variation, its weight fitted on the truth itself."""

import numpy as np
import numpy.typing as npt
from skimage.restoration import denoise_tv_chambolle

from medgen.errors import IntensityError
from medgen.metrics.ct_noise import WINDOWS_HU

Volume = npt.NDArray[np.float32]

WEIGHTS_HU = (3.0, 5.0, 8.0, 12.0, 18.0, 27.0, 40.0, 60.0, 90.0)
_TRIED_ON = 3  # slices, evenly spread


def total_variation(volume: npt.ArrayLike, weight_hu: float) -> Volume:
    """Denoises every axial slice of `(X, Y, Z)` `[HU]` by itself.

    Source: Chambolle, "An algorithm for total variation minimization and applications", J Math Imaging Vis 20:89, 2004,
    as scikit-image has it.

    Args:
        volume: `(X, Y, Z)` `[HU]`.
        weight_hu: the larger, the smoother.
    """
    scan = np.asarray(volume, dtype=np.float32)
    planes = [denoise_tv_chambolle(scan[..., z], weight=weight_hu) for z in range(scan.shape[2])]
    return np.stack(planes, axis=-1).astype(np.float32)


def best_total_variation(source: npt.ArrayLike, truth: npt.ArrayLike) -> Volume:
    """Denoises a scan with the weight of `WEIGHTS_HU` that comes nearest to the truth.

    Nearest is the mean squared error in the soft window on three slices. No user could choose the weight so well.

    Args:
        source: `(X, Y, Z)` `[HU]`.
        truth: same shape.

    Raises:
        IntensityError: shapes differ.
    """
    noisy, clean = np.asarray(source, dtype=np.float32), np.asarray(truth, dtype=np.float32)
    if noisy.shape != clean.shape or noisy.ndim != 3:
        raise IntensityError(f"expected two volumes (X, Y, Z) on one grid, got {noisy.shape} and {clean.shape}")
    window = WINDOWS_HU["soft"]
    some = np.unique(np.linspace(0, noisy.shape[2] - 1, _TRIED_ON + 2).round().astype(int)[1:-1])
    seen = np.clip(clean[..., some], *window)

    def error(weight_hu: float) -> float:
        return float(np.square(np.clip(total_variation(noisy[..., some], weight_hu), *window) - seen).mean())

    return total_variation(noisy, min(WEIGHTS_HU, key=error))
