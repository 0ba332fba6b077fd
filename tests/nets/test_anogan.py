"""Three networks as one: what goes in comes out as an image, a latent or features of the network that it belongs to."""

import pytest
import torch

from medgen.nets.anogan import AnoGan
from medgen.nets.dcgan import ImageJudge, LatentEncoder, LatentGenerator


def anogan() -> AnoGan:
    torch.manual_seed(0)
    return AnoGan(
        LatentGenerator(6, (4, 4), (16, 8)),
        ImageJudge(channels=(8, 16), size=(16, 16)),
        LatentEncoder(6, (16, 16), (8, 16)),
    ).eval()


def test_an_image_becomes_the_image_of_its_latent() -> None:
    network, image = anogan(), torch.rand(3, 1, 16, 16)
    latent = network.encode(image)
    assert latent.shape == (3, 6)
    assert torch.equal(network(image), network.decode(latent))
    assert torch.equal(network.decode(latent), network.generator(latent))
    assert network(image).shape == image.shape


def test_features_are_the_judges_last_before_its_verdict() -> None:
    network, image = anogan(), torch.rand(2, 1, 16, 16)
    features = network.features(image)
    assert features.shape == (2, 16, 4, 4)
    logits, maps = network.judge(image)
    assert torch.equal(features, maps[-1])
    judge = network.judge
    assert isinstance(judge, ImageJudge)
    assert torch.equal(logits, judge.last(features.flatten(1)))


def test_weights_carry_the_names_of_the_three_parts() -> None:
    network = anogan()
    assert {name.split(".")[0] for name in network.state_dict()} == {"generator", "judge", "encoder"}
    torch.manual_seed(1)
    other = AnoGan(LatentGenerator(6, (4, 4), (16, 8)), ImageJudge(channels=(8, 16), size=(16, 16)), network.encoder)
    image = torch.rand(1, 1, 16, 16)
    assert not torch.equal(other(image), network(image))
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(image), network(image))


def test_an_export_is_what_the_network_takes_an_image_for() -> None:
    network, image = anogan(), torch.rand(2, 1, 16, 16)
    with pytest.warns(DeprecationWarning, match="jit"):
        scripted = torch.jit.script(network)
    torch.testing.assert_close(scripted(image), network(image))
