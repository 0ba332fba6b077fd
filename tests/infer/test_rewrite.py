"""Networks in simpler forms: the same values, whatever kernel, stride and padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets import BasicUNet, UNet
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from medgen.infer.rewrite import SubPixelConv, can_rewrite, simplified

_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@settings(max_examples=40, deadline=None)
@given(
    dims=st.integers(1, 3),
    stride=st.integers(1, 4),
    kernel=st.integers(1, 6),
    padding=st.integers(0, 3),
    bias=st.booleans(),
    size=st.integers(1, 5),
)
def test_equals_the_transposed_convolution_wherever_it_says_that_it_can(
    dims: int, stride: int, kernel: int, padding: int, bias: bool, size: int
) -> None:
    extra = stride + 2 * padding - kernel
    if not 0 <= extra < max(stride, 1) or kernel < stride:
        return
    torch.manual_seed(kernel)
    layer = _TRANSPOSED[dims](3, 2, kernel, stride, padding, extra, bias=bias)
    assert can_rewrite(layer)
    x = torch.randn(2, 3, *[size + axis for axis in range(dims)])
    torch.testing.assert_close(SubPixelConv(layer)(x), layer(x), rtol=1e-5, atol=1e-5)


def test_each_axis_has_its_own_stride() -> None:
    layer = nn.ConvTranspose3d(2, 3, (2, 3, 1), (2, 2, 1), (0, 1, 0), (0, 1, 0))
    x = torch.randn(1, 2, 4, 5, 6)
    torch.testing.assert_close(SubPixelConv(layer)(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose3d(2, 2, 2, 2, groups=2),
        nn.ConvTranspose3d(2, 2, 3, 2, 1, 0),  # an output of 2 n - 1
        nn.ConvTranspose3d(2, 2, 3, 2, 2, 1, dilation=2),
        nn.Conv3d(2, 2, 3, padding=1),
    ],
)
def test_other_layers_stay(layer: nn.Module) -> None:
    assert not can_rewrite(layer)
    assert simplified(layer) is layer
    with pytest.raises(ValueError, match="groups"):
        SubPixelConv(layer)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "network",
    [
        UNet(3, 1, 1, (4, 8, 16), (2, 2), num_res_units=1),
        BasicUNet(3, 1, 1, (2, 4, 4, 8, 8, 2)),
        nn.ConvTranspose3d(1, 1, 2, 2),
    ],
)
def test_whole_networks_keep_their_values_and_the_original_is_left_alone(network: nn.Module) -> None:
    network = network.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    rewritten = simplified(network)
    swapped = [layer.out_channels for layer in rewritten.modules() if isinstance(layer, SubPixelConv)]
    left = [layer.out_channels for layer in rewritten.modules() if isinstance(layer, nn.ConvTranspose3d)]
    assert swapped
    assert max(swapped) <= 3 < min(left, default=4)  # of many outputs converters know faster ways
    x = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(rewritten(x), network(x), rtol=1e-4, atol=1e-5)
    assert any(can_rewrite(layer) for layer in network.modules())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_parametrised_weights_are_computed_once() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(spectral_norm(nn.Conv2d(1, 4, 3)), nn.ReLU(), spectral_norm(nn.Conv2d(4, 2, 3))).eval()
    plain = simplified(network)
    assert not any(parametrize.is_parametrized(layer) for layer in plain.modules())
    assert parametrize.is_parametrized(network[0])
    x = torch.rand(1, 1, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), network(x))
