"""A network over a whole volume, window by window, on whatever the device can hold."""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Literal, TypeVar

import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map
from monai.inferers import Inferer
from monai.utils import ensure_tuple_rep, fall_back_tuple
from torch import Tensor, nn
from torch.nn import functional

from medgen.errors import BundleError
from medgen.infer.cut import Cut, Window, fitting_side, not_finite
from medgen.infer.memory import (
    Load,
    batch_that_fits,
    fits,
    free_bytes,
    host_budget,
    is_out_of_memory,
    release_memory,
    zeros_in_a_file,
)
from medgen.infer.mosaic import Mosaic, Taking, feed
from medgen.infer.passes import Forward, Names, Streaming, all_finite, is_streaming, packed, tensors_of

logger = logging.getLogger(__name__)

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OOM_FLAG = "oom-backoff"
_KEPT_WEIGHTS = 4  # sizes of window whose weights are kept: images of a cohort may each have windows of their own
_HOST = torch.device("cpu")
_Number = TypeVar("_Number", int, float)


class WindowInferer(Inferer):  # type: ignore[misc]  # MONAI is untyped
    """Runs a network over overlapping windows and returns their weighted mean.

    Windows and weights are those of MONAI's `SlidingWindowInferer`. What it adds: the batch is chosen by device and
    memory; on CUDA the windows run under autocast in channels-last layout, and transfers overlap with computing; the
    sum moves to host memory when it would not fit, and the result to a file when that would not fit either; running
    out of memory leads to a smaller batch, then a smaller region, and says so; a window with a NaN ends the case
    instead of spreading. A converted network with a `stream` (see `Streaming`) is fed ahead of its outputs.

    Windows run where the network's parameters lie (else where the input lies; those of a stream in host memory), so
    the volume may stay in host memory. The result lies where the input does, or in host memory where that would not
    fit.

    Args:
        roi_size: voxels of a window along each spatial axis; one number for all; 0 or less, or None, takes the
            image's. With `spatial_dim`, of a slice.
        overlap: of neighbouring windows, as a fraction of the window, `[0, 1)`; one number, or one for each of those.
        mode: `"gaussian"` or `"constant"`.
        sw_batch_size: windows in one forward pass; None chooses: what a stream asks for; on CUDA what fits, up to 8;
            on the CPU 2, since torch's fp32 convolution takes a slow path at batch 1.
        precision: `"auto"` is fp32 on the CPU; on CUDA bf16, or fp16 where the GPU has no bf16. Under `"fp32"`
            torch's own TF32 switches still apply. A stream has its own.
        roi_multiple: the network's divisibility, one number for all axes or one for each; a region made smaller for
            want of memory stays a multiple of it.
        padding: of an image smaller than the window: a value, or torch's `"reflect"`, `"replicate"` or `"circular"`.
        adapt: take `roi_size` as the largest window, and cut each image into equal windows, as few and as small as
            cover it with that overlap: an image that fits one window is computed once, without seams, and padded only
            to the next multiple.
        mirror: a spatial axis (0 is the first) along which the image is also shown mirrored, and the mean of both
            results taken: less of the network's chance, at twice the time. None shows it once. In RAS orientation,
            axis 0 is left to right, where a head nearly is its own mirror image.
        sigma_scale: standard deviation of the Gaussian weights, as a fraction of the window's side; one number, or
            one for each side.
        spatial_dim: a spatial axis (0 is the first) of volumes along which a network of planes takes slice by slice.
        neighbours: slices on each side that such a network gets as further channels (2.5D): `C * (2 * neighbours + 1)`
            in the order of the slices, of each slice all channels; at the edges the last slice is repeated.
        memory_budget_bytes: of host memory for the result; a larger one lies in a file in the folder for temporary
            files, gone with the tensor. None takes half of what the machine and its job scheduler leave.
        sw_device: where windows run; None for the place said above.
        device: where the result lies; None for the place said above.

    Attributes:
        flags: of the last call: `("oom-backoff",)` when memory ran out on the way, else empty.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the names are those of MONAI's SlidingWindowInferer
        self,
        roi_size: Sequence[int | None] | int | None,
        overlap: Sequence[float] | float = 0.5,
        mode: Literal["gaussian", "constant"] = "gaussian",
        sw_batch_size: int | None = None,
        precision: Precision = "auto",
        roi_multiple: Sequence[int] | int = 16,
        padding: str | float = 0.0,
        adapt: bool = False,
        mirror: int | None = None,
        sigma_scale: Sequence[float] | float = 0.125,
        spatial_dim: int | None = None,
        neighbours: int = 0,
        memory_budget_bytes: int | None = None,
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.roi_size = roi_size
        self.overlap = overlap
        self.mode = mode
        self.sw_batch_size = sw_batch_size
        self.precision = precision
        self.roi_multiple = roi_multiple
        self.padding = padding
        self.adapt = adapt
        self.mirror = mirror
        self.sigma_scale = sigma_scale
        self.spatial_dim = spatial_dim
        self.neighbours = neighbours
        self.memory_budget_bytes = memory_budget_bytes
        self.sw_device = None if sw_device is None else torch.device(sw_device)
        self.device = None if device is None else torch.device(device)
        self.flags: tuple[str, ...] = ()
        self._batches: dict[tuple[torch.device, tuple[int, ...], int | None], int] = {}
        self._weights: dict[tuple[torch.device, tuple[int, ...]], Tensor] = {}
        _check_arguments(self)

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: Callable[..., Any] | Streaming, *args: object, **kwargs: object) -> Any:  # noqa: ANN401 - one tensor, or as many as the network has
        """Returns the network's output `(B, C_out, *spatial)`, float32, for `inputs` `(B, C, *spatial)`.

        A network with a sequence or a dict of outputs gets a tuple or a dict; a sequence of one counts as the tensor
        alone, as in MONAI. An output may be on a finer or coarser grid, a whole fraction of the window's: its result
        then is, too. `args` and `kwargs` go to the network. A `MetaTensor` keeps its affine and meta data.

        Raises:
            IntensityError: the network put out NaN or infinite values.
            BundleError: an output is no image, or on a grid that the windows do not meet.
            DeviceError: not even the smallest region fits the device.
            TooLargeError: a result fits neither the memory nor the disk.
        """
        self.flags = ()
        volume = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        device = self.sw_device or _device_of(network, volume)
        forward = Forward(network, device, self._dtype_on(device), args, kwargs)
        roi = self._roi_for(volume)
        # One window needs no search for the batch that fits, which on a GPU costs a forward pass for each new size.
        alone = len(volume) == 1 and all(n <= side for n, side in zip(volume.shape[2:], roi, strict=True))
        load = Load(roi, int(alone), on_host="cpu" in {device.type, getattr(self.device, "type", None)})
        names, outputs = self._run(volume, forward, load)
        if self.mirror is not None:
            _, mirrored = self._run(volume.flip(2 + self.mirror), forward, load)
            for one, other in zip(outputs, mirrored, strict=True):
                _average(one, other, 2 + self.mirror)
        target = self.device or volume.device
        if self.device is not None or not volume.is_cuda:  # what moved off the GPU for want of memory stays off it
            outputs = [output.to(target) for output in outputs]
        if isinstance(inputs, MetaTensor):
            outputs = [_with_meta(output, inputs) for output in outputs]
        return packed(names, outputs)

    def _run(self, volume: Tensor, forward: Forward, load: Load) -> tuple[Names, list[Tensor]]:
        while True:
            try:
                load = self._with_batch(load, volume, forward)
                return self._stitch(volume, forward, load)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            lighter = load.lighter(self._per_axis(self.roi_multiple, len(load.roi), 1))
            logger.warning("out of memory with %s; trying %s", load.describe(), lighter.describe())
            self.flags = (OOM_FLAG,)
            if lighter.roi == load.roi:
                self._batches[forward.device, load.roi, forward.batch] = lighter.batch
            load = lighter
            release_memory(forward.device)

    def _stitch(self, volume: Tensor, forward: Forward, load: Load) -> tuple[Names, list[Tensor]]:
        if not volume.numel():
            raise BundleError(f"expected an image with voxels, got shape {tuple(volume.shape)}")
        cut = Cut.of(volume.shape, load.roi, self._per_axis(self.overlap, len(load.roi), 0.0), self.spatial_dim)
        taking = self._taking()
        mosaics: list[Mosaic] = []
        verdicts, names, target = [], None, self.device or volume.device
        with closing(forward.outputs(feed(volume, cut, taking, load.batch, forward.device))) as outputs:
            for group, output in outputs:
                names, tensors = tensors_of(output, len(group), len(load.roi), taking)
                verdicts.append((group, torch.stack([all_finite(tensor) for tensor in tensors]).all()))
                if not verdicts[-1][1].is_cuda:  # reading one from a GPU would make it wait: those are read at the end
                    _require_finite([verdicts.pop()])
                if not mosaics:
                    mosaics = self._mosaics(cut, tensors, load, target)
                for mosaic, tensor in zip(mosaics, tensors, strict=True):
                    mosaic.add(tensor)
        _require_finite(verdicts)
        return names, [mosaic.finish() for mosaic in mosaics]

    def _mosaics(self, cut: Cut, tensors: Sequence[Tensor], load: Load, target: torch.device) -> list[Mosaic]:
        """One for each output, on the device or the host, or in a file where too little is left of the budget."""
        left = host_budget() if self.memory_budget_bytes is None else self.memory_budget_bytes
        left = left if self.mirror is None else left // 2
        mosaics = []
        for tensor in tensors:
            grid = cut.zoomed(tensor.shape[2:])
            shape = (grid.items, tensor.shape[1], *grid.size)
            need = 4 * (math.prod(shape) + math.prod(grid.size) * grid.covered[grid.along] // grid.size[grid.along])
            home = _home(need, load, tensor.device)
            on_host = "cpu" in {home.type, target.type}
            filed = on_host and need > left
            if filed:
                logger.warning(
                    "a result of %.1f GB is kept in a file: %.1f GB of memory are left", need / 1e9, left / 1e9
                )
                home = _HOST
            elif on_host:
                left -= need
            result = zeros_in_a_file(shape) if filed else torch.zeros(shape, device=home)
            mosaics.append(Mosaic(grid, self._weights_of(load.roi, grid.roi, home), result, slab=filed))
        return mosaics

    def _with_batch(self, load: Load, volume: Tensor, forward: Forward) -> Load:
        """Fills in the batch where it is not set yet; what once ran out of memory is not tried again."""
        if load.batch:
            return load
        key = (forward.device, load.roi, forward.batch)
        if key not in self._batches:
            self._batches[key] = self.sw_batch_size or forward.batch or self._choose_batch(load, volume, forward)
        return Load(load.roi, self._batches[key], load.on_host)

    def _choose_batch(self, load: Load, volume: Tensor, forward: Forward) -> int:
        if forward.device.type != "cuda":
            return 2 if forward.dtype == torch.float32 else 1
        window = torch.zeros((1, *self._taking().shape(volume.shape[1], load.roi)), device=forward.device)
        held = torch.cuda.memory_allocated(forward.device)
        torch.cuda.reset_peak_memory_stats(forward.device)
        forward(window)
        peak = torch.cuda.max_memory_allocated(forward.device) - held
        return batch_that_fits(free_bytes(forward.device), peak)

    def _weights_of(self, roi: tuple[int, ...], on_grid: tuple[int, ...], device: torch.device) -> Tensor:
        """The weights of a window's voxels, or of those of an output on another grid: the nearest voxel's."""
        if (device, roi) not in self._weights:
            if len(self._weights) >= _KEPT_WEIGHTS:
                self._weights.pop(next(iter(self._weights)))
            sigmas = self._per_axis(self.sigma_scale, len(roi), 1.0)
            self._weights[device, roi] = compute_importance_map(roi, self.mode, sigmas, device)
        weights = self._weights[device, roi]
        if on_grid == roi:
            return weights
        return functional.interpolate(weights[None, None], on_grid, mode="nearest-exact")[0, 0]

    def _roi_for(self, volume: Tensor) -> tuple[int, ...]:
        size = list(volume.shape[2:])
        if self.spatial_dim is not None:
            if len(size) != 3:
                raise BundleError(f"expected a volume (batch, channel, X, Y, Z) to slice, got {tuple(volume.shape)}")
            del size[self.spatial_dim]
        if isinstance(self.roi_size, Sequence) and len(self.roi_size) != len(size):
            raise BundleError(
                f"expected (batch, channel) and {len(self.roi_size)} spatial axes, got shape {tuple(volume.shape)}; "
                "let roi_size have a number for each, or with spatial_dim for each axis of a slice"
            )
        roi = self._per_axis([int(side) for side in fall_back_tuple(self.roi_size, size)], volume.ndim - 2, 1)
        if not self.adapt:
            return roi
        overlaps = self._per_axis(self.overlap, len(roi), 0.0)
        multiples = self._per_axis(self.roi_multiple, len(roi), 1)
        return tuple(fitting_side(*axis) for axis in zip(volume.shape[2:], roi, overlaps, multiples, strict=True))

    def _per_axis(self, value: Sequence[_Number] | _Number, axes: int, across: _Number) -> tuple[_Number, ...]:
        """A number for each spatial axis of the volume; `across` for the one along which windows are slices."""
        if self.spatial_dim is None:
            return tuple(ensure_tuple_rep(value, axes))
        plane: list[_Number] = list(ensure_tuple_rep(value, axes - 1))
        plane.insert(self.spatial_dim, across)
        return tuple(plane)

    def _taking(self) -> Taking:
        return Taking(self.padding, self.spatial_dim, self.neighbours)

    def _dtype_on(self, device: torch.device) -> torch.dtype:
        if self.precision != "auto":
            return _DTYPES[self.precision]
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _check_arguments(inferer: WindowInferer) -> None:
    overlaps, sigmas, multiples = (
        each if isinstance(each, Sequence) else (each,)
        for each in (inferer.overlap, inferer.sigma_scale, inferer.roi_multiple)
    )
    if not all(0.0 <= part < 1.0 for part in overlaps) or min(sigmas) <= 0:
        raise ValueError(f"expected an overlap in [0, 1) and sigma_scale > 0, got {overlaps} and {sigmas}")
    if inferer.mode not in {"gaussian", "constant"} or inferer.precision not in {"auto", *_DTYPES}:
        raise ValueError(
            f"expected gaussian|constant and auto|fp32|bf16|fp16, got {inferer.mode} and {inferer.precision}"
        )
    if inferer.mirror is not None and inferer.mirror < 0:
        raise ValueError(f"expected mirror to be a spatial axis from 0 on, or None, got {inferer.mirror}")
    if min(multiples) < 1 or (inferer.sw_batch_size is not None and inferer.sw_batch_size < 1):
        raise ValueError(f"expected roi_multiple and sw_batch_size >= 1, got {multiples} and {inferer.sw_batch_size}")
    if inferer.spatial_dim not in ({None, 0, 1, 2} if inferer.neighbours == 0 else {0, 1, 2}) or inferer.neighbours < 0:
        raise ValueError(
            f"expected spatial_dim 0, 1 or 2, or None without neighbours, and neighbours >= 0, got "
            f"{inferer.spatial_dim} and {inferer.neighbours}"
        )
    if inferer.memory_budget_bytes is not None and inferer.memory_budget_bytes < 0:
        raise ValueError(f"expected memory_budget_bytes >= 0 or None, got {inferer.memory_budget_bytes}")


def _device_of(network: object, volume: Tensor) -> torch.device:
    if is_streaming(network):
        return _HOST
    parameter = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    return volume.device if parameter is None else parameter.device


def _home(need: int, load: Load, device: torch.device) -> torch.device:
    """Where the sum is kept: on the device, unless it would take memory that the network needs."""
    if load.on_host or device.type != "cuda":
        return _HOST
    if fits(need, free_bytes(device)):
        return device
    logger.info("the sum of windows takes %.1f GB: it is kept in host memory", need / 1e9)
    return _HOST


def _average(image: Tensor, mirrored: Tensor, dim: int) -> None:
    """Takes the mean of both into `image`, plane by plane: neither may fit a second time."""
    across = next(k for k in (2, 3, 1) if k != dim and k < image.ndim)
    parts = max(image.shape[across] // 16, 1)
    for one, other in zip(image.chunk(parts, across), mirrored.chunk(parts, across), strict=True):
        one.add_(other.flip(dim)).div_(2)


def _with_meta(output: Tensor, inputs: MetaTensor) -> MetaTensor:
    """The output with the input's meta data; on another grid, the affine is that grid's."""
    tensor = MetaTensor(output, meta=inputs.meta)
    sides = [n / m for n, m in zip(inputs.shape[2:], output.shape[2:], strict=True)]
    if any(side != 1 for side in sides):
        change = torch.eye(len(inputs.affine), dtype=inputs.affine.dtype)
        for axis, side in enumerate(sides):  # outer borders of the first voxels coincide, so centres lie apart
            change[axis, axis], change[axis, -1] = side, (side - 1) / 2
        tensor.affine = inputs.affine @ change
    return tensor


def _require_finite(verdicts: Sequence[tuple[Sequence[Window], Tensor]]) -> None:
    for group, finite in verdicts:
        if not bool(finite):
            raise not_finite(group)
