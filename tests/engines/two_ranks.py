"""Run by `torchrun`: trains a line on its share of the draws and, as rank 0, writes the weights."""

import sys
from pathlib import Path

import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose
from torch import Tensor, distributed, nn

from medgen.engines.adversary import Adversary
from medgen.engines.paired import PairedTrainer
from medgen.engines.player import MovingAverage, Player, rank
from medgen.engines.trainer import join_ranks
from medgen.losses.adversarial import least_squares_d_loss, least_squares_g_loss
from medgen.prepare.draws import SeededDataset, WeightedDraws


def absolute(outputs: list[Tensor], target: Tensor, mask: Tensor) -> Tensor:
    return (mask * (outputs[-1] - target)).abs().mean()


def trained(batch_size: int) -> Tensor:
    device = join_ranks()
    generator = torch.Generator().manual_seed(0)
    shape = (1, 4, 4, 4)
    images = [torch.rand(shape, generator=generator) for _ in range(12)]
    items = [{"image": image, "target": 2 * image, "mask": torch.ones(shape)} for image in images]
    loader = DataLoader(
        SeededDataset(Dataset(items, Compose([]))),
        batch_size=batch_size,
        sampler=WeightedDraws(items, 24),
        num_workers=0,
    )
    torch.manual_seed(3 + rank())  # what the others begin with must not matter
    players = [
        Player(n, torch.optim.Adam(n.parameters(), 1e-2)) for n in (nn.Conv3d(1, 1, 3, padding=1), nn.Conv3d(2, 1, 2))
    ]
    adversary = Adversary(players[1], least_squares_d_loss, least_squares_g_loss, 0.3)
    average = MovingAverage(players[0].network, 0.5)
    trainer = PairedTrainer(device, 3, loader, players[0], absolute, adversary, average, {"seed": 5})
    trainer.run()
    networks = [average.network, *(player.network for player in players)]
    return torch.cat([p.detach().flatten() for network in networks for p in network.parameters()])


if __name__ == "__main__":
    result = trained(int(sys.argv[1]))
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        torch.save(result, Path(sys.argv[2]))
    if distributed.is_initialized():
        distributed.destroy_process_group()
