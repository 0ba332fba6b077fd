"""What a network is taught normal anatomy by: scans without their lesions, and with lesions that it shall take away.

Volumes are channel-first `(1, X, Y, Z)`. Draws come from `self.R`, so `set_random_state` makes them repeatable.
"""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from scipy.ndimage import distance_transform_edt, label, median_filter
from torch import Tensor

from medgen.errors import IntensityError
from medgen.geometry import spacing_mm
from medgen.simulate.brain_mr import CONTRASTS, random_brain_mr
from medgen.simulate.lesion import LesionRange, add_lesions, draw_lesions

Volume = npt.NDArray[np.float32]

_TISSUES = ("csf", "grey", "white")
_SOLID = 0.55  # of usual tissue: below it a voxel is fluid (on FLAIR) or air, where no lesion has its middle
_BACKGROUND_WEIGHT = 0.1
_SHADES = {"FLAIR": (1.05, 2.0), "T2w": (0.9, 2.2)}  # of the middle of a lesion, usual tissue near 1


class DeclareContrastd(MapTransform):  # type: ignore[misc]
    """Puts a second channel beside the image that says which contrast it is: 0 for FLAIR, 1 for T2w, everywhere.

    Args:
        keys: image `(1, X, Y, Z)`; comes back as `(2, X, Y, Z)`.
        contrast: declared for all items; empty takes each item's own `contrast`.
        otherwise: of items that have none.

    Raises:
        IntensityError: another contrast.
    """

    def __init__(self, keys: str, contrast: str = "", otherwise: str = "") -> None:
        super().__init__(keys)
        for declared in filter(None, (contrast, otherwise)):
            _number(declared)
        self.contrast, self.otherwise = contrast, otherwise

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Adds the channel."""
        result = dict(data)
        number = _number(self.contrast or str(result.get("contrast") or self.otherwise))
        for key in self.key_iterator(result):
            image = result[key]
            result[key] = torch.cat([image, torch.full_like(image, float(number))])
        return result


class NormalTissued(MapTransform):  # type: ignore[misc]
    """Makes the weight of each voxel: 1 in the brain, a tenth around it, 0 in and near lesions.

    Args:
        keys: the lesion mask `(1, X, Y, Z)`; where an item has none, all of it is normal. It is taken away.
        brain_key: the brain, positive inside.
        mask_key: where the weights go.
        margin_mm: around a lesion, of what is not normal either.
    """

    def __init__(self, keys: str, brain_key: str = "brain", mask_key: str = "mask", margin_mm: float = 2.0) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.brain_key, self.mask_key, self.margin_mm = brain_key, mask_key, margin_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Adds the weights to items that have a brain."""
        result = dict(data)
        if self.brain_key not in result:
            return result
        brain = result[self.brain_key]
        weight = torch.where(brain > 0, 1.0, _BACKGROUND_WEIGHT)
        for key in self.key_iterator(result):
            lesion = np.asarray(result.pop(key)[0]) > 0.5
            spacing = spacing_mm(np.asarray(brain.affine)) if isinstance(brain, MetaTensor) else np.ones(3)
            if lesion.any():
                near = distance_transform_edt(~lesion, spacing) <= self.margin_mm
                weight = torch.where(torch.from_numpy(near)[None], 0.0, weight)
        result[self.mask_key] = weight
        return result


class RandBrainMrd(Randomizable, MapTransform):  # type: ignore[misc]
    """Scans a brain of tissue fractions as `random_brain_mr` does; makes `image`, `brain` and `mask` of it.

    Args:
        keys: fractions of csf, grey and white matter, `(3, X, Y, Z)`; items without them pass.
        image_key: where the scan goes.
        brain_key: where the brain goes, 1 inside.
        mask_key: where the weights go, see `NormalTissued`.
        voxel_mm: size of a voxel.
    """

    def __init__(
        self,
        keys: str,
        image_key: str = "image",
        brain_key: str = "brain",
        mask_key: str = "mask",
        voxel_mm: float = 1.0,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys=True)
        self.image_key, self.brain_key, self.mask_key, self.voxel_mm = image_key, brain_key, mask_key, voxel_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replaces the fractions by a scan; its contrast is the item's, or drawn."""
        result = dict(data)
        for key in self.key_iterator(result):
            parts = dict(zip(_TISSUES, np.asarray(result.pop(key), dtype=np.float32), strict=True))
            rng = np.random.default_rng(int(self.R.randint(2**31 - 1)))
            chosen = next((one for one in CONTRASTS if one == result.get("contrast")), None)
            contrast = chosen or CONTRASTS[int(rng.integers(len(CONTRASTS)))]
            image = random_brain_mr(parts, contrast, rng, self.voxel_mm)
            brain = np.asarray(sum(parts.values())) > 0.3
            result["contrast"] = contrast
            result[self.image_key] = torch.from_numpy(image)[None]
            result[self.brain_key] = torch.from_numpy(brain.astype(np.float32))[None]
            result[self.mask_key] = torch.where(result[self.brain_key] > 0, 1.0, _BACKGROUND_WEIGHT)
        return result


