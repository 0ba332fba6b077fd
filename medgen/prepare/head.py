"""Pairs of MR and CT for training, drawn anew each time from the labels of a head."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable, RandomizableTransform

from medgen.geometry import spacing_mm
from medgen.prepare.intensity import hu_to_unit, unit_to_hu
from medgen.simulate.guess import guess_mr
from medgen.simulate.head import Person, head_fields, head_fractions, random_ct, random_mr, shrink_brain
from medgen.simulate.signal import add_rician_noise
from medgen.simulate.template import cormack_to_hu, halve_voxels, template_labels


class HeadFieldsd(MapTransform):  # type: ignore[misc]
    """Turns labels of a head `(1, X, Y, Z)` into the fields of `medgen.simulate.head`, `(6, X, Y, Z)` in float16.

    Args:
        keys: label maps, RAS.
        voxel_mm: of the fields; labels finer by a whole factor become partial volumes.
        allow_missing_keys: pass items without labels on as they are.
    """

    def __init__(self, keys: str | list[str], voxel_mm: float = 1.0, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.voxel_mm = voxel_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Computes the fields; once a head, if a dataset caches them."""
        result = dict(data)
        for key in self.key_iterator(result):
            labels = result[key]
            spacing = spacing_mm(np.asarray(labels.affine)) if isinstance(labels, MetaTensor) else np.ones(3)
            factor = max(1, round(self.voxel_mm / float(spacing.min())))
            fields = head_fields(np.asarray(labels[0]), float(spacing.mean()), factor)
            result[key] = torch.from_numpy(fields.astype(np.float16))
        return result


