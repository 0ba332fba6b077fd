"""A discriminator that judges small patches of a pair instead of the whole image."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm


class PatchDiscriminator(nn.Module):
    """Strided convolutions to a map of logits, each of which sees one patch of the pair.

    MONAI's discriminator returns one list of everything, and a loss fed with it averages over feature maps in
    silence; here logits and features come apart. There is no normalisation across space or samples: with spectral
    norm, none is needed.

    Args:
        in_channels: of the joined pair.
        channels: width after each strided convolution; each halves the resolution.
        spectral: divide each convolution's weight by its largest singular value (Miyato et al., ICLR 2018).
        detail_gain: above 0, only detail is judged: the images minus the mean around each voxel, times this gain. The
            reconstruction loss holds the rest, and a discriminator that need not learn to look past it learns in a
            fraction of the time.
        dropout: share of feature maps that is dropped in training: blunts a discriminator that wins too easily.
        planar: judge each slice along Z by itself, however few there are.
    """

    def __init__(
        self,
        in_channels: int = 2,
        channels: Sequence[int] = (32, 64, 128),
        spectral: bool = True,
        detail_gain: float = 0.0,
        dropout: float = 0.0,
        planar: bool = False,
    ) -> None:
        super().__init__()
        self.drop = nn.Dropout3d(dropout)
        self.detail_gain = detail_gain
        widths = [in_channels, *channels]
        deep = 0 if planar else 1
        self.box = (3, 3, 1 + 2 * deep)
        self.margin = [deep, deep, 1, 1, 1, 1]
        kernel, stride, padding = (4, 4, 1 + 3 * deep), (2, 2, 1 + deep), (1, 1, deep)
        layers = [nn.Conv3d(a, b, kernel, stride, padding) for a, b in zip(widths[:-1], channels, strict=True)]
        layers.append(nn.Conv3d(widths[-1], 1, self.box, padding=padding))
        self.layers = nn.ModuleList(spectral_norm(layer) if spectral else layer for layer in layers)

    def forward(self, pair: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Judges `(B, in_channels, X, Y, Z)`.

        Returns:
            logits `(B, 1, X / 2**n, ...)`, with Z as it was if planar, and the features before them, finest first.
        """
        features: list[Tensor] = []
        if self.detail_gain > 0:
            smooth = functional.avg_pool3d(functional.pad(pair, self.margin, mode="replicate"), self.box, stride=1)
            pair = self.detail_gain * (pair - smooth)
        for layer in self.layers[:-1]:
            pair = self.drop(functional.leaky_relu(layer(pair), 0.2))
            features.append(pair)
        return self.layers[-1](pair), features
