"""The paired trainer: what the discriminator is shown, what is published, and that resuming changes nothing."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from monai.handlers import CheckpointLoader, CheckpointSaver
from monai.transforms import RandGaussianSmoothd
from torch import Tensor, nn

from medgen.engines.adversary import Adversary, gradient_norm
from medgen.engines.paired import PairedTrainer
from medgen.engines.player import MovingAverage, Player
from medgen.errors import DeviceError
from medgen.losses.adversarial import least_squares_d_loss, least_squares_g_loss


class Spy(nn.Module):
    """A discriminator that keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 1, 1)
        self.seen: list[Tensor] = []

    def forward(self, pair: Tensor) -> tuple[Tensor, list[Tensor]]:
        self.seen.append(pair.detach().clone())
        return self.conv(pair), []


def batches(count: int = 3) -> list[dict[str, Tensor]]:
    shape = (1, 1, 4, 5, 6)
    return [
        {"image": torch.full(shape, 1.0), "target": torch.full(shape, 2.0), "mask": torch.ones(shape)}
        for _ in range(count)
    ]


def absolute(outputs: list[Tensor], target: Tensor, mask: Tensor) -> Tensor:
    return (mask * (outputs[-1] - target)).abs().mean()


def make(weight: float = 0.5, first_epoch: int = 1, epochs: int = 1) -> PairedTrainer:
    torch.manual_seed(3)
    network, spy = nn.Conv3d(1, 1, 3, padding=1), Spy()
    adversary = Adversary(
        Player(spy, torch.optim.Adam(spy.parameters(), 1e-2)),
        least_squares_d_loss,
        least_squares_g_loss,
        weight,
        first_epoch,
    )
    player = Player(network, torch.optim.Adam(network.parameters(), 1e-2))
    return PairedTrainer("cpu", epochs, batches(), player, absolute, adversary, MovingAverage(network, 0.9))


def test_the_average_follows_a_step_that_an_epoch_ends_with() -> None:
    trainer = make(weight=0.0)
    trainer.generator.accumulate = 4  # more than an epoch has
    before, average = weights(trainer), trainer.averages[0][1]
    trainer.run()
    assert not torch.equal(weights(trainer), before)
    assert average.steps == 1
    assert not torch.equal(torch.cat([p.flatten() for p in average.network.parameters()]), before)


def weights(trainer: PairedTrainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.generator.network.parameters()])


def test_the_discriminator_is_shown_pairs_of_source_and_truth_as_real_never_the_source_alone() -> None:
    trainer = make()
    trainer.run()
    spy = trainer.adversary.player.network
    for_generator, real, fake = spy.seen[:3]
    assert torch.equal(real[:, :1], torch.ones_like(real[:, :1]))
    assert torch.equal(real[:, 1:], torch.full_like(real[:, 1:], 2.0))
    assert torch.equal(fake[:, :1], torch.ones_like(fake[:, :1]))
    assert torch.equal(fake[:, 1:], for_generator[:, 1:])
    assert not torch.equal(fake[:, 1:], real[:, 1:])


def test_the_discriminator_is_shown_nothing_outside_the_mask() -> None:
    trainer = make()
    for batch in trainer.data_loader:
        batch["mask"][..., :2] = 0
    trainer.run()
    assert all(pair[..., :2].abs().max() == 0 for pair in trainer.adversary.player.network.seen)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_all_losses_are_published_with_and_without_the_adversary(weight: float) -> None:
    trainer = make(weight)
    trainer.run()
    output = trainer.state.output[0] if isinstance(trainer.state.output, list) else trainer.state.output
    assert {"loss", "g_loss", "d_loss"} <= set(output)
    assert (output["d_loss"] > 0) == (weight > 0)


def test_an_adversary_of_weight_0_leaves_generator_and_discriminator_as_they_would_be_alone() -> None:
    trainer = make(weight=0.0)
    before = [p.clone() for p in trainer.adversary.player.network.parameters()]
    trainer.run()
    assert trainer.adversary.player.network.seen == []
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.adversary.player.network.parameters(), strict=True))


def test_the_adversary_joins_in_its_first_epoch() -> None:
    trainer = make(first_epoch=2, epochs=2)
    trainer.run()
    assert len(trainer.adversary.player.network.seen) == 3 * 3  # an epoch of three batches, three looks at each


def test_a_head_start_is_the_discriminators_alone() -> None:
    """While it has its head start, it learns, and the generator does as it would alone."""
    alone, led = make(weight=0.0), make(weight=0.5)
    led.adversary.head_start = 1
    before = [p.clone() for p in led.adversary.player.network.parameters()]
    alone.run()
    led.run()
    assert torch.equal(weights(alone), weights(led))
    assert any(not torch.equal(a, b) for a, b in zip(before, led.adversary.player.network.parameters(), strict=True))
    assert not led.adversary.is_felt(1)
    assert led.adversary.is_felt(2)


