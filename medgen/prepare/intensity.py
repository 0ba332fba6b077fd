"""Intensities as read become intensities as a network wants them, and back; background stays exactly 0.

MR units are arbitrary, so images are scaled by what they show. The same rules serve a whole head and a bare brain,
any unit, and files whose interpolation left negative voxels.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy.ndimage import binary_fill_holes, gaussian_filter
from torch import Tensor

from medgen.errors import IntensityError
from medgen.geometry import spacing_mm

Volume = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

FOREGROUND_FRACTION = 0.1
SOURCE_PERCENTILE = 75.0
SOURCE_CEILING = 4.0
TARGET_MIDDLE, TARGET_TOP_PERCENTILE = 0.3, 99.5
HU_RANGE, HU_PER_UNIT = (-1024.0, 3071.0), 1000.0
_HEAD_SMOOTHING_MM, _HEAD_LEVEL = 3.0, 0.2
_NOISE_FACTOR = 4.0  # times its median, Rayleigh noise exceeds it once in a hundred thousand voxels


def foreground(volume: Volume) -> Mask:
    """Returns where a magnitude image is above a tenth of the mean of its positive voxels.

    Raises:
        IntensityError: if nothing is.
    """
    positive = volume[volume > 0]
    if positive.size == 0:
        raise IntensityError("expected an image with positive voxels, got none; is this a magnitude image?")
    return np.asarray(volume > FOREGROUND_FRACTION * positive.mean(dtype=np.float64), dtype=np.bool_)


def head_mask(volume: Volume, spacing: Sequence[float]) -> Mask:
    """Returns the head (or the bare brain) without holes, and without the exact zeros that surround a stripped brain.

    Args:
        volume: `(X, Y, Z)`.
        spacing: of its voxels `[mm]`.
    """
    smooth = gaussian_filter(volume.clip(0), [_HEAD_SMOOTHING_MM / s for s in spacing])
    positive = volume[foreground(volume)]
    tissue = float(positive[positive >= positive.mean()].mean())
    rough = smooth > _HEAD_LEVEL * tissue
    # Air is 0 in a stripped or cleaned image, and noise in one that comes from the scanner.
    air = volume[~rough]
    noise = _NOISE_FACTOR * float(np.median(air)) if air.size else 0.0
    whole = binary_fill_holes(rough | (foreground(volume) & (volume > noise)))
    return np.asarray(whole & binary_fill_holes(volume > 0), dtype=np.bool_)


def source_unit(volume: Volume) -> float:
    """Returns the 75th percentile of a magnitude image's foreground, near white matter on T1."""
    return float(np.percentile(volume[foreground(volume)], SOURCE_PERCENTILE))


def source_to_unit(volume: Volume) -> Volume:
    """Scales a source so that its `source_unit` is 1; clips to [0, 4]."""
    return np.asarray(np.clip(volume / source_unit(volume), 0.0, SOURCE_CEILING), dtype=np.float32)


def target_to_unit(volume: Volume, mask: Mask) -> Volume:
    """Maps the median in the mask (brain tissue) to 0.3 and its 99.5th percentile (fluid) to 1; clips to [0, 1]."""
    middle, top = np.percentile(volume[mask], [50.0, TARGET_TOP_PERCENTILE])
    unit = TARGET_MIDDLE + (1 - TARGET_MIDDLE) * (volume - middle) / max(float(top - middle), 1e-6)
    return np.asarray(np.clip(unit, 0.0, 1.0), dtype=np.float32)


def hu_to_unit(volume: Volume) -> Volume:
    """Scales CT numbers `[HU]` so that air is -1 and water 0; clips to what 12 bits of CT hold, -1024 to 3071 HU."""
    return np.asarray(np.clip(volume, *HU_RANGE) / HU_PER_UNIT, dtype=np.float32)


def unit_to_hu(volume: Volume) -> Volume:
    """Undoes `hu_to_unit` `[HU]`."""
    return np.asarray(np.clip(volume * HU_PER_UNIT, *HU_RANGE), dtype=np.float32)


