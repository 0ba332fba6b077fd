"""A network over a whole volume, window by window, on whatever the device can hold."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map
from monai.inferers import Inferer
from monai.utils import ensure_tuple_rep, fall_back_tuple
from torch import Tensor, nn

from medgen.errors import BundleError, IntensityError
from medgen.infer.memory import Load, batch_that_fits, fits, free_bytes, is_out_of_memory, release_memory
from medgen.infer.mosaic import Mosaic, Window, cut_windows, feed, pad_to
from medgen.layout import channels_last

logger = logging.getLogger(__name__)

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OOM_FLAG = "oom-backoff"
_KEPT_WEIGHTS = 4  # sizes of window whose weights are kept: images of a cohort may each have windows of their own


class WindowInferer(Inferer):  # type: ignore[misc]  # MONAI is untyped
    """Runs a network over overlapping windows and returns their weighted mean.

    Windows and weights are those of MONAI's `SlidingWindowInferer`. What it adds: the batch is chosen by device and
    memory; on CUDA the windows run under autocast in channels-last layout, and transfers overlap with computing; the
    sum moves to host memory when it would not fit; running out of memory leads to a smaller batch, then a smaller
    region, and says so; a window with a NaN ends the case instead of spreading.

    Windows run where the network's parameters lie (else where the input lies), so the volume may stay in host memory.
    The result lies where the input does, or in host memory where that would not fit.

    Args:
        roi_size: voxels of a window along each spatial axis; one number for all; 0 or less takes the image's.
        overlap: of neighbouring windows, as a fraction of the window, `[0, 1)`.
        mode: `"gaussian"` (sigma 1/8 of the window) or `"constant"`.
        sw_batch_size: windows in one forward pass; None chooses: on CUDA what fits, up to 8; on the CPU 2, since
            torch's fp32 convolution takes a slow path at batch 1.
        precision: `"auto"` is fp32 on the CPU; on CUDA bf16, or fp16 where the GPU has no bf16. Under `"fp32"`
            torch's own TF32 switches still apply.
        roi_multiple: the network's divisibility, one number for all axes or one for each; a region made smaller for
            want of memory stays a multiple of it.
        padding: of an image smaller than the window: a value, or torch's `"reflect"`, `"replicate"` or `"circular"`.
        adapt: take `roi_size` as the largest window, and cut each image into equal windows, as few and as small as
            cover it with that overlap: an image that fits one window is computed once, without seams, and padded only
            to the next multiple.
        mirror: a spatial axis (0 is the first) along which the image is also shown mirrored, and the mean of both
            results taken: less of the network's chance, at twice the time. None shows it once. In RAS orientation,
            axis 0 is left to right, where a head nearly is its own mirror image.

    Attributes:
        flags: of the last call: `("oom-backoff",)` when memory ran out on the way, else empty.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the names are those of MONAI's SlidingWindowInferer
        self,
        roi_size: Sequence[int] | int,
        overlap: Sequence[float] | float = 0.5,
        mode: Literal["gaussian", "constant"] = "gaussian",
        sw_batch_size: int | None = None,
        precision: Precision = "auto",
        roi_multiple: Sequence[int] | int = 16,
        padding: str | float = 0.0,
        adapt: bool = False,
        mirror: int | None = None,
    ) -> None:
        super().__init__()
        parts = overlap if isinstance(overlap, Sequence) else (overlap,)
        if not all(0.0 <= part < 1.0 for part in parts):
            raise ValueError(f"expected an overlap in [0, 1), got {overlap}")
        if mode not in {"gaussian", "constant"} or precision not in {"auto", *_DTYPES}:
            raise ValueError(f"expected gaussian|constant and auto|fp32|bf16|fp16, got {mode} and {precision}")
        if mirror is not None and mirror < 0:
            raise ValueError(f"expected mirror to be a spatial axis from 0 on, or None, got {mirror}")
        multiples = roi_multiple if isinstance(roi_multiple, Sequence) else (roi_multiple,)
        if min(multiples) < 1 or (sw_batch_size is not None and sw_batch_size < 1):
            raise ValueError(f"expected roi_multiple and sw_batch_size >= 1, got {roi_multiple} and {sw_batch_size}")
        self.roi_size = roi_size
        self.overlap = overlap
        self.mode = mode
        self.sw_batch_size = sw_batch_size
        self.precision = precision
        self.roi_multiple = roi_multiple
        self.padding = padding
        self.adapt = adapt
        self.mirror = mirror
        self.flags: tuple[str, ...] = ()
        self._batches: dict[tuple[torch.device, tuple[int, ...]], int] = {}
        self._weights: dict[tuple[torch.device, tuple[int, ...]], Tensor] = {}

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: object, **kwargs: object) -> Tensor:
        """Returns the network's output `(B, C_out, *spatial)`, float32, for `inputs` `(B, C, *spatial)`.

        `args` and `kwargs` go to the network. A `MetaTensor` keeps its affine and meta data.

        Raises:
            IntensityError: the network put out NaN or infinite values.
            BundleError: the network's output is not one tensor of the window's size.
            DeviceError: not even the smallest region fits the device.
        """
        self.flags = ()
        volume = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        device = _device_of(network, volume)
        forward = _Forward(network, device, self._dtype_on(device), args, kwargs)
        roi = self._roi_for(volume)
        # One window needs no search for the batch that fits, which on a GPU costs a forward pass for each new size.
        alone = len(volume) == 1 and all(n <= side for n, side in zip(volume.shape[2:], roi, strict=True))
        load = Load(roi, int(alone), on_host=device.type == "cpu")
        output = self._run(volume, forward, load)
        if self.mirror is not None:
            axis = 2 + self.mirror
            output = (output + self._run(volume.flip(axis), forward, load).flip(axis)) / 2
        if output.device != volume.device and not (volume.is_cuda and output.device.type == "cpu"):
            output = output.to(volume.device)
        return MetaTensor(output, meta=inputs.meta) if isinstance(inputs, MetaTensor) else output

    def _run(self, volume: Tensor, forward: "_Forward", load: Load) -> Tensor:
        while True:
            try:
                load = self._with_batch(load, volume, forward)
                return self._stitch(volume, forward, load)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            lighter = load.lighter(ensure_tuple_rep(self.roi_multiple, len(load.roi)))
            logger.warning("out of memory with %s; trying %s", load.describe(), lighter.describe())
            self.flags = (OOM_FLAG,)
            if lighter.roi == load.roi:
                self._batches[forward.device, load.roi] = lighter.batch
            load = lighter
            release_memory(forward.device)

    def _stitch(self, volume: Tensor, forward: "_Forward", load: Load) -> Tensor:
        padded, inner = pad_to(volume, load.roi, self.padding)
        windows = cut_windows(padded.shape, load.roi, ensure_tuple_rep(self.overlap, len(load.roi)))
        mosaic = None
        verdicts = []
        for group, voxels in feed(padded, windows, load.batch, forward.device):
            output = forward(voxels)
            verdicts.append((group, torch.isfinite(output).all()))
            if not output.is_cuda:  # reading a verdict from a GPU would make it wait: those are read at the end
                _require_finite(verdicts[-1:])
            if mosaic is None:
                shape = (padded.shape[0], output.shape[1], *padded.shape[2:])
                mosaic = Mosaic(shape, self._weights_of(load.roi, _home(shape, load, forward.device)))
            mosaic.add(group, output)
        _require_finite(verdicts)
        if mosaic is None:
            raise BundleError(f"expected an image with voxels, got shape {tuple(volume.shape)}")
        return mosaic.finish()[inner]

    def _with_batch(self, load: Load, volume: Tensor, forward: "_Forward") -> Load:
        """Fills in the batch where it is not set yet; what once ran out of memory is not tried again."""
        if load.batch:
            return load
        key = (forward.device, load.roi)
        if key not in self._batches:
            self._batches[key] = self.sw_batch_size or self._choose_batch(load, volume, forward)
        return Load(load.roi, self._batches[key], load.on_host)

    def _choose_batch(self, load: Load, volume: Tensor, forward: "_Forward") -> int:
        if forward.device.type != "cuda":
            return 2 if forward.dtype == torch.float32 else 1
        window = torch.zeros((1, volume.shape[1], *load.roi), device=forward.device)
        held = torch.cuda.memory_allocated(forward.device)
        torch.cuda.reset_peak_memory_stats(forward.device)
        forward(window)
        peak = torch.cuda.max_memory_allocated(forward.device) - held
        return batch_that_fits(free_bytes(forward.device), peak)

    def _weights_of(self, roi: tuple[int, ...], device: torch.device) -> Tensor:
        if (device, roi) not in self._weights:
            if len(self._weights) >= _KEPT_WEIGHTS:
                self._weights.pop(next(iter(self._weights)))
            self._weights[device, roi] = compute_importance_map(roi, mode=self.mode, device=device)
        return self._weights[device, roi]

    def _roi_for(self, volume: Tensor) -> tuple[int, ...]:
        size = tuple(volume.shape[2:])
        if isinstance(self.roi_size, Sequence) and len(self.roi_size) != len(size):
            raise BundleError(
                f"expected (batch, channel) and {len(self.roi_size)} spatial axes, got shape {tuple(volume.shape)}"
            )
        roi = tuple(int(side) for side in fall_back_tuple(self.roi_size, size))
        if not self.adapt:
            return roi
        overlaps, multiples = (ensure_tuple_rep(each, len(roi)) for each in (self.overlap, self.roi_multiple))
        return tuple(fitting_side(*axis) for axis in zip(size, roi, overlaps, multiples, strict=True))

    def _dtype_on(self, device: torch.device) -> torch.dtype:
        if self.precision != "auto":
            return _DTYPES[self.precision]
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


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


