"""Trains a generator that makes images of noise: the GAN of Goodfellow et al. (2014) with any objective."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine
from torch import Tensor

from medgen.engines.adversary import Adversary
from medgen.engines.player import MovingAverage, Player
from medgen.engines.trainer import Batch, ImageTrainer

DrawLatent = Callable[[int, torch.device], Tensor]


class NormalLatent:
    """Draws latents from the standard normal distribution: on a sphere's shell, as interpolation between them wants.

    Args:
        shape: of one latent, `(C,)` or `(C, X, Y, Z)`.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)

    def __call__(self, count: int, device: torch.device) -> Tensor:
        """Returns `(count, *shape)`."""
        return torch.randn(count, *self.shape, device=device)


class LatentTrainer(ImageTrainer):
    """Each iteration moves the discriminator, and every `d_steps` iterations the generator once.

    Every batch of real images meets as many generated ones, the last of an epoch too (MONAI's `GanTrainer` makes a full
    batch there), and every discriminator step sees new real images, so more steps need no second pass over one graph.
    `engine.state.output` has `loss` and `g_loss` (the generator's last), what `Adversary.learn` tells, `pred`, `real`.

    Args:
        device: where batches go.
        max_epochs: to train.
        train_data_loader: of batches with `image`, `(B, C, ...)`.
        generator: maps latents to images.
        adversary: judges images.
        latent: draws latents.
        average: follows the generator, or None.
        options: those of `ImageTrainer`, and `d_steps`: discriminator steps for each of the generator; 5 is usual with
            the Wasserstein objective, 1 with others.

    Raises:
        ValueError: the adversary does not play from the first epoch.
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable[Batch],
        generator: Player,
        adversary: Adversary,
        latent: DrawLatent,
        average: MovingAverage | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.generator, self.adversary, self.latent = generator, adversary, latent
        self.d_steps = int((options or {}).get("d_steps", 1))
        self._told: dict[str, float] = {"loss": 0.0, "g_loss": 0.0}
        if not adversary.plays(1):
            raise ValueError(
                "expected an adversary with a weight above 0 that plays from epoch 1, as nothing else teaches the "
                f"generator; got weight {adversary.weight} and first_epoch {adversary.first_epoch}"
            )
        players, averages = [generator, adversary.player], [(generator, average)]
        super().__init__(device, max_epochs, train_data_loader, players, options, ["d_steps"], averages)

    def _iteration(self, engine: Engine, batchdata: Batch) -> dict[str, Any]:
        (real,) = self._to_device(batchdata, "image")
        self.generator.network.train()
        with self._autocast():
            with torch.no_grad():
                fake = self.generator.network(self.latent(len(real), real.device)).float()
            told = self.adversary.learn(real, fake)
        if int(self.state.iteration) % self.d_steps == 0 and self.adversary.is_felt(int(self.state.epoch)):
            fake = self._move_generator(len(real))
        return {**self._told, **told, "pred": fake, "real": real}

    def _move_generator(self, count: int) -> Tensor:
        with self._autocast():
            fake: Tensor = self.generator.network(self.latent(count, self.state.device)).float()
            g_loss = self.adversary.felt(fake)
        (pull,) = torch.autograd.grad(g_loss, fake, retain_graph=True)
        if self.generator.step(self.adversary.weight * g_loss):
            self._follow(self.generator)
        loss = g_loss.item()
        self._told = {"loss": loss, "g_loss": loss, "g_pull": pull.norm().item(), "g_norm": self.generator.norm}
        return fake.detach()
