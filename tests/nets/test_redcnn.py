"""The baseline network: its published size, its shortcuts, and slices that do not see each other."""

import torch

from medgen.nets.redcnn import RedCnn


def test_it_has_the_published_size() -> None:
    weights = sum(p.numel() for p in RedCnn().parameters())
    inner = 4 * (96 * 96 * 25 + 96)
    assert weights == 2 * inner + (96 * 25 + 96) + (96 * 25 + 1)


def test_an_image_keeps_its_size_and_its_slices_apart() -> None:
    torch.manual_seed(0)
    network = RedCnn(features=4)
    image = torch.rand(2, 1, 33, 24, 3)
    out = network(image)
    assert out.shape == image.shape
    changed = image.clone()
    changed[..., 0] += 1
    again = network(changed)
    assert torch.equal(again[..., 1:], out[..., 1:])
    assert not torch.equal(again[..., 0], out[..., 0])


def test_without_layers_that_do_anything_the_input_comes_back() -> None:
    network = RedCnn(features=4)
    for parameter in network.up[-1].parameters():
        torch.nn.init.zeros_(parameter)
    image = torch.rand(1, 1, 24, 24, 1) - 0.5
    assert torch.equal(network(image), image)


def test_the_shortcuts_are_those_of_the_paper() -> None:
    torch.manual_seed(2)
    network = RedCnn(features=3)
    image = torch.rand(1, 1, 32, 32, 1)
    (c1, c2, c3, c4, c5), (t1, t2, t3, t4, t5) = network.down, network.up
    second = c2(c1(image).relu()).relu()
    fourth = c4(c3(second).relu()).relu()
    x = (t1(c5(fourth).relu()) + fourth).relu()
    x = (t3(t2(x).relu()) + second).relu()
    assert torch.allclose(network(image), t5(t4(x).relu()) + image, atol=1e-6)


def test_every_layer_learns() -> None:
    torch.manual_seed(1)
    network = RedCnn(features=4)
    network(torch.rand(1, 1, 28, 28, 2)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