class _Forward:
    """One forward pass, in the precision and memory layout that suit the device."""

    def __init__(
        self,
        network: Callable[..., Any],
        device: torch.device,
        dtype: torch.dtype,
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> None:
        self.network = network
        self.device = device
        self.dtype = dtype
        self._args = args
        self._kwargs = kwargs
        self._channels_last = device.type == "cuda" and dtype != torch.float32

    def __call__(self, windows: Tensor) -> Tensor:
        if self._channels_last:
            layout = torch.channels_last_3d if windows.ndim == 5 else torch.channels_last
            windows = windows.contiguous(memory_format=layout)
            if isinstance(self.network, nn.Module):
                channels_last(self.network)  # the values stay; cuDNN need not turn the weights at every call
        lowered = self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype if lowered else None, enabled=lowered):
            output = self.network(windows, *self._args, **self._kwargs)
        if not isinstance(output, Tensor) or output.shape[2:] != windows.shape[2:] or len(output) != len(windows):
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise BundleError(
                f"expected one output tensor on the window's grid {tuple(windows.shape)}, got {got}; "
                "take monai.inferers.SlidingWindowInferer for such a network"
            )
        plain = output.as_tensor() if isinstance(output, MetaTensor) else output
        return plain.float()


def _device_of(network: Callable[..., Any], volume: Tensor) -> torch.device:
    parameter = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    return volume.device if parameter is None else parameter.device


def _home(shape: Sequence[int], load: Load, device: torch.device) -> torch.device:
    """Where the sum is kept: on the device, unless it would take memory that the network needs."""
    if load.on_host:
        return torch.device("cpu")
    need = 4 * torch.Size((shape[0] * shape[1] + 1, *shape[2:])).numel()
    if fits(need, free_bytes(device)):
        return device
    logger.info("the sum of windows takes %.1f GB: it is kept in host memory", need / 1e9)
    return torch.device("cpu")


def _require_finite(verdicts: Sequence[tuple[Sequence[Window], Tensor]]) -> None:
    for group, finite in verdicts:
        if not bool(finite):
            starts = [tuple(part.start for part in window[2:]) for window in group]
            raise IntensityError(
                "expected finite output of the network, got NaN or infinity in a window that starts at voxel "
                f"{' or '.join(map(str, starts))}; look for extreme values there, and try --precision fp32"
            )
