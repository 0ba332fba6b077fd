"""A training that was stopped and resumed equals one that was not, bit for bit on the CPU, for every engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset
from monai.handlers import CheckpointLoader, LrScheduleHandler
from monai.networks.nets import VarAutoEncoder
from monai.optimizers import WarmupCosineSchedule
from torch import Tensor, nn

from medgen.engines.adversary import Adversary
from medgen.engines.latent import LatentTrainer, NormalLatent
from medgen.engines.paired import PairedTrainer
from medgen.engines.player import MovingAverage, Player
from medgen.engines.pool import ImagePool
from medgen.engines.unpaired import Direction, UnpairedTrainer
from medgen.engines.variational import VariationalTrainer
from medgen.losses.adversarial import least_squares_d_loss, least_squares_g_loss
from medgen.losses.divergence import gaussian_kl
from medgen.prepare.draws import SeededDataset, WeightedDraws
from medgen.run.checkpoint import CheckpointKeeper

Made = tuple[Engine, dict[str, Any], nn.Module]


def adam(network: nn.Module, **options: Any) -> Player:
    return Player(network, torch.optim.Adam(network.parameters(), 1e-2), **options)


def rival(network: nn.Module, **options: Any) -> Adversary:
    return Adversary(adam(network), least_squares_d_loss, least_squares_g_loss, 0.3, **options)


def images(count: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return list(torch.rand(count, 2, 1, 4, 4, 4, generator=generator))


def absolute(outputs: list[Tensor], target: Tensor, mask: Tensor) -> Tensor:
    return (mask * (outputs[-1] - target)).abs().mean()


def paired(epochs: int) -> Made:
    """With all extras: workers, accumulation that a whole epoch does not divide, a schedule, an average, bfloat16."""
    network = nn.Conv3d(1, 1, 3, padding=1)
    items = [{"image": x[0], "target": 2 * x[0], "mask": torch.ones_like(x[0])} for x in images()]
    draws = WeightedDraws(items, 5, seed=3)
    loader = DataLoader(SeededDataset(Dataset(items, lambda item: item)), batch_size=1, sampler=draws, num_workers=1)
    player, average, adversary = adam(network, accumulate=2), MovingAverage(network, 0.9), rival(nn.Conv3d(2, 1, 2))
    schedule = WarmupCosineSchedule(player.optimizer, warmup_steps=3, t_total=20)
    handlers = [LrScheduleHandler(schedule, epoch_level=False, print_lr=False)]
    options = {"seed": 5, "amp": True, "train_handlers": handlers}
    trainer = PairedTrainer("cpu", epochs, loader, player, absolute, adversary, average, options)
    return trainer, {"p": player, "d": adversary.player, "average": average, "schedule": schedule}, average.network


def unpaired(epochs: int) -> Made:
    batches = [{"image": x, "target": 1 - x} for x in images()]
    forth, back = (
        Direction(adam(nn.Conv3d(1, 1, 3, padding=1)), rival(nn.Conv3d(1, 1, 2), flip=0.2), pool=ImagePool(3))
        for _ in range(2)
    )
    trainer = UnpairedTrainer("cpu", epochs, batches, forth, back, options={"seed": 5})
    return trainer, {"forth": forth, "back": back}, forth.generator.network


def latent(epochs: int) -> Made:
    network = nn.Sequential(nn.Linear(3, 64), nn.Unflatten(1, (1, 4, 4, 4)))
    player, adversary = adam(network), rival(nn.Conv3d(1, 1, 2), noise=0.1)
    trainer = LatentTrainer(
        "cpu", epochs, [{"image": x} for x in images()], player, adversary, NormalLatent([3]), options={"seed": 5}
    )
    return trainer, {"p": player, "d": adversary.player}, network


def variational(epochs: int) -> Made:
    network = VarAutoEncoder(3, (1, 4, 4, 4), 1, 2, (2, 2), (2, 1), use_sigmoid=False)
    player = adam(network)
    options = {"seed": 5, "kl_weight": 0.1, "kl_warmup": 3}
    trainer = VariationalTrainer(
        "cpu", epochs, [{"image": x} for x in images()], player, absolute, gaussian_kl, None, options
    )
    return trainer, {"p": player}, network


# A schedule counts iterations, and with accumulation the first of them moves nothing.
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
@pytest.mark.parametrize("make", [paired, unpaired, latent, variational])
def test_a_resumed_training_equals_one_that_never_stopped(make: Callable[[int], Made], tmp_path: Path) -> None:
    torch.manual_seed(4)
    whole, _, expected = make(4)
    whole.run()
    torch.manual_seed(4)
    first, states, _ = make(2)
    CheckpointKeeper(tmp_path, {**states, "trainer": first}).attach(first)
    first.run()
    torch.manual_seed(9)  # what it begins with must not matter
    second, states, resumed = make(4)
    CheckpointLoader(str(tmp_path / "checkpoint_epoch=2.pt"), {**states, "trainer": second}).attach(second)
    second.run()
    pairs = list(zip(expected.parameters(), resumed.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    torch.manual_seed(4)
    assert not all(torch.equal(a, b) for a, b in zip(make(4)[2].parameters(), resumed.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
@pytest.mark.parametrize("make", [paired, unpaired, latent, variational])
def test_a_checkpoint_holds_states_and_no_code(make: Callable[[int], Made], tmp_path: Path) -> None:
    trainer, states, _ = make(1)
    CheckpointKeeper(tmp_path, {**states, "trainer": trainer}).attach(trainer)
    trainer.run()
    state = torch.load(tmp_path / "checkpoint_epoch=1.pt", weights_only=True)  # which refuses anything but data
    assert state.keys() == {*states, "trainer"}
