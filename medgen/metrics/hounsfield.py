"""How near a synthetic CT is to the true one, in the body: MAE, PSNR, SSIM and the overlap of bone and air.

The protocol is that of the SynthRAD2023 challenge (Huijben et al., Medical Image Analysis 97, 2024, and its published
evaluation code) with an overlap of bone and air added; it is frozen.

1. the body: given as a mask, or the largest part of the truth above -500 HU, its cavities filled;
2. MAE in HU over the body, of prediction and truth as they are;
3. PSNR and SSIM with both clipped to [-1024, 3000] HU and a data range of 4024 HU; PSNR over the body; SSIM of both
   raised by 1024, with a 7-voxel uniform window and 0 outside the body, averaged over the body;
4. Dice of bone (above 250 HU) and of air (below -500 HU) within the body.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_fill_holes, label, uniform_filter

from medgen.errors import IntensityError

Volume = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

LOWEST_HU, HIGHEST_HU = -1024.0, 3000.0
BONE_HU, AIR_HU = 250.0, -500.0
SSIM_WINDOW_VOXELS = 7
_K1, _K2 = 0.01, 0.03
_HU_STEP, _HU_STEPS = 4.0, 1024


@dataclass(frozen=True)
class CtScore:
    """Agreement of one synthetic CT with its truth.

    Attributes:
        mae_hu: mean absolute error in the body `[HU]`.
        psnr_db: in the body `[dB]`; infinite for identical images.
        ssim: mean structural similarity in the body.
        bone_dice: overlap of what is above 250 HU; NaN where neither has any.
        air_dice: overlap of what is below -500 HU within the body; NaN where neither has any.
        voxels: of the body.
    """

    mae_hu: float
    psnr_db: float
    ssim: float
    bone_dice: float
    air_dice: float
    voxels: int


def body_mask(ct: npt.ArrayLike) -> Mask:
    """Returns the body in a CT `(X, Y, Z)` `[HU]`: the largest part above -500 HU, filled slice by slice.

    Raises:
        IntensityError: nothing is above -500 HU.
    """
    parts, count = label(np.asarray(ct) > AIR_HU)
    if count == 0:
        raise IntensityError("expected a CT in HU with a body in it, got nothing above -500 HU")
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    body = parts == int(sizes.argmax())
    # In each plane: sinuses and airways are open to the outside somewhere, but rarely in all three planes.
    filled = [np.stack([binary_fill_holes(plane) for plane in np.moveaxis(body, axis, 0)]) for axis in range(3)]
    return np.asarray(np.logical_or.reduce([np.moveaxis(f, 0, axis) for axis, f in enumerate(filled)]))


def score_ct(prediction: npt.ArrayLike, truth: npt.ArrayLike, body: npt.ArrayLike | None = None) -> CtScore:
    """Scores a synthetic CT by the frozen protocol of this module.

    Args:
        prediction: `(X, Y, Z)` `[HU]`.
        truth: same shape `[HU]`.
        body: where to compare; found in the truth if not given.

    Raises:
        IntensityError: if shapes differ, the prediction has NaN or infinite voxels, or the body is empty.
    """
    x, y = np.asarray(prediction, dtype=np.float32), np.asarray(truth, dtype=np.float32)
    if x.shape != y.shape or x.ndim != 3:
        raise IntensityError(f"expected two volumes on one grid, got {x.shape} and {y.shape}; resample first")
    if not np.isfinite(x).all():
        raise IntensityError("expected a finite prediction, got NaN or infinite voxels")
    mask = body_mask(y) if body is None else np.asarray(body) > 0
    if not mask.any():
        raise IntensityError("expected a body to compare in, got an empty mask")
    clipped = [np.where(mask, np.clip(v, LOWEST_HU, HIGHEST_HU), LOWEST_HU).astype(np.float64) for v in (x, y)]
    data_range = HIGHEST_HU - LOWEST_HU
    error = float(np.square(clipped[0] - clipped[1])[mask].mean())
    return CtScore(
        mae_hu=float(np.abs(x - y)[mask].mean(dtype=np.float64)),
        psnr_db=float(10 * np.log10(data_range**2 / error)) if error > 0 else float("inf"),
        ssim=float(_ssim(clipped[0] - LOWEST_HU, clipped[1] - LOWEST_HU, data_range)[mask].mean()),
        bone_dice=dice((x > BONE_HU) & mask, (y > BONE_HU) & mask),
        air_dice=dice((x < AIR_HU) & mask, (y < AIR_HU) & mask),
        voxels=int(mask.sum()),
    )


def score_item(
    prediction: npt.ArrayLike, item: Mapping[str, npt.ArrayLike], hu_per_unit: float = 1000.0
) -> dict[str, float]:
    """Scores a prediction against an item's `target`, as `medgen train` asks.

    It is compared in the item's `body`, or in the one that the target shows, and of it where `mask` is above 0.5.

    Args:
        prediction: `(X, Y, Z)`, in the unit of the target.
        item: volumes by role.
        hu_per_unit: of both, with 0 for water; 1 where they are in HU.
    """
    images = [np.asarray(image, dtype=np.float32) * hu_per_unit for image in (prediction, item["target"])]
    body = item.get("body")
    if "mask" in item:  # a target need not cover all of the source
        body = (body_mask(images[1]) if body is None else np.asarray(body) > 0) & (np.asarray(item["mask"]) > 0.5)
    score = score_ct(images[0], images[1], body)
    names = ("mae_hu", "psnr_db", "ssim", "bone_dice", "air_dice")
    return {name: float(getattr(score, name)) for name in names}


def best_monotone_ct(source: npt.ArrayLike, truth: npt.ArrayLike, body: npt.ArrayLike) -> Volume:
    """Returns the CT `(X, Y, Z)` `[HU]` that the best monotone mapping of this source's intensities gives.

    It is fitted on the truth itself, so no mapping that keeps (or reverses) the order of intensities has a smaller mean
    absolute error in the body, up to the width of its 256 levels: what a network must beat to have learnt anatomy.

    Args:
        source: `(X, Y, Z)`, any unit.
        truth: CT on the same grid `[HU]`.
        body: where the mapping is fitted.
    """
    x, y = np.asarray(source, dtype=np.float32), np.asarray(truth, dtype=np.float32)
    mask = np.asarray(body) > 0
    edges = np.unique(np.percentile(x[mask], np.linspace(0, 100, 257)[1:-1]))
    level = np.searchsorted(edges, x, side="right")
    steps = np.clip((y - LOWEST_HU) / _HU_STEP, 0, _HU_STEPS - 1).astype(int)
    counts = np.zeros((len(edges) + 1, _HU_STEPS))
    np.add.at(counts, (level[mask], steps[mask]), 1)
    rising = _isotonic_medians(counts)
    falling = _isotonic_medians(counts[::-1])[::-1]
    curve = min((rising, falling), key=lambda curve: _absolute_error(counts, curve))
    return np.asarray((LOWEST_HU + (curve + 0.5) * _HU_STEP)[level], dtype=np.float32)


def _isotonic_medians(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Fits rising steps with the smallest absolute error to histograms `(levels, steps)`: pools adjacent violators.

    Source: Robertson et al., Order Restricted Statistical Inference, 1988, section 1.4, with medians for means.
    """
    pools: list[tuple[npt.NDArray[np.float64], float, int]] = []
    for row in counts:
        histogram, length = row, 1
        middle = _median_step(histogram)
        while pools and pools[-1][1] > middle:
            before, _, more = pools.pop()
            histogram, length = histogram + before, length + more
            middle = _median_step(histogram)
        pools.append((histogram, middle, length))
    return np.concatenate([np.full(length, middle) for _, middle, length in pools])


