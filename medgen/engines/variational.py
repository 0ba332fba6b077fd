"""Trains a variational autoencoder: reconstruction and the divergence of the code from its prior."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine
from torch import Tensor, nn

from medgen.engines.adversary import Adversary, gradient_norm
from medgen.engines.player import MovingAverage, Player
from medgen.engines.trainer import Batch, ImageTrainer

Divergence = Callable[[Tensor, Tensor], Tensor]
Encode = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor, Tensor]]


def reconstruct_dense(network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reads MONAI's `VarAutoEncoder`: returns (reconstruction, mean, log variance)."""
    reconstruction, mean, log_variance = network(image)[:3]
    return reconstruction, mean, log_variance


def reconstruct_spatial(network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reads MONAI's `AutoencoderKL`: returns (reconstruction, mean, log variance)."""
    reconstruction, mean, deviation = network(image)
    return reconstruction, mean, 2 * deviation.clamp_min(1e-8).log()


def reconstruct_drawn(network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reads a network with `encode` and `decode`, as `medgen.nets.vae` has: one code is drawn.

    Returns (reconstruction, mean, log variance).
    """
    mean, log_variance = network.encode(image)  # type: ignore[operator]
    latent = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
    return network.decode(latent), mean, log_variance  # type: ignore[operator]


def encode_dense(network: nn.Module, image: Tensor) -> Tensor:
    """Returns the code of an image in MONAI's `VarAutoEncoder`: the mean, nothing drawn, whatever the network's mode.

    Its `forward` draws unless the network was built with `use_mean_at_inference` and is in evaluation mode.
    """
    mean: Tensor = network.encode_forward(image)[0]  # type: ignore[operator]
    return mean


def encode_spatial(network: nn.Module, image: Tensor) -> Tensor:
    """Returns the code of an image in MONAI's `AutoencoderKL`: the mean, nothing drawn. Its `forward` always draws."""
    mean: Tensor = network.encode(image)[0]  # type: ignore[operator]
    return mean


class VariationalTrainer(ImageTrainer):
    """Each iteration moves the autoencoder, then (while one plays) the adversary of its reconstructions.

    `engine.state.output` has `loss`, `reconstruction_loss`, `kl` (unweighted), `g_loss`, `d_loss`, `pred` and `real`.

    Args:
        device: where batches go.
        max_epochs: to train.
        train_data_loader: of batches with `image` `(B, C, ...)` and, where only a part counts, `mask`; with `target`,
            that is what is reconstructed (a denoising autoencoder).
        autoencoder: the player that encodes and decodes.
        reconstruction: loss of (outputs as a list of one, target, mask), as for `PairedTrainer`.
        divergence: of (mean, log variance); its reduction over latents is the caller's choice and part of the weight.
        adversary: of images and their reconstructions (a VAE-GAN), or None.
        options: those of `ImageTrainer`, `kl_weight` (1), `kl_warmup`: epochs over which the weight rises from 0, so
            that the code is not given up before it is used; `read`: how the network's output is read
            (`reconstruct_dense`), `average`: follows the autoencoder.
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable[Batch],
        autoencoder: Player,
        reconstruction: Callable[[Sequence[Tensor], Tensor, Tensor], Tensor],
        divergence: Divergence,
        adversary: Adversary | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        chosen = options or {}
        self.autoencoder, self.reconstruction, self.divergence = autoencoder, reconstruction, divergence
        self.adversary = adversary
        self.kl_weight, self.kl_warmup = float(chosen.get("kl_weight", 1.0)), int(chosen.get("kl_warmup", 0))
        self.read: Encode = chosen.get("read", reconstruct_dense)
        players = [autoencoder, *([adversary.player] if adversary else [])]
        names = ["kl_weight", "kl_warmup", "read", "average"]
        averages: list[tuple[Player, MovingAverage | None]] = [(autoencoder, chosen.get("average"))]
        super().__init__(device, max_epochs, train_data_loader, players, options, names, averages)

    def _iteration(self, engine: Engine, batchdata: Batch) -> dict[str, Any]:
        (image,) = self._to_device(batchdata, "image")
        (target,) = self._to_device(batchdata, "target") if "target" in batchdata else (image,)
        (mask,) = self._to_device(batchdata, "mask") if "mask" in batchdata else (torch.ones_like(target),)
        made, told = self._move_autoencoder(image, target, mask)
        if self.adversary is not None and self.adversary.plays(int(self.state.epoch)):
            with self._autocast():
                told |= self.adversary.learn(target * mask, made * mask)
        return {"d_loss": 0.0, **told, "pred": made, "real": target}

    def _move_autoencoder(self, image: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, float]]:
        self.autoencoder.network.train()
        with self._autocast():
            made, mean, log_variance = (x.float() for x in self.read(self.autoencoder.network, image))
        error, kl = self.reconstruction([made], target, mask), self.divergence(mean, log_variance)
        loss = error + self._kl_weight() * kl
        shown = made[:, : target.shape[1]]  # what else a decoder says, such as its own error, is the loss's business
        told = {"reconstruction_loss": error.item(), "kl": kl.item(), "g_loss": 0.0}
        if self.adversary is not None and self.adversary.is_felt(int(self.state.epoch)):
            with self._autocast():
                g_loss = self.adversary.felt(shown * mask)
            pull = gradient_norm(g_loss, made)
            loss = loss + self.adversary.weight * gradient_norm(error, made) / pull.clamp_min(1e-12) * g_loss
            told |= {"g_loss": g_loss.item(), "g_pull": pull.item()}
        if self.autoencoder.step(loss):
            self._follow(self.autoencoder)
        return shown.detach(), told | {"loss": loss.item(), "g_norm": self.autoencoder.norm}

    def _kl_weight(self) -> float:
        if self.kl_warmup == 0:
            return self.kl_weight
        return self.kl_weight * min(1.0, (int(self.state.epoch) - 1) / self.kl_warmup)
