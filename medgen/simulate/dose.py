"""CT at a lower dose than it was taken with: only the noise that is missing is added, as a scanner would have made it.

A scan has noise already. At a fraction of its dose there is more, and what there is more of can be drawn: line
integrals of the slice say how many photons reach each detector element, the missing variance follows from their
number, and filtered back-projection of that noise alone turns it into streaks and grain in HU. What is in the scan
stays as it is.

Source: noise insertion as of Yu et al., "Development and validation of a practical lower-dose-simulation tool for
optimizing computed tomography scan protocols", J Comput Assist Tomogr 36:477, 2012, and Zeng et al., "A simple low-dose
X-ray CT simulation from high-dose scan", IEEE Trans Nucl Sci 62:2226, 2015; here on slices, not on raw data. Beams are
parallel, as those of a fan are once rebinned; projection and back-projection are scikit-image's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq
from skimage.transform import iradon, radon

from medgen.errors import GeometryError, IntensityError

Array = npt.NDArray[np.float32]

# Cycles/mm where the window of the reconstruction filter, a Hann window, has come down to nothing. An image cannot show
# more than half a cycle a pixel, whatever the kernel.
KERNELS: Mapping[str, float] = {"soft": 0.8, "sharp": 1.6}
PADDING_HU = -1500.0  # what is not above it was never measured
_FEWEST_PHOTONS = 1.0  # a logarithm is taken of them
_COARSE_MM = 1.0


@dataclass(frozen=True)
class CtScanner:
    """What decides how noisy a CT is.

    Attributes:
        photons: that reach a millimetre of the detector, scaled to the middle of the scanner, in one view at full dose
            with nothing in the way, in the middle of the fan: incident flux, often called I0. By the millimetre, so
            that finer pixels do not mean more photons.
        electronic: standard deviation of the noise of a millimetre of the detector itself, in photons.
        bow_tie_mm: radius of the water cylinder that the bow-tie filter is made for `[mm]`.
        bow_tie: how much of that cylinder's missing path the filter makes up for, 0 to 1; 0 is no filter.
        water_per_mm: linear attenuation of water `[1/mm]`; 0.0193 at 70 keV (NIST XCOM).
        views: projections over half a turn.
    """

    photons: float = 1.5e6
    electronic: float = 10.0
    bow_tie_mm: float = 150.0
    bow_tie: float = 0.5
    water_per_mm: float = 0.0193
    views: int = 720

    def incident(self, bins: int, pixel_mm: float) -> Array:
        """Returns the photons that reach each of `bins` elements of `pixel_mm` at full dose through air alone."""
        away = (np.arange(bins) - bins // 2) * pixel_mm
        path = 2 * np.sqrt(np.maximum(self.bow_tie_mm**2 - away**2, 0.0))
        missing = self.bow_tie * (2 * self.bow_tie_mm - path)
        return np.asarray(self.photons * pixel_mm * np.exp(-self.water_per_mm * missing), dtype=np.float32)

    def read_out(self, pixel_mm: float) -> float:
        """Returns the standard deviation of the electronic noise of an element of `pixel_mm`, in photons."""
        return float(self.electronic * pixel_mm**0.5)


def line_integrals(image: npt.ArrayLike, pixel_mm: float, scanner: CtScanner | None = None) -> Array:
    """Returns the attenuation along each ray through a slice `(bins, views)`, without unit.

    Args:
        image: one slice `(X, Y)` `[HU]`; what lies below -1000 HU weighs nothing.
        pixel_mm: side of its square pixels. Finer ones than a millimetre are paired first: how many photons arrive
            depends on all of a ray.
        scanner: default a `CtScanner`.
    """
    scanner = scanner or CtScanner()
    square = _squared(np.asarray(image, dtype=np.float32))
    density = np.maximum(1 + square / 1000, 0)
    bins, factor = _bins(len(square)), 1
    if pixel_mm < _COARSE_MM and len(square) % 2 == 0:
        factor = 2
        density = density.reshape(len(square) // 2, 2, -1, 2).mean(axis=(1, 3))
    coarse = radon(density, _angles(scanner), circle=False) * np.float32(scanner.water_per_mm * pixel_mm * factor)
    place = (np.arange(bins) - bins // 2) / factor + len(coarse) // 2
    low = np.clip(np.floor(place).astype(int), 0, len(coarse) - 2)
    part = (place - low).clip(0, 1).astype(np.float32)[:, None]
    return np.asarray(coarse[low] * (1 - part) + coarse[low + 1] * part, dtype=np.float32)


def noise_fields(
    image: npt.ArrayLike,
    pixel_mm: float,
    rng: np.random.Generator,
    *,
    kernel: str | float = "soft",
    scanner: CtScanner | None = None,
    lowest: float = 0.1,
) -> tuple[Array, Array]:
    """Draws the two kinds of noise that a slice has at full dose, each `(X, Y)` `[HU]`: of photons, of electronics.

    At a fraction f of the dose the first is `f ** -0.5` times as large and the second `1 / f` times, so `missing_noise`
    makes of one draw the noise for any dose.

    The law of small deviations, by which variance follows from photons, ends where they are as few as the electronic
    noise: behind metal it would give more noise than a logarithm can have. Rays are taken to bring no fewer than that
    at the lowest dose.

    Args:
        image: one slice `(X, Y)` `[HU]`.
        pixel_mm: side of its square pixels.
        rng: of the draw.
        kernel: one of `KERNELS`, or where the filter ends `[cycles/mm]`.
        scanner: default a `CtScanner`.
        lowest: fraction of the dose that the noise is to be used for.
    """
    scanner = scanner or CtScanner()
    integrals, read_out = line_integrals(image, pixel_mm, scanner), scanner.read_out(pixel_mm)
    photons = scanner.incident(len(integrals), pixel_mm)[:, None] * np.exp(-integrals)
    photons = np.maximum(photons, max(read_out, _FEWEST_PHOTONS) / lowest)
    shape = np.shape(image)
    draws = (rng.standard_normal(photons.shape, dtype=np.float32) for _ in range(2))
    deviations = (photons**-0.5, read_out / photons)
    quantum, electronic = (
        _reconstructed(deviation * draw, shape, pixel_mm, kernel, scanner)
        for deviation, draw in zip(deviations, draws, strict=True)
    )
    return quantum, electronic


def missing_noise(fields: tuple[Array, Array], fraction: float) -> Array:
    """Returns what is to be added to a scan for it to look as at `fraction` of its dose `[HU]`, of its `noise_fields`.

    Variances add up: at a fraction f, 1/f of the photons' variance is wanted and 1 is there; of that of the
    electronics, 1/f**2.

    Raises:
        IntensityError: the fraction is not above 0 and at most 1.

    Example:
        >>> missing_noise((np.float32(2.0), np.float32(0.0)), 0.2)
        np.float32(4.0)
    """
    _require_fraction(fraction)
    quantum, electronic = fields
    return np.asarray(
        quantum * np.float32((1 / fraction - 1) ** 0.5) + electronic * np.float32((1 / fraction**2 - 1) ** 0.5),
        dtype=np.float32,
    )[()]


def lower_dose(
    volume: npt.ArrayLike,
    pixel_mm: tuple[float, float],
    fraction: float,
    rng: np.random.Generator,
    *,
    kernel: str | float = "soft",
    scanner: CtScanner | None = None,
) -> Array:
    """Returns a scan as it would look at a fraction of its dose `[HU]`: itself, and the noise that is missing.

    Args:
        volume: axial slices `(X, Y, Z)` or one slice `(X, Y)` `[HU]`. Every slice gets noise of its own. Padding,
            which is not above -1500 HU, stays as it is.
        pixel_mm: sides of a pixel along X and Y.
        fraction: of the dose; at 1, the scan itself comes back.
        rng: of the draw.
        kernel: one of `KERNELS`, or where the filter ends `[cycles/mm]`.
        scanner: default a `CtScanner`.

    Raises:
        GeometryError: the pixels are not square.
        IntensityError: the fraction is not above 0 and at most 1.
    """
    _require_fraction(fraction)
    scan = np.array(volume, dtype=np.float32)
    side = _side(pixel_mm)
    slices = scan[..., None] if scan.ndim == 2 else scan
    for index in range(slices.shape[2]):
        one = slices[..., index]
        noise = missing_noise(noise_fields(one, side, rng, kernel=kernel, scanner=scanner, lowest=fraction), fraction)
        slices[..., index] = np.where(one > PADDING_HU, one + noise, one)
    return scan


def scanned(
    phantom: npt.ArrayLike,
    pixel_mm: tuple[float, float],
    fraction: float,
    rng: np.random.Generator,
    *,
    kernel: str | float = "soft",
    scanner: CtScanner | None = None,
) -> Array:
    """Returns a slice without noise of its own as a scanner sees it `[HU]`: its counts are drawn, then their logarithm.

    Where few photons arrive, a logarithm is not fair: the mean of the line integrals rises by half the variance of the
    counts over their square, and where none arrive, by what the detector reads instead. That bias is in the result, as
    it is in a scan.

    Args:
        phantom: one slice `(X, Y)` `[HU]`.
        pixel_mm: sides of a pixel along X and Y.
        fraction: of the dose, above 0; it may be more than 1.
        rng: of the draw.
        kernel: one of `KERNELS`, or where the filter ends `[cycles/mm]`. Only the noise is filtered by it.
        scanner: default a `CtScanner`.

    Raises:
        GeometryError: the pixels are not square.
        IntensityError: the fraction is not above 0.
    """
    if not fraction > 0:
        raise IntensityError(f"expected a fraction of the dose above 0, got {fraction:g}")
    scanner = scanner or CtScanner()
    image, side = np.asarray(phantom, dtype=np.float32), _side(pixel_mm)
    integrals = line_integrals(image, side, scanner)
    incident = fraction * scanner.incident(len(integrals), side)[:, None]
    counts = rng.poisson(incident * np.exp(-integrals)) + scanner.read_out(side) * rng.standard_normal(integrals.shape)
    measured = -np.log(np.maximum(counts, _FEWEST_PHOTONS) / incident)
    return image + _reconstructed((measured - integrals).astype(np.float32), image.shape, side, kernel, scanner)


def _require_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise IntensityError(f"expected a fraction of the dose above 0 and at most 1, got {fraction:g}")


def _reconstructed(
    sinogram: Array, shape: tuple[int, ...], pixel_mm: float, kernel: str | float, scanner: CtScanner
) -> Array:
    """Filtered back-projection of `(bins, views)` to `(X, Y)` `[HU]`, without the offset of water."""
    if isinstance(kernel, str) and kernel not in KERNELS:
        raise IntensityError(f"expected a kernel of {', '.join(KERNELS)}, or a number of cycles/mm, got {kernel!r}")
    cutoff = KERNELS[kernel] if isinstance(kernel, str) else kernel
    bins = len(sinogram)
    length = next_fast_len(2 * bins, real=True)
    part = np.minimum(rfftfreq(length, pixel_mm) / cutoff, 1.0)
    window = (0.5 + 0.5 * np.cos(np.pi * part)).astype(np.float32)[:, None]
    smooth = irfft(rfft(sinogram, length, axis=0) * window, length, axis=0)[:bins]
    side = max(shape)
    image = iradon(smooth, _angles(scanner), output_size=side, filter_name="ramp", circle=False)
    low = [(side - n) // 2 for n in shape]
    image = image[low[0] : low[0] + shape[0], low[1] : low[1] + shape[1]]
    return np.asarray(image * (1000 / (scanner.water_per_mm * pixel_mm)), dtype=np.float32)


def _angles(scanner: CtScanner) -> Array:
    return np.linspace(0, 180, scanner.views, endpoint=False, dtype=np.float32)


def _bins(side: int) -> int:
    """Detector elements that see a square of so many pixels from every angle."""
    return int(np.ceil(2**0.5 * side)) + 2


def _squared(image: Array) -> Array:
    """Adds air until a slice is square."""
    side = max(image.shape)
    low = [(side - n) // 2 for n in image.shape]
    pad = [(before, side - n - before) for before, n in zip(low, image.shape, strict=True)]
    return np.pad(image, pad, constant_values=-1000.0)


def _side(pixel_mm: tuple[float, float]) -> float:
    if abs(pixel_mm[0] - pixel_mm[1]) > 1e-3 * max(pixel_mm):
        raise GeometryError(
            f"expected square pixels in an axial slice, got {pixel_mm[0]:g} x {pixel_mm[1]:g} mm; resample it first"
        )
    return float(pixel_mm[0])
