"""GANs of a few numbers, in which each failure can be provoked and health be shown, in seconds."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from medgen.engines.adversary import Adversary, Penalty
from medgen.engines.health import HealthMonitor
from medgen.engines.latent import LatentTrainer, NormalLatent
from medgen.engines.player import Player
from medgen.losses.adversarial import minimax_d_loss, non_saturating_g_loss

DLoss, GLoss = Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]


def ring(count: int = 64, batches: int = 50, radius: float = 2.0) -> list[dict[str, Tensor]]:
    """Batches of points on a ring of eight clusters, `(count, 2)`: the data on which mode collapse was first shown."""
    generator = torch.Generator().manual_seed(5)
    result = []
    for _ in range(batches):
        angle = torch.randint(8, (count,), generator=generator) * (torch.pi / 4)
        centre = radius * torch.stack([angle.cos(), angle.sin()], dim=1)
        result.append({"image": centre + 0.1 * torch.randn(count, 2, generator=generator)})
    return result


def mlp(inputs: int, outputs: int, width: int = 32) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.LeakyReLU(0.2),
        nn.Linear(width, width),
        nn.LeakyReLU(0.2),
        nn.Linear(width, outputs),
    )


class Dirac(nn.Module):
    """A generator with one number, whatever the latent; or, with `slope`, a discriminator that is one slope."""

    def __init__(self, value: float, slope: bool = False) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([value]))
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return x * self.value if self.slope else torch.zeros_like(x) + self.value


def gan(
    rates: tuple[float, float] = (1e-3, 1e-3),
    losses: tuple[DLoss, GLoss] = (minimax_d_loss, non_saturating_g_loss),
    penalty: Penalty | None = None,
    epochs: int = 20,
    data: Sequence[dict[str, Tensor]] | None = None,
    networks: tuple[nn.Module, nn.Module] | None = None,
    monitor: HealthMonitor | None = None,
    sgd: bool = False,
) -> LatentTrainer:
    """Returns a GAN on the ring; rates are the generator's and the discriminator's."""
    torch.manual_seed(1)
    makes, judges = networks or (mlp(4, 2), mlp(2, 1))
    kind = torch.optim.SGD if sgd else torch.optim.Adam
    players = [Player(n, kind(n.parameters(), lr), clip_norm=0) for n, lr in zip((makes, judges), rates, strict=True)]
    adversary = Adversary(players[1], *losses, weight=1.0, penalty=penalty)
    latent = NormalLatent([4] if networks is None else [1])
    handlers = [monitor] if monitor else []
    data = ring() if data is None else data
    return LatentTrainer(
        "cpu", epochs, data, players[0], adversary, latent, options={"train_handlers": handlers, "seed": 3}
    )
