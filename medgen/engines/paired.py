"""Trains a generator on pairs of a source and its true translation, with or without an adversary.

MONAI's `AdversarialTrainer` hands the discriminator the *source* as its real example. Here the discriminator judges
pairs, (source, truth) against (source, translation), as in Isola et al., "Image-to-image translation with
conditional adversarial networks", CVPR 2017. Networks, losses and optimizers arrive as arguments; nothing here knows
what they are.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine
from torch import Tensor

from medgen.engines.adversary import Adversary, gradient_norm
from medgen.engines.player import MovingAverage, Player
from medgen.engines.trainer import Batch, ImageTrainer

Generate = Callable[[Tensor], Sequence[Tensor]]
ReconstructionLoss = Callable[[Sequence[Tensor], Tensor, Tensor], Tensor]


class PairedTrainer(ImageTrainer):
    """Each iteration moves the generator, then (while the adversary plays) the discriminator.

    `engine.state.output` always has `loss` (what the generator minimised), `g_loss` (its adversarial part, unweighted),
    `d_loss`, `g_norm` and `pred`, and what `Adversary.learn` tells; the losses of an adversary that does not play
    are 0.

    Args:
        device: where batches go.
        max_epochs: to train.
        train_data_loader: of batches with `image`, `target` and `mask`, each `(B, 1, X, Y, Z)`.
        generator: the player that translates.
        reconstruction: loss of (outputs of all stages coarse to fine, target, mask).
        adversary: the discriminator and its rules, or None; its images are (source, translation) as two channels.
        average: follows the generator, or None.
        options: those of `ImageTrainer`, and `generate`: maps a batch of sources to the list of its outputs, the last
            being the translation (default: the network itself).
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable[Batch],
        generator: Player,
        reconstruction: ReconstructionLoss,
        adversary: Adversary | None = None,
        average: MovingAverage | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.generator, self.reconstruction = generator, reconstruction
        self.adversary = adversary
        self.generate: Generate = (options or {}).get("generate") or (lambda source: [generator.network(source)])
        players = [generator, *([adversary.player] if adversary else [])]
        averages = [(generator, average)]
        super().__init__(device, max_epochs, train_data_loader, players, options, ["generate"], averages)

    def _iteration(self, engine: Engine, batchdata: Batch) -> dict[str, Any]:
        source, target, mask = self._to_device(batchdata, "image", "target", "mask")
        translation, told = self._move_generator(source, target, mask)
        if self.adversary is not None and self.adversary.plays(int(self.state.epoch)):
            real, fake = _pair(source, target, mask), _pair(source, translation, mask)
            with self._autocast():
                told |= self.adversary.learn(real, fake)
        return {"d_loss": 0.0, **told, "pred": translation, "real": target}

    def _move_generator(self, source: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, float]]:
        self.generator.network.train()
        with self._autocast():
            outputs = [image.float() for image in self.generate(source)]
        loss = self.reconstruction(outputs, target, mask)
        told = {"g_loss": 0.0}
        if self.adversary is not None and self.adversary.is_felt(int(self.state.epoch)):
            with self._autocast():
                g_loss = self.adversary.felt(_pair(source, outputs[-1], mask))
            pull = gradient_norm(g_loss, outputs[-1])
            balance = gradient_norm(loss, outputs[-1]) / pull.clamp_min(1e-12)
            loss = loss + self.adversary.weight * balance * g_loss
            told = {"g_loss": g_loss.item(), "g_pull": pull.item()}
        if self.generator.step(loss):
            self._follow(self.generator)
        return outputs[-1].detach(), {"loss": loss.item(), **told, "g_norm": self.generator.norm}


def _pair(source: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    return torch.cat([source * mask, image * mask], dim=1)
