"""The weighted mean of overlapping windows in numpy, as `WindowInferer` takes it in torch on the CPU."""

import itertools
import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from medgen.errors import NotExactError
from medgen.infer.cut import Cut, Window, fitting_side, not_finite
from medgen.read.memory import available_bytes

Array = npt.NDArray[np.float32]
Group = tuple[Window, Array]

_PADDINGS = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}  # torch's words, and numpy's
_LEAST_WEIGHT = 1e-3


class Network(Protocol):
    """What streams windows through a network, such as `OpenVinoRequests`."""

    def stream(self, groups: Iterable[Group]) -> Generator[tuple[Window, tuple[Array, ...]], None, None]:
        """Yields the outputs for each window, in order; valid until the next ones are asked for."""
        ...


@dataclass(frozen=True)
class Windows:
    """How a volume is cut and put together; three numbers are one for each axis. See `WindowInferer`.

    Attributes:
        roi_size: voxels of a window; 0 takes the image's.
        overlap: of neighbours, as a fraction of the window.
        roi_multiple: of which a fitted side is one.
        sigma_scale: standard deviation of the Gaussian weights, as a fraction of the side.
        mode: `"gaussian"` or `"constant"`.
        padding: a value, or torch's `"reflect"`, `"replicate"` or `"circular"`.
        adapt: whether sides are fitted to the image.
        profiles: Gaussian weights along an axis, by `profile_name`, as torch rounds them; numpy's where there are none.
        only_size: of a window, where the network computes no other; None: any.
    """

    roi_size: Sequence[int]
    overlap: Sequence[float]
    roi_multiple: Sequence[int]
    sigma_scale: Sequence[float]
    mode: str
    padding: str | float
    adapt: bool
    profiles: Mapping[str, Sequence[float]] = field(default_factory=dict)
    only_size: Sequence[int] | None = None

    def roi_for(self, size: Sequence[int]) -> tuple[int, ...]:
        """Returns the window for an image of this size."""
        roi = tuple(side if side > 0 else extent for side, extent in zip(self.roi_size, size, strict=True))
        if not self.adapt:
            return roi
        return tuple(map(fitting_side, size, roi, self.overlap, self.roi_multiple))


def weighted_mean(volume: Array, network: Network, how: Windows) -> Array:
    """Returns the network's output `(1, C_out, X, Y, Z)`, float32, for a volume `(1, C, X, Y, Z)`.

    Raises:
        IntensityError: the network put out NaN or infinity.
        NotExactError: a window has a size that the network does not compute, the result would not fit in memory, or an
            output is not on the window's grid.
    """
    roi = how.roi_for(volume.shape[2:])
    if how.only_size is not None and roi != tuple(how.only_size):
        raise NotExactError("windows of another size than the network was converted for")
    cut = Cut.of(volume.shape, roi, how.overlap)
    weights = importance(roi, how)[cut.inner]
    result, scratch = np.empty(0, dtype=np.float32), np.empty(0, dtype=np.float32)
    outputs = network.stream((window, _taken(volume, window, cut, how.padding)) for window in cut.windows())
    try:
        for window, (output, *others) in outputs:
            _require_usable(output, others, window, roi)
            if not result.size:
                result = _room((1, output.shape[1], *cut.size), cut)
                scratch = np.empty((output.shape[1], *cut.covered), dtype=np.float32)
            seen, place = output[0][(slice(None), *cut.inner)], result[window][0]
            if cut.one_each:
                place[:] = seen
                continue
            np.multiply(seen, weights, out=scratch)
            np.add(place, scratch, out=place)
    finally:
        outputs.close()
    return result if cut.one_each else _divided(result, cut, weights)


def importance(roi: Sequence[int], how: Windows) -> Array:
    """Returns the weights of a window's voxels, those of MONAI's `compute_importance_map`."""
    if how.mode == "constant":
        return np.ones(roi, dtype=np.float32)
    weights = np.ones((), dtype=np.float32)
    for side, sigma in zip(roi, how.sigma_scale, strict=True):
        profile = how.profiles.get(profile_name(side, sigma)) or _profile(side, sigma)
        weights = weights[..., None] * np.asarray(profile, dtype=np.float32)
    return np.maximum(weights, np.float32(max(float(weights.min()), _LEAST_WEIGHT)))


def profile_name(side: int, sigma: float) -> str:
    """Returns what the weights along an axis of `side` voxels are called."""
    return f"{side} {sigma!r}"


def _profile(side: int, sigma: float) -> list[float]:
    at = np.arange(side, dtype=np.float32) - np.float32((side - 1) / 2)
    exponent = at**2 / np.float32(-2 * (side * sigma) ** 2)
    return [float(weight) for weight in np.exp(exponent.astype(np.float64))]


def _require_usable(output: Array, others: Sequence[Array], window: Window, roi: tuple[int, ...]) -> None:
    if others or output.shape[:1] + output.shape[2:] != (1, *roi):
        raise NotExactError("an output on another grid than the window's, or several")
    if not np.isfinite(output.sum()) and not np.isfinite(output).all():  # a sum takes less time
        raise not_finite([window])


def _room(shape: tuple[int, ...], cut: Cut) -> Array:
    need = 4 * (math.prod(shape) + math.prod(cut.size) * cut.covered[cut.along] // cut.size[cut.along])
    if need > available_bytes() // 2:
        raise NotExactError("a result that does not fit in memory")
    return np.zeros(shape, dtype=np.float32)


def _taken(volume: Array, window: Window, cut: Cut, padding: str | float) -> Array:
    voxels = volume[window]
    widths = [(part.start, side - part.stop) for part, side in zip(cut.inner, cut.roi, strict=True)]
    if not any(map(any, widths)):
        return voxels
    if not isinstance(padding, str):
        return np.pad(voxels, [(0, 0), (0, 0), *widths], constant_values=np.float32(padding))
    if any(max(width) >= extent for width, extent in zip(widths, cut.covered, strict=True)):
        raise NotExactError("more padding than image")
    return np.pad(voxels, [(0, 0), (0, 0), *widths], mode=_PADDINGS[padding])  # type: ignore[call-overload,no-any-return]  # one of numpy's words


def _divided(result: Array, cut: Cut, weights: Array) -> Array:
    """Divides the sums by the total weight, in place, in planes that the same windows cover."""
    dim, starts, thickness = cut.along, cut.starts[cut.along], cut.covered[cut.along]
    strip = _row_weight(cut, weights)
    edges = sorted({*starts, *(start + thickness for start in starts)})
    for begin, end in itertools.pairwise(edges):
        rows = [_planes(strip, dim, begin - s, end - s) for s in starts if s <= begin and end <= s + thickness]
        part = _planes(result, 2 + dim, begin, end)
        np.divide(part, sum(rows[1:], rows[0]), out=part)
    return result


def _row_weight(cut: Cut, weights: Array) -> Array:
    """The total weight of the windows that start at one place along the axis."""
    shape = list(cut.size)
    shape[cut.along] = weights.shape[cut.along]
    strip = np.zeros(shape, dtype=np.float32)
    for corner in _row(cut):
        strip[tuple(slice(s, s + n) for s, n in zip(corner, weights.shape, strict=True))] += weights
    return strip


def _row(cut: Cut) -> Iterator[tuple[int, ...]]:
    return itertools.product(*((0,) if axis == cut.along else places for axis, places in enumerate(cut.starts)))


def _planes(array: Array, axis: int, begin: int, end: int) -> Array:
    return array[(*[slice(None)] * axis, slice(begin, end))]
