"""Moving weights: accumulation, shared losses, what is frozen, and what a checkpoint holds."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from medgen.engines.adversary import Adversary, ordered_share
from medgen.engines.player import Player, frozen, move, on_device
from medgen.engines.pool import ImagePool
from medgen.losses.adversarial import hinge_d_loss, hinge_g_loss


def linear(seed: int = 4) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 1)


def sgd(network: nn.Module, **options: object) -> Player:
    return Player(network, torch.optim.SGD(network.parameters(), 0.1, momentum=0.5), **options)  # type: ignore[arg-type]


def weights(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_a_batch_in_parts_moves_as_the_whole_batch_does() -> None:
    data = torch.randn(8, 3)
    whole, parts = sgd(linear()), sgd(linear(), accumulate=4)
    for _ in range(3):
        whole.step(whole.network(data).square().mean())
        moved = [parts.step(parts.network(part).square().mean()) for part in data.chunk(4)]
        assert moved == [False, False, False, True]
    torch.testing.assert_close(weights(whole.network), weights(parts.network))


def test_what_is_left_at_an_epochs_end_is_stepped_with() -> None:
    data = torch.randn(2, 3)
    whole, parts = sgd(linear()), sgd(linear(), accumulate=4)
    whole.step(whole.network(data).square().mean())
    for part in data.chunk(2):
        parts.step(parts.network(part).square().mean())
    assert parts.flush()
    assert not parts.flush()
    torch.testing.assert_close(weights(whole.network), weights(parts.network))


def test_two_players_share_a_loss() -> None:
    data = torch.randn(4, 3)
    alone, first, second = sgd(linear(1)), sgd(linear(1)), sgd(linear(2))
    before = weights(second.network).clone()
    alone.step(alone.network(data).square().mean())
    assert (
        move([first, second], first.network(data).square().mean() + second.network(data).square().mean()) == [True] * 2
    )
    torch.testing.assert_close(weights(first.network), weights(alone.network))
    assert not torch.equal(weights(second.network), before)


def test_a_frozen_network_lets_gradients_through_and_keeps_none() -> None:
    network, data = linear(), torch.randn(2, 3, requires_grad=True)
    with frozen(network):
        network(data).sum().backward()
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert data.grad is not None
    assert data.grad.abs().sum() > 0


def test_a_checkpoint_of_a_player_holds_its_momentum() -> None:
    data, first = torch.randn(4, 3), sgd(linear())
    first.step(first.network(data).sum())
    second = sgd(linear(9))
    second.load_state_dict(deepcopy(first.state_dict()))
    for player in (first, second):
        player.step(player.network(data).square().sum())
    assert torch.equal(weights(first.network), weights(second.network))


def test_a_step_with_a_scaler_is_the_step_without() -> None:
    data, plain = torch.randn(4, 3), sgd(linear())
    scaled = sgd(linear(), scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    for player in (plain, scaled):
        player.step(player.network(data).square().mean())
    torch.testing.assert_close(weights(plain.network), weights(scaled.network))
    assert scaled.norm == pytest.approx(plain.norm, rel=1e-4)  # unscaled before it is clipped and told


def test_a_full_pool_hands_out_earlier_images_half_of_the_time() -> None:
    torch.manual_seed(0)
    pool = ImagePool(20)
    first = pool.exchange(torch.zeros(20, 1))
    assert torch.equal(first, torch.zeros(20, 1))
    later = torch.cat([pool.exchange(torch.full((1, 1), float(i + 1))) for i in range(400)])
    new = (later.flatten() == torch.arange(1, 401)).float().mean().item()
    assert 0.4 < new < 0.6
    assert len(pool.images) == 20


def test_a_pool_of_none_hands_every_image_through() -> None:
    batch = torch.randn(3, 1)
    assert ImagePool(0).exchange(batch) is batch


def discriminator(**options: object) -> Adversary:
    return Adversary(sgd(linear()), hinge_d_loss, hinge_g_loss, 1.0, **options)  # type: ignore[arg-type]


def test_flipped_examples_teach_the_opposite() -> None:
    real, fake = torch.randn(6, 3) + 1, torch.randn(6, 3) - 1
    straight, flipped, swapped = discriminator(), discriminator(flip=1.0), discriminator()
    straight.learn(real, fake)
    flipped.learn(real, fake)
    swapped.learn(fake, real)
    assert torch.equal(weights(flipped.player.network), weights(swapped.player.network))
    assert not torch.equal(weights(flipped.player.network), weights(straight.player.network))


def test_what_is_reported_is_not_swapped() -> None:
    real, fake = torch.randn(6, 3) + 9, torch.randn(6, 3) - 9
    straight, flipped = discriminator(), discriminator(flip=1.0)
    told = [judge.learn(real, fake) for judge in (straight, flipped)]
    assert told[0]["d_accuracy"] == told[1]["d_accuracy"]
    assert told[0]["d_real"] == told[1]["d_real"]
    assert told[0]["d_loss"] != told[1]["d_loss"]


def test_gradients_held_for_other_weights_are_forgotten_with_them() -> None:
    player = sgd(linear(), accumulate=2)
    state = player.state_dict()
    player.step(player.network(torch.full((1, 3), float("nan"))).sum())
    player.load_state_dict(state)
    for _ in range(2):
        player.step(player.network(torch.ones(1, 3)).sum())
    assert torch.isfinite(weights(player.network)).all()
    assert player.refused == 0


def test_noise_is_what_the_discriminator_sees_not_what_the_generator_made() -> None:
    noisy = discriminator(noise=5.0)
    image = torch.zeros(200, 3)
    assert noisy.judge(image).std() > 1
    assert discriminator().judge(image).std() == 0


def test_what_the_generator_is_told_leaves_the_discriminator_without_gradients() -> None:
    adversary, fake = discriminator(), torch.randn(4, 3, requires_grad=True)
    adversary.felt(fake).backward()
    assert fake.grad is not None
    assert all(p.grad is None for p in adversary.player.network.parameters())


@pytest.mark.parametrize(("shift", "share"), [(0.0, 0.5), (50.0, 1.0), (-50.0, 0.0)])
def test_the_share_of_ordered_pairs_is_the_area_under_the_roc(shift: float, share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(4, 1, 9, 9, 9, generator=generator), torch.randn(4, 1, 9, 9, 9, generator=generator)
    assert ordered_share(real + shift, fake) == pytest.approx(share, abs=0.06)


def test_networks_of_planes_and_of_volumes_get_their_weights_channels_last() -> None:
    network = on_device(nn.ModuleList([nn.Conv2d(2, 4, 3), nn.Conv3d(2, 4, 3), nn.Linear(3, 2)]), "cpu")
    plane, volume, line = network
    assert plane.weight.is_contiguous(memory_format=torch.channels_last)
    assert volume.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert line.weight.is_contiguous()
