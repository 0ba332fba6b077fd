"""A discriminator with its objective and its handicaps, as every GAN trainer plays it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from medgen.engines.player import Player, across_ranks, frozen

Judge = Callable[[Tensor], Tensor]
Penalty = Callable[[Judge, Tensor, Tensor], Tensor]

_COMPARED = 256


@dataclass
class Adversary:
    """A discriminator, the objective of both sides, and when and how strongly the generator feels it.

    Attributes:
        player: the discriminator; it maps images (pairs are joined channels) `(B, C, X, Y, Z)` to logits, or to
            `(logits, features)`. Its own learning rate makes two time scales (Heusel et al., NeurIPS 2017).
        d_loss: of the logits for real and for fake images.
        g_loss: of the logits for fake images, as the generator wants them.
        weight: what the adversarial part counts. Beside a reconstruction (`balanced`), it is the size of the gradient
            of `g_loss` at the translation, relative to that of the reconstruction: so stated, it means the same
            whatever the discriminator's scale, which changes as it learns. At 0 the adversary is off and is not
            trained. Source: Esser et al., CVPR 2021, equation 7, there at the last layer.
        first_epoch: it joins in this epoch (the first is 1); before it, the generator learns alone.
        head_start: epochs from then on in which the discriminator learns, but the generator does not feel it yet.
        penalty: added to `d_loss`, of (discriminator, real, fake): what Wasserstein needs and others profit from.
        flip: how often a real and a fake example change places for the discriminator; a little keeps one that wins
            from being certain (label noise, Salimans et al., NeurIPS 2016).
        noise: standard deviation of noise added to all it sees, in units of the image (Sonderby et al., ICLR 2017).
    """

    player: Player
    d_loss: Callable[[Tensor, Tensor], Tensor]
    g_loss: Callable[[Tensor], Tensor]
    weight: float = 0.1
    first_epoch: int = 1
    head_start: int = 0
    penalty: Penalty | None = None
    flip: float = 0.0
    noise: float = 0.0

    def plays(self, epoch: int) -> bool:
        """Says whether it takes part in this epoch."""
        return self.weight > 0 and epoch >= self.first_epoch

    def is_felt(self, epoch: int) -> bool:
        """Says whether the generator feels it in this epoch."""
        return self.weight > 0 and epoch >= self.first_epoch + self.head_start

    def judge(self, image: Tensor) -> Tensor:
        """Returns the discriminator's logits in float32."""
        if self.noise > 0:
            image = image + self.noise * torch.randn_like(image)
        judged: Tensor | tuple[Tensor, Any] = self.player.network(image)
        return (judged[0] if isinstance(judged, tuple) else judged).float()

    def felt(self, fake: Tensor) -> Tensor:
        """Returns what the generator is told of its images; gradients flow to them, not into the discriminator."""
        with frozen(self.player.network):
            return self.g_loss(self.judge(fake))

    def learn(self, real: Tensor, fake: Tensor) -> dict[str, float]:
        """Moves the discriminator one step; returns what health is read from.

        Args:
            real: images `(B, C, ...)` that are what they claim to be.
            fake: the generator's, without a gradient.

        Returns:
            `d_loss`; `d_real` and `d_fake`, the mean logits; `d_accuracy`, the share of pairs of a real and a fake
            logit that are in the right order (0.5 is a guess, whatever the objective); `d_norm`, of its gradient.
        """
        self.player.network.train()
        fake = fake.detach()
        real_logits, fake_logits = self.judge(real), self.judge(fake)
        loss = self.d_loss(*self._swapped(real_logits, fake_logits))
        if self.penalty is not None:
            with torch.autocast(real.device.type, enabled=False):
                loss = loss + self.penalty(self.judge, real.float(), fake.float())
        self.player.step(loss)
        return {
            "d_loss": loss.item(),
            "d_real": real_logits.mean().item(),
            "d_fake": fake_logits.mean().item(),
            "d_accuracy": ordered_share(real_logits.detach(), fake_logits.detach()),
            "d_norm": self.player.norm,
        }

    def _swapped(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Lets the logits of some examples change places: in what is learnt, not in what is reported."""
        if self.flip <= 0:
            return real, fake
        chosen = (torch.rand(len(real), device=real.device) < self.flip).reshape(-1, *[1] * (real.ndim - 1))
        return torch.where(chosen, fake, real), torch.where(chosen, real, fake)


def ordered_share(real: Tensor, fake: Tensor) -> float:
    """Returns the share of pairs of a real and a fake logit in which the real one is larger; ties count half.

    This is the area under the ROC curve. Of large maps, 256 evenly spread logits of each are compared.

    Example:
        >>> ordered_share(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0]))
        0.875
    """
    spread = [x.flatten()[:: max(1, x.numel() // _COMPARED)][:_COMPARED] for x in (real, fake)]
    difference = spread[0][:, None] - spread[1][None, :]
    tie = difference.abs() < 1e-6  # equal but for rounding
    return float(((difference > 0) & ~tie).float().mean() + 0.5 * tie.float().mean())


def gradient_norm(loss: Tensor, image: Tensor) -> Tensor:
    """Returns the Euclidean norm of the gradient of `loss` at `image`, as a number; the graph stays for the step.

    Over the processes of `torchrun` it is that of all their images together.
    """
    (gradient,) = torch.autograd.grad(loss, image, retain_graph=True)
    squared = gradient.float().square().sum().detach()
    if across_ranks():
        distributed.all_reduce(squared)
        # Each process's loss is a mean over its own share, so its gradients are larger by their number.
        squared /= distributed.get_world_size() ** 2
    return squared.sqrt()
