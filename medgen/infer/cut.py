"""How a volume is cut into windows; plain numbers, for torch and numpy alike."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from medgen.errors import BundleError, IntensityError

Window = tuple[slice, ...]  # (one of the batch, all channels, a slice for each spatial axis)


def window_starts(extent: int, side: int, overlap: float) -> tuple[int, ...]:
    """Returns where windows start that cover an axis: MONAI's, the last shifted inwards.

    Args:
        extent: of the axis [voxels].
        side: of a window [voxels]; a longer one than the axis starts at 0.
        overlap: of neighbours, as a fraction of the window, `[0, 1)`.

    Example:
        >>> window_starts(40, 16, 0.25)
        (0, 12, 24)
    """
    last = max(extent - side, 0)
    step = max(int(side * (1 - overlap)), 1)
    return tuple(min(k * step, last) for k in range(math.ceil(last / step) + 1))


def cut_windows(shape: Sequence[int], roi: Sequence[int], overlap: Sequence[float]) -> list[Window]:
    """Returns the windows that cover a batch `(B, C, *spatial)`: MONAI's, in its order.

    Along an axis that is shorter than the window, a window covers the whole axis.
    """
    return list(Cut.of(shape, roi, overlap, along=0).windows())


@dataclass(frozen=True)
class Cut:
    """How the images of a batch are cut into windows.

    Attributes:
        items: images in the batch.
        size: voxels of an image along each spatial axis.
        roi: voxels of a window along each spatial axis.
        starts: along each axis, where windows start.
        inner: the part of a window that lies in the image; the rest is padding, the same for all windows.
        along: the axis that windows proceed along, slowest of all; behind them planes are finished.
    """

    items: int
    size: tuple[int, ...]
    roi: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]
    inner: tuple[slice, ...]
    along: int

    @classmethod
    def of(cls, shape: Sequence[int], roi: Sequence[int], overlap: Sequence[float], along: int | None = None) -> "Cut":
        """Cuts a batch `(B, C, *spatial)`, along the axis where a window is the thinnest slab unless told another."""
        size, sides = tuple(shape[2:]), tuple(roi)
        before = [max(side - extent, 0) // 2 for side, extent in zip(sides, size, strict=True)]
        inner = tuple(slice(m, m + min(side, extent)) for m, side, extent in zip(before, sides, size, strict=True))
        starts = tuple(window_starts(*axis) for axis in zip(size, sides, overlap, strict=True))
        if along is None:
            shares = [min(side / max(extent, 1), 1.0) for side, extent in zip(sides, size, strict=True)]
            along = shares.index(min(shares))
        return cls(shape[0], size, sides, starts, inner, along)

    @property
    def covered(self) -> tuple[int, ...]:
        """Voxels of the image in one window."""
        return tuple(part.stop - part.start for part in self.inner)

    @property
    def one_each(self) -> bool:
        """Whether one window covers the whole image."""
        return all(len(places) == 1 for places in self.starts)

    def windows(self) -> Iterator[Window]:
        """Yields all windows, image by image, each image's from the start of `along` to its end."""
        order = [self.along, *(axis for axis in range(len(self.size)) if axis != self.along)]
        back = [order.index(axis) for axis in range(len(self.size))]
        extents = self.covered
        for item in range(self.items):
            for place in itertools.product(*(self.starts[axis] for axis in order)):
                corner = [place[k] for k in back]
                spatial = (slice(start, start + extent) for start, extent in zip(corner, extents, strict=True))
                yield (slice(item, item + 1), slice(None), *spatial)

    def zoomed(self, shape: Sequence[int]) -> "Cut":
        """Returns the cut on the grid of an output, which has `shape` where a window has `roi`.

        Raises:
            BundleError: windows, or the image, would not begin and end between voxels of that grid.
        """
        zoom = [Fraction(side, whole) for side, whole in zip(shape, self.roi, strict=True)]

        def scaled(places: Sequence[int], axis: int) -> tuple[int, ...]:
            exact = [place * zoom[axis] for place in places]
            if any(place.denominator != 1 for place in exact):
                raise BundleError(
                    f"expected outputs whose grid meets the windows' {'x'.join(map(str, self.roi))}, got "
                    f"{'x'.join(map(str, shape))}: along axis {axis}, voxels {', '.join(map(str, places))} times "
                    f"{zoom[axis]} are not whole; take windows, steps and an image that it divides"
                )
            return tuple(int(place) for place in exact)

        axes = range(len(self.size))
        return replace(
            self,
            size=tuple(scaled([self.size[k]], k)[0] for k in axes),
            roi=tuple(shape),
            starts=tuple(scaled(self.starts[k], k) for k in axes),
            inner=tuple(slice(*scaled([self.inner[k].start, self.inner[k].stop], k)) for k in axes),
        )


def fitting_side(extent: int, largest: int, overlap: float, multiple: int) -> int:
    """Returns the side of equal windows, as few as cover an axis, none larger than `largest` `[voxels]`.

    Args:
        extent: voxels to cover.
        largest: side of a window.
        overlap: of neighbours, as a fraction of the window, at least.
        multiple: of which the side is one, unless `largest` is smaller.

    Example:
        >>> fitting_side(150, 192, 0.25, 16), fitting_side(200, 192, 0.25, 16)
        (160, 128)
    """
    count = 1 if extent <= largest else math.ceil((extent / largest - overlap) / (1 - overlap))
    side = math.ceil(extent / (1 + (count - 1) * (1 - overlap)) / multiple) * multiple
    return min(side, largest)


def starts_of(windows: Sequence[Window]) -> str:
    """Returns where windows start, as words: `"(0, 0, 0) or (0, 0, 64)"`."""
    return " or ".join(str(tuple(part.start for part in window[2:])) for window in windows)


def not_finite(windows: Sequence[Window]) -> IntensityError:
    """Returns the error of a network that put out NaN or infinity for one of these windows."""
    return IntensityError(
        "expected finite output of the network, got NaN or infinity in a window that starts at voxel "
        f"{starts_of(windows)}; look for extreme values there, and try --precision fp32"
    )
