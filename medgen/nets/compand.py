"""A network that sees a window of values as they are and what lies outside of it pressed together."""

import torch
from torch import Tensor, nn


class Companded(nn.Module):
    """Hands a network its input compressed outside of a window, and expands what comes back.

    In a CT, air is a thousand HU away from tissue and noise is ten. A network that sees both on one scale spends its
    precision on the edge between them: what it takes off there leaks. Outside of the window, values (and noise, and
    errors) count `slope` as much; the scale is continuous, and expanding undoes it exactly.

    Source: companding as in telephony (ITU-T G.711), with one knee on each side.

    Args:
        network: takes and returns `(B, 1, X, Y, Z)`, input and output on one scale.
        low: where the window begins, in units of the input; -0.3 is -300 HU for CT numbers / 1000.
        high: where it ends.
        slope: of the scale outside, above 0.
        gain: the compressed values are multiplied by this for the network, and what comes back is divided by it.

    Example:
        >>> import torch
        >>> seen = Companded(torch.nn.Identity())
        >>> [round(float(v), 3) for v in seen.compress(torch.tensor([-1.0, 0.05, 1.4]))]
        [-0.44, 0.05, 0.6]
    """

    def __init__(
        self, network: nn.Module, low: float = -0.3, high: float = 0.4, slope: float = 0.2, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.network = network
        self.low, self.high, self.slope, self.gain = low, high, slope, gain

    def forward(self, image: Tensor) -> Tensor:
        """Returns what the network makes of `(B, 1, X, Y, Z)`, on the scale of the input."""
        seen = self.network(self.gain * self.compress(image)) / self.gain
        middle = seen.clamp(self.low, self.high)
        result: Tensor = middle + (seen - middle) / self.slope
        return result

    def compress(self, image: Tensor) -> Tensor:
        """Returns values with what lies outside of the window pressed towards it."""
        middle = image.clamp(self.low, self.high)
        return middle + self.slope * (image - middle)

    @torch.jit.unused
    def features(self, image: Tensor) -> list[Tensor]:
        """Returns what the network sees of an image on its own scale, where it tells."""
        seen: list[Tensor] = self.network.features(self.gain * self.compress(image))  # type: ignore[operator]
        return seen
