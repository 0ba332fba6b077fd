"""A chain of generators from coarse to fine: each refines the image of the one before, at its own resolution.

The coarse stage sees the whole window at a fraction of the cost, so most of the capacity and all of the wide context
sit there; the fine stages only add detail to what they are given. Normalisation is over the channels of one voxel,
never over space: apart from the padding at a window's rim, a voxel's output does not depend on where the window was
cut.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

_is_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]  # torch's own gap


class ChannelNorm(nn.Module):
    """Normalises the channel vector of each voxel to zero mean and unit variance, then scales and shifts it.

    Source: Ba et al., "Layer normalization", 2016, applied per voxel as in ConvNeXt (Liu et al., CVPR 2022).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels, self.epsilon = channels, 1e-5
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises `(B, C, X, Y, Z)` over C."""
        # For a converter: the same without moving axes, which would take it as long as a convolution.
        if _is_tracing():
            centred = x - x.mean(1, keepdim=True)
            variance = centred.square().mean(1, keepdim=True)
            shape = [1, -1, 1, 1, 1]
            scale = self.weight.reshape(shape) * torch.rsqrt(variance + self.epsilon)
            return centred * scale + self.bias.reshape(shape)
        last = x.permute(0, 2, 3, 4, 1)
        return functional.layer_norm(last, [self.channels], self.weight, self.bias, self.epsilon).permute(0, 4, 1, 2, 3)


class ResidualBlock(nn.Module):
    """x + conv(act(conv(norm(x)))): two 3x3x3 convolutions, channels and size unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.first = nn.Conv3d(channels, channels, 3, padding=1)
        self.second = nn.Conv3d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Refines features `(B, C, X, Y, Z)`; at the start of training, the identity."""
        hidden = functional.leaky_relu(self.first(self.norm(x)), 0.1)
        change: Tensor = self.second(hidden)
        return x + change


class StageUNet(nn.Module):
    """A small residual U-Net that adds its skips instead of joining them; the workhorse of one stage.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out.
        channels: width at each resolution, finest first; each next one has half the resolution.
        blocks: residual blocks at each resolution, on the way down; on the way up there is one.
    """

    def __init__(self, in_channels: int, out_channels: int, channels: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Conv3d(in_channels, channels[0], 3, padding=1)
        self.down = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(count)))
            for width, count in zip(channels, blocks, strict=True)
        )
        steps = list(pairwise(channels))
        self.shrink = nn.ModuleList(nn.Conv3d(fine, coarse, 2, stride=2) for fine, coarse in steps)
        # A 1x1x1 convolution and interpolation in place of a transposed convolution: no checkerboard.
        self.widen = nn.ModuleList(nn.Conv3d(coarse, fine, 1) for fine, coarse in reversed(steps))
        self.up = nn.ModuleList(ResidualBlock(fine) for fine, _ in reversed(steps))
        self.head = nn.Sequential(ChannelNorm(channels[0]), nn.Conv3d(channels[0], out_channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, in_channels, X, Y, Z)` to `(B, out_channels, X, Y, Z)`, sizes multiples of 2 ** (levels - 1)."""
        x = self.stem(x)
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            if level > 0:
                skips.append(x)
                for step, shrink in enumerate(self.shrink):
                    if step == level - 1:
                        x = shrink(x)
            x = block(x)
        for widen, block in zip(self.widen, self.up):  # noqa: B905 - TorchScript knows no strict
            x = functional.interpolate(widen(x), scale_factor=2.0, mode="trilinear", align_corners=False)
            x = block(x + skips.pop())
        image: Tensor = self.head(x)
        return image