class RandLesionsd(Randomizable, MapTransform):  # type: ignore[misc]
    """Makes a pair for a denoising autoencoder: the image with lesions (and noise), and as it was, the `target`.

    Args:
        keys: the image `(1, X, Y, Z)`, usual tissue near 1.
        target_key: where the clean image goes.
        brain_key: where lesions may be, positive inside.
        mask_key: weights of the voxels; those in lesions are raised by `emphasis`, as far as they count at all.
        prob: share of images with lesions.
        noise: largest standard deviation of the noise that half of the images get; the target has none of it.
        emphasis: how much more a voxel counts from which a lesion has to be taken.
        voxel_mm: size of a voxel.

    Source: denoising autoencoders, Vincent et al., ICML 2008; as anomaly detectors in brain MR, Kascenas et al., MIDL
    2022, whose coarse noise the lesions replace.
    """

    def __init__(
        self,
        keys: str,
        target_key: str = "target",
        brain_key: str = "brain",
        mask_key: str = "mask",
        prob: float = 0.85,
        noise: float = 0.05,
        emphasis: float = 2.0,
        voxel_mm: float = 1.0,
    ) -> None:
        MapTransform.__init__(self, keys)
        self.target_key, self.brain_key, self.mask_key = target_key, brain_key, mask_key
        self.prob, self.noise, self.emphasis, self.voxel_mm = prob, noise, emphasis, voxel_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Adds lesions and noise."""
        result = dict(data)
        for key in self.key_iterator(result):
            clean = torch.as_tensor(result[key])
            clean = clean.as_tensor() if isinstance(clean, MetaTensor) else clean
            rng = np.random.default_rng(int(self.R.randint(2**31 - 1)))
            image, brain = clean[0].numpy(), np.asarray(result[self.brain_key][0]) > 0.5
            result[self.target_key] = clean
            if rng.uniform() < self.prob:
                ranges = LesionRange(brightness=_SHADES[str(result.get("contrast") or "FLAIR")])
                cover, brightness = draw_lesions(brain & (image > _SOLID), rng, ranges, self.voxel_mm)
                cover = cover * brain
                image = add_lesions(image, cover, brightness, self.voxel_mm)
                result[self.mask_key] = result[self.mask_key] * (1 + self.emphasis * torch.from_numpy(cover)[None])
            if rng.uniform() < 0.5:
                noise = rng.normal(0, rng.uniform(0, self.noise), image.shape)
                image = image + np.asarray(noise * brain, dtype=np.float32)
            result[key] = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None]
        return result


class CleanHeatd(MapTransform):  # type: ignore[misc]
    """What is done to a map of scores once it is made, each step with its number: edge, median, smallest size.

    Args:
        keys: map of scores `(C, X, Y, Z)`; of further channels than the first, only the edge is cleaned.
        brain_key: the brain on the same grid, positive inside. It becomes what is left of it.
        erode_mm: of the brain's edge that is not scored: partial volume and what stripping left there. 0 keeps all.
        median: side of a median filter [voxels]; 0 or 1 for none.
        threshold: voxels above it form parts.
        least_ml: parts smaller than this are set to the threshold; 0 keeps all.
    """

    def __init__(
        self,
        keys: str,
        brain_key: str = "brain",
        erode_mm: float = 0.0,
        median: int = 0,
        threshold: float = 0.0,
        least_ml: float = 0.0,
    ) -> None:
        super().__init__(keys)
        self.brain_key, self.erode_mm, self.median = brain_key, erode_mm, median
        self.threshold, self.least_ml = threshold, least_ml

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Cleans the map; outside of what is scored it is 0."""
        result = dict(data)
        for key in self.key_iterator(result):
            heat, brain = result[key], result[self.brain_key]
            spacing = spacing_mm(np.asarray(heat.affine)) if isinstance(heat, MetaTensor) else np.ones(3)
            inside = np.asarray(brain[0].cpu()) > 0
            if self.erode_mm > 0:
                inside = (
                    np.asarray(distance_transform_edt(np.pad(inside, 1), spacing))[1:-1, 1:-1, 1:-1] > self.erode_mm
                )
            values = np.asarray(heat[0].cpu(), dtype=np.float32)
            if self.median > 1:
                values = median_filter(values, size=self.median)
            if self.least_ml > 0:
                values = _without_specks(values, self.threshold, self.least_ml / float(np.prod(spacing)) * 1000)
            rest = [np.asarray(channel.cpu(), dtype=np.float32) for channel in heat[1:]]
            kept = [np.where(inside, channel, np.float32(0)) for channel in (values, *rest)]
            clean = torch.from_numpy(np.stack(kept))
            left = torch.from_numpy(inside.astype(np.float32))[None]
            result[key], result[self.brain_key] = _like(heat, clean), _like(brain, left)
        return result


def _without_specks(values: Volume, threshold: float, least: float) -> Volume:
    parts, _ = label(values > threshold)
    small = np.bincount(parts.ravel()) < least
    small[0] = False
    return np.where(small[parts], np.float32(threshold), values)


def _number(contrast: str) -> int:
    if contrast not in CONTRASTS:
        raise IntensityError(f"expected the contrast {' or '.join(CONTRASTS)}, got {contrast!r}")
    return [str(one) for one in CONTRASTS].index(contrast)


def _like(volume: Tensor, values: Tensor) -> Tensor:
    if not isinstance(volume, MetaTensor):
        return values
    same: Tensor = MetaTensor(values, meta=volume.meta, applied_operations=volume.applied_operations)
    return same
