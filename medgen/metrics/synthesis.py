"""How near a synthetic image is to the true one, when its scale is free: PSNR, SSIM and sharpness in a mask.

The protocol is frozen; changing any constant here makes every published number incomparable:

1. mask: source > 0.1 * mean(source where source > 0), and truth > 0 (and a brain mask where there is one);
2. the prediction is matched to the truth by least squares a*x + b in the mask with a >= 0; were a negative, a = 0,
   so that an inverted contrast earns nothing;
3. outside the mask both are 0; data range = 99.5th percentile of the truth in the mask; both are clipped to [0, range];
4. PSNR over the mask; SSIM in 3D (Gaussian of 1.5 voxels cut at 3.5 sigma, population covariance), averaged over the
   mask.

Source: SSIM after Wang et al., IEEE TIP 13(4), 2004, with K1 = 0.01 and K2 = 0.03.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import find_objects, gaussian_filter

from medgen.errors import IntensityError

Volume = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

FOREGROUND_FRACTION = 0.1
RANGE_PERCENTILE = 99.5
SSIM_SIGMA_VOXELS = 1.5
SSIM_RADIUS_VOXELS = 5
_K1, _K2 = 0.01, 0.03


@dataclass(frozen=True)
class SynthesisScore:
    """Agreement of one prediction with its truth.

    Attributes:
        psnr_db: peak signal-to-noise ratio in the mask `[dB]`; infinite for identical images.
        ssim: mean structural similarity in the mask, 1 for identical images.
        hf_ratio: spectral energy above half the Nyquist frequency, prediction over truth; 1 is as sharp as the truth.
        voxels: size of the mask.
    """

    psnr_db: float
    ssim: float
    hf_ratio: float
    voxels: int


def foreground_mask(source: npt.ArrayLike, truth: npt.ArrayLike, brain: npt.ArrayLike | None = None) -> Mask:
    """Returns the voxels that count: the source's foreground where the truth is positive, within `brain` if given.

    Raises:
        IntensityError: if no voxel is left.
    """
    source, truth = np.asarray(source, dtype=np.float32), np.asarray(truth, dtype=np.float32)
    positive = source[source > 0]
    if positive.size == 0:
        raise IntensityError("expected a source image with positive voxels, got none; is this the right file?")
    mask = (source > FOREGROUND_FRACTION * positive.mean(dtype=np.float64)) & (truth > 0)
    if brain is not None:
        mask &= np.asarray(brain) > 0
    if not mask.any():
        raise IntensityError(
            "expected source and truth to overlap, but no voxel is foreground in both; are they one patient's?"
        )
    return np.asarray(mask, dtype=np.bool_)


def match_affine(prediction: npt.ArrayLike, truth: npt.ArrayLike) -> tuple[float, float]:
    """Returns (a, b) that minimise the squared error of a*prediction + b, with a >= 0.

    Args:
        prediction: values, any shape.
        truth: values, same shape.

    Example:
        >>> match_affine([0.0, 1.0, 2.0], [1.0, 3.0, 5.0])
        (2.0, 1.0)
        >>> match_affine([0.0, 1.0, 2.0], [4.0, 3.0, 2.0])
        (0.0, 3.0)
    """
    x, y = np.asarray(prediction, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    variance = float(x.var())
    covariance = float(((x - x.mean()) * (y - y.mean())).mean())
    a = max(0.0, covariance / variance) if variance > 0 else 0.0
    return a, float(y.mean() - a * x.mean())


def ssim_map(a: Volume, b: Volume, data_range: float) -> Volume:
    """Returns the local structural similarity of two volumes `(X, Y, Z)`, mirrored at the borders."""

    def smooth(volume: Volume) -> Volume:
        result = gaussian_filter(volume, SSIM_SIGMA_VOXELS, mode="reflect", radius=SSIM_RADIUS_VOXELS)
        return np.asarray(result, dtype=np.float32)

    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
    covariance = smooth(a * b) - mean_a * mean_b
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return np.asarray(above / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)), dtype=np.float32)


def high_frequency_energy(volume: Volume) -> float:
    """Returns the spectral energy of a volume `(X, Y, Z)` above half the Nyquist frequency, by radius."""
    spectrum = np.fft.rfftn(volume.astype(np.float32), norm="ortho")
    axes = [np.fft.fftfreq(n) for n in volume.shape[:-1]] + [np.fft.rfftfreq(volume.shape[-1])]
    squared = [(2.0 * f).astype(np.float32) ** 2 for f in axes]
    radius2 = squared[0][:, None, None] + squared[1][None, :, None] + squared[2][None, None, :]
    # The half spectrum of a real volume: every plane but the first (and the last of an even axis) stands for two.
    twice = np.full(spectrum.shape[-1], 2.0)
    twice[0] = 1.0
    if volume.shape[-1] % 2 == 0:
        twice[-1] = 1.0
    energy = (spectrum.real**2 + spectrum.imag**2) * twice
    return float(energy[radius2 > 0.25].sum(dtype=np.float64))


def score_item(prediction: npt.ArrayLike, item: Mapping[str, npt.ArrayLike]) -> dict[str, float]:
    """Scores a prediction against an item's `target`, with its `image` as the source, as `medgen train` asks."""
    score = score_synthesis(prediction, item["target"], item["image"], item.get("brain"))
    return {"psnr_db": score.psnr_db, "ssim": score.ssim, "hf_ratio": score.hf_ratio}


