"""Images of noise: batches of equal size, discriminator steps, and a ring that is learned."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from ignite.engine import Events
from torch import Tensor, nn

from medgen.engines.latent import LatentTrainer, NormalLatent
from medgen.engines.symptoms import mean_distance
from medgen.losses.adversarial import wasserstein_d_loss, wasserstein_g_loss
from medgen.losses.penalty import gradient_penalty, r1_penalty
from tests.engines.toys import gan, ring


class Counting(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.inner(x)


def test_real_and_generated_images_are_as_many_in_the_last_batch_too() -> None:
    data = [{"image": torch.zeros(4, 2)}, {"image": torch.zeros(1, 2)}]
    judge = Counting(nn.Linear(2, 1))
    gan(data=data, networks=(nn.Linear(1, 2), judge), epochs=1).run()
    assert judge.sizes == [4, 4, 4, 1, 1, 1]  # real, fake, and the generator's turn


@pytest.mark.parametrize("steps", [1, 5])
def test_the_generator_moves_once_every_d_steps(steps: int) -> None:
    trainer = gan(epochs=1, data=ring(8, 10))
    trainer.d_steps = steps
    moved: list[int] = []
    step = trainer.generator.step
    trainer.generator.step = lambda loss: moved.append(int(trainer.state.iteration)) or step(loss)  # type: ignore[func-returns-value,method-assign]
    trainer.run()
    assert moved == list(range(steps, 11, steps))


def test_latents_are_normal() -> None:
    torch.manual_seed(0)
    drawn = NormalLatent([3, 4])(2000, torch.device("cpu"))
    assert drawn.shape == (2000, 3, 4)
    assert abs(drawn.mean().item()) < 0.02
    assert drawn.std().item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("wasserstein", [False, True])
def test_a_ring_is_learned(wasserstein: bool) -> None:
    options = {"penalty": partial(r1_penalty, weight=0.1)}
    if wasserstein:
        options = {"losses": (wasserstein_d_loss, wasserstein_g_loss), "penalty": partial(gradient_penalty, weight=1.0)}
    trainer = gan((1e-3, 2e-3), epochs=30, **options)  # type: ignore[arg-type]
    real = ring(256, 1)[0]["image"]
    before = trainer.generator.network(torch.randn(256, 4)).norm(dim=1).mean().item()
    trainer.run()
    made = trainer.generator.network(torch.randn(256, 4)).detach()
    assert before < 1.0
    assert made.norm(dim=1).mean().item() == pytest.approx(2.0, abs=0.4)
    assert mean_distance(made.numpy()) > 0.7 * mean_distance(real.numpy())


def test_the_same_seed_gives_the_same_training() -> None:
    first, second = gan(epochs=2), gan(epochs=2)
    first.run()
    torch.randn(7)
    second.run()
    for a, b in zip(first.generator.network.parameters(), second.generator.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_generator_waits_out_its_judges_head_start_and_is_never_left_without_one() -> None:
    trainer = gan(epochs=2, data=ring(8, 10))
    trainer.adversary.head_start = 1
    ends: list[Tensor] = [_weights(trainer)]
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: ends.append(_weights(trainer)))
    trainer.run()
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[1], ends[2])
    with pytest.raises(ValueError, match="first_epoch 3"):
        LatentTrainer("cpu", 1, [], trainer.generator, replace(trainer.adversary, first_epoch=3), NormalLatent([4]))


def _weights(trainer: LatentTrainer) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in trainer.generator.network.parameters()])
