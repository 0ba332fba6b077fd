"""How near a CT is to one of the same patient with less noise, and what noise it has: errors, likeness, power spectra.

Frozen, for errors: every slice by itself, both images clipped to the window; RMSE in HU, PSNR with the window's width
as data range, SSIM with the same range, a Gaussian window of 1.5 pixels and constants 0.01 and 0.03; then the mean over
slices. Where a mask is given, only its pixels count. Published numbers for the low-dose challenge of 2016 (patient
L506, window -160 to 240 HU) are of this kind; those differ at the borders of SSIM, which are padded by zeros there.

Frozen, for spectra: regions of 64 x 64 pixels, a fitted plane taken off each; the squared magnitude of their discrete
Fourier transform times the pixel's area over the number of pixels; averaged over regions, then over rings one frequency
step (1 / (64 * pixel)) wide, from the second ring to half a cycle a pixel. The first ring is left out: a plane was
fitted.

Source: RMSE, PSNR and SSIM as of Chen et al., "Low-dose CT with a residual encoder-decoder convolutional neural
network", IEEE Trans Med Imaging 36:2524, 2017; SSIM of Wang et al., IEEE Trans Image Process 13:600, 2004, as
scikit-image computes it. Spectra: ICRU Report 87, J ICRU 12(1), 2012; Siewerdsen et al., "A framework for noise-power
spectrum analysis of multidimensional images", Med Phys 29:2655, 2002.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from medgen.errors import GeometryError, IntensityError

REGION_PIXELS = 64
WINDOWS_HU: Mapping[str, tuple[float, float]] = {"soft": (-160.0, 240.0), "full": (-1024.0, 3071.0)}
# HU of the reference, smoothed, or its noise would choose the tissue.
TISSUES_HU: Mapping[str, tuple[float, float]] = {
    "lung": (-950.0, -600.0),
    "fat": (-150.0, -50.0),
    "soft": (0.0, 150.0),
    "bone": (250.0, 3071.0),
}
_TISSUE_SMOOTHING, _FEWEST_VOXELS = 2.0, 100
_SSIM_SIGMA = 1.5
_SMALLEST_SLICE = 12  # the Gaussian of SSIM is 11 pixels wide


@dataclass(frozen=True)
class NoiseScore:
    """Agreement of a CT with one of less noise, within a window of HU.

    Attributes:
        rmse_hu: root of the mean squared error `[HU]`, mean over slices.
        psnr_db: peak signal-to-noise ratio `[dB]`, mean over slices; infinite where one is identical.
        ssim: mean structural similarity.
        shift_hu: mean of the signed error, over all pixels compared `[HU]`.
        pixels: that were compared.
    """

    rmse_hu: float
    psnr_db: float
    ssim: float
    shift_hu: float
    pixels: int


def score_noise(
    image: npt.ArrayLike, reference: npt.ArrayLike, mask: npt.ArrayLike | None = None, window: str = "soft"
) -> NoiseScore:
    """Scores a noisy or denoised CT against the same at a higher dose, by the frozen protocol of this module.

    Args:
        image: axial slices `(X, Y, Z)`, or one slice `(X, Y)` `[HU]`.
        reference: same shape `[HU]`.
        mask: what to compare; everything if not given. Slices without any of it are left out.
        window: one of `WINDOWS_HU`.

    Raises:
        IntensityError: shapes differ, a voxel of the image is not finite, the mask is empty or the window unknown.
    """
    if window not in WINDOWS_HU:
        raise IntensityError(f"expected a window of {', '.join(WINDOWS_HU)}, got {window!r}")
    x, y = (np.atleast_3d(np.asarray(volume, dtype=np.float64)) for volume in (image, reference))
    if x.shape != y.shape or x.ndim != 3 or min(x.shape[:2]) < _SMALLEST_SLICE:
        raise IntensityError(
            f"expected two CT on one grid, {_SMALLEST_SLICE} pixels a side or more, got {x.shape} and {y.shape}"
        )
    if not np.isfinite(x).all():
        raise IntensityError("expected a finite CT [HU], got NaN or infinite voxels")
    inside = np.ones(x.shape, dtype=bool) if mask is None else np.atleast_3d(np.asarray(mask)) > 0
    if inside.shape != x.shape or not inside.any():
        raise IntensityError(f"expected a mask of shape {x.shape} with something in it, got {inside.shape}")
    low, high = WINDOWS_HU[window]
    x, y = np.clip(x, low, high), np.clip(y, low, high)
    rows = [
        _score_slice(x[..., z], y[..., z], inside[..., z], high - low)
        for z in range(x.shape[2])
        if inside[..., z].any()
    ]
    rmse, psnr, ssim = np.mean(rows, axis=0)
    return NoiseScore(float(rmse), float(psnr), float(ssim), float((x - y)[inside].mean()), int(inside.sum()))


def shift_by_tissue(
    image: npt.ArrayLike, reference: npt.ArrayLike, mask: npt.ArrayLike | None = None
) -> dict[str, float]:
    """Returns the mean signed change against a CT of the same patient in each of `TISSUES_HU` `[HU]`, nothing clipped.

    Args:
        image: axial slices `(X, Y, Z)` `[HU]`.
        reference: same shape; its HU, after a Gaussian of 2 pixels in the slice, say which tissue a voxel is of.
        mask: what to compare; everything if not given.

    Returns:
        by tissue; NaN for one with fewer than 100 voxels.
    """
    x, y = (np.asarray(volume, dtype=np.float64) for volume in (image, reference))
    smooth = gaussian_filter(y, (_TISSUE_SMOOTHING, _TISSUE_SMOOTHING, 0.0))
    counted = np.ones(y.shape, dtype=bool) if mask is None else np.asarray(mask) > 0
    found = {}
    for name, (low, high) in TISSUES_HU.items():
        inside = counted & (smooth > low) & (smooth < high)
        found[name] = float((x - y)[inside].mean()) if inside.sum() >= _FEWEST_VOXELS else float("nan")
    return found


def texture_distance(image: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """Returns `noise_power_distance` between two CT of one patient in the reference's uniform regions; NaN without any.

    Args:
        image: axial slices `(X, Y, Z)` `[HU]`.
        reference: same shape.
    """
    places = uniform_regions(reference)
    if not places:
        return float("nan")
    # The pixel's side cancels in a ratio of spectra of one grid.
    x, y = (noise_power([np.asarray(volume)[place] for place in places], 1.0) for volume in (image, reference))
    return noise_power_distance(x, y)


def score_item(
    prediction: npt.ArrayLike, item: Mapping[str, npt.ArrayLike], hu_per_unit: float = 1000.0
) -> dict[str, float]:
    """Scores a prediction against an item's `target` in the soft window, as `medgen train` asks.

    Args:
        prediction: `(X, Y, Z)`, in the unit of the target.
        item: volumes by role; where it has a `mask`, that counts above 0.5.
        hu_per_unit: of both, with 0 for water; 1 where they are in HU.
    """
    image, target = (np.asarray(volume, dtype=np.float64) * hu_per_unit for volume in (prediction, item["target"]))
    score = score_noise(image, target, np.asarray(item["mask"]) > 0.5 if "mask" in item else None)
    return {name: float(getattr(score, name)) for name in ("psnr_db", "ssim", "rmse_hu", "shift_hu")}


def _score_slice(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], inside: npt.NDArray[np.bool_], data_range: float
) -> tuple[float, float, float]:
    error = float(np.square(x - y)[inside].mean())
    _, similar = structural_similarity(
        x, y, data_range=data_range, gaussian_weights=True, sigma=_SSIM_SIGMA, use_sample_covariance=False, full=True
    )
    psnr = float(10 * np.log10(data_range**2 / error)) if error > 0 else float("inf")
    return error**0.5, psnr, float(similar[inside].mean())


@dataclass(frozen=True)
class NoisePower:
    """A noise power spectrum, averaged over directions.

    Attributes:
        frequency: `(K,)` `[cycles/mm]`.
        power: `(K,)` `[HU^2 mm^2]`.
    """

    frequency: npt.NDArray[np.float64]
    power: npt.NDArray[np.float64]

    @property
    def mean_frequency(self) -> float:
        """Returns the frequency around which the power lies `[cycles/mm]`: low for coarse grain, high for fine."""
        weight = self.power * self.frequency  # a ring holds the more of it the wider it is
        return float((weight * self.frequency).sum() / weight.sum())


def noise_power(regions: Sequence[npt.ArrayLike] | npt.ArrayLike, pixel_mm: float) -> NoisePower:
    """Returns the power spectrum of what noise there is in uniform regions.

    Args:
        regions: `(N, 64, 64)` `[HU]`, of uniform tissue or of differences of two images of the same.
        pixel_mm: side of a pixel.

    Raises:
        GeometryError: a region is not 64 x 64.
        IntensityError: a region holds NaN or infinite values.
    """
    stack = np.asarray(regions, dtype=np.float64)
    if stack.ndim != 3 or stack.shape[1:] != (REGION_PIXELS, REGION_PIXELS) or not len(stack):
        raise GeometryError(f"expected regions (N, {REGION_PIXELS}, {REGION_PIXELS}), got {stack.shape}")
    if not np.isfinite(stack).all():
        raise IntensityError("expected regions of finite values [HU], got NaN or infinite ones")
    flat = np.stack([_detrended(region) for region in stack])
    spectrum = (np.abs(np.fft.fft2(flat)) ** 2).mean(axis=0) * (pixel_mm / REGION_PIXELS) ** 2
    steps = np.fft.fftfreq(REGION_PIXELS, 1 / REGION_PIXELS)
    ring = np.rint(np.hypot(*np.meshgrid(steps, steps, indexing="ij"))).astype(int)
    rings = np.arange(2, REGION_PIXELS // 2 + 1)
    power = np.array([spectrum[ring == number].mean() for number in rings])
    return NoisePower(rings / (REGION_PIXELS * pixel_mm), power)


def noise_power_distance(one: NoisePower, reference: NoisePower) -> float:
    """Returns how far a spectrum is from a reference: the L2 norm of the difference over that of the reference.

    0 for equal ones, 1 for no noise at all.

    Raises:
        GeometryError: they were measured at other frequencies.
    """
    if one.frequency.shape != reference.frequency.shape or not np.allclose(one.frequency, reference.frequency):
        raise GeometryError("expected two spectra of the same pixel size; measure both on one grid")
    return float(np.linalg.norm(one.power - reference.power) / np.linalg.norm(reference.power))


def uniform_regions(
    volume: npt.ArrayLike,
    *,
    low_hu: float = 0.0,
    high_hu: float = 150.0,
    share: float = 0.98,
    spread_hu: float = 12.0,
) -> list[tuple[slice, slice, int]]:
    """Finds 64 x 64 regions of uniform soft tissue in axial slices, as those of the liver: to measure a spectrum in.

    Args:
        volume: `(X, Y, Z)` `[HU]`; looked at after a Gaussian of 2 pixels, or the noise would decide.
        low_hu: soft tissue begins here.
        high_hu: and ends here.
        share: of a region's pixels that must be soft tissue.
        spread_hu: most that the standard deviation within a region may be after that Gaussian. What is above some
            10 HU is anatomy: vessels, bowel, borders of organs.

    Returns:
        Places, not overlapping within a slice, to index the volume with, the most uniform of a slice first; it may be
        empty.
    """
    n = REGION_PIXELS
    found: list[tuple[slice, slice, int]] = []
    for z, plane in enumerate(np.moveaxis(np.asarray(volume, dtype=np.float64), 2, 0)):
        smooth = gaussian_filter(plane, 2.0)
        inside = _box_means(((smooth > low_hu) & (smooth < high_hu)).astype(np.float64)) >= share
        level = np.clip(smooth, low_hu, high_hu)
        variance = _box_means(level**2) - _box_means(level) ** 2
        variance[~inside | (variance > spread_hu**2)] = np.inf
        while variance.size and np.isfinite(variance.min()):
            x, y = (int(i) for i in np.unravel_index(int(variance.argmin()), variance.shape))
            found.append((slice(x, x + n), slice(y, y + n), z))
            variance[max(x - n + 1, 0) : x + n, max(y - n + 1, 0) : y + n] = np.inf
    return found


def _box_means(plane: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns the mean of every region of a plane, by the place of its first pixel."""
    n = REGION_PIXELS
    sums = np.pad(np.cumsum(np.cumsum(plane, axis=0), axis=1), ((1, 0), (1, 0)))
    return np.asarray((sums[n:, n:] - sums[:-n, n:] - sums[n:, :-n] + sums[:-n, :-n]) / n**2)


def _detrended(region: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Takes the plane off that fits best."""
    along = np.linspace(-1, 1, REGION_PIXELS)
    x, y = np.meshgrid(along, along, indexing="ij")
    # The three are orthogonal: each coefficient is a projection of its own.
    plane = region.mean() + sum(part * (region * part).sum() / (part**2).sum() for part in (x, y))
    return np.asarray(region - plane)
