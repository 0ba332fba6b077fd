"""Whether one can see in an image where the windows were that it was computed in."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medgen.errors import GeometryError

_NEAR, _FAR = 2, 8  # planes at this distance from a border are compared with it: nearer ones feel its step
_FEWEST = 3  # planes to compare with: fewer say little


def window_borders(starts: npt.ArrayLike, side: int, extent: int) -> npt.NDArray[np.int64]:
    """Returns where windows begin or end within an axis: border `p` lies between the voxels `p - 1` and `p`.

    Args:
        starts: of the windows along the axis [voxels].
        side: of a window [voxels].
        extent: of the axis [voxels].

    Example:
        >>> window_borders([0, 8, 12], side=16, extent=28).tolist()
        [8, 12, 16, 24]
    """
    begins = np.asarray(starts, dtype=np.int64)
    borders = np.unique(np.concatenate([begins, begins + side]))
    return borders[(borders > 0) & (borders < extent)]


def seam_score(image: npt.ArrayLike, borders: Sequence[npt.ArrayLike]) -> float:
    """Returns how much more an image's gradient jumps where windows begin or end than nearby: 1 where nothing shows.

    Across the border between two planes of voxels, the gradient is the difference of the two, and its jump is how far
    it is from the mean of the gradients on either side: 0 for a slope, however steep, and the height of the step for a
    step. A border's jump is the median of its absolute value over the plane, without voxels where it is exactly 0 (air
    that was masked, say). It is divided by the median of that of the planes 2 to 8 voxels away which are no borders and
    not next to one, so that anatomy, which changes slowly from plane to plane, and noise cancel. The score is the
    median over all borders of all axes: half of them must show a seam for the score to tell.

    Args:
        image: `(X, Y)` or `(X, Y, Z)`, in any unit: the score has none.
        borders: for each axis, between which voxels windows begin or end, as `window_borders` returns; those at the
            image's own edges, or with fewer than 3 planes to compare with, do not count.

    Returns:
        0 or more; infinite for a step in an image that is otherwise flat or a plain slope.

    Raises:
        GeometryError: borders are not given for each axis, or none of them can be compared.

    Example:
        >>> x = np.sin(np.linspace(0, 6, 64))
        >>> image = x[:, None] + x
        >>> round(seam_score(image, [[20, 40], [32]]), 1)
        1.0
        >>> image[20:40] += 0.1
        >>> seam_score(image, [[20, 40], []]) > 10
        True
    """
    voxels = np.asarray(image, dtype=np.float64)
    if len(borders) != voxels.ndim:
        raise GeometryError(f"expected borders for each of {voxels.ndim} axes, got them for {len(borders)}")
    ratios = [ratio for axis, places in enumerate(borders) for ratio in _ratios(np.moveaxis(voxels, axis, 0), places)]
    if not ratios:
        raise GeometryError(
            f"expected a border with {_FEWEST} planes near it that are none, got none in an image of "
            f"{'x'.join(map(str, voxels.shape))}; take larger steps between windows"
        )
    return float(np.median(ratios))


def _ratios(planes: npt.NDArray[np.float64], places: npt.ArrayLike) -> list[float]:
    """The jump at each border along the first axis, over the usual one near it."""
    borders = {int(place) for place in np.asarray(places, dtype=np.int64)}
    inside = range(2, len(planes) - 1)  # borders with a gradient on either side
    felt = {border + shift for border in borders for shift in (-1, 0, 1)}
    jumps: dict[int, float] = {}

    def jump(place: int) -> float:
        if place not in jumps:
            jumps[place] = _jump(planes[place - 2 : place + 2])
        return jumps[place]

    ratios = []
    for border in sorted(borders & set(inside)):
        distant = [k for k in inside if _NEAR <= abs(k - border) <= _FAR and k not in felt]
        if len(distant) >= _FEWEST:
            usual = float(np.median([jump(k) for k in distant]))
            ratios.append(_over(jump(border), usual))
    return ratios


def _jump(four: npt.NDArray[np.float64]) -> float:
    """The median jump of the gradient between the second and the third of four planes."""
    gradients = np.diff(four, axis=0)
    jumps = np.abs(gradients[1] - (gradients[0] + gradients[2]) / 2)
    jumps = jumps[jumps > 0]
    return float(np.median(jumps)) if len(jumps) else 0.0


def _over(jump: float, usual: float) -> float:
    if usual > 0:
        return jump / usual
    return 1.0 if jump == 0 else float("inf")
