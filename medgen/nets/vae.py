"""Variational autoencoders of volumes: the code is a coarse grid of vectors (spatial), or one vector (dense).

MONAI has both (`AutoencoderKL`, `VarAutoEncoder`). These differ in two ways that scoring anomalies rests on: `forward`
draws nothing, in any mode; and convolutions run on half the resolution or less, voxels becoming channels and back,
which is what makes a training on a CPU bearable.

Source: Kingma and Welling, "Auto-encoding variational Bayes", ICLR 2014; spatial codes, Rombach et al., CVPR 2022.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from medgen.nets.cascade import depth_to_space, space_to_depth

_FIRST_LOG_VARIANCE = -6.0  # a code that begins as noise is given up before it is used


class SpatialVAE(nn.Module):
    """Codes a volume as a grid of vectors: any size that is a multiple of `factor` has its code.

    Args:
        in_channels: of the volume.
        out_channels: of its reconstruction: with two, the second can say how far off the first may be.
        channels: width at each resolution; the first works at half of the volume's, each next one at half of the last.
        blocks: residual blocks at each resolution, in the encoder and in the decoder.
        latent_channels: length of a vector of the code.
    """

    def __init__(
        self,
        in_channels: int = 2,
        out_channels: int = 2,
        channels: Sequence[int] = (48, 96),
        blocks: Sequence[int] = (1, 3),
        latent_channels: int = 32,
    ) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.factor = 2 ** len(channels)
        steps = [nn.Identity(), *(nn.Conv3d(fine, coarse, 2, stride=2) for fine, coarse in pairwise(channels))]
        self.stem = nn.Conv3d(8 * in_channels, channels[0], 3, padding=1)
        self.down = nn.Sequential(
            *(nn.Sequential(step, *_blocks(n, c)) for step, c, n in zip(steps, channels, blocks, strict=True)),
            _norm(channels[-1]),
        )
        self.mean = nn.Conv3d(channels[-1], latent_channels, 1)
        self.log_variance = nn.Conv3d(channels[-1], latent_channels, 1)
        _start_at(self.log_variance, _FIRST_LOG_VARIANCE)
        self.start = nn.Conv3d(latent_channels, channels[-1], 3, padding=1)
        grow = [nn.Identity(), *(_Twice(coarse, fine) for coarse, fine in pairwise(reversed(channels)))]
        self.up = nn.Sequential(
            *(
                nn.Sequential(step, *_blocks(n, c))
                for step, c, n in zip(grow, reversed(channels), reversed(blocks), strict=True)
            ),
            _norm(channels[0]),
        )
        self.head = nn.Conv3d(channels[0], 8 * out_channels, 3, padding=1)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and log variance of the code `(B, L, X/factor, Y/factor, Z/factor)` of `(B, C, X, Y, Z)`."""
        hidden = functional.silu(self.down(self.stem(space_to_depth(image, 2))))
        return self.mean(hidden), self.log_variance(hidden).clamp(-20.0, 10.0)

    def decode(self, latent: Tensor) -> Tensor:
        """Returns the volume `(B, C_out, X, Y, Z)` of a code."""
        hidden = functional.silu(self.up(self.start(latent)))
        return depth_to_space(self.head(hidden), 2)

    def forward(self, image: Tensor) -> Tensor:
        """Returns the reconstruction `(B, C_out, X, Y, Z)` from the mean of the code; nothing is drawn."""
        return self.decode(self.encode(image)[0])

    def code_shape(self, size: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of one code of a volume of this size, without the batch.

        Raises:
            ValueError: the size is not a multiple of the factor.
        """
        if any(side % self.factor for side in size):
            raise ValueError(f"expected sides that are multiples of {self.factor}, got {tuple(size)}")
        return (self.latent_channels, *(side // self.factor for side in size))


class DenseVAE(nn.Module):
    """Codes a window of one size as one vector, from which the decoder has to make it all.

    Args:
        shape: of the window, each side a multiple of `2 ** len(channels)`.
        in_channels: see `SpatialVAE`.
        out_channels: see `SpatialVAE`.
        channels: see `SpatialVAE`.
        blocks: see `SpatialVAE`.
        latent: length of the vector.
    """

    def __init__(
        self,
        shape: Sequence[int],
        in_channels: int = 2,
        out_channels: int = 2,
        channels: Sequence[int] = (48, 96, 96, 96),
        blocks: Sequence[int] = (1, 1, 1, 1),
        latent: int = 512,
    ) -> None:
        super().__init__()
        self.latent = latent
        self.spatial = SpatialVAE(in_channels, out_channels, channels, blocks, latent_channels=channels[-1])
        self.factor = self.spatial.factor
        self.features = self.spatial.code_shape(shape)
        numbers = math.prod(self.features)
        self.mean = nn.Linear(numbers, latent)
        self.log_variance = nn.Linear(numbers, latent)
        _start_at(self.log_variance, _FIRST_LOG_VARIANCE)
        self.start = nn.Linear(latent, numbers)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and log variance of the code `(B, latent)` of `(B, C, *shape)`."""
        features = self.spatial.encode(image)[0].flatten(1)
        return self.mean(features), self.log_variance(features).clamp(-20.0, 10.0)

    def decode(self, latent: Tensor) -> Tensor:
        """Returns the volume `(B, C_out, *shape)` of a code."""
        a, b, c, d = self.features
        volume: Tensor = self.spatial.decode(self.start(latent).reshape(latent.shape[0], a, b, c, d))
        return volume

    def forward(self, image: Tensor) -> Tensor:
        """Returns the reconstruction `(B, C_out, *shape)` from the mean of the code; nothing is drawn."""
        return self.decode(self.encode(image)[0])

    def code_shape(self, size: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of one code, without the batch.

        Raises:
            ValueError: the size is not that of the window.
        """
        window = tuple(side * self.factor for side in self.features[1:])
        if tuple(size) != window:
            raise ValueError(f"expected a window of {window}, the only size that a dense code knows, got {tuple(size)}")
        return (self.latent,)


class _Block(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))): at the start of training, the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = _norm(channels), _norm(channels)
        self.first = nn.Conv3d(channels, channels, 3, padding=1)
        self.second = nn.Conv3d(channels, channels, 3, padding=1)
        _start_at(self.second, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(functional.silu(self.first_norm(x)))
        change: Tensor = self.second(functional.silu(self.second_norm(hidden)))
        return x + change


class _Twice(nn.Module):
    """Doubles the resolution: each place's channels become its eight parts."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.widen = nn.Conv3d(channels, 8 * out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return depth_to_space(self.widen(x), 2)


def _blocks(count: int, channels: int) -> list[nn.Module]:
    return [_Block(channels) for _ in range(count)]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


def _start_at(layer: nn.Conv3d | nn.Linear, value: float) -> None:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, value)
