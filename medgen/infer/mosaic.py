"""Windows out of a volume and back: cutting, feeding to the device, and the weighted mean where they overlap."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from monai.data.utils import dense_patch_slices
from torch import Tensor
from torch.nn import functional

Window = tuple[slice, ...]  # (one of the batch, all channels, a slice for each spatial axis)


def cut_windows(shape: Sequence[int], roi: Sequence[int], overlap: Sequence[float]) -> list[Window]:
    """Returns the windows that cover a batch `(B, C, *spatial)`: MONAI's, in its order, the last shifted inwards."""
    size = tuple(shape[2:])
    steps = [
        side if side == extent else max(int(side * (1 - part)), 1)
        for side, extent, part in zip(roi, size, overlap, strict=True)
    ]
    places = dense_patch_slices(size, tuple(roi), tuple(steps))
    return [(slice(item, item + 1), slice(None), *place) for item in range(shape[0]) for place in places]


def pad_to(volume: Tensor, roi: Sequence[int], padding: str | float) -> tuple[Tensor, Window]:
    """Pads spatial axes shorter than the window on both sides, and says where the volume then lies.

    Args:
        volume: `(B, C, *spatial)`.
        roi: voxels of a window along each spatial axis.
        padding: the value to fill with, or torch's `"reflect"`, `"replicate"` or `"circular"`.
    """
    missing = [max(side - extent, 0) for side, extent in zip(roi, volume.shape[2:], strict=True)]
    inner = tuple(slice(m // 2, m // 2 + extent) for m, extent in zip(missing, volume.shape[2:], strict=True))
    if any(missing):
        widths = [width for m in reversed(missing) for width in (m // 2, m - m // 2)]
        if isinstance(padding, str):
            volume = functional.pad(volume, widths, mode=padding)
        else:
            volume = functional.pad(volume, widths, value=padding)
    return volume, (slice(None), slice(None), *inner)


def feed(
    volume: Tensor, windows: Sequence[Window], batch: int, device: torch.device
) -> Iterator[tuple[Sequence[Window], Tensor]]:
    """Yields groups of windows with their voxels `(batch, C, *roi)` on the device.

    From host to GPU they go through pinned memory on a stream of their own: one group travels while another computes.
    """
    groups = [windows[start : start + batch] for start in range(0, len(windows), batch)]
    staged = device.type == "cuda" and volume.device.type == "cpu"
    stream = torch.cuda.Stream(device) if staged else None  # type: ignore[no-untyped-call]  # torch's own gap
    for group in groups:
        if stream is None:
            yield group, torch.cat([volume[window] for window in group]).to(device)
            continue
        pinned = torch.cat([volume[window] for window in group]).pin_memory()
        with torch.cuda.stream(stream):
            voxels = pinned.to(device, non_blocking=True)
        compute = torch.cuda.current_stream(device)
        compute.wait_stream(stream)
        voxels.record_stream(compute)
        yield group, voxels


@dataclass
class _OnItsWay:
    windows: Sequence[Window]
    output: Tensor
    arrived: torch.cuda.Event


class Mosaic:
    """The weighted mean of overlapping windows, in memory set aside once.

    Args:
        shape: of the whole, `(B, C, *spatial)`.
        weights: of a window's voxels, shape of the window; they also say on which device the mosaic lies.
    """

    def __init__(self, shape: Sequence[int], weights: Tensor) -> None:
        self._weights = weights
        self._sum = torch.zeros(tuple(shape), dtype=torch.float32, device=weights.device)
        self._weight = torch.zeros(tuple(shape[2:]), dtype=torch.float32, device=weights.device)
        self._stream: torch.cuda.Stream | None = None
        self._coming: _OnItsWay | None = None

    def add(self, windows: Sequence[Window], output: Tensor) -> None:
        """Adds the network's output `(len(windows), C, *roi)`.

        An output that comes from a GPU to the host is copied while the next one computes, and added one call later.
        """
        if output.device == self._sum.device or output.device.type != "cuda":
            self._place(windows, output.to(self._sum.device))
            return
        before, self._coming = self._coming, self._send_for(windows, output)
        self._receive(before)

    def finish(self) -> Tensor:
        """Returns the mean `(B, C, *spatial)`, float32; the mosaic cannot be used afterwards."""
        self._receive(self._coming)
        self._coming = None
        return self._sum.div_(self._weight)

    def _place(self, windows: Sequence[Window], output: Tensor) -> None:
        for window, voxels in zip(windows, output, strict=True):
            self._sum[window][0].addcmul_(voxels, self._weights)
            if window[0].start == 0:  # every item of the batch is cut alike: counting the first is enough
                self._weight[window[2:]].add_(self._weights)

    def _send_for(self, windows: Sequence[Window], output: Tensor) -> _OnItsWay:
        if self._stream is None:
            self._stream = torch.cuda.Stream(output.device)  # type: ignore[no-untyped-call]  # as above
        self._stream.wait_stream(torch.cuda.current_stream(output.device))
        with torch.cuda.stream(self._stream):
            host = torch.empty(output.shape, dtype=output.dtype, pin_memory=True).copy_(output, non_blocking=True)
            arrived = self._stream.record_event()
        output.record_stream(self._stream)
        return _OnItsWay(windows, host, arrived)

    def _receive(self, coming: _OnItsWay | None) -> None:
        if coming is not None:
            coming.arrived.synchronize()
            self._place(coming.windows, coming.output)
