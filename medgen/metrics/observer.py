"""Whether a faint lesion can still be seen: a model observer that looks for what it knows, where it knows.

The observer does not whiten noise (non-prewhitening matched filter): it multiplies the image by the lesion's own shape,
adds up, and calls high sums a lesion. Human observers in CT come near to that.

Source: Wagner and Brown, "Unified SNR analysis of medical imaging systems", Phys Med Biol 30:489, 1985; Burgess,
"Statistically defined backgrounds: performance of a modified nonprewhitening observer model", J Opt Soc Am A 11:1237,
1994.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medgen.errors import GeometryError, IntensityError

Image = npt.NDArray[np.float64]
_SUBPIXELS = 5
_SURROUNDINGS = 2.0  # radii: what lies around a lesion, as far as the observer looks


@dataclass(frozen=True)
class Detection:
    """How well an observer tells places with a lesion from places without.

    Attributes:
        auc: chance that a lesion gets a higher sum than a place without one, 0.5 for guessing, 1 for certainty.
        d_prime: distance of the two means over the root of the mean variance.
        visible: share of lesions whose sum is above all but a twentieth of those without.
        lesions: that were looked for.
    """

    auc: float
    d_prime: float
    visible: float
    lesions: int


def disc(shape: tuple[int, int], centre: tuple[float, float], radius_mm: float, pixel_mm: float) -> Image:
    """Returns how much of each pixel `(X, Y)` a disc fills, 0 to 1: what a lesion of contrast 1 HU adds to a slice.

    Example:
        >>> float(disc((9, 9), (4, 4), 2.0, 1.0).sum().round())
        12.0
    """
    if not radius_mm > 0:
        raise GeometryError(f"expected a radius above 0 mm, got {radius_mm:g}")
    parts = (np.arange(_SUBPIXELS) + 0.5) / _SUBPIXELS - 0.5
    along = [(np.arange(n)[:, None] + parts - c).ravel() * pixel_mm for n, c in zip(shape, centre, strict=True)]
    inside = np.hypot(*np.meshgrid(*along, indexing="ij")) < radius_mm
    return np.asarray(inside.reshape(shape[0], _SUBPIXELS, shape[1], _SUBPIXELS).mean(axis=(1, 3)))


def matched_sum(image: npt.ArrayLike, centre: tuple[float, float], radius_mm: float, pixel_mm: float) -> float:
    """Returns what the observer makes of one place: the mean in a disc minus the mean around it `[HU]`.

    For a lesion that fills it, that is its contrast, less a tenth or so for pixels on the rim.

    Args:
        image: one slice `(X, Y)` `[HU]`.
        centre: of the place `[pixels]`.
        radius_mm: of the lesion that is looked for.
        pixel_mm: side of a pixel.

    Raises:
        GeometryError: the surroundings, twice the radius, reach beyond the slice.
    """
    plane = np.asarray(image, dtype=np.float64)
    reach = _SURROUNDINGS * radius_mm / pixel_mm
    if any(c - reach < 0 or c + reach > n - 1 for c, n in zip(centre, plane.shape, strict=True)):
        raise GeometryError(f"expected a place {reach:.0f} pixels from the border of {plane.shape}, got {centre}")
    lesion = disc(plane.shape, centre, radius_mm, pixel_mm)
    around = disc(plane.shape, centre, _SURROUNDINGS * radius_mm, pixel_mm) - lesion
    return float((plane * lesion).sum() / lesion.sum() - (plane * around).sum() / around.sum())


def detection(with_lesion: npt.ArrayLike, without: npt.ArrayLike, sign: float = 1.0) -> Detection:
    """Compares an observer's sums at places with a lesion and at places without.

    Args:
        with_lesion: `(N,)`, as `matched_sum` gives them.
        without: `(M,)`.
        sign: of the lesion's contrast: -1 for those darker than what is around them.

    Raises:
        IntensityError: fewer than two sums of a kind, or one that is not finite.
    """
    there, not_there = (sign * np.asarray(sums, dtype=np.float64).ravel() for sums in (with_lesion, without))
    if min(len(there), len(not_there)) < 2 or not (np.isfinite(there).all() and np.isfinite(not_there).all()):
        raise IntensityError(f"expected two finite sums of each kind or more, got {len(there)} and {len(not_there)}")
    higher = there[:, None] - not_there
    spread = float(np.sqrt((there.var(ddof=1) + not_there.var(ddof=1)) / 2))
    gap = float(there.mean() - not_there.mean())
    return Detection(
        auc=float((higher > 0).mean() + 0.5 * (higher == 0).mean()),
        d_prime=gap / spread if spread > 0 else float(np.sign(gap)) * float("inf") if gap else 0.0,
        visible=float((there > np.quantile(not_there, 0.95)).mean()),
        lesions=len(there),
    )
