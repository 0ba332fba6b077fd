"""Windows out of a volume and back: cutting, feeding to the device, and the weighted mean where they overlap."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from medgen.infer.cut import Cut, Window

_VOXELS_AT_ONCE = 2**20  # of the sum that is divided: the total weight of so many is held

Group = tuple[Sequence[Window], Tensor]  # windows and their voxels `(windows, C, *roi)`


@dataclass(frozen=True)
class Taking:
    """How a window's voxels are taken out of a batch.

    Attributes:
        padding: of windows larger than the image: a value, or torch's `"reflect"`, `"replicate"` or `"circular"`.
        slice_axis: the spatial axis along which windows are single slices, given to the network without that axis.
        neighbours: slices on each side that come as further channels, in their order along the axis, of each slice all
            channels; at the image's edge its last slice stands in for those beyond.
    """

    padding: str | float = 0.0
    slice_axis: int | None = None
    neighbours: int = 0

    def shape(self, channels: int, roi: Sequence[int]) -> tuple[int, ...]:
        """Returns channels and spatial axes of what the network sees of a window."""
        plane = tuple(side for axis, side in enumerate(roi) if axis != self.slice_axis)
        return (channels * (2 * self.neighbours + 1), *plane)

    def take(self, volume: Tensor, window: Window, cut: Cut) -> Tensor:
        """Returns `(1, *self.shape(...))`, which may be a view of the volume `(B, C, *spatial)`."""
        axes = [*range(len(cut.roi))]
        if self.slice_axis is None:
            voxels = volume[window]
        else:
            axes.remove(self.slice_axis)
            voxels = self._slices(volume, window, 2 + self.slice_axis)
        widths = []
        for axis in reversed(axes):
            widths += [cut.inner[axis].start, cut.roi[axis] - cut.inner[axis].stop]
        if not any(widths):
            return voxels
        if isinstance(self.padding, str):
            return functional.pad(voxels, widths, mode=self.padding)
        return functional.pad(voxels, widths, value=self.padding)

    def _slices(self, volume: Tensor, window: Window, dim: int) -> Tensor:
        middle, last = window[dim].start, volume.shape[dim] - 1
        whole = volume[(*window[:dim], slice(None), *window[dim + 1 :])]
        beside = range(middle - self.neighbours, middle + self.neighbours + 1)
        parts = [whole.select(dim, min(max(place, 0), last)) for place in beside]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def feed(volume: Tensor, cut: Cut, taking: Taking, batch: int, device: torch.device) -> Iterator[Group]:
    """Yields groups of at most `batch` windows with their voxels `(windows, C, *roi)` on the device.

    Voxels are copies: a network that writes into its input does not change the volume. From host to GPU they go
    through pinned memory on a stream of their own: one group travels while another computes.
    """
    windows = cut.windows()
    staged = device.type == "cuda" and volume.device.type == "cpu"
    stream = torch.cuda.Stream(device) if staged else None  # type: ignore[no-untyped-call]  # torch's own gap
    while group := list(itertools.islice(windows, batch)):
        taken = [taking.take(volume, window, cut) for window in group]
        # Joining a single window takes torch six times as long as copying it.
        host = torch.cat(taken) if len(taken) > 1 else taken[0].clone(memory_format=torch.contiguous_format)
        if stream is None:
            yield group, host.to(device)
            continue
        pinned = host.pin_memory()
        with torch.cuda.stream(stream):
            voxels = pinned.to(device, non_blocking=True)
        compute = torch.cuda.current_stream(device)
        compute.wait_stream(stream)
        voxels.record_stream(compute)
        yield group, voxels


@dataclass
class _OnItsWay:
    output: Tensor
    arrived: torch.cuda.Event


class Mosaic:
    """The weighted mean of overlapping windows, which come in the order of the cut.

    Nothing of the image's size is held but the result. Sums are kept in the result's own memory, or, where that is a
    file, in a slab as thick as a window, and divided by the total weight as soon as no window to come touches them.
    The total weight is never whole either: windows form a grid, so it is that of one row of windows, shifted and added.

    Args:
        cut: on the grid of the output.
        weights: of a window's voxels, shape of the window, on the device of the result.
        result: zeros `(B, C, *size)`, float32.
        slab: whether sums are kept apart from the result.
    """

    def __init__(self, cut: Cut, weights: Tensor, result: Tensor, slab: bool = False) -> None:
        self._cut = cut
        self._windows = cut.windows()
        self._weights = weights[cut.inner]
        self._result = result
        self._item = self._done = 0  # the image being put together, and how many of its planes are finished
        self._strip = _row_weight(cut, self._weights)
        self._slab = self._new_slab() if slab and not cut.one_each else None
        self._stream: torch.cuda.Stream | None = None
        self._coming: _OnItsWay | None = None

    def add(self, output: Tensor) -> None:
        """Adds the network's output `(windows, C, *roi)` for the next windows.

        An output that comes from a GPU to the host is copied while the next one computes, and added one call later.
        """
        if output.device == self._result.device or output.device.type != "cuda":
            self._place(output.to(self._result.device))
            return
        before, self._coming = self._coming, self._send_for(output)
        self._receive(before)

    def finish(self) -> Tensor:
        """Returns the mean `(B, C, *size)`, float32; the mosaic cannot be used afterwards."""
        self._receive(self._coming)
        self._coming = None
        self._finish_planes(self._cut.items, 0)
        return self._result

    def _place(self, output: Tensor) -> None:
        inner = self._cut.inner
        for voxels, window in zip(output, itertools.islice(self._windows, len(output)), strict=True):
            seen = voxels[(slice(None), *inner)]
            if self._strip is None:
                self._result[window][0].copy_(seen)
                continue
            self._finish_planes(window[0].start, window[2 + self._cut.along].start)
            self._sums(window).add_(seen * self._weights)  # rounded twice, as MONAI does, and numpy in `window_mean`

    def _sums(self, window: Window) -> Tensor:
        if self._slab is None:
            return self._result[window][0]
        before, after = window[1 : 2 + self._cut.along], window[3 + self._cut.along :]
        return self._slab[(*before, slice(None), *after)]  # it begins where this window does

    def _finish_planes(self, item: int, upto: int) -> None:
        """Finishes all images before `item`, and its planes before `upto`."""
        if self._strip is None:
            return
        while self._item < item:
            self._divide(self._cut.size[self._cut.along])
            self._item, self._done = self._item + 1, 0
        if upto > self._done:
            self._divide(upto)

    def _divide(self, upto: int) -> None:
        dim, first = 1 + self._cut.along, self._done
        result = self._result[self._item]
        sums, shift = (result, 0) if self._slab is None else (self._slab, first)
        for begin, end in itertools.pairwise([first, *(e for e in self._edges() if first < e < upto), upto]):
            part = sums.narrow(dim, begin - shift, end - begin)
            torch.div(part, self._total_weight(begin, end), out=result.narrow(dim, begin, end - begin))
        self._done = upto
        if self._slab is not None:
            self._advance(self._slab, upto - first)

    def _edges(self) -> list[int]:
        """Places along the axis, few planes apart, between which the same windows cover all planes."""
        along, size = self._cut.along, self._cut.size
        starts, thickness = self._cut.starts[along], self._cut.covered[along]
        few = max(_VOXELS_AT_ONCE * size[along] // math.prod(size), 1)
        return sorted({*starts, *(start + thickness for start in starts), *range(0, size[along], few)})

    def _total_weight(self, begin: int, end: int) -> Tensor:
        """The weight of all windows over planes that the same windows cover."""
        along, strip = self._cut.along, self._strip
        assert strip is not None  # noqa: S101 - only asked for where windows overlap
        covering = [s for s in self._cut.starts[along] if s <= begin and end <= s + strip.shape[along]]
        rows = [strip.narrow(along, begin - start, end - begin) for start in covering]
        return sum(rows[1:], rows[0])

    def _new_slab(self) -> Tensor:
        shape = [self._result.shape[1], *self._cut.size]
        shape[1 + self._cut.along] = self._cut.covered[self._cut.along]
        return torch.zeros(shape, dtype=torch.float32, device=self._weights.device)

    def _advance(self, slab: Tensor, by: int) -> None:
        """Moves the slab's planes to its front, in place, and clears what comes in."""
        planes = slab.unbind(1 + self._cut.along)
        for k, plane in enumerate(planes):
            if k + by < len(planes):
                plane.copy_(planes[k + by])
            else:
                plane.zero_()

    def _send_for(self, output: Tensor) -> _OnItsWay:
        if self._stream is None:
            self._stream = torch.cuda.Stream(output.device)  # type: ignore[no-untyped-call]  # as above
        self._stream.wait_stream(torch.cuda.current_stream(output.device))
        with torch.cuda.stream(self._stream):
            host = torch.empty(output.shape, dtype=output.dtype, pin_memory=True).copy_(output, non_blocking=True)
            arrived = self._stream.record_event()
        output.record_stream(self._stream)
        return _OnItsWay(host, arrived)

    def _receive(self, coming: _OnItsWay | None) -> None:
        if coming is not None:
            coming.arrived.synchronize()
            self._place(coming.output)


def _row_weight(cut: Cut, weights: Tensor) -> Tensor | None:
    """The total weight of the windows that start at one place along the axis; None where one covers the image."""
    if cut.one_each:
        return None
    shape = list(cut.size)
    shape[cut.along] = weights.shape[cut.along]
    strip = torch.zeros(shape, dtype=torch.float32, device=weights.device)
    row = [(0,) if axis == cut.along else starts for axis, starts in enumerate(cut.starts)]
    for corner in itertools.product(*row):
        strip[tuple(slice(s, s + n) for s, n in zip(corner, weights.shape, strict=True))].add_(weights)
    return strip
