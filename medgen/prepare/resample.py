"""Resampling along axes: what MONAI's `Spacing` computes, where grids are parallel, at a fraction of its cost.

MONAI places every voxel by a 3-D grid of float64 coordinates. Between grids whose axes are parallel, as they are when
only the spacing is new, three interpolations of one axis each give the same values. They are done plane by plane: a
plane stays in the processor's cache.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import monai
import numpy as np
import numpy.typing as npt
import torch
from monai.config import USE_COMPILED, DtypeLike
from monai.data import MetaTensor, get_track_meta
from monai.data.utils import AFFINE_TOL, compute_shape_offset, to_affine_nd
from monai.networks.utils import to_norm_affine
from monai.transforms import Transform
from monai.utils import (
    TraceKeys,
    convert_to_numpy,
    convert_to_tensor,
    get_equivalent_dtype,
    get_torch_dtype_from_string,
)

Array = npt.NDArray[np.float64]
Volume = npt.NDArray[np.float32]
AnyTransform = TypeVar("AnyTransform", bound=Transform)

# Voxels by which parallel grids may drift apart from the middle to a corner, since headers round their affines. A value
# differs by at most this fraction of the step from one voxel to the next.
_DRIFT_VOXELS = 1e-4
_SNAP_VOXELS = 1e-7  # nearer to a voxel than float32 weights can tell
_TIED_VOXELS = 1e-9  # nearer to the middle of two than float64 sums can tell
_PADDINGS = ("border", "zeros", "reflection")
_PRECISIONS = {"bilinear": (torch.float64, torch.float32), "nearest": (torch.float64,)}


def hasten(transform: AnyTransform) -> AnyTransform:
    """Makes every resampling within a transform fast, in place, and returns it.

    The same voxels to 1e-4 of the range of values, labels exactly, and the same metadata: `Invertd`, which holds on to
    the transform, inverts as before, and as fast. What is not done plane by plane is left to MONAI: oblique grids,
    splines, lazy resampling, other than three axes, and tensors that are on a GPU or need gradients.

    Args:
        transform: such as a `Compose` with `Spacingd`, `SpatialResampled`, `ResampleToMatchd` or their array forms.

    Example:
        >>> from monai.transforms import Compose, Spacingd
        >>> steps = hasten(Compose([Spacingd("image", pixdim=(1.0, 1.0, 1.0))]))
        >>> type(steps.transforms[0].spacing_transform.sp_resample).__module__
        'medgen.prepare.resample'
    """
    for part in _parts(transform, set()):
        faster = _FASTER.get(type(part))
        if faster is not None:
            part.__class__ = faster  # the object stays the one whose id MONAI's trace holds
    return transform


def _parts(holder: object, seen: set[int]) -> Iterator[Transform]:
    """Every transform that a transform holds, itself first, however deep."""
    if id(holder) in seen:
        return
    seen.add(id(holder))
    if isinstance(holder, Transform):
        yield holder
        for value in list(vars(holder).values()):
            yield from _parts(value, seen)
    elif isinstance(holder, list | tuple):
        for value in holder:
            yield from _parts(value, seen)


@dataclass(frozen=True)
class _How:
    """How to interpolate, as `grid_sample` is told."""

    mode: str
    padding: str
    align_corners: bool


@dataclass(frozen=True, eq=False)
class _Line:
    """Where the voxels of one output axis lie on one input axis.

    Attributes:
        low: input index at or below each of them.
        high: the one above; the last again at the end.
        weight: of `high`, float32; None where all are 0.
        fade: what remains of each beyond the edge, where zeros follow; None where all is inside.
        unchanged: whether output and input are the same.
    """

    low: npt.NDArray[np.intp]
    high: npt.NDArray[np.intp]
    weight: Volume | None
    fade: Volume | None
    unchanged: bool


class SpatialResample(monai.transforms.SpatialResample):  # type: ignore[misc]
    """MONAI's transform of this name, which is the one that its trace notes, faster between parallel grids."""

    def __call__(
        self,
        img: torch.Tensor,
        dst_affine: torch.Tensor | None = None,
        spatial_size: Sequence[int] | torch.Tensor | int | None = None,
        mode: str | int | None = None,
        padding_mode: str | None = None,
        align_corners: bool | None = None,
        dtype: DtypeLike = None,
        lazy: bool | None = None,
    ) -> torch.Tensor:
        """Resamples `(C, X, Y, Z)` as MONAI does; see there for the arguments."""
        mode = self.mode if mode is None else mode
        padding_mode = self.padding_mode if padding_mode is None else padding_mode
        align_corners = self.align_corners if align_corners is None else align_corners
        how = _How(str(getattr(mode, "value", mode)), str(getattr(padding_mode, "value", padding_mode)), align_corners)
        precision = get_equivalent_dtype(dtype or self.dtype or img.dtype, torch.Tensor)
        plan = None
        if not (self.lazy if lazy is None else lazy) and _is_plain(img) and precision in _PRECISIONS.get(how.mode, ()):
            plan = _planned(img, dst_affine, spatial_size, how)
        if plan is None:
            own: torch.Tensor = super().__call__(
                img, dst_affine, spatial_size, mode, padding_mode, align_corners, dtype, lazy
            )
            return own
        # MONAI keeps its own books, over a single voxel.
        voxel = img[:1, :1, :1, :1]
        out = super().__call__(voxel, dst_affine, (2, 2, 2), mode, padding_mode, align_corners, dtype, lazy)
        return _with_voxels(out, img, *plan)

    def inverse(self, data: torch.Tensor) -> torch.Tensor:
        """Resamples back; MONAI's own inverse would call MONAI's own resampling."""
        transform = self.pop_transform(data)
        how = dict(transform[TraceKeys.EXTRA_INFO])
        how["dtype"] = get_torch_dtype_from_string(how["dtype"])
        how["dst_affine"] = how.pop("src_affine")
        if how["align_corners"] == TraceKeys.NONE:
            how["align_corners"] = False
        with self.trace_transform(False):
            back: torch.Tensor = SpatialResample.__call__(
                self, data, spatial_size=transform[TraceKeys.ORIG_SIZE], **how
            )
        return back


