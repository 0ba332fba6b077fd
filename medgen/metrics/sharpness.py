"""How sharp a CT is: the modulation transfer function, measured on the edge of a disc, and contrast to noise.

The edge of a disc shows the sharpness in all directions at once, and at the contrast of the disc: what a network does
to a faint edge need not be what it does to a strong one.

Source: Richard et al., "Towards task-based assessment of CT performance", Med Phys 39:4115, 2012 (task transfer
function).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.signal.windows import tukey

from medgen.errors import GeometryError, IntensityError

_BINS_A_PIXEL = 4
_REACH_MM = 10.0


@dataclass(frozen=True)
class Transfer:
    """A modulation transfer function.

    Attributes:
        frequency: `(K,)` `[cycles/mm]`.
        value: `(K,)`, 1 at frequency 0.
    """

    frequency: npt.NDArray[np.float64]
    value: npt.NDArray[np.float64]

    @property
    def half(self) -> float:
        """Returns the frequency where it first falls to a half `[cycles/mm]`; the last one if it never does."""
        below = np.flatnonzero(self.value < 0.5)
        if not len(below):
            return float(self.frequency[-1])
        k = int(below[0])
        return float(np.interp(0.5, self.value[[k, k - 1]], self.frequency[[k, k - 1]]))


def disc_transfer(image: npt.ArrayLike, centre: tuple[float, float], radius_mm: float, pixel_mm: float) -> Transfer:
    """Measures the transfer function on the edge of a disc.

    Args:
        image: one slice `(X, Y)` `[HU]`, or the mean of many with different noise: noise makes the curve rough.
        centre: of the disc `[pixels]`.
        radius_mm: of the disc.
        pixel_mm: side of a pixel.

    Raises:
        GeometryError: what lies within 10 mm of the edge, or within the radius if that is less, is not in the slice.
        IntensityError: the disc has the value of what is around it.
    """
    plane, reach = np.asarray(image, dtype=np.float64), min(_REACH_MM, radius_mm)
    depth = radius_mm - _away_mm(plane.shape, centre, pixel_mm, radius_mm + reach)
    step = pixel_mm / _BINS_A_PIXEL
    count = int(2 * reach / step)
    place = np.floor((depth + reach) / step).astype(int)
    near = (place >= 0) & (place < count)
    total = np.bincount(place[near], plane[near], count)
    number = np.bincount(place[near], minlength=count)
    filled = number > 0
    edge = np.interp(np.arange(count), np.flatnonzero(filled), total[filled] / number[filled])
    line = np.diff(edge) * tukey(count - 1, 0.5)
    spectrum = np.abs(np.fft.rfft(line))
    if not spectrum[0] > 1e-6:
        raise IntensityError("expected a disc that differs from what is around it")
    frequency = np.asarray(np.fft.rfftfreq(len(line), step), dtype=np.float64)
    # A difference over a bin, and the averaging in it, damp a little: both are known.
    damping = np.sinc(frequency * step) ** 2
    seen = frequency <= 1 / (2 * pixel_mm)
    return Transfer(frequency[seen], np.asarray(spectrum[seen] / spectrum[0] / damping[seen], dtype=np.float64))


def contrast_to_noise(image: npt.ArrayLike, centre: tuple[float, float], radius_mm: float, pixel_mm: float) -> float:
    """Returns the contrast of a disc over the standard deviation around it, the ring of 1.3 to 2 radii.

    The disc counts up to 0.7 of its radius, so that its blurred rim does not.

    Raises:
        GeometryError: the ring is not in the slice.
    """
    plane = np.asarray(image, dtype=np.float64)
    radii = _away_mm(plane.shape, centre, pixel_mm, 2 * radius_mm) / radius_mm
    inside, around = plane[radii < 0.7], plane[(radii > 1.3) & (radii < 2)]
    return float((inside.mean() - around.mean()) / around.std())


def _away_mm(
    shape: tuple[int, ...], centre: tuple[float, float], pixel_mm: float, reach_mm: float
) -> npt.NDArray[np.float64]:
    """Returns how far each pixel is from a place `(X, Y)` `[mm]`, if all that is within reach of it is in the slice."""
    reach = reach_mm / pixel_mm
    if any(c - reach < 0 or c + reach > n - 1 for c, n in zip(centre, shape, strict=True)):
        raise GeometryError(f"expected {reach_mm:g} mm around {centre} in the slice {shape}; take a smaller disc")
    x, y = np.meshgrid(*[np.arange(n) - c for n, c in zip(shape, centre, strict=True)], indexing="ij")
    return np.asarray(np.hypot(x, y) * pixel_mm)
