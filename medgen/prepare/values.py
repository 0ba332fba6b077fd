"""What MONAI's value transforms compute, in numpy alone, to float32's rounding; images are `(C, X, Y, Z)` float32."""

import numpy as np
import numpy.typing as npt

from medgen.errors import NotExactError

Volume = npt.NDArray[np.float32]

_MOST_FOR_QUANTILE = 1_000_000  # voxels; of more, MONAI asks numpy for percentiles


def scaled(image: Volume, minv: float, maxv: float) -> Volume:
    """`ScaleIntensity`: from the image's own range to `[minv, maxv]`.

    Raises:
        NotExactError: all voxels are the same.
    """
    low, high = image.min(), image.max()
    if low == high:
        raise NotExactError("an image of one value")
    return np.asarray((image - low) / (high - low) * (maxv - minv) + minv)


def ranged(
    image: Volume,
    a_min: float | np.float32,
    a_max: float | np.float32,
    b_min: float | None,
    b_max: float | None,
    clip: bool,
) -> Volume:
    """`ScaleIntensityRange`: from `[a_min, a_max]` to `[b_min, b_max]`.

    Raises:
        NotExactError: the range is empty.
    """
    if a_max - a_min == 0:
        raise NotExactError("an empty range of values")
    image = (image - a_min) / (a_max - a_min)
    if b_min is not None and b_max is not None:
        image = image * (b_max - b_min) + b_min
    return np.clip(image, b_min, b_max) if clip else image


def ranged_by_percentiles(
    image: Volume, lower: float, upper: float, b_min: float | None, b_max: float | None, clip: bool
) -> Volume:
    """`ScaleIntensityRangePercentiles`, not relative: from between two percentiles to `[b_min, b_max]`.

    Raises:
        NotExactError: both percentiles are the same.
    """
    low, high = percentiles(image, (lower, upper))
    return ranged(image, low, high, b_min, b_max, clip)


def percentiles(image: Volume, wanted: tuple[float, ...]) -> list[np.float32]:
    """Returns MONAI's percentiles: numpy's of large images, torch's `quantile` of others."""
    if image.size > _MOST_FOR_QUANTILE:
        return [np.float32(value) for value in np.percentile(image, wanted)]
    values = np.sort(image, axis=None)
    found = []
    for percent in wanted:
        rank = np.float32(percent / 100) * np.float32(image.size - 1)
        low, high = values[int(np.floor(rank))], values[int(np.ceil(rank))]
        weight = rank - np.floor(rank)
        found.append(low + weight * (high - low) if weight < 0.5 else high - (high - low) * (1 - weight))
    return found


def normalized(image: Volume, nonzero: bool) -> Volume:
    """`NormalizeIntensity`: less the mean, by the standard deviation; of voxels that are not 0, if so asked."""
    chosen = image != 0 if nonzero else np.ones(image.shape, dtype=bool)
    if not chosen.any():
        return image
    values = image[chosen].astype(np.float64)
    mean, deviation = np.float32(values.mean()), np.float32(values.std()) or np.float32(1)
    return np.where(chosen, (image - mean) / deviation, image).astype(np.float32, copy=False)


def shifted(image: Volume, offset: float) -> Volume:
    """`ShiftIntensity`."""
    return image + offset


def sigmoid(image: Volume) -> Volume:
    """`Activations(sigmoid=True)`."""
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-image)), dtype=np.float32)


def softmax(image: Volume) -> Volume:
    """`Activations(softmax=True)`, over channels."""
    powers = np.exp(image - image.max(axis=0))
    return np.asarray(powers / powers.sum(axis=0))


def discrete(image: Volume, argmax: bool, threshold: float | None, rounded: bool) -> Volume:
    """`AsDiscrete`: the channel of the largest value, whether it reaches a threshold, the nearest whole number."""
    if argmax:
        image = image.argmax(axis=0)[None].astype(np.float32)
    if threshold is not None:
        image = (image >= threshold).astype(np.float32)
    return np.rint(image) if rounded else image