def test_the_generator_step_leaves_no_gradient_path_from_the_discriminator_step() -> None:
    """Only its own step may move the generator: with no weight for the adversary's view, training twice is the same."""
    alone, beside = make(weight=0.0), make(weight=1e-30)
    alone.run()
    beside.run()
    assert torch.allclose(weights(alone), weights(beside))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_weight_of_the_adversary_does_not_depend_on_the_scale_of_its_loss(scale: float) -> None:
    def after(factor: float) -> Tensor:
        trainer = make(weight=0.5)
        trainer.generator.optimizer = torch.optim.SGD(trainer.generator.network.parameters(), 0.1)
        trainer.adversary.d_loss = lambda real, fake: 0 * (real.mean() + fake.mean())
        trainer.adversary.g_loss = lambda fake: factor * least_squares_g_loss(fake)
        trainer.run()
        return weights(trainer)

    torch.testing.assert_close(after(scale), after(1.0))
    assert not torch.allclose(after(1.0), weights(make()))


def test_gradient_norm_is_that_of_the_loss_at_the_image() -> None:
    image = torch.tensor([3.0, 4.0], requires_grad=True)
    assert gradient_norm((image**2).sum(), image).item() == pytest.approx(10.0)


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    def checkpoint(trainer: PairedTrainer) -> dict[str, object]:
        rival = trainer.adversary.player
        return {
            "network": trainer.generator.network,
            "optimizer": trainer.generator.optimizer,
            "discriminator": rival.network,
            "d_optimizer": rival.optimizer,
            "average": trainer.averages[0][1],
            "trainer": trainer,
        }

    whole = make(epochs=4)
    CheckpointSaver(str(tmp_path), checkpoint(whole), save_interval=2).attach(whole)
    whole.run()
    resumed = make(epochs=4)
    CheckpointLoader(str(tmp_path / "checkpoint_epoch=2.pt"), checkpoint(resumed)).attach(resumed)
    resumed.run()
    assert resumed.state.iteration == whole.state.iteration == 12
    assert torch.equal(weights(resumed), weights(whole))
    average = zip(*(t.averages[0][1].network.parameters() for t in (resumed, whole)), strict=True)
    assert all(torch.equal(a, b) for a, b in average)


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    network = nn.Conv3d(1, 1, 1)
    before = [p.clone() for p in network.parameters()]
    player = Player(network, torch.optim.Adam(network.parameters(), 0.1))
    assert not player.step(network(torch.ones(1, 1, 2, 2, 2)).sum() * float("nan"))
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert player.step(network(torch.ones(1, 1, 2, 2, 2)).sum())


def test_the_moving_average_of_a_network_at_rest_is_the_network() -> None:
    network = nn.Conv3d(1, 2, 3)
    average = MovingAverage(network, 0.99)
    for _ in range(5):
        average.update(network)
    assert all(torch.allclose(a, b) for a, b in zip(average.network.parameters(), network.parameters(), strict=True))


def test_images_that_carry_their_history_train_as_plain_ones_do() -> None:
    plain, carrying = make(), make()
    blur = RandGaussianSmoothd("image", prob=0.5).set_random_state(seed=0)
    blurred = [[blur({k: MetaTensor(v[0]) for k, v in batch.items()}) for _ in range(4)] for batch in batches()]
    carrying.data_loader = carrying.state.dataloader = [list_data_collate(items) for items in blurred]
    plain.data_loader = plain.state.dataloader = [
        {k: v.as_tensor() for k, v in batch.items() if isinstance(v, torch.Tensor)} for batch in carrying.data_loader
    ]
    for trainer in (plain, carrying):
        trainer.run()
    assert torch.equal(weights(plain), weights(carrying))


def test_deterministic_asks_torch_for_it() -> None:
    network = nn.Conv3d(1, 1, 1)
    player = Player(network, torch.optim.SGD(network.parameters(), 0.1))
    try:
        PairedTrainer("cpu", 1, batches(), player, absolute, options={"deterministic": True})
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(mode=False)


def test_a_step_is_as_long_as_the_gradient_is_allowed_to_be() -> None:
    weight = nn.Parameter(torch.zeros(2))
    network = nn.Module()
    network.weight = weight
    player = Player(network, torch.optim.SGD([weight], 1.0), clip_norm=0.5)
    player.step((weight * torch.tensor([3.0, 4.0])).sum())
    torch.testing.assert_close(weight.detach(), -torch.tensor([0.3, 0.4]), rtol=1e-4, atol=1e-5)
    assert player.norm == pytest.approx(5.0)


def test_an_unknown_option_is_named() -> None:
    network = nn.Conv3d(1, 1, 1)
    with pytest.raises(ValueError, match="halve"):
        PairedTrainer(
            "cpu",
            1,
            batches(),
            Player(network, torch.optim.SGD(network.parameters(), 0.1)),
            absolute,
            options={"halve": 1},
        )


@pytest.mark.parametrize(("planes", "amp", "refused"), [(2, True, True), (2, False, False), (3, True, False)])
def test_a_window_whose_gradient_bfloat16_would_get_wrong_is_refused(planes: int, amp: bool, refused: bool) -> None:
    network = nn.Conv3d(1, 1, 3, padding=1)
    player = Player(network, torch.optim.Adam(network.parameters(), 1e-2))
    image = torch.ones(1, 1, planes, 4, 4)
    data = [{"image": image, "target": image, "mask": image}]
    trainer = PairedTrainer("cpu", 1, data, player, absolute, options={"amp": amp})
    expected = pytest.raises(DeviceError, match="more than 2 planes along the first axis") if refused else nullcontext()
    with expected:
        trainer.run()
