"""Resampling along axes: what MONAI's `Spacing` computes, where grids are parallel, at a fraction of its cost.

MONAI places every voxel by a 3-D grid of float64 coordinates. Between grids whose axes are parallel, as they are when
only the spacing is new, three interpolations of one axis each give the same values: see `medgen.prepare.planes`.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import monai
import numpy as np
import torch
from monai.config import USE_COMPILED, DtypeLike
from monai.data import MetaTensor, get_track_meta
from monai.data.utils import compute_shape_offset, to_affine_nd
from monai.transforms import Transform
from monai.utils import (
    TraceKeys,
    convert_to_numpy,
    convert_to_tensor,
    get_equivalent_dtype,
    get_torch_dtype_from_string,
)

from medgen.prepare.planes import Array, How, Way, is_place, is_unchanged, resampled, way_between

AnyTransform = TypeVar("AnyTransform", bound=Transform)

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
        how = How(str(getattr(mode, "value", mode)), str(getattr(padding_mode, "value", padding_mode)), align_corners)
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
        return _with_voxels(out, img, plan)

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
    how: How,
) -> Way | None:
    """The way to the output's grid; None where MONAI should resample, or need not."""
    affine = image.affine if isinstance(image, MetaTensor) else torch.eye(4)
    source = convert_to_numpy(affine).astype(np.float64)
    target = source if dst_affine is None else convert_to_numpy(to_affine_nd(3, dst_affine)).astype(np.float64)
    shape = tuple(image.shape[1:])
    size = _size(shape, spatial_size, source, target)
    if size is None or not is_place(source) or not is_place(target):
        return None
    if shape == size and is_unchanged(source, target):
        return None
    steps = [torch.linspace(-1, 1, n, dtype=torch.float64).numpy() for n in size]
    return way_between(source, target, shape, size, how, steps)


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


def _with_voxels(out: torch.Tensor, image: torch.Tensor, way: Way) -> torch.Tensor:
    """The resampled image, with the metadata of `out`, whose trace learns the size of the input."""
    tensor = image.as_tensor() if isinstance(image, MetaTensor) else image
    voxels = resampled(tensor.to(torch.float32).numpy(), way)
    result: torch.Tensor = convert_to_tensor(voxels, track_meta=get_track_meta())
    if isinstance(result, MetaTensor):
        result.copy_meta_from(out)
        before, size = (), image.shape[1:]
        if isinstance(image, MetaTensor):
            before, size = image.applied_operations, image.peek_pending_shape()
        if len(result.applied_operations) > len(before):
            result.applied_operations[-1][TraceKeys.ORIG_SIZE] = size
    return result
