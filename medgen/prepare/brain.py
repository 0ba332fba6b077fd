"""Where the brain is, in T2-like MR of a head with or without skull: the dark gap around it sets it apart.

On FLAIR bone and fluid are dark, on T2 bone is. What is bright enough falls into the brain and a shell of scalp once
the thin bridges between them (vessels, nerves, dura) are worn away; what is left in the middle then grows back.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy.ndimage import binary_closing, gaussian_filter, label, maximum

from medgen.errors import IntensityError
from medgen.geometry import spacing_mm
from medgen.prepare.brain_shape import distance_mm, read_shape, within_shape

Volume = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

SMALLEST_BRAIN_ML, LARGEST_BRAIN_ML = 50.0, 2300.0  # a slab of a brain is enough
FOUND_FLAG = "brain-found"  # in a whole head, by rule: scalp may have come along
_BARE_ZEROS = 0.35  # so much of a stripped image, but not of its box, is exactly one value
_DARK = 0.4  # of the usual tissue, below which a voxel is bone, air or (on FLAIR) fluid
_FEW_NEGATIVE = 0.05  # what interpolation and filters leave
_THICK_SHARE = 0.6
_COARSE_MM, _SURFACE_MM, _OF_THE_SURFACE = 2.0, 4.0, 0.25
_BRIDGES_MM = (3.0, 4.5, 6.0, 8.0)  # thickness of what still joins brain and scalp, tried in turn


def find_brain(volume: Volume, spacing: Sequence[float]) -> Mask:
    """Returns the brain in T2-like MR `(X, Y, Z)`, with the fluid within it.

    An image that is empty around the brain (stripped) is taken as it is, unless there is a head around it.

    Args:
        volume: FLAIR or T2, magnitude.
        spacing: of its voxels [mm].

    Raises:
        IntensityError: nothing in it is as large as a brain and set apart from the rest.
    """
    voxel_ml = float(np.prod(spacing)) / 1000
    bare = _bare_brain(volume, voxel_ml)
    if bare is not None and not _in_a_head(volume, bare, spacing):
        return _plausible(bare, voxel_ml)
    best, _ = _searched(volume, spacing)
    if best is None:
        raise IntensityError(
            "expected a brain set apart from the skull by a dark gap, found none; strip the scan first"
        )
    return _plausible(best, voxel_ml)


def _searched(volume: Volume, spacing: Sequence[float]) -> tuple[Mask | None, bool]:
    """What is thick and, once bridges are cut, alone; and whether a dark gap is around it, or it is the last guess."""
    voxel_ml = float(np.prod(spacing)) / 1000
    smooth = gaussian_filter(volume.clip(0), [0.7 / s for s in spacing])
    tissue = smooth > _DARK * _usual(smooth)
    deep = distance_mm(~tissue, spacing)
    steps = np.maximum(1, np.round(4.0 / np.asarray(spacing))).astype(int)
    best = None
    for bridge in _BRIDGES_MM:
        core = _thickest(deep, bridge)
        if core is None:
            continue
        grown = (distance_mm(core, spacing) <= bridge + 0.5) & tissue
        best = _filled(_closed(grown, steps))
        if best.sum() * voxel_ml <= LARGEST_BRAIN_ML and _apart(best, tissue, spacing):
            return best, True
    return best, False


def _in_a_head(volume: Volume, filled: Mask, spacing: Sequence[float]) -> bool:
    """Says whether what is empty around it is a head whose air was set to 0: then its surface is not its brain's."""
    every = tuple(slice(None, None, max(1, round(_COARSE_MM / step))) for step in spacing)
    coarse = [step * (part.step or 1) for step, part in zip(spacing, every, strict=True)]
    inner, apart = _searched(volume[every], coarse)
    if inner is None or not apart:
        return False
    whole = filled[every]
    depth = distance_mm(~np.pad(whole, ((1, 1), (1, 1), (0, 0))), coarse)[1:-1, 1:-1]  # slabs have no ends
    surface = whole & (depth <= _SURFACE_MM)
    return bool((inner & surface).sum() < _OF_THE_SURFACE * surface.sum())


def _bare_brain(volume: Volume, voxel_ml: float) -> Mask | None:
    """The brain of an image that is empty around it; None where it is not.

    A head whose background was cleaned is empty around it, too, but larger than any brain.
    """
    lowest = volume.min()
    empty = volume <= lowest if (volume <= lowest).mean() >= _BARE_ZEROS else volume == 0
    if empty.mean() < _BARE_ZEROS:
        return None
    filled = _filled(~empty)
    return filled if filled.sum() * voxel_ml <= LARGEST_BRAIN_ML else None