class ResampleToMatch(monai.transforms.ResampleToMatch, SpatialResample):  # type: ignore[misc]
    """MONAI's transform of this name, which finds `SpatialResample` of this module behind it."""


_FASTER: dict[type, type] = {
    monai.transforms.SpatialResample: SpatialResample,
    monai.transforms.ResampleToMatch: ResampleToMatch,
}


def _is_plain(image: torch.Tensor) -> bool:
    """Whether an image is `(C, X, Y, Z)` in host memory, and all that was asked of it is done."""
    pending = isinstance(image, MetaTensor) and bool(image.pending_operations)
    kind = image.device.type == "cpu" and not image.requires_grad and not image.is_complex()
    return kind and image.ndim == 4 and image.numel() > 0 and not pending and not USE_COMPILED


def _planned(
    image: torch.Tensor,
    dst_affine: torch.Tensor | None,
    spatial_size: Sequence[int] | torch.Tensor | int | None,
    how: _How,
) -> tuple[list[int], list[_Line]] | None:
    """The input axis of every output axis, and the voxels along it; None where MONAI should resample, or need not."""
    affine = image.affine if isinstance(image, MetaTensor) else torch.eye(4)
    source = convert_to_numpy(affine).astype(np.float64)
    target = source if dst_affine is None else convert_to_numpy(to_affine_nd(3, dst_affine)).astype(np.float64)
    shape = tuple(image.shape[1:])
    size = _size(shape, spatial_size, source, target)
    if size is None or how.padding not in _PADDINGS or not _is_place(source) or not _is_place(target):
        return None
    matrix = np.linalg.solve(source, target)
    axes, drift = _alignment(matrix, size)
    if how.align_corners and min(size) == 1:  # whose one coordinate torch defines as it likes
        return None
    if drift > _DRIFT_VOXELS or (shape == size and _is_unchanged(source, target, matrix)):
        return None
    places = _places(torch.as_tensor(matrix), shape, size, axes, how)
    if how.mode == "nearest" and drift > 0 and any(_is_tied(place, drift) for place in places):
        return None
    return axes, [_line(place, shape[axis], how) for place, axis in zip(places, axes, strict=True)]


def _is_place(affine: Array) -> bool:
    return affine.shape == (4, 4) and bool(np.isfinite(affine).all()) and bool(np.linalg.det(affine) != 0)


def _is_unchanged(source: Array, target: Array, matrix: Array) -> bool:
    """Whether MONAI takes two affines for one, and returns the image as it is."""
    return np.allclose(source, target, atol=AFFINE_TOL) or np.allclose(matrix, np.eye(4), atol=AFFINE_TOL)


def _alignment(matrix: Array, size: Sequence[int]) -> tuple[list[int], float]:
    """The input axis that each output axis runs along, and how far `[voxel]` it strays from it; infinity if askew."""
    aside = np.abs(matrix[:3, :3])
    axes = [int(axis) for axis in aside.argmax(axis=0)]
    if sorted(axes) != [0, 1, 2]:
        return axes, np.inf
    aside[axes, [0, 1, 2]] = 0
    return axes, float((aside @ (np.array(size) - 1)).sum()) / 2


def _size(
    shape: tuple[int, ...], asked: Sequence[int] | torch.Tensor | int | None, source: Array, target: Array
) -> tuple[int, ...] | None:
    """The output's shape as MONAI understands it; None where it is not that of a volume."""
    if asked is None:
        asked = compute_shape_offset(shape, source, target)[0]
    wanted = [asked] if isinstance(asked, int) else [int(n) for n in asked]
    if wanted == [-1]:
        return shape
    size = tuple(n if n >= 0 else own for n, own in zip(wanted, shape, strict=False))
    return size if len(wanted) == 3 and min(size) > 0 else None