def _median_step(histogram: npt.NDArray[np.float64]) -> float:
    return float(np.searchsorted(histogram.cumsum(), histogram.sum() / 2))


def _absolute_error(counts: npt.NDArray[np.float64], curve: npt.NDArray[np.float64]) -> float:
    return float((counts * np.abs(np.arange(counts.shape[1])[None] - curve[:, None])).sum())


def dice(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Returns the overlap of two masks, 2|A and B| / (|A| + |B|); NaN where both are empty.

    Example:
        >>> dice([True, True, False], [True, False, False])
        0.6666666666666666
    """
    first, second = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    total = int(first.sum()) + int(second.sum())
    return float(2 * int((first & second).sum()) / total) if total else float("nan")


def _ssim(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], data_range: float) -> npt.NDArray[np.float64]:
    """The local structural similarity with a uniform window and sample covariance, as scikit-image computes it."""
    n = SSIM_WINDOW_VOXELS**3
    mean_a, mean_b = uniform_filter(a, SSIM_WINDOW_VOXELS), uniform_filter(b, SSIM_WINDOW_VOXELS)
    unbiased = n / (n - 1)
    var_a = unbiased * (uniform_filter(a * a, SSIM_WINDOW_VOXELS) - mean_a**2)
    var_b = unbiased * (uniform_filter(b * b, SSIM_WINDOW_VOXELS) - mean_b**2)
    covariance = unbiased * (uniform_filter(a * b, SSIM_WINDOW_VOXELS) - mean_a * mean_b)
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return np.asarray(above / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
