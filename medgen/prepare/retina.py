"""Where the retina lies in a B-scan: what is picture and what is frame, the inner limiting membrane, Bruch's membrane.

Boundaries are cheapest paths from one side of the B-scan to the other, found by dynamic programming over the gradient
in depth; where Bruch's membrane would lie is a smooth curve that hugs the deepest of the bright band's lower edge, so
that a lesion which lifts the band does not bend it.

Source: the shortest path is that of Chiu et al., "Automatic segmentation of seven retinal layers in SDOCT images", Opt
Express 18:19413, 2010; costs, the order of the steps and the curve are our own.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medgen.errors import IntensityError

Plane = npt.NDArray[np.float32]
Line = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# The grid on which boundaries are looked for: an export of a Heidelberg Spectralis, as most public B-scans are.
AXIAL_UM, LATERAL_UM = 3.87, 11.5
_LEAST_CONTACT = 30  # pixels of the picture's border that a wedge touches; a saturated layer at the side touches fewer
_FRAME = 3  # A-scans at either side: exports have a line of a pixel or two there, and JPEG stains what is beside it
_HALO = 3  # pixels around a wedge that compression has stained
_MM_PER_BEND = 2.0  # of a B-scan's width, for each degree of the polynomial that Bruch's membrane follows
_LEAST_EDGE = 0.15  # of the scale of `_evened`, from the bright band to what lies below
_LEAST_SEEN = 0.5  # of the picture; of 46 B-scans at least 0.81 was
_LEAST_BAND = 0.4  # of the A-scans
_COVERED = (90, 20)  # pixels above and below Bruch's membrane
_RPE_SLOPE, _ILM_SLOPE = 3, 4  # pixels in depth that a boundary may move from one A-scan to the next
_THICKNESS_UM = (80.0, 700.0)  # median thickness of what can be a retina, oedema included


@dataclass(frozen=True, eq=False)
class Retina:
    """Boundaries of the retina in a B-scan.

    Attributes:
        ilm: inner limiting membrane, `(X,)` [pixels from the top].
        rpe: lower edge of the bright band of the pigment epithelium, `(X,)`.
        bruch: where that edge would be without lesions, `(X,)`: smooth.
        seen: `(X, Y)`, false in white wedges and black borders.
    """

    ilm: Line
    rpe: Line
    bruch: Line
    seen: Mask


def find_retina(image: Plane, axial_um: float = AXIAL_UM, lateral_um: float = LATERAL_UM) -> Retina:
    """Finds the retina in a B-scan.

    Args:
        image: `(X, Y)`: lateral, depth from the vitreous down; any scale of grey.
        axial_um: of a pixel in depth.
        lateral_um: of a pixel from A-scan to A-scan.

    Raises:
        IntensityError: there is nothing that looks like a retina.
    """
    steps = (lateral_um / LATERAL_UM, axial_um / AXIAL_UM)
    standard = _resampled(image, steps)
    seen = seen_mask(standard)
    if seen.mean() < _LEAST_SEEN:
        raise IntensityError("expected a B-scan of a retina, got a picture most of which is a white or black frame")
    inner = ndimage.binary_erosion(seen, iterations=4, border_value=1)
    depth = _Depth(_evened(standard, seen))
    rpe = _rpe(depth, inner)
    ilm = _ilm(depth, inner, seen, rpe)
    across = np.arange(len(rpe))
    # Where a wedge cuts the retina the path runs on below it, through nothing.
    edge = (depth.mean(-10, 0) - depth.mean(0, 10))[across, rpe] > _LEAST_EDGE
    trusted = inner[across, rpe] & edge
    bruch = smooth_hull(rpe.astype(np.float64), trusted, max(2, round(len(rpe) * LATERAL_UM / 1000 / _MM_PER_BEND)))
    _require_retina(depth, inner[across, rpe] & ~_covered(seen, bruch), ilm, rpe)
    places = (np.arange(image.shape[0]) + 0.5) * steps[0] - 0.5

    def back(line: npt.ArrayLike) -> Line:
        there = np.interp(places, np.arange(len(rpe)), np.asarray(line, dtype=np.float64))
        return np.asarray((there + 0.5) / steps[1] - 0.5)

    return Retina(back(ilm), back(rpe), back(bruch), seen if steps == (1.0, 1.0) else seen_mask(image))


def seen_mask(image: Plane) -> Mask:
    """Returns where a B-scan shows tissue: not in the white or black wedges that turning it in its frame has left.

    Wedges touch the picture's border over 30 pixels or more, and are saturated, or empty. Three A-scans at either side
    are left out, too.
    """
    low, high = float(image.min()), float(image.max())
    white = ndimage.uniform_filter(image, 3, mode="nearest") > high - 0.04 * (high - low)
    black = ndimage.maximum_filter(image, 9, mode="nearest") <= low + 0.012 * (high - low)
    seen = np.ones(image.shape, dtype=np.bool_)
    seen[:_FRAME] = seen[-_FRAME:] = False
    for part in (white, black):
        labels, count = ndimage.label(part)
        border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        contact = np.bincount(border, minlength=count + 1)
        contact[0] = 0
        if (contact >= _LEAST_CONTACT).any():
            seen &= ~ndimage.binary_dilation((contact >= _LEAST_CONTACT)[labels], iterations=_HALO)
    return seen


def cheapest_path(cost: npt.NDArray[np.floating], slope: int) -> npt.NDArray[np.int64]:
    """Returns the `y` of each `x` on the cheapest way from the first row of `cost` `(X, Y)` to the last.

    From one `x` to the next it may move by `slope`, at a small price.

    Example:
        >>> cost = np.ones((3, 5)); cost[0, 1] = cost[1, 2] = cost[2, 3] = 0
        >>> cheapest_path(cost, 1).tolist()
        [1, 2, 3]
    """
    moves = np.arange(-slope, slope + 1)
    price = 0.02 * np.abs(moves)
    total = np.asarray(cost[0], dtype=np.float64)
    came = np.zeros(cost.shape, dtype=np.int64)
    everywhere = np.arange(cost.shape[1])
    for x in range(1, len(cost)):
        padded = np.pad(total, slope, constant_values=np.inf)
        offers = np.stack(
            [padded[slope + m : slope + m + cost.shape[1]] + p for m, p in zip(moves, price, strict=True)]
        )
        best = offers.argmin(axis=0)
        came[x] = moves[best]
        total = offers[best, everywhere] + cost[x]
    path = np.zeros(len(cost), dtype=np.int64)
    path[-1] = total.argmin()
    for x in range(len(cost) - 1, 0, -1):
        path[x - 1] = path[x] + came[x, path[x]]
    return path


def smooth_hull(line: Line, trusted: Mask, degree: int, rounds: int = 30) -> Line:
    """Returns a polynomial that follows the deep side of a line: what stands up from it has little weight.

    Iteratively reweighted least squares; a point that lies above the curve by more than the line's own spread counts an
    eighth of one that lies on it, and outliers on either side less and less.

    Args:
        line: `(X,)`, larger is deeper.
        trusted: which points count.
        degree: of the polynomial.
        rounds: of reweighting.
    """
    terms = np.polynomial.legendre.legvander(np.linspace(-1, 1, len(line)), degree)
    start = trusted.astype(np.float64) if trusted.sum() > 4 * degree else np.ones(len(line))
    weight = start
    for _ in range(rounds):
        root = np.sqrt(weight)
        factors, *_ = np.linalg.lstsq(terms * root[:, None], line * root, rcond=None)
        deeper = line - terms @ factors
        spread = max(1.5 * float(np.median(np.abs(deeper))), 1.0)
        weight = start / (1 + np.where(deeper >= 0, deeper / (2.5 * spread), deeper / spread) ** 2)
        weight = np.where(deeper < -spread, weight / 8, weight)
    return np.asarray(terms @ factors)


class _Depth:
    """Means of an image over ranges of depth around each pixel, from one cumulative sum."""

    def __init__(self, image: Plane) -> None:
        self.image = image
        self.size = image.shape[1]
        self._sum = np.concatenate([np.zeros((len(image), 1)), np.cumsum(image, axis=1, dtype=np.float64)], axis=1)
        self._here = np.arange(self.size)

    def mean(self, first: int, last: int) -> npt.NDArray[np.float64]:
        """Returns the mean of pixels `y + first` up to, not including, `y + last`; 0 where there is none."""
        low, high = np.clip(self._here + first, 0, self.size), np.clip(self._here + last, 0, self.size)
        return np.asarray((self._sum[:, high] - self._sum[:, low]) / np.maximum(high - low, 1))


def _resampled(image: Plane, steps: tuple[float, float]) -> Plane:
    if max(abs(step - 1) for step in steps) < 0.02:
        return image
    size = [max(2, round(count * step)) for count, step in zip(image.shape, steps, strict=True)]
    grids = [(np.arange(n) + 0.5) * old / n - 0.5 for n, old in zip(size, image.shape, strict=True)]
    blur = [max(0.0, 0.4 * (old / n - 1)) for n, old in zip(size, image.shape, strict=True)]
    smooth = ndimage.gaussian_filter(image, blur)
    return np.asarray(ndimage.map_coordinates(smooth, np.meshgrid(*grids, indexing="ij"), order=1, mode="nearest"))


def _evened(image: Plane, seen: Mask) -> Plane:
    """A smoothed B-scan with its background near 0 and its brightest percent at 1, wedges filled with the median."""
    smooth = ndimage.gaussian_filter(np.where(seen, image, np.median(image[seen])), (3.0, 1.5))
    lowest, dark, bright = np.percentile(smooth[seen], [2, 40, 99])
    if dark - lowest > 0.5 * (bright - dark):  # at most 0.22 in B-scans; 2.3 and more inverted
        raise IntensityError(
            "expected a B-scan of a retina, bright on a dark background, got a picture with a bright one"
        )
    return np.asarray(np.clip((smooth - dark) / max(float(bright - dark), 1e-6), -0.05, 1.2), dtype=np.float32)


def _rpe(depth: _Depth, inner: Mask) -> npt.NDArray[np.int64]:
    """Lower edge of the bright band: bright above, dark below, with tissue further above, which the surface has not."""
    band, under = depth.mean(-10, 0), depth.mean(0, 10)
    gain = (band - under) + 0.6 * band + 0.5 * (band - depth.mean(0, 60))
    gain += 1.5 * np.minimum(depth.mean(-80, -15), 0.35)
    gain[:, :30] = -0.5
    gain[~inner] = -0.3
    return cheapest_path(-gain, _RPE_SLOPE)


def _ilm(depth: _Depth, inner: Mask, seen: Mask, rpe: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The first edge from dark to bright: nothing bright above it, neither near nor on the whole."""
    lit = np.cumsum(np.where(seen, np.clip(depth.image, 0, None), 0), axis=1) / np.maximum(np.cumsum(seen, axis=1), 1)
    gain = depth.mean(0, 12) - depth.mean(-12, 0) - 1.5 * lit - depth.mean(-30, -6)
    gain = np.where(np.arange(depth.size) > rpe[:, None] - 20, -3.0, gain)
    gain[~inner] = -0.5
    return cheapest_path(-gain, _ILM_SLOPE)


