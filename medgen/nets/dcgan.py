"""Images from noise, and a judge of single images: a DCGAN in two or three dimensions, its tricks as settings.

Source: Radford et al., "Unsupervised representation learning with deep convolutional generative adversarial networks",
ICLR 2016.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_DROPOUT = {2: nn.Dropout2d, 3: nn.Dropout3d}
_STRIDE = 2


class LatentGenerator(nn.Module):
    """Maps latents `(B, L)` to images `(B, C, ...)`, each layer twice as large as the one before.

    Group normalisation in place of the paper's batch normalisation: a sample's image then does not depend on the other
    samples of its batch, and small 3D batches do no harm.

    Args:
        latent: length of a latent; draw them from N(0, 1).
        start: size of the first feature map; the image is `2 ** len(channels)` times as large.
        channels: width of the first map and after each doubling but the last.
        out_channels: of the image.
        growth: `resize` doubles by interpolation and convolves: every output voxel has the same number of
            contributions, so no checkerboard can arise (Odena et al., Distill 2016). `transposed` is the paper's
            transposed convolution with kernel 4: divisible by its stride, or contributions overlap unevenly.
        tanh: bound the image to -1..1, for images scaled so; a linear output can run away early in a training.
    """

    def __init__(
        self,
        latent: int,
        start: Sequence[int],
        channels: Sequence[int] = (128, 64, 32),
        out_channels: int = 1,
        growth: Literal["resize", "transposed"] = "resize",
        tanh: bool = True,
    ) -> None:
        super().__init__()
        dimensions = len(start)
        if dimensions not in _CONV or growth not in {"resize", "transposed"}:
            raise ValueError(f"expected start with 2 or 3 axes and growth resize or transposed, got {start}, {growth}")
        self.tanh, self.resize = tanh, growth == "resize"
        shape = (channels[0], *start)
        self.first = nn.Sequential(nn.Linear(latent, math.prod(shape)), nn.Unflatten(1, shape))
        self.norms = nn.ModuleList(nn.GroupNorm(_groups(width), width) for width in channels)
        steps = list(pairwise([*channels, out_channels]))
        self.grow = nn.ModuleList(
            _CONV[dimensions](a, b, 3, padding=1)
            if self.resize
            else _TRANSPOSED[dimensions](a, b, 2 * _STRIDE, stride=_STRIDE, padding=1)
            for a, b in steps
        )

    def forward(self, latent: Tensor) -> Tensor:
        """Returns images `(B, out_channels, ...)`."""
        x = self.first(latent)
        for norm, layer in zip(self.norms, self.grow):  # noqa: B905 - TorchScript knows no strict
            x = functional.relu(norm(x))
            if self.resize:
                x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = layer(x)
        return torch.tanh(x) if self.tanh else x


class ImageJudge(nn.Module):
    """Maps images `(B, C, ...)` to one logit each, and to the features before it (for feature matching).

    Args:
        in_channels: of the images.
        dimensions: 2 or 3.
        channels: width after each strided convolution; each halves the size. Strides, not pooling: the judge learns
            what to keep, and its gradient reaches every voxel.
        slope: of LeakyReLU, for a gradient also where a unit is off.
        dropout: share of feature maps that is dropped in training: blunts a judge that wins too easily.
        spectral: divide each weight by its largest singular value (Miyato et al., ICLR 2018).
        size: of the images, all of one; the last layer then sees where each feature lies, as the paper's does. None
            averages the features: images of any size, judged alike wherever their parts lie.
    """

    def __init__(
        self,
        in_channels: int = 1,
        dimensions: int = 2,
        channels: Sequence[int] = (32, 64, 128),
        slope: float = 0.2,
        dropout: float = 0.0,
        spectral: bool = True,
        size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.slope, self.placed = slope, size is not None
        convolutions = [
            _CONV[dimensions](a, b, 2 * _STRIDE, stride=_STRIDE, padding=1)
            for a, b in pairwise([in_channels, *channels])
        ]
        self.layers = nn.ModuleList(spectral_norm(layer) if spectral else layer for layer in convolutions)
        self.drop = _DROPOUT[dimensions](dropout)
        places = math.prod(n // _STRIDE ** len(channels) for n in size) if size is not None else 1
        self.last = nn.Linear(channels[-1] * places, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns logits `(B, 1)` and features, finest first."""
        features: list[Tensor] = []
        x = image
        for layer in self.layers:
            x = self.drop(functional.leaky_relu(layer(x), self.slope))
            features.append(x)
        logits: Tensor = self.last(x.flatten(1) if self.placed else x.flatten(2).mean(2))
        return logits, features


class LatentEncoder(nn.Module):
    """Maps images `(B, C, ...)` of one size to latents `(B, L)`: the way back of a `LatentGenerator`.

    Args:
        latent: length of a latent.
        size: of the images.
        channels: width after each strided convolution; each halves the size.
        in_channels: of the images.
        slope: of LeakyReLU.
    """

    def __init__(
        self,
        latent: int,
        size: Sequence[int],
        channels: Sequence[int] = (32, 64, 128),
        in_channels: int = 1,
        slope: float = 0.2,
    ) -> None:
        super().__init__()
        self.slope = slope
        self.layers = nn.ModuleList(
            _CONV[len(size)](a, b, 2 * _STRIDE, stride=_STRIDE, padding=1)
            for a, b in pairwise([in_channels, *channels])
        )
        self.norms = nn.ModuleList(nn.GroupNorm(_groups(width), width) for width in channels)
        self.last = nn.Linear(channels[-1] * math.prod(n // _STRIDE ** len(channels) for n in size), latent)

    def forward(self, image: Tensor) -> Tensor:
        """Returns the latents."""
        x = image
        for layer, norm in zip(self.layers, self.norms):  # noqa: B905 - TorchScript knows no strict
            x = functional.leaky_relu(norm(layer(x)), self.slope)
        latent: Tensor = self.last(x.flatten(1))
        return latent


def _groups(width: int) -> int:
    return next(n for n in (8, 4, 2, 1) if width % n == 0)