def _usual(volume: Volume) -> float:
    """What tissue usually shows: the median of what is above the mean of what is not empty."""
    positive = volume[volume > 0]
    if positive.size == 0:
        raise IntensityError("expected an image with positive voxels, got none; is this a magnitude image?")
    return float(np.median(positive[positive >= positive.mean()]))


def _thickest(deep: Volume, bridge: float) -> Mask | None:
    """The largest of the parts that go about as deep as any: a scalp is wide, but not thick."""
    parts, count = label(deep > bridge)
    if count == 0:
        return None
    depths = np.asarray(maximum(deep, parts, index=np.arange(1, count + 1)))
    sizes = np.where(depths >= _THICK_SHARE * depths.max(), np.bincount(parts.ravel())[1:], 0)
    return np.asarray(parts == 1 + int(sizes.argmax()), dtype=np.bool_)


def _closed(mask: Mask, steps: npt.NDArray[np.intp]) -> Mask:
    """Closes sulci and dark spots: what lies between parts of the brain belongs to it."""
    padded = np.pad(mask, [(int(s) + 1, int(s) + 1) for s in steps])
    for axis, reach in enumerate(steps):
        shape = [1, 1, 1]
        shape[axis] = 2 * int(reach) + 1
        padded = binary_closing(padded, np.ones(shape, dtype=np.bool_))
    return np.asarray(padded[tuple(slice(int(s) + 1, -int(s) - 1) for s in steps)], dtype=np.bool_)


def _apart(brain: Mask, tissue: Mask, spacing: Sequence[float]) -> bool:
    """Says whether most of what surrounds a brain is dark."""
    away = distance_mm(brain, spacing)
    around = (away > 0) & (away <= 2.0)
    return bool((tissue & around).sum() < 0.5 * around.sum())


def _filled(mask: Mask) -> Mask:
    """A mask with its holes: what of the rest does not reach the image's border."""
    parts, _ = label(~mask)
    ends = [np.take(parts, end, axis) for axis in range(3) for end in (0, -1)]
    outside = np.zeros(int(parts.max()) + 1, dtype=np.bool_)
    outside[np.concatenate([np.unique(end) for end in ends])] = True
    outside[0] = False  # the mask itself
    return np.asarray(~outside[parts], dtype=np.bool_)


def _plausible(brain: Mask, voxel_ml: float) -> Mask:
    volume_ml = float(brain.sum()) * voxel_ml
    if not SMALLEST_BRAIN_ML <= volume_ml <= LARGEST_BRAIN_ML:
        raise IntensityError(
            f"expected a brain of {SMALLEST_BRAIN_ML:.0f} to {LARGEST_BRAIN_ML:.0f} ml, found {volume_ml:.0f} ml; "
            "is this FLAIR or T2 of a head? If so, strip the skull first"
        )
    return brain


class FindBraind(MapTransform):  # type: ignore[misc]
    """Finds the brain in an image, empties what surrounds it, and puts the mask beside it.

    Where something was taken off, `meta["medgen_flags"]` of the mask says `brain-found`.

    Args:
        keys: FLAIR or T2 `(1, X, Y, Z)`.
        brain_key: where the mask goes, `(1, X, Y, Z)` of 0 and 1.
        shape: file of the average brain, 0 to 1, to which what is found in a whole head is confined, see
            `medgen.prepare.brain_shape.within_shape`; none if empty.
        allow_missing_keys: pass items without the image on.
    """

    def __init__(self, keys: str, brain_key: str = "brain", shape: str = "", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.brain_key, self.shape = brain_key, shape

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Finds the brain."""
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            affine = np.asarray(image.affine) if isinstance(image, MetaTensor) else np.eye(4)
            volume = np.asarray(image[0].cpu().numpy(), dtype=np.float32)
            brain = find_brain(volume, [float(s) for s in spacing_mm(affine)])
            if (volume[brain] < 0).mean() > _FEW_NEGATIVE:
                raise IntensityError(
                    f"expected magnitudes, 0 or more, got {(volume[brain] < 0).mean():.0%} of the brain below 0; "
                    "undo what centred them (z-scores)"
                )
            if self.shape and (volume[~brain] > 0).any():
                brain = within_shape(brain, affine, read_shape(self.shape))
            mask = torch.from_numpy(brain)[None].to(image.device)
            result[key] = image * mask
            kept = mask.to(torch.float32)
            if isinstance(image, MetaTensor):
                cut = bool(((image > 0) & ~mask).any())
                kept = MetaTensor(kept, meta={**image.meta, "medgen_flags": FOUND_FLAG if cut else ""})
            result[self.brain_key] = kept
        return result
