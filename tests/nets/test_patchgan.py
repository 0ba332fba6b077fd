"""The patch discriminator: logits apart from features, and the bound that spectral norm promises."""

import pytest
import torch
from torch import nn

from medgen.nets.patchgan import PatchDiscriminator


def test_logits_come_apart_from_features() -> None:
    logits, features = PatchDiscriminator(2, (4, 8))(torch.rand(3, 2, 16, 24, 8))
    assert logits.shape == (3, 1, 4, 6, 2)
    assert [f.shape[1] for f in features] == [4, 8]
    assert [f.shape[2:] for f in features] == [(8, 12, 4), (4, 6, 2)]


def test_a_logit_sees_its_patch_only() -> None:
    network, pair = PatchDiscriminator(2, (4, 8), spectral=False).eval(), torch.rand(1, 2, 64, 8, 8)
    changed = pair.clone()
    changed[:, :, 48:] = 0
    near, far = (network(p)[0] for p in (pair, changed))
    assert torch.equal(near[:, :, :6], far[:, :, :6])
    assert not torch.equal(near[:, :, -2:], far[:, :, -2:])


@pytest.mark.parametrize("detail_gain", [0.0, 2.0])
def test_a_planar_one_judges_every_slice_by_itself(detail_gain: float) -> None:
    network = PatchDiscriminator(2, (4, 8), spectral=False, planar=True, detail_gain=detail_gain).eval()
    pair = torch.rand(1, 2, 16, 16, 3)
    logits, features = network(pair)
    assert logits.shape == (1, 1, 4, 4, 3)
    assert features[0].shape == (1, 4, 8, 8, 3)
    torch.testing.assert_close(network(pair[..., 1:2])[0], logits[..., 1:2])


def test_spectral_norm_bounds_every_layer() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(2, (4, 8))
    for layer in network.layers:
        layer.parametrizations.weight.original.data *= 50
    network.train()
    for _ in range(30):
        network(torch.rand(1, 2, 16, 16, 16))
    norms = [torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() for layer in network.layers]
    assert norms == pytest.approx([1.0] * len(norms), abs=0.05)


def test_without_it_the_layers_are_plain() -> None:
    assert all(isinstance(layer, nn.Conv3d) for layer in PatchDiscriminator(2, (4,), spectral=False).layers)
    assert not any(hasattr(layer, "parametrizations") for layer in PatchDiscriminator(2, (4,), spectral=False).layers)


def test_a_judge_of_detail_does_not_see_brightness() -> None:
    network, pair = PatchDiscriminator(2, (4,), spectral=False, detail_gain=5.0), torch.rand(1, 2, 12, 14, 16)
    torch.testing.assert_close(network(pair)[0], network(pair + 3)[0], atol=1e-4, rtol=0)
    assert not torch.allclose(network(pair)[0], network(2 * pair)[0], atol=1e-4)


def test_dropout_blunts_in_training_alone() -> None:
    judge, pair = PatchDiscriminator(channels=[8, 8], dropout=0.5), torch.randn(1, 2, 16, 16, 16)
    assert not torch.equal(judge(pair)[0], judge(pair)[0])
    judge.eval()
    assert torch.equal(judge(pair)[0], judge(pair)[0])