def _places(
    matrix: torch.Tensor, shape: tuple[int, ...], size: tuple[int, ...], axes: Sequence[int], how: _How
) -> list[Array]:
    """Input coordinates `[voxel]` along each output axis, through the middle of the others.

    In the steps of MONAI and torch, and so with their rounding: it decides which label a voxel midway between two gets.
    """
    theta = to_norm_affine(matrix[None], shape, size, how.align_corners)[0].numpy()
    places = []
    for output_axis, axis in enumerate(axes):
        n, n_out = shape[axis], size[output_axis]
        at = torch.linspace(-1, 1, n_out, dtype=torch.float64).numpy()
        at = (at if how.align_corners else at * (n_out - 1) / n_out) * theta[axis, output_axis] + theta[axis, 3]
        place = (at + 1) / 2 * (n - 1) if how.align_corners else ((at + 1) * n - 1) / 2
        places.append(_reflected(place, n, how) if how.padding == "reflection" else place)
    return places


def _reflected(place: Array, n: int, how: _How) -> Array:
    """Coordinates beyond the edge thrown back inside, at the last voxel's middle or at its outer face."""
    low, span = (0.0, n - 1.0) if how.align_corners else (-0.5, float(n))
    if span == 0:
        return np.zeros_like(place)
    beyond = np.abs(place - low)
    flips, extra = np.floor(beyond / span), np.fmod(beyond, span)
    return np.asarray(np.where(flips % 2 == 0, extra + low, span - extra + low))


def _is_tied(place: Array, drift: float) -> bool:
    """Whether a voxel lies so near the middle between two that the drift decides which is nearest."""
    return bool((np.abs(place - np.floor(place) - 0.5) <= 2 * drift + _TIED_VOXELS).any())


def _line(place: Array, n: int, how: _How) -> _Line:
    if how.mode == "nearest":
        place = np.rint(place)
    whole = np.rint(place)
    place = np.where(np.abs(place - whole) < _SNAP_VOXELS, whole, place)
    fade = np.clip(1 - np.maximum(-place, place - (n - 1)), 0, 1).astype(np.float32)
    place = np.clip(place, 0, n - 1)
    low = np.floor(place).astype(np.intp)
    weight = (place - low).astype(np.float32)
    return _Line(
        low=low,
        high=np.minimum(low + 1, n - 1),
        weight=weight if weight.any() else None,
        fade=fade if how.padding == "zeros" and (fade < 1).any() else None,
        unchanged=np.array_equal(low, np.arange(n)) and not weight.any(),
    )


def _with_voxels(out: torch.Tensor, image: torch.Tensor, axes: list[int], lines: list[_Line]) -> torch.Tensor:
    """The resampled image, with the metadata of `out`, whose trace learns the size of the input."""
    tensor = image.as_tensor() if isinstance(image, MetaTensor) else image
    turned = tensor.to(torch.float32).numpy().transpose(0, *(axis + 1 for axis in axes))
    volumes = np.ascontiguousarray(turned)  # at half the cost of torch's
    voxels = np.empty((len(volumes), *(len(line.low) for line in lines)), dtype=np.float32)
    for volume, resampled in zip(volumes, voxels, strict=True):
        _resample(volume, lines, resampled)
    result: torch.Tensor = convert_to_tensor(voxels, track_meta=get_track_meta())
    if isinstance(result, MetaTensor):
        result.copy_meta_from(out)
        before, size = (), image.shape[1:]
        if isinstance(image, MetaTensor):
            before, size = image.applied_operations, image.peek_pending_shape()
        if len(result.applied_operations) > len(before):
            result.applied_operations[-1][TraceKeys.ORIG_SIZE] = size
    return result


def _resample(volume: Volume, lines: Sequence[_Line], out: Volume) -> None:
    """Interpolates a volume `(X, Y, Z)` along its three axes into `out`, one plane of the first at a time."""
    first, second, third = lines
    weights = np.zeros(len(out), np.float32) if first.weight is None else first.weight
    for index, (low, high, weight) in enumerate(zip(first.low, first.high, weights, strict=True)):
        plane = volume[low]
        if weight:
            plane = plane + weight * (volume[high] - plane)
        out[index] = _along(_along(plane, second, 0), third, 1)
    for axis, line in enumerate(lines):
        if line.fade is not None:
            faded = np.flatnonzero(line.fade < 1)
            np.moveaxis(out, axis, 0)[faded] *= line.fade[faded, None, None]


def _along(plane: Volume, line: _Line, axis: int) -> Volume:
    """Interpolates a plane `(M, N)` along one axis; where nothing changes, values stay exactly as they are."""
    if line.unchanged:
        return plane
    low = np.take(plane, line.low, axis=axis)
    if line.weight is None:
        return low
    high = np.take(plane, line.high, axis=axis)
    high -= low
    high *= line.weight[:, None] if axis == 0 else line.weight
    low += high
    return low
