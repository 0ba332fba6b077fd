"""Trains a GAN, and then an encoder that finds the latent of an image: the two steps of f-AnoGAN."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from ignite.engine import Engine
from torch import Tensor, nn

from medgen.engines.adversary import Adversary
from medgen.engines.latent import DrawLatent, LatentTrainer
from medgen.engines.player import MovingAverage, Player, frozen, share_weights
from medgen.engines.trainer import Batch

Features = Callable[[nn.Module, Tensor], Tensor]


def last_features(judge: nn.Module, image: Tensor) -> Tensor:
    """Reads the last feature map of a judge that returns `(logits, features)`."""
    features: Tensor = judge(image)[1][-1]
    return features


class InversionTrainer(LatentTrainer):
    """Trains generator and judge as `LatentTrainer` does; from an epoch on they stand still, and the encoder learns.

    The encoder learns to find latents whose image is the image that it was shown (`izi_f` of the paper: image to latent
    to image, compared as images and as the judge's features). What it learns to invert is the moving average of the
    generator. The paper trains the two one after the other, too; here they share data, checkpoint and resume.

    `engine.state.output` has, besides what `LatentTrainer` says, `residual_loss` and `feature_loss` (0 before).

    Args:
        device: where batches go.
        max_epochs: to train, both together.
        train_data_loader: of batches with `image`, `(B, C, ...)`.
        generator: maps latents to images.
        adversary: judges images.
        latent: draws latents.
        encoder: maps images to latents.
        options: those of `LatentTrainer`; `average`: of the generator, required; `encoder_average`: follows the
            encoder, or None; `gan_share` (0.6): of the epochs, rounded down, are the GAN's; `feature_weight` (1):
            kappa, of the mean squared difference of features beside that of images; `features`: how the judge's are
            read.

    Raises:
        ValueError: there is no average of the generator, or the share leaves the encoder no epoch.

    Source: Schlegl et al., Medical Image Analysis 54:30, 2019, equation 4 (`izi_f`).
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable[Batch],
        generator: Player,
        adversary: Adversary,
        latent: DrawLatent,
        encoder: Player,
        options: Mapping[str, Any],
    ) -> None:
        chosen = dict(options)
        average: MovingAverage | None = chosen.pop("average", None)
        encoder_average: MovingAverage | None = chosen.pop("encoder_average", None)
        gan_share = float(chosen.pop("gan_share", 0.6))
        self.encoder_epoch = int(gan_share * max_epochs + 1e-9) + 1
        self.feature_weight = float(chosen.pop("feature_weight", 1.0))
        self.features: Features = chosen.pop("features", last_features)
        if average is None or not 0 <= gan_share < 1:
            raise ValueError(
                "expected an average of the generator and a gan_share of 0 or more and below 1, got "
                f"{type(average).__name__} and {gan_share:g}"
            )
        self.encoder, self.inverted = encoder, average.network
        share_weights(encoder.network)
        super().__init__(device, max_epochs, train_data_loader, generator, adversary, latent, average, chosen)
        if self.half is torch.float16:  # as the others have been given one
            encoder.scaler = encoder.scaler or torch.amp.GradScaler(torch.device(device).type)
        self.players.append(encoder)
        self.averages.append((encoder, encoder_average))

    def _iteration(self, engine: Engine, batchdata: Batch) -> dict[str, Any]:
        if int(self.state.epoch) < self.encoder_epoch:
            told = super()._iteration(engine, batchdata)
            return {**told, "residual_loss": 0.0, "feature_loss": 0.0}
        (real,) = self._to_device(batchdata, "image")
        judge = self.adversary.player.network
        self.encoder.network.train()
        judge.eval()
        self.inverted.eval()
        with frozen(self.inverted), frozen(judge):
            with self._autocast():
                made = self.inverted(self.encoder.network(real)).float()
                seen, wanted = self.features(judge, made).float(), self.features(judge, real).detach().float()
            residual, feature = (made - real).square().mean(), (seen - wanted).square().mean()
            loss = residual + self.feature_weight * feature
            if self.encoder.step(loss):
                self._follow(self.encoder)
        told = {"residual_loss": residual.item(), "feature_loss": feature.item()}
        return {**told, "loss": loss.item(), "g_norm": self.encoder.norm, "pred": made.detach(), "real": real}
