"""A window of values as it is, the rest pressed together: undone exactly, and nothing else is different."""

import torch
from torch import Tensor, nn

from medgen.nets.compand import Companded
from medgen.nets.slices import SliceDenoiser


class _Less(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image - 0.08


def test_a_network_that_does_nothing_gives_its_input_back() -> None:
    image = torch.linspace(-1.1, 3.1, 4096).reshape(1, 1, 16, 16, 16)
    torch.testing.assert_close(Companded(SliceDenoiser(), gain=8.0).eval()(image), image, atol=2e-6, rtol=0)


def test_a_step_counts_by_the_slope_outside_of_the_window_and_by_the_gain_inside() -> None:
    image = torch.tensor([-0.9, 0.1, 2.0]).reshape(1, 1, 3, 1, 1)
    change = image - Companded(_Less(), slope=0.2, gain=8.0)(image)
    torch.testing.assert_close(change.flatten(), torch.tensor([0.05, 0.01, 0.05]))


def test_a_step_over_the_knee_is_continuous() -> None:
    image = torch.tensor([0.405]).reshape(1, 1, 1, 1, 1)  # 0.401 when compressed, 0.391 after 0.01 less
    torch.testing.assert_close(Companded(_Less(), gain=8.0)(image).flatten(), torch.tensor([0.391]))


def test_what_the_network_sees_is_what_it_is_given() -> None:
    image = torch.randn(1, 1, 16, 16, 2)
    network = Companded(SliceDenoiser(channels=(8, 12), blocks=(1, 1)), gain=2.0)
    for one, other in zip(network.features(image), network.network.features(2 * network.compress(image)), strict=True):
        assert torch.equal(one, other)


def test_it_is_a_script_too() -> None:
    network = Companded(SliceDenoiser(channels=(8, 12), blocks=(1, 1)), gain=8.0).eval()
    image = torch.randn(1, 1, 16, 16, 2)
    torch.testing.assert_close(torch.jit.script(network)(image), network(image))