def space_to_depth(x: Tensor, factor: int) -> Tensor:
    """Moves blocks of voxels into channels: `(B, C, X, Y, Z)` to `(B, C * factor**3, X/factor, Y/factor, Z/factor)`."""
    batch, channels, nx, ny, nz = x.shape
    x = x.reshape(batch, channels, nx // factor, factor, ny // factor, factor, nz // factor, factor)
    x = x.permute(0, 1, 3, 5, 7, 2, 4, 6)
    block = factor * factor * factor  # TorchScript's ** gives a float
    return x.reshape(batch, channels * block, nx // factor, ny // factor, nz // factor)


def depth_to_space(x: Tensor, factor: int) -> Tensor:
    """Undoes `space_to_depth`.

    Source: sub-pixel convolution, Shi et al., CVPR 2016.
    """
    batch, channels, nx, ny, nz = x.shape
    block = factor * factor * factor
    x = x.reshape(batch, channels // block, factor, factor, factor, nx, ny, nz)
    x = x.permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(batch, channels // block, nx * factor, ny * factor, nz * factor)


def average_neighbours(x: Tensor) -> Tensor:
    """Averages each voxel of `(B, C, X, Y, Z)` with its lower neighbour along every axis, mirrored at the rim.

    What alternates from voxel to voxel, as the phases of a sub-pixel convolution can, averages to exactly nothing.
    Source: the zero-order hold of Sugawara et al., "Checkerboard artifacts free convolutional neural networks", 2019.
    """
    return functional.avg_pool3d(functional.pad(x, [1, 0, 1, 0, 1, 0], mode="reflect"), 2, stride=1)


class CoarseStage(nn.Module):
    """Sees the source averaged to 1/`factor` of its resolution and makes the first image there.

    Args:
        factor: how much coarser than the window it works.
        channels: widths of its U-Net.
        blocks: residual blocks at each width.
    """

    def __init__(self, factor: int, channels: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        self.factor = factor
        self.unet = StageUNet(1, 1, channels, blocks)

    def forward(self, source: Tensor) -> Tensor:
        """Maps the source `(B, 1, X, Y, Z)` to a coarse image `(B, 1, X/factor, Y/factor, Z/factor)`."""
        image: Tensor = self.unet(functional.avg_pool3d(source, self.factor))
        return image


class RefiningStage(nn.Module):
    """Adds to the coarser image the detail that the source shows at full resolution.

    Both images enter with their `factor` cubed blocks as channels, so its convolutions run on the coarse grid yet
    lose nothing.

    Args:
        factor: how much finer its output is than the image it is given.
        channels: widths of its U-Net.
        blocks: residual blocks at each width.
        antialias: average the detail with its neighbours, so that no pattern of the blocks' size is left in it. Edges
            of a voxel's width go with it.
        polish: features of each voxel that two more convolutions see at full resolution, beside both images; they
            sharpen edges, and can undo a pattern of the blocks themselves. 0 leaves them out.
    """

    def __init__(
        self, factor: int, channels: Sequence[int], blocks: Sequence[int], antialias: bool = False, polish: int = 0
    ) -> None:
        super().__init__()
        self.factor = factor
        self.antialias = antialias
        self.polishes = polish > 0
        self.unet = StageUNet(2 * factor**3, (1 + polish) * factor**3, channels, blocks)
        self.polish = nn.Sequential()
        if self.polishes:
            last = nn.Conv3d(2 * polish, 1, 3, padding=1)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]
            self.polish = nn.Sequential(nn.Conv3d(polish + 3, 2 * polish, 3, padding=1), nn.LeakyReLU(0.1), last)

    def forward(self, source: Tensor, coarse: Tensor) -> Tensor:
        """Refines `coarse` `(B, 1, X/factor, ...)` to `(B, 1, X, Y, Z)` with the source `(B, 1, X, Y, Z)`."""
        scale = float(self.factor)
        upsampled = functional.interpolate(coarse, scale_factor=scale, mode="trilinear", align_corners=False)
        detail = self.unet(space_to_depth(torch.cat([source, upsampled], dim=1), self.factor))
        features = depth_to_space(detail, self.factor)
        detail = features[:, :1]
        if self.antialias:
            detail = average_neighbours(detail)
        if self.polishes:
            detail = detail + self.polish(torch.cat([features, source, upsampled], dim=1))
        refined: Tensor = upsampled + detail
        return refined


class CascadeGenerator(nn.Module):
    """Two generators, one behind the other: a coarse image with wide context, then its refinement.

    Args:
        coarse_channels: widths of the coarse stage's U-Net, finest first.
        coarse_blocks: its residual blocks at each width.
        fine_channels: widths of the refining stage's U-Net.
        fine_blocks: its residual blocks at each width.
        factor: resolution of the fine stage over that of the coarse one.
        antialias: keep the refining stage from leaving a checkerboard of `factor` voxels; see `RefiningStage`.
        polish: features that the refining stage sees at full resolution; see `RefiningStage`.
    """

    def __init__(
        self,
        coarse_channels: Sequence[int] = (32, 64, 128),
        coarse_blocks: Sequence[int] = (1, 1, 1),
        fine_channels: Sequence[int] = (32, 64),
        fine_blocks: Sequence[int] = (1, 1),
        factor: int = 2,
        antialias: bool = False,
        polish: int = 0,
    ) -> None:
        super().__init__()
        self.coarse = CoarseStage(factor, coarse_channels, coarse_blocks)
        self.fine = RefiningStage(factor, fine_channels, fine_blocks, antialias, polish)

    def forward(self, source: Tensor) -> Tensor:
        """Maps a source `(B, 1, X, Y, Z)` to its translation, same shape; sizes are multiples of 8."""
        image: Tensor = self.fine(source, self.coarse(source))
        return image

    def first(self, source: Tensor) -> list[Tensor]:
        """Returns the first stage's image of a source that is as coarse as that stage sees it, same shape.

        To train it alone before the chain: a window of so many voxels shows `factor` cubed times as much.
        """
        image: Tensor = self.coarse.unet(source)
        return [image]

    def chain(self, source: Tensor) -> list[Tensor]:
        """Returns the image of every stage, coarse to fine, for losses that supervise each."""
        coarse = self.coarse(source)
        return [coarse, self.fine(source, coarse)]

    def refine(self, source: Tensor) -> list[Tensor]:
        """Returns what `chain` does, with no gradient for the first stage.

        To train the second stage alone: windows at full resolution show less of a head than the first stage was
        trained on, and it would forget what it learnt from larger ones.
        """
        with torch.no_grad():
            coarse = self.coarse(source)
        return [coarse, self.fine(source, coarse)]