def score_synthesis(
    prediction: npt.ArrayLike, truth: npt.ArrayLike, source: npt.ArrayLike, brain: npt.ArrayLike | None = None
) -> SynthesisScore:
    """Scores a prediction by the frozen protocol of this module.

    Args:
        prediction: synthetic image `(X, Y, Z)`, any scale.
        truth: true image on the same grid, any scale.
        source: image that the prediction was made from, on the same grid.
        brain: optional mask; voxels where it is 0 do not count.

    Raises:
        IntensityError: if shapes differ, the prediction has NaN or infinite voxels, or nothing is foreground.
    """
    x, y = np.asarray(prediction, dtype=np.float32), np.asarray(truth, dtype=np.float32)
    if not x.shape == y.shape == np.shape(source) or x.ndim != 3:
        raise IntensityError(
            f"expected three volumes on one grid, got {x.shape}, {y.shape} and {np.shape(source)}; resample first"
        )
    if not np.isfinite(x).all():
        raise IntensityError("expected a finite prediction, got NaN or infinite voxels")
    mask = foreground_mask(source, y, brain)
    a, b = match_affine(x[mask], y[mask])
    data_range = float(np.percentile(y[mask], RANGE_PERCENTILE))
    # Beyond the radius of the Gaussian all is zero, so a box around the mask gives the same numbers sooner.
    box = tuple(
        slice(max(0, s.start - 2 * SSIM_RADIUS_VOXELS), s.stop + 2 * SSIM_RADIUS_VOXELS)
        for s in find_objects(mask.astype(np.uint8))[0]
    )
    x, y, mask = x[box], y[box], mask[box]
    x = np.where(mask, np.clip(a * x + b, 0, data_range), 0).astype(np.float32)
    y = np.where(mask, np.clip(y, 0, data_range), 0).astype(np.float32)
    error = float(np.square(x[mask] - y[mask], dtype=np.float64).mean())
    truth_energy = high_frequency_energy(y)
    return SynthesisScore(
        psnr_db=float(10 * np.log10(data_range**2 / error)) if error > 0 else float("inf"),
        ssim=float(ssim_map(x, y, data_range)[mask].mean(dtype=np.float64)),
        hf_ratio=high_frequency_energy(x) / truth_energy if truth_energy > 0 else float("nan"),
        voxels=int(mask.sum()),
    )
