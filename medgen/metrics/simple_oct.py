"""Simple answers to whether a B-scan is normal, which a model has to beat: thickness, mean, principal components.

Each is fitted on flattened normal B-scans `(X, rows)` with their retina, and called with one to give its score, larger
where less normal.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA

Plane = npt.NDArray[np.float32]
Flat = tuple[Plane, npt.NDArray[np.bool_]]  # a band, and where its retina is
Fitted = Callable[[Flat], float]

_STRIDE = 4  # columns between two patches that are learnt from


def thickness(normal: Sequence[Flat]) -> Fitted:
    """Distance of the retina's mean thickness from that of normal ones [rows]."""
    usual = float(np.mean([_rows(one).mean() for one in normal]))
    return lambda flat: abs(float(_rows(flat).mean()) - usual)


def greatest_thickness(normal: Sequence[Flat]) -> Fitted:
    """Greatest thickness of the retina [rows]; nothing is fitted."""
    del normal
    return lambda flat: float(_rows(flat).max())


def mean_bscan(normal: Sequence[Flat]) -> Fitted:
    """Mean absolute difference from the mean of normal B-scans, column by column from the middle on."""
    width = min(len(band) for band, _ in normal)
    usual = np.mean([_middle(band, width) for band, _ in normal], axis=0)

    def score(flat: Flat) -> float:
        band, retina = flat
        wide = min(len(band), width)
        apart = np.abs(_middle(band, wide) - _middle(usual, wide))
        return float(apart[_middle(retina, wide)].mean())

    return score


def principal_components(normal: Sequence[Flat], components: int = 30, size: int = 64) -> Fitted:
    """Mean absolute difference of patches from what so many principal components of normal patches make of them."""
    patches = np.concatenate([_patches(band, size, _STRIDE) for band, _ in normal])
    both = np.concatenate([patches, patches[:, ::-1]]).reshape(2 * len(patches), -1)
    fitted = PCA(min(components, *both.shape), svd_solver="randomized", random_state=0).fit(both)

    def score(flat: Flat) -> float:
        cut = _patches(flat[0], size, size // 4)
        inside = _patches(flat[1], size, size // 4)
        plain = cut.reshape(len(cut), -1)
        apart = np.abs(plain - fitted.inverse_transform(fitted.transform(plain))).reshape(cut.shape)
        return float(apart[inside].mean())

    return score


BASELINES: Mapping[str, Callable[[Sequence[Flat]], Fitted]] = {
    "thickness": thickness,
    "greatest thickness": greatest_thickness,
    "mean B-scan": mean_bscan,
    "30 principal components": principal_components,
    "80 principal components": lambda normal: principal_components(normal, 80),
}


def _rows(flat: Flat) -> npt.NDArray[np.float64]:
    """Thickness at each column where a retina is seen."""
    found = np.asarray(flat[1].sum(axis=1), dtype=np.float64)
    return found[found > 0] if (found > 0).any() else np.zeros(1)


def _middle(values: npt.NDArray[Any], width: int) -> npt.NDArray[Any]:
    first = (len(values) - width) // 2
    return values[first : first + width]


def _patches(values: npt.NDArray[Any], size: int, stride: int) -> npt.NDArray[Any]:
    starts = sorted({*range(0, len(values) - size + 1, stride), len(values) - size})
    return np.stack([values[start : start + size] for start in starts])
