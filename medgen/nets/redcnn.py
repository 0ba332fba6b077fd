"""RED-CNN: the plain network for low-dose CT that later ones have hardly beaten; here as the baseline to measure by."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional


class RedCnn(nn.Module):
    """Convolutions of 5 x 5 pixels and as many transposed ones, with shortcuts across; slices do not see each other.

    No convolution is padded, so features shrink by 4 pixels with each one and grow back: what is at a window's rim is
    found from what is there, not from zeros.

    Source: Chen et al., "Low-dose CT with a residual encoder-decoder convolutional neural network", IEEE Trans Med
    Imaging 36:2524, 2017: 5 + 5 layers of 96 features, shortcuts from the input and from behind layers 2 and 4. Its
    last ReLU is left out: HU can be negative.

    Args:
        features: of every layer.
        layers: convolutions on the way down; as many transposed ones follow.
    """

    def __init__(self, features: int = 96, layers: int = 5) -> None:
        super().__init__()
        steps = list(pairwise([1] + [features] * layers))
        kernel = (5, 5, 1)
        self.down = nn.ModuleList(nn.Conv3d(a, b, kernel) for a, b in steps)
        self.up = nn.ModuleList(nn.ConvTranspose3d(b, a, kernel) for a, b in reversed(steps))

    def forward(self, image: Tensor) -> Tensor:
        """Denoises `(B, 1, X, Y, Z)`, X and Y above four times the number of layers."""
        x = image
        shortcuts = [image]
        for index, layer in enumerate(self.down):
            x = functional.relu(layer(x))
            if index % 2 == 1 and index + 1 < len(self.down):
                shortcuts.append(x)
        last = len(self.up) - 1
        for index, layer in enumerate(self.up):
            x = layer(x)
            if (last - index) % 2 == 0:
                x = x + shortcuts.pop()
            x = functional.relu(x) if index < last else x
        return x