class TemplateFieldsd(MapTransform):  # type: ignore[misc]
    """Turns an averaged CT and the maps of its brain into the fields of `medgen.simulate.head`, `(6, X, Y, Z)`.

    Args:
        ct_key: CT in Cormack units `(1, X, Y, Z)`, RAS, isotropic.
        map_keys: where the fractions of fluid, grey and white matter are, by `csf`, `grey` and `white`.
        fields_key: where the fields go, float16.
        voxel_mm: of the fields; coarser volumes are interpolated to half their spacing, once or more.
        allow_missing_keys: pass items without such a CT on as they are.
    """

    def __init__(
        self,
        ct_key: str = "ct",
        map_keys: Mapping[str, str] | None = None,
        fields_key: str = "head",
        voxel_mm: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        self.map_keys = dict(map_keys or {name: name for name in ("csf", "grey", "white")})
        super().__init__([ct_key, *self.map_keys.values()], allow_missing_keys)
        self.ct_key, self.fields_key, self.voxel_mm = ct_key, fields_key, voxel_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Labels the head and computes the fields."""
        result = dict(data)
        if self.allow_missing_keys and self.ct_key not in result:
            return result
        spacing = float(spacing_mm(np.asarray(result[self.ct_key].affine)).mean())
        halvings = max(0, round(np.log2(spacing / self.voxel_mm)))
        volumes = {key: np.asarray(result.pop(key)[0]) for key in self.keys}
        for _ in range(halvings):
            volumes = {key: halve_voxels(volume) for key, volume in volumes.items()}
        maps = {name: volumes[key] for name, key in self.map_keys.items()}
        labels = template_labels(cormack_to_hu(volumes[self.ct_key]), maps)
        fields = head_fields(labels, spacing / 2**halvings)
        result[self.fields_key] = torch.from_numpy(fields.astype(np.float16))
        return result


class RandShrunkBraind(RandomizableTransform, MapTransform):  # type: ignore[misc]
    """Widens the fluid between brain and skull in fields `(6, X, Y, Z)`, as `medgen.simulate.head.shrink_brain` does.

    Args:
        keys: fields, cut and deformed or not.
        voxel_mm: of the fields.
        max_gap_mm: the widest gap, on average over a head; from 0 on, all are as likely.
        prob: share of heads that are changed.
        allow_missing_keys: pass items without fields on as they are.
    """

    def __init__(
        self,
        keys: str | list[str],
        voxel_mm: float = 1.0,
        max_gap_mm: float = 8.0,
        prob: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        RandomizableTransform.__init__(self, prob)
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.voxel_mm, self.max_gap_mm = voxel_mm, max_gap_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Shrinks the brain, or leaves it."""
        result = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return result
        for key in self.key_iterator(result):
            rng = np.random.default_rng(int(self.R.randint(2**31 - 1)))
            fields = torch.as_tensor(result[key]).float().numpy()
            gap_mm = float(rng.uniform(0, self.max_gap_mm))
            result[key] = torch.from_numpy(shrink_brain(fields, gap_mm, rng, self.voxel_mm))
        return result


class RandHeadd(Randomizable, MapTransform):  # type: ignore[misc]
    """Draws a person from fields, and shows him to an MR scanner and to a CT; `mask`, where to compare, is everywhere.

    Args:
        keys: fields `(6, X, Y, Z)`, cut and deformed or not.
        image_key: where the MR goes, `(1, X, Y, Z)`, white matter near 1.
        target_key: where the CT goes, `(1, X, Y, Z)`, `[HU]` as `hu_to_unit` scales it.
        voxel_mm: of the fields.
        scale: the MR's factor lies between 1 - scale and 1 + scale.
        noise: largest standard deviation of the MR's noise; one image in five has none, and an empty background.
        variety: how widely people are drawn, 0 to 1; see `Person.draw`.
        allow_missing_keys: pass items without fields on, with a mask if they have an image.
    """

    def __init__(
        self,
        keys: str | list[str],
        image_key: str = "image",
        target_key: str = "target",
        voxel_mm: float = 1.0,
        scale: float = 0.3,
        noise: float = 0.06,
        variety: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.image_key, self.target_key = image_key, target_key
        self.voxel_mm, self.scale, self.noise, self.variety = voxel_mm, scale, noise, variety

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replaces the fields by a pair and its mask."""
        result = dict(data)
        for key in self.key_iterator(result):
            fields = torch.as_tensor(result.pop(key)).float().numpy()
            rng = np.random.default_rng(int(self.R.randint(2**31 - 1)))
            fractions = head_fractions(fields, Person.draw(rng, self.variety), rng, self.voxel_mm)
            image = random_mr(fractions, rng, self.variety, self.voxel_mm)
            image *= np.float32(rng.uniform(1 - self.scale, 1 + self.scale))
            if rng.uniform() > 0.2:
                image = add_rician_noise(image, float(rng.uniform(0, self.noise)), rng)
            result[self.image_key] = torch.from_numpy(image)[None]
            result[self.target_key] = torch.from_numpy(hu_to_unit(random_ct(fractions, rng, self.voxel_mm)))[None]
        if self.image_key in result and "mask" not in result:
            result["mask"] = torch.ones_like(torch.as_tensor(result[self.image_key]))
        return result


class RandGuessd(Randomizable, MapTransform):  # type: ignore[misc]
    """Puts a guess at the MR, as `medgen.simulate.guess.guess_mr` draws it, beside each CT.

    Args:
        keys: CT `(1, X, Y, Z)` as `hu_to_unit` scales it.
        guess_key: where the guess goes, same shape.
        variety: how widely scanners are drawn, 0 to 1; see `random_mr`.
        voxel_mm: of the CT.
        allow_missing_keys: pass items without CT on as they are.
    """

    def __init__(
        self,
        keys: str | list[str],
        guess_key: str = "guess",
        variety: float = 1.0,
        voxel_mm: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.guess_key, self.variety, self.voxel_mm = guess_key, variety, voxel_mm

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Draws the guess."""
        result = dict(data)
        for key in self.key_iterator(result):
            rng = np.random.default_rng(int(self.R.randint(2**31 - 1)))
            ct = unit_to_hu(torch.as_tensor(result[key])[0].float().numpy())
            result[self.guess_key] = torch.from_numpy(guess_mr(ct, rng, self.variety, self.voxel_mm))[None]
        return result
