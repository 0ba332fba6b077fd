"""Networks written in forms that CPUs compute several times faster and converters know: the same values.

A transposed convolution of stride s puts s interleaved phases of its output apart, each an ordinary convolution of the
input with a share of the kernel. One convolution with s times as many channels along each axis computes all of them,
and moving channels into space puts them in place.

Source: Shi et al., "Is the deconvolution layer the same as a convolutional layer?", arXiv:1609.07009.
"""

import copy
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
# Of more outputs OpenVINO's own transposed convolution takes 0.4 to 0.8 of the time, of 1 or 2 it takes 1.4 to 2 times.
_MOST_OUTPUTS = 3
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class SubPixelConv(nn.Module):
    """Computes what a transposed convolution does whose output is `stride` times as large as its input.

    Args:
        layer: the transposed convolution; see `can_rewrite`.

    Raises:
        ValueError: the layer has groups, dilation, or another size of output.
    """

    def __init__(self, layer: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) -> None:
        super().__init__()
        if not can_rewrite(layer):
            raise ValueError(f"expected no groups, no dilation and an output of stride x input, got {layer}")
        self.stride = tuple(int(s) for s in layer.stride)
        self.out_channels = layer.out_channels
        axes = [_taps(*axis) for axis in zip(layer.kernel_size, self.stride, _sides(layer.padding), strict=True)]
        self.padding = [width for low, high, _ in reversed(axes) for width in (-low, high)]
        self.weight = nn.Parameter(_interleaved(layer, axes), requires_grad=False)
        phases = torch.Size(self.stride).numel()
        bias = None if layer.bias is None else layer.bias.detach().repeat_interleave(phases)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, C_in, *spatial)` to `(B, C_out, *(stride * spatial))`."""
        dims = len(self.stride)
        wide = _CONVOLUTIONS[dims](functional.pad(x, self.padding), self.weight, self.bias)
        size = wide.shape[2:]
        wide = wide.reshape(wide.shape[0], self.out_channels, *self.stride, *size)
        order = [place for axis in range(dims) for place in (2 + dims + axis, 2 + axis)]
        wide = wide.permute(0, 1, *order)
        return wide.reshape(wide.shape[0], self.out_channels, *(n * s for n, s in zip(size, self.stride, strict=True)))


def can_rewrite(layer: nn.Module) -> bool:
    """Says whether `SubPixelConv` can take the place of a layer."""
    if not isinstance(layer, _TRANSPOSED) or layer.groups != 1 or set(layer.dilation) != {1}:
        return False
    sizes = zip(layer.kernel_size, layer.stride, _sides(layer.padding), layer.output_padding, strict=True)
    return all(k >= s and k + extra == s + 2 * padding for k, s, padding, extra in sizes)


def simplified(network: nn.Module) -> nn.Module:
    """Returns a copy of a network, in forms that converters know and CPUs compute fast, where that is exact.

    Transposed convolutions of few outputs become sub-pixel convolutions; what parametrisations (spectral normalisation)
    make of weights is computed once, as it stays the same in evaluation mode. A network without either is returned as
    it is.
    A layer's forward hooks do not come along.
    """
    if not any(_pays(layer) or parametrize.is_parametrized(layer) for layer in network.modules()):
        return network
    network = copy.deepcopy(network)
    for layer in list(network.modules()):
        _settle_weights(layer)
    if _pays(network):
        return SubPixelConv(network)  # type: ignore[arg-type]  # _pays has looked
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if _pays(child):
                setattr(parent, name, SubPixelConv(child))  # type: ignore[arg-type]  # as above
    return network


def _pays(layer: nn.Module) -> bool:
    return isinstance(layer, _TRANSPOSED) and layer.out_channels <= _MOST_OUTPUTS and can_rewrite(layer)


def _settle_weights(layer: nn.Module) -> None:
    """Takes parametrisations off a copied layer. torch's own way would take them off the class, the original's too."""
    names = list(getattr(layer, "parametrizations", ()))
    weights = {name: getattr(layer, name).detach().clone() for name in names}
    if names:
        layer.__class__ = parametrize.type_before_parametrizations(layer)
        del layer._modules["parametrizations"]
    for name, weight in weights.items():
        layer.register_parameter(name, nn.Parameter(weight, requires_grad=False))


def _sides(padding: object) -> tuple[int, ...]:
    """A transposed convolution's padding: a word it cannot be, unlike another layer's, but its type does not say so."""
    return tuple(int(side) for side in padding) if isinstance(padding, tuple) else ()


def _taps(kernel: int, stride: int, padding: int) -> tuple[int, int, dict[tuple[int, int], int]]:
    """Returns along one axis which place of the kernel weighs which neighbour in which phase of the output.

    Output `stride * i + phase` is the sum over k of input `i + offset` times `kernel[k]`, where
    `stride * offset = phase + padding - k`.

    Returns:
        lowest and highest offset, and k by (phase, offset).
    """
    places = {}
    for phase, k in product(range(stride), range(kernel)):
        if (phase + padding - k) % stride == 0:
            places[phase, (phase + padding - k) // stride] = k
    offsets = [offset for _, offset in places]
    return min(0, *offsets), max(0, *offsets), places


def _interleaved(
    layer: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d,
    axes: list[tuple[int, int, dict[tuple[int, int], int]]],
) -> Tensor:
    """Returns the weights `(C_out * phases, C_in, *taps)` of the one ordinary convolution."""
    old = layer.weight.detach()  # (C_in, C_out, *kernel)
    sides = [high - low + 1 for low, high, _ in axes]
    new = torch.zeros(layer.out_channels, *layer.stride, layer.in_channels, *sides, dtype=old.dtype, device=old.device)
    for placed in product(*(axis[2].items() for axis in axes)):
        whole: tuple[int | slice, ...] = (slice(None),)
        phases = tuple(phase for (phase, _), _ in placed)
        taps = tuple(offset - low for ((_, offset), _), (low, _, _) in zip(placed, axes, strict=True))
        kernel = tuple(k for _, k in placed)
        new[whole + phases + whole + taps] = old[whole + whole + kernel].T
    return new.reshape(-1, layer.in_channels, *sides)
