"""Square patches of flattened B-scans, each a little different from every other: what a patch network learns from."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor
from torch.nn import functional


class RandPatchd(RandomizableTransform, MapTransform):  # type: ignore[misc]  # MONAI is untyped
    """Draws a patch from a random place of a flattened B-scan: mirrored, stretched, tilted, and lit differently.

    Depth is stretched about Bruch's membrane, which stays where it is but for a small shift: retinas differ in
    thickness. Brightness changes as gain and gamma of the values above the vitreous, which stays at -1.

    Args:
        keys: bands `(1, X, rows, Z)` of `FlattenRetinad`; a patch is of one B-scan, `(1, width, rows)`.
        width: of a patch [columns].
        below: rows of the band below Bruch's membrane.
        stretch: largest relative change along the retina.
        thicken: the same in depth.
        shift: standard deviation of the shift in depth [rows].
        tilt: standard deviation of the change of depth along a patch [rows].
        gain: standard deviation of the logarithm of the gain.
        gamma: standard deviation of the logarithm of gamma.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - each is one way in which normal retinas differ
        self,
        keys: str,
        width: int = 64,
        below: float = 11.0,
        stretch: float = 0.25,
        thicken: float = 0.1,
        shift: float = 0.6,
        tilt: float = 1.0,
        gain: float = 0.06,
        gamma: float = 0.12,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, 1.0)
        self.width, self.below, self.stretch, self.thicken = width, below, stretch, thicken
        self.shift, self.tilt, self.gain, self.gamma = shift, tilt, gain, gamma

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Draws one patch."""
        result = dict(data)
        for key in self.key_iterator(result):
            band = torch.as_tensor(result[key]).as_subclass(Tensor)
            plane = band[..., int(self.R.randint(band.shape[-1]))]
            gain, gamma = np.exp(self.R.normal(0, self.gain)), np.exp(self.R.normal(0, self.gamma))
            unit = (self._cut(plane) + 1).clamp_min(0) / 2
            result[key] = (gain * unit**gamma).clamp_max(1) * 2 - 1
        return result

    def _cut(self, plane: Tensor) -> Tensor:
        columns, rows = plane.shape[1:]
        along = self.R.uniform(1 - self.stretch, 1 + self.stretch) * self.R.choice([-1, 1])
        deep = self.R.uniform(1 - self.thicken, 1 + self.thicken)
        reach = min(abs(along) * self.width / 2, columns / 2)
        centre = self.R.uniform(reach, columns - reach)
        bruch = rows - self.below
        x = torch.arange(self.width) + 0.5 - self.width / 2
        y = torch.arange(rows) + 0.5 - bruch
        lateral = (centre + float(along) * x)[:, None].expand(-1, rows)
        depth = bruch + float(deep) * y[None] + float(self.R.normal(0, self.shift))
        depth = depth + float(self.R.normal(0, self.tilt)) * (x / self.width)[:, None]
        grid = torch.stack([2 * depth / rows - 1, 2 * lateral / columns - 1], dim=-1)
        return functional.grid_sample(plane[None], grid[None].float(), padding_mode="border", align_corners=False)[0]
