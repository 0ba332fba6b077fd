"""A network of slices: untrained, it changes nothing; trained, what it sees is a slice and its neighbours."""

import pytest
import torch

from medgen.nets.slices import SliceDenoiser


def _moved(**settings: object) -> SliceDenoiser:
    """A small network whose zeros are replaced: it does something."""
    torch.manual_seed(0)
    network = SliceDenoiser(channels=(8, 12), blocks=(1, 1), polish=2, **settings)  # type: ignore[arg-type]
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def test_untrained_network_returns_its_input() -> None:
    image = torch.randn(2, 1, 16, 24, 3)
    assert torch.equal(SliceDenoiser()(image), image)


@pytest.mark.parametrize("slices", [1, 2, 5])
def test_any_number_of_slices_keeps_its_shape(slices: int) -> None:
    image = torch.randn(1, 1, 16, 32, slices)
    assert _moved()(image).shape == image.shape


def test_a_slice_sees_its_neighbours_and_no_further() -> None:
    network = _moved(neighbours=1)
    image = torch.randn(1, 1, 16, 16, 5)
    changed = image.clone()
    changed[..., 0] += 1
    difference = (network(changed) - network(image)).abs().amax(dim=(0, 1, 2, 3))
    assert difference[0] > 0
    assert difference[1] > 0
    assert not difference[2:].any()


def test_a_single_slice_is_a_stack_of_equal_ones() -> None:
    network = _moved()
    image = torch.randn(1, 1, 16, 16, 1)
    torch.testing.assert_close(network(image.expand(-1, -1, -1, -1, 3))[..., 1:2], network(image))


def test_slices_that_train_alone_see_themselves_and_others_their_neighbours() -> None:
    network = _moved(neighbours=1, alone=0.5)
    image = torch.randn(1, 1, 16, 16, 64)
    with_neighbours, by_itself = network(image), torch.cat([network(image[..., z : z + 1]) for z in range(64)], dim=-1)
    torch.manual_seed(0)
    trained = network.train()(image)
    seen = [torch.allclose(trained[..., z], by_itself[..., z], atol=1e-6) for z in range(64)]
    assert 20 <= sum(seen) <= 44
    for z, alone in enumerate(seen):
        torch.testing.assert_close(trained[..., z], (by_itself if alone else with_neighbours)[..., z])


def test_slices_of_a_batch_do_not_mix() -> None:
    network = _moved()
    images = torch.randn(3, 1, 16, 16, 2)
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]))


def test_it_is_a_script_too() -> None:
    network = _moved()
    image = torch.randn(1, 1, 16, 16, 2)
    torch.testing.assert_close(torch.jit.script(network)(image), network(image))