class NormaliseSourced(MapTransform):  # type: ignore[misc]
    """Applies `source_to_unit` to each key `(1, X, Y, Z)`; `meta["unit"]` is what 1 was in the image's own values.

    Args:
        keys: magnitude images.
        level: what becomes of the percentile that `source_to_unit` takes to 1. In a whole head it lies above white
            matter, as fat and skin are bright; a network that learnt with white matter at 1 wants more than 1 here.
        allow_missing_keys: pass items without the image on.
    """

    def __init__(self, keys: Sequence[str] | str, level: float = 1.0, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.level = level

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scales each key."""
        result = dict(data)
        for key in self.key_iterator(result):
            volume = _voxels(result[key])
            result[key] = _like(result[key], source_to_unit(volume) * np.float32(self.level))
            if isinstance(result[key], MetaTensor):
                result[key].meta["unit"] = source_unit(volume) / self.level
        return result


class NormalisePaird(MapTransform):  # type: ignore[misc]
    """Makes a training pair: scales source and target and adds the mask in which they are compared.

    The mask is that of the published metric (the source's foreground where the target is positive) without its holes:
    fluid that is black on the source shall be learnt, too.

    Args:
        source_key: image that the network is given.
        target_key: image that it shall make, on the same grid.
        mask_key: where the mask goes, `(1, X, Y, Z)` of 0 and 1.
    """

    def __init__(self, source_key: str = "image", target_key: str = "target", mask_key: str = "mask") -> None:
        super().__init__([source_key, target_key])
        self.source_key, self.target_key, self.mask_key = source_key, target_key, mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scales both and adds the mask."""
        result = dict(data)
        source, target = _voxels(result[self.source_key]), _voxels(result[self.target_key])
        compared = foreground(source) & (target > 0)
        if not compared.any():
            raise IntensityError("expected source and target to overlap, but no voxel is foreground in both")
        mask = binary_fill_holes(compared) & (target > 0)
        result[self.mask_key] = _like(result[self.source_key], mask.astype(np.float32))
        result[self.target_key] = _like(
            result[self.target_key], target_to_unit(target, compared) * (mask | (source > 0))
        )
        result[self.source_key] = _like(result[self.source_key], source_to_unit(source))
        return result


class UnitToMagnituded(MapTransform):  # type: ignore[misc]
    """Turns unit intensities into a magnitude image that fits int16 well: times `scale`, never negative.

    Args:
        keys: images.
        scale: what 1 becomes; with 1000, brain tissue lies near 300 and fluid near 1000.
    """

    def __init__(self, keys: Sequence[str] | str, scale: float = 1000.0) -> None:
        super().__init__(keys)
        self.scale = scale

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scales each key."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = result[key].clamp_min(0) * self.scale
        return result


class HuToUnitd(MapTransform):  # type: ignore[misc]
    """Applies `hu_to_unit` to each key `(1, X, Y, Z)` `[HU]`."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scales each key."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = _like(result[key], hu_to_unit(_voxels(result[key])))
        return result


class UnitToHud(MapTransform):  # type: ignore[misc]
    """Turns what a network makes of `hu_to_unit` images back into CT numbers `[HU]`."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scales and clips each key."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = (result[key] * HU_PER_UNIT).clamp(*HU_RANGE)
        return result


class BlendSourced(MapTransform):  # type: ignore[misc]
    """Goes from the input towards the result as far as `strength` says, and leaves alone what no network has seen.

    Args:
        keys: results `(1, X, Y, Z)` `[HU]` on the grid of the source, made of the source clipped as `hu_to_unit` does.
        source_key: the input as it was read `[HU]`.
        strength: 0 is the input, 1 the result; every voxel moves from one to the other in a straight line.
        padding_hu: voxels of the input that are not above it, padding, stay what they are, bit for bit; so do those
            above the range of `hu_to_unit`, as in metal. Below that range, the change of what was clipped is added.

    Raises:
        IntensityError: the strength is not between 0 and 1.
    """

    def __init__(
        self, keys: Sequence[str] | str, source_key: str = "source", strength: float = 1.0, padding_hu: float = -1500.0
    ) -> None:
        super().__init__(keys)
        if not 0 <= strength <= 1:
            raise IntensityError(f"expected a strength from 0 (the input) to 1 (the result), got {strength:g}")
        self.source_key, self.strength, self.padding_hu = source_key, strength, padding_hu

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Blends each key."""
        result = dict(data)
        source = torch.as_tensor(result[self.source_key])
        unseen = (source <= self.padding_hu) | (source > HU_RANGE[1])
        for key in self.key_iterator(result):
            before = source.to(result[key])
            change = result[key] - before.clamp(*HU_RANGE)
            blended = before + self.strength * change
            result[key] = torch.where(unseen.to(blended.device), source.to(blended), blended)
        return result


class MaskBackgroundd(MapTransform):  # type: ignore[misc]
    """Sets each key to exactly 0 outside the head that `source_key`, the untouched input on the same grid, shows.

    Args:
        keys: images `(1, X, Y, Z)` on the grid of the source.
        source_key: the input as it was read.
    """

    def __init__(self, keys: Sequence[str] | str, source_key: str = "source") -> None:
        super().__init__(keys)
        self.source_key = source_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Clears the background."""
        result = dict(data)
        source = result[self.source_key]
        spacing = spacing_mm(np.asarray(source.affine)) if isinstance(source, MetaTensor) else np.ones(3)
        mask = torch.from_numpy(head_mask(_voxels(source), [float(s) for s in spacing]))[None]
        for key in self.key_iterator(result):
            result[key] = result[key] * mask.to(result[key].device)
        return result


def _voxels(volume: Tensor) -> Volume:
    plain = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
    return np.asarray(plain[0].cpu().numpy(), dtype=np.float32)


def _like(volume: Tensor, values: npt.NDArray[Any]) -> Tensor:
    fresh = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None].to(volume.device)
    if isinstance(volume, MetaTensor):
        fresh = MetaTensor(fresh, meta=volume.meta, applied_operations=volume.applied_operations)
    return fresh