def _covered(seen: Mask, bruch: Line) -> Mask:
    """Where a wedge lies over the retina, `(X,)`."""
    depth = np.arange(seen.shape[1]) - bruch[:, None]
    return np.asarray((~seen & (depth > -_COVERED[0]) & (depth < _COVERED[1])).any(axis=1))


def _require_retina(depth: _Depth, kept: Mask, ilm: npt.NDArray[np.int64], rpe: npt.NDArray[np.int64]) -> None:
    """Refuses boundaries that any picture has: paths are always found, but not everywhere between dark and bright.

    Judged is where the retina is seen (`kept`). Of 46 B-scans, healthy and not, all have at least 1.00, 0.38, 0.03,
    0.96, 0.57 of what is asked for here, in this order; their thickness varies by 0.31 of its mean at most, and deep
    below they are at 0.00 at most. Noise, gradients, slices of brains, and B-scans upside down or inverted do not pass;
    a few slices of CT do.
    """
    across = np.arange(len(rpe))
    if kept.mean() < _LEAST_BAND:
        raise IntensityError("expected a B-scan of a retina, got a picture without a bright band across it")
    step = (depth.mean(2, 20)[across, ilm] - depth.mean(-40, -6)[across, ilm])[kept]
    fall = (depth.mean(-10, 0)[across, rpe] - depth.mean(30, 90)[across, rpe])[kept]
    thick = (rpe - ilm)[kept] * AXIAL_UM
    thickness = float(np.median(thick))
    low, high = _THICKNESS_UM
    missing = {
        "a dark vitreous above": np.mean(step > 0.05) < 0.95
        or np.median(step) < 0.2
        or np.median(depth.mean(-40, -6)[across, ilm][kept]) > 0.12,
        "a bright band (pigment epithelium) over darker choroid": np.mean(fall > 0.15) < 0.88 or np.median(fall) < 0.4,
        f"{low:g} to {high:g} um between them (it is {thickness:.0f})": not low <= thickness <= high,
        "an even thickness": thick.std() > 0.5 * thick.mean(),
        "darkness deep below": np.median(depth.mean(130, 170)[across, rpe][kept]) > 0.15,
        "a smooth surface": np.abs(np.diff(ilm))[kept[1:]].mean() > 0.8,
    }
    lacking = [what for what, lacks in missing.items() if lacks]
    if lacking:
        raise IntensityError(f"expected a B-scan of a retina, depth running down, got a picture without {lacking[0]}")
