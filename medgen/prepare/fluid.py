"""Fluid that a few patients do not show: blacker on T1 than theirs, or in other places; both images of a pair agree.

Volumes are channel-first `(1, X, Y, Z)`. Draws come from `self.R`, so `set_random_state` makes them repeatable.
"""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor

from medgen.prepare.degrade import smooth_field


class RandDarkFluidd(RandomizableTransform, MapTransform):  # type: ignore[misc]
    """Another T1 preparation: fluid becomes darker, down to black as after an inversion pulse; solid tissue stays.

    Where fluid is, the T2-weighted target tells. Without this, a network that has seen black only outside of the
    brain and in bone makes large black ventricles dark.

    Args:
        key: T1-weighted image with white matter near 1.
        fluid_key: T2-weighted image of the same grid with brain tissue near 0.3 and fluid near 1.
        prob: how often.
    """

    def __init__(self, key: str = "image", fluid_key: str = "target", prob: float = 0.5) -> None:
        MapTransform.__init__(self, key)
        RandomizableTransform.__init__(self, prob)
        self.key, self.fluid_key = key, fluid_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Darkens fluid by a random share, from a random level of the target on."""
        self.randomize(None)
        result = dict(data)
        if self._do_transform:
            share, level = float(self.R.uniform(0, 1)), float(self.R.uniform(0.4, 0.55))
            result[self.key] = dark_fluid(result[self.key], result[self.fluid_key], share, level)
        return result


def dark_fluid(volume: Tensor, fluid: Tensor, share: float, level: float) -> Tensor:
    """Takes `share` (0 to 1) off a volume where `fluid` is bright: nothing below `level`, all from `level` + 0.3 on."""
    rise = ((fluid - level) / 0.3).clamp(0, 1)
    return volume * (1 - share * rise * rise * (3 - 2 * rise))


class RandCavityd(RandomizableTransform, MapTransform):  # type: ignore[misc]
    """Pockets of fluid where there was tissue: dark on T1, bright on T2, as in wide ventricles, cysts and atrophy.

    A few patients show a few shapes of fluid; random ones keep a network from learning those by heart.

    Args:
        key: T1-weighted image with white matter near 1.
        target_key: T2-weighted image of the same grid with brain tissue near 0.3 and fluid near 1.
        mask_key: where the pockets may be, positive inside.
        source_range: of the fluid on T1.
        target_range: of the fluid on T2.
        volume_range: share of the mask that the pockets fill.
        prob: how often.
    """

    def __init__(
        self,
        key: str = "image",
        target_key: str = "target",
        mask_key: str = "mask",
        source_range: tuple[float, float] = (0.0, 0.35),
        target_range: tuple[float, float] = (0.8, 1.0),
        volume_range: tuple[float, float] = (0.02, 0.12),
        prob: float = 0.2,
    ) -> None:
        MapTransform.__init__(self, [key, target_key, mask_key])
        RandomizableTransform.__init__(self, prob)
        self.levels = {key: source_range, target_key: target_range}
        self.mask_key, self.volume_range = mask_key, volume_range

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Fills the highest parts of a smooth random field with fluid; edges are soft, as partial volume makes them."""
        self.randomize(None)
        result = dict(data)
        inside = result[self.mask_key] > 0
        if not self._do_transform or not bool(inside.any()):
            return result
        side = int(self.R.randint(4, 9))
        field = smooth_field(
            torch.tensor(self.R.normal(size=(1, side, side, side)), dtype=torch.float32), inside.shape[1:]
        )
        level = float(np.quantile(field[inside][::97].numpy(), 1 - self.R.uniform(*self.volume_range)))
        share = ((field - level) / float(self.R.uniform(0.03, 0.15))).clamp(0, 1) * inside
        grain = torch.randn(share.shape, generator=torch.Generator().manual_seed(int(self.R.randint(2**31 - 1))))
        for key, (low, high) in self.levels.items():
            fluid = float(self.R.uniform(low, high)) * (1 + 0.04 * grain)
            result[key] = torch.lerp(result[key], fluid.clamp(0, 1), share)
        return result
