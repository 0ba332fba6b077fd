"""A network that works on axial slices and glances at their neighbours: fast enough for a CT series on a CPU.

A thick series has little to say across slices and a thin one much; a single slice has no neighbours at all. So the
convolutions are those of a plane, and the slices next to one come in as further channels.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class PlaneBlock(nn.Module):
    """x + conv(act(conv(x))) in a plane, without normalisation: how strong noise is must not be normalised away."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="replicate")
        self.second = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="replicate")
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Refines features `(N, C, X, Y)`; at the start of training, the identity."""
        change: Tensor = self.second(functional.leaky_relu(self.first(x), 0.1))
        return x + change


class SliceDenoiser(nn.Module):
    """Predicts what to take off each slice, by a U-Net whose finest level sees 2 x 2 pixels as one.

    Moving pixels into channels (and back) loses nothing and costs a quarter. Two convolutions at full resolution end
    it, so that the blocks of 2 x 2 pixels leave no pattern. An untrained network returns its input.

    Source: residual learning of the noise as of Zhang et al., "Beyond a Gaussian denoiser", IEEE Trans Image Process
    26:3142, 2017, and of its U-Net form with pixels as channels, Zhang et al., "FFDNet", IEEE Trans Image Process
    27:4608, 2018.

    Args:
        channels: width at each level, finest first; each next one has half the resolution.
        blocks: residual blocks at each level, on the way down and again on the way up.
        neighbours: slices seen on each side; beyond the ends of a series, and for a single slice, the last one again.
        polish: features of each pixel that the last two convolutions see.
        alone: share of the slices that see themselves in place of their neighbours while the network trains. Otherwise
            it learns that what neighbours share is anatomy, and leaves the noise of a single slice, whose neighbours
            are itself, where it is.
    """

    def __init__(
        self,
        channels: Sequence[int] = (48, 64, 96),
        blocks: Sequence[int] = (1, 1, 2),
        neighbours: int = 1,
        polish: int = 8,
        alone: float = 0.0,
    ) -> None:
        super().__init__()
        self.neighbours, self.alone = neighbours, alone
        slab = 2 * neighbours + 1
        steps = list(pairwise(channels))
        self.stem = nn.Conv2d(4 * slab, channels[0], 3, padding=1, padding_mode="replicate")
        self.down = nn.ModuleList(_chain(width, count) for width, count in zip(channels, blocks, strict=True))
        self.shrink = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in steps)
        self.widen = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in reversed(steps))
        self.up = nn.ModuleList(
            _chain(width, count) for width, count in reversed(list(zip(channels[:-1], blocks[:-1], strict=True)))
        )
        self.head = nn.Conv2d(channels[0], 4 * polish, 1)
        self.detail = nn.Conv2d(polish + slab, 2 * polish, 3, padding=1, padding_mode="replicate")
        self.noise = nn.Conv2d(2 * polish, 1, 3, padding=1, padding_mode="replicate")
        nn.init.zeros_(self.noise.weight)
        nn.init.zeros_(self.noise.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """Denoises `(B, 1, X, Y, Z)`, slices along Z; X and Y are multiples of 2 ** levels."""
        batch, _, x, y, z = image.shape
        slabs = self._slabs(image)
        skips = self._descend(slabs)
        features = skips.pop()
        for widen, block in zip(self.widen, self.up):  # noqa: B905 - TorchScript knows no strict
            wide = functional.interpolate(widen(features), scale_factor=2.0, mode="bilinear", align_corners=False)
            features = block(wide + skips.pop())
        pixels = torch.cat([functional.pixel_shuffle(self.head(features), 2), slabs], dim=1)
        noise = self.noise(functional.leaky_relu(self.detail(pixels), 0.1))
        denoised: Tensor = image - noise.reshape(batch, z, 1, x, y).permute(0, 2, 3, 4, 1)
        return denoised

    def features(self, image: Tensor) -> list[Tensor]:
        """Returns what is seen on the way down in every slice, finest first: `(B * Z, channels, X / 2, Y / 2)`, ..."""
        return self._descend(self._slabs(image))

    def _descend(self, slabs: Tensor) -> list[Tensor]:
        features = self.stem(functional.pixel_unshuffle(slabs, 2))
        seen: list[Tensor] = []
        for level, block in enumerate(self.down):
            if level > 0:
                for step, shrink in enumerate(self.shrink):  # TorchScript knows no index of a module list
                    if step == level - 1:
                        features = shrink(features)
            features = block(features)
            seen.append(features)
        return seen

    def _slabs(self, image: Tensor) -> Tensor:
        """Lays each slice with its neighbours into channels: `(B, 1, X, Y, Z)` to `(B * Z, slab, X, Y)`."""
        batch, _, x, y, z = image.shape
        n = self.neighbours
        places = torch.arange(z, device=image.device)
        parts = [image.index_select(4, (places + shift).clamp(0, z - 1)) for shift in range(-n, n + 1)]
        slabs: Tensor = torch.cat(parts, dim=1).permute(0, 4, 1, 2, 3).reshape(batch * z, 2 * n + 1, x, y)
        if self.training and self.alone > 0:
            alone = torch.rand(batch * z, 1, 1, 1, device=image.device) < self.alone
            slabs = torch.where(alone, slabs[:, n : n + 1].expand_as(slabs), slabs)
        return slabs


def _chain(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(PlaneBlock(channels) for _ in range(count)))
