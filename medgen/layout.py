"""How the weights of a network lie in memory: the business of whoever trains or runs one, whichever it is."""

import torch
from torch import nn

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the dimensions of a convolution's weights


def channels_last(network: nn.Module) -> nn.Module:
    """Lays the weights of convolutions channels last, in place, those of planes and of volumes each in their own way.

    It is what cuDNN and oneDNN want. `network.to(memory_format=...)` knows one of the two at a time, and raises where a
    network of volumes has convolutions of planes.
    """
    for weight in network.parameters():
        if weight.dim() in _CHANNELS_LAST:
            weight.data = weight.data.to(memory_format=_CHANNELS_LAST[weight.dim()])
    return network
