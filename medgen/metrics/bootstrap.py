"""How sure a mean over patients is: percentile intervals by drawing patients, not voxels or scans, again and again.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_FEWEST_PATIENTS = 2


@dataclass(frozen=True)
class Spread:
    """One number over several patients.

    Attributes:
        patients: how many there are; several scans of one count as their mean.
        mean: over patients.
        median: over patients.
        quartiles: 25th and 75th percentile over patients.
        interval: of the mean, by bootstrap; None for a single patient, of whom it would say nothing.
    """

    patients: int
    mean: float
    median: float
    quartiles: tuple[float, float]
    interval: tuple[float, float] | None


def spread(values: npt.ArrayLike, patients: Sequence[str], *, confidence: float = 0.95, draws: int = 10_000) -> Spread:
    """Returns the spread of `values`, one a scan, over the `patients` they belong to; the same for the same input.

    Raises:
        ValueError: there are no values, or not one patient for each.

    Example:
        >>> found = spread([1.0, 3.0, 5.0], ["a", "a", "b"])
        >>> found.patients, found.mean
        (2, 3.5)
        >>> found.interval
        (2.0, 5.0)
    """
    means = _patient_means(np.asarray(values, dtype=np.float64), patients)
    low, high = np.percentile(means, [25, 75])
    interval = None
    if len(means) >= _FEWEST_PATIENTS:
        chosen = np.random.default_rng(0).integers(len(means), size=(draws, len(means)))
        tail = 50 * (1 - confidence)
        first, last = np.percentile(means[chosen].mean(axis=1), [tail, 100 - tail])
        interval = (float(first), float(last))
    return Spread(len(means), float(means.mean()), float(np.median(means)), (float(low), float(high)), interval)


def _patient_means(values: npt.NDArray[np.float64], patients: Sequence[str]) -> npt.NDArray[np.float64]:
    if values.ndim != 1 or len(values) != len(patients) or not len(values):
        raise ValueError(f"expected one patient for each of at least one value, got {values.shape} and {len(patients)}")
    names = np.asarray(patients)
    return np.array([values[names == name].mean() for name in sorted(set(patients))])
