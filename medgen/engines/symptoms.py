"""The three failures of a GAN, and dead steps, told from the numbers of its last iterations; pure functions.

Each returns None, or one sentence with the numbers and another with the advice. Thresholds were set on toys in which
each failure is provoked (`tests/engines/test_health.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Series = npt.NDArray[np.float64]
History = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Limits:
    """Where a number becomes a symptom.

    Attributes:
        accuracy: of the discriminator, above which it is sure (1 is perfect, 0.5 a guess).
        pull: gradient at the generator's image, relative to its largest, below which nothing reaches the generator.
        diversity: of samples, relative to that of real images, below which they are all alike.
        rhythm: autocorrelation of losses and samples after one period, above which the players chase each other.
        swing: of the samples in that rhythm, relative to the spread of real images, below which it does no harm.
        refused: share of steps that were left out, above which training stands still.
    """

    accuracy: float = 0.98
    pull: float = 0.02
    diversity: float = 0.25
    rhythm: float = 0.6
    swing: float = 0.4
    refused: float = 0.1


def vanishing(history: History, limits: Limits, largest: float = 0.0) -> str | None:
    """A sure discriminator whose gradient no longer reaches the generator.

    Args:
        history: of the discriminator's accuracy and its pull.
        limits: thresholds.
        largest: the strongest pull that was seen before this history: one that fades slowly has no peak in it.
    """
    pull, accuracy = _finite(history.get("g_pull", ())), _finite(history.get("d_accuracy", ()))
    if len(pull) < 20 or len(accuracy) < 20:
        return None
    recent, largest = float(np.median(pull[-len(pull) // 4 :])), max(largest, peak(list(pull)))
    sure = float(accuracy[-len(accuracy) // 4 :].mean())
    if sure < limits.accuracy or recent >= limits.pull * largest:
        return None
    return (
        f"vanishing gradient: the discriminator orders {sure:.0%} of pairs rightly, and the gradient at the "
        f"generator's images fell to {recent / largest:.1%} of its largest. Use a non-saturating, "
        "least-squares or Wasserstein objective, lower the discriminator's rate, or blunt it by label noise, "
        "dropout or a gradient penalty."
    )


def collapse(history: History, limits: Limits) -> str | None:
    """Samples that are all alike while real images are not."""
    diversity = _finite(history.get("diversity", ()))
    if len(diversity) < 4:
        return None
    recent = float(np.median(diversity[-len(diversity) // 2 :]))
    if recent >= limits.diversity:
        return None
    return (
        f"mode collapse: samples differ from each other by {recent:.0%} of what real images do. "
        "Give the discriminator more steps or rate, the generator less; use Wasserstein with a gradient penalty, or "
        "larger batches."
    )


def oscillation(
    history: History, gaps: npt.ArrayLike, spread: float, limits: Limits, epoch_length: int = 0
) -> str | None:
    """Players that chase each other: losses come and go in a rhythm, and the samples swing to and fro with them.

    A rhythm of the losses alone is common in trainings that end well (the discriminator finds a flaw, the generator
    mends it), and one of exactly an epoch is that of data in a fixed order.

    Args:
        history: of the losses.
        gaps: mean sample minus mean real image of each iteration, `(N, F)`.
        spread: mean distance between real images.
        limits: thresholds.
        epoch_length: iterations of an epoch, 0 if unknown.
    """
    path = _main_motion(gaps)
    if len(path) < 40:
        return None
    period, strength = rhythm_of(path)
    swing = float(path.std() / max(spread, 1e-12))
    of_the_data = epoch_length > 0 and min(period % epoch_length, -period % epoch_length) <= 1
    rhythms = [rhythm_of(_finite(history.get(name, ())))[1] for name in ("g_loss", "d_loss")]
    if min(strength, max(rhythms)) < limits.rhythm or swing < limits.swing or of_the_data:
        return None
    return (
        f"oscillation: samples and losses repeat themselves every {period} iterations (autocorrelation {strength:.2f}, "
        f"swing {min(swing, 9.99):.0%} of the spread of real images). Lower both rates or the momentum, penalise the "
        "discriminator's slope (R1), or keep a moving average of the generator."
    )


def dead(history: History, limits: Limits) -> str | None:
    """Steps that move nothing: gradients that are not finite, or exactly zero, and losses that are no numbers."""
    for name in ("g_norm", "d_norm", "loss", "d_loss"):
        values = np.asarray(history.get(name, ()), dtype=np.float64)
        if len(values) < 10:
            continue
        broken = float((~np.isfinite(values)).mean())
        if broken > limits.refused:
            return (
                f"dead updates: {name} was not finite in {broken:.0%} of the last {len(values)} iterations. Use bf16 "
                "or fp32, a lower rate, or a tighter clip_norm, and look for NaN in the data."
            )
        if name.endswith("norm") and not values.any():
            player = "generator" if name == "g_norm" else "discriminator"
            return (
                f"dead updates: the gradient of the {player} was exactly 0 in the last {len(values)} iterations. Look "
                "for saturated or dead activations, a weight of 0, or a detached graph."
            )
    return None


def rhythm_of(series: npt.ArrayLike) -> tuple[int, float]:
    """Returns the period [samples] at which a series repeats itself best, and its autocorrelation there.

    A straight trend is taken out first. Only periods after the autocorrelation has first fallen below 0, and of which
    at least two fit in the series, count; (0, 0.0) where there is none.

    Example:
        >>> rhythm_of(np.sin(2 * np.pi * np.arange(200) / 25))[0]
        25
    """
    values = np.asarray(series, dtype=np.float64)
    count = len(values)
    if count < 8:
        return 0, 0.0
    time = np.arange(count)
    values = values - np.polyval(np.polyfit(time, values, 1), time)
    power = np.abs(np.fft.rfft(values, 2 * count)) ** 2
    # Fewer pairs at longer lags: divided by their number, a pure sine keeps its full height.
    correlation = np.fft.irfft(power)[:count] / np.arange(count, 0, -1)
    if correlation[0] <= 0:
        return 0, 0.0
    correlation = correlation[: count // 2 + 1] / correlation[0]
    below = np.flatnonzero(correlation < 0)
    if len(below) == 0:
        return 0, 0.0
    lag = int(below[0] + np.argmax(correlation[below[0] :]))
    return lag, float(correlation[lag])


def mean_distance(rows: npt.ArrayLike) -> float:
    """Returns the mean Euclidean distance between two of the rows `(N, F)`."""
    points = np.asarray(rows, dtype=np.float64)
    distance = np.linalg.norm(points[:, None] - points[None, :], axis=-1)
    return float(distance.sum() / max(len(points) * (len(points) - 1), 1))


def _main_motion(rows: npt.ArrayLike) -> Series:
    """The rows `(N, F)` along the direction in which they move most."""
    points = np.asarray(rows, dtype=np.float64)
    if points.ndim != 2 or len(points) < 2 or not np.isfinite(points).all():
        return np.zeros(0)
    points = points - points.mean(axis=0)
    left, size, _ = np.linalg.svd(points, full_matrices=False)
    return np.asarray(left[:, 0] * size[0])


def _finite(values: Sequence[float]) -> Series:
    series = np.asarray(values, dtype=np.float64)
    return series[np.isfinite(series)]


def peak(values: Sequence[float]) -> float:
    """Returns the largest median of any eighth of what is finite, 0 for nothing: one outlier is no peak."""
    finite = _finite(values)
    part = max(1, len(finite) // 8)
    return max((float(np.median(finite[i : i + part])) for i in range(0, len(finite), part)), default=0.0)
