"""Trains a generator on pairs of a source and its true translation, with or without an adversary.

MONAI's `AdversarialTrainer` hands the discriminator the *source* as its real example. Here the discriminator judges
pairs, (source, truth) against (source, translation), as in Isola et al., "Image-to-image translation with
conditional adversarial networks", CVPR 2017. Networks, losses and optimizers arrive as arguments; nothing here knows
what they are.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from ignite.engine import Engine, EventEnum
from monai.engines import Trainer
from torch import Tensor, nn

Batch = Mapping[str, Any]
Generate = Callable[[Tensor], Sequence[Tensor]]
Judge = Callable[[Tensor], Tensor]
ReconstructionLoss = Callable[[Sequence[Tensor], Tensor, Tensor], Tensor]

_log = logging.getLogger(__name__)


class PairedEvents(EventEnum):  # type: ignore[misc]
    """Moments inside one iteration that a handler can attach to."""

    GENERATOR_STEP_COMPLETED = "generator_step_completed"
    DISCRIMINATOR_STEP_COMPLETED = "discriminator_step_completed"


@dataclass
class Player:
    """A network and what moves its weights.

    Attributes:
        network: already on the trainer's device.
        optimizer: of its parameters.
        clip_norm: gradients are scaled down to this norm; 0 leaves them alone.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    clip_norm: float = 1.0

    def step(self, loss: Tensor) -> bool:
        """Moves the weights down the gradient of `loss`; returns whether it did.

        A gradient that is not finite moves nothing: half-precision convolutions over a handful of voxels can give one
        (seen with bf16 on the CPU on windows of 32 voxels), and one such step would end a training.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        bound = self.clip_norm if self.clip_norm > 0 else math.inf
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), bound)
        if not bool(torch.isfinite(norm)):
            _log.warning("a step of %s was left out: its gradient is not finite", type(self.network).__name__)
            return False
        self.optimizer.step()
        return True


@dataclass
class Adversary:
    """A discriminator, the objective of both sides, and when and how strongly the generator feels it.

    Attributes:
        player: the discriminator; it maps joined pairs `(B, 2, X, Y, Z)` to logits (or to `(logits, features)`).
        d_loss: of the logits for real and for fake pairs.
        g_loss: of the logits for fake pairs, as the generator wants them.
        weight: size of the gradient of `g_loss` at the translation, relative to that of the reconstruction. Stated so,
            it means the same whatever the discriminator's scale, which changes as it learns. At 0 the adversary is off
            and is not trained. Source: Esser et al., CVPR 2021, equation 7, there at the last layer.
        first_epoch: it joins in this epoch (the first is 1); before it, the generator learns alone.
        head_start: epochs from then on in which the discriminator learns, but the generator does not feel it yet.
    """

    player: Player
    d_loss: Callable[[Tensor, Tensor], Tensor]
    g_loss: Callable[[Tensor], Tensor]
    weight: float = 0.1
    first_epoch: int = 1
    head_start: int = 0

    def plays(self, epoch: int) -> bool:
        """Says whether it takes part in this epoch."""
        return self.weight > 0 and epoch >= self.first_epoch

    def is_felt(self, epoch: int) -> bool:
        """Says whether the generator feels it in this epoch."""
        return self.weight > 0 and epoch >= self.first_epoch + self.head_start

    def judge(self, source: Tensor, image: Tensor) -> Tensor:
        """Returns the discriminator's logits for the pair."""
        judged: Tensor | tuple[Tensor, Any] = self.player.network(torch.cat([source, image], dim=1))
        return judged[0] if isinstance(judged, tuple) else judged


class MovingAverage:
    """A copy of a network whose weights follow the original's slowly; it is the one to keep.

    Args:
        network: to follow; its buffers are copied as they are.
        decay: share of the old average that stays at each step; smaller in the first steps, while the start is still
            forgotten.
    """

    def __init__(self, network: nn.Module, decay: float = 0.999) -> None:
        self.network = deepcopy(network).eval().requires_grad_(requires_grad=False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Moves the average towards the network's present weights."""
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        for average, current in zip(self.network.parameters(), network.parameters(), strict=True):
            average.lerp_(current, 1 - decay)
        for kept, present in zip(self.network.buffers(), network.buffers(), strict=True):
            kept.copy_(present)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint must hold."""
        return {"network": self.network.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a checkpoint."""
        self.network.load_state_dict(state["network"])
        self.steps = int(state["steps"])


def gradient_norm(loss: Tensor, image: Tensor) -> Tensor:
    """Returns the Euclidean norm of the gradient of `loss` at `image`, as a number; the graph stays for the step."""
    (gradient,) = torch.autograd.grad(loss, image, retain_graph=True)
    norm: Tensor = gradient.norm().detach()
    return norm


def losses_of(output: Mapping[str, Any]) -> dict[str, float]:
    """Picks the losses out of an iteration's output, as `StatsHandler(output_transform=...)` prints them."""
    return {key: float(output[key]) for key in ("loss", "g_loss", "d_loss")}


class PairedTrainer(Trainer):  # type: ignore[misc]
    """Each iteration moves the generator, then (while the adversary plays) the discriminator.

    `engine.state.output` always has `loss` (what the generator minimised), `g_loss` (its adversarial part, unweighted),
    `d_loss` and `pred`; the losses of an adversary that does not play are 0. Network passes run under autocast where
    `amp` says so (bf16, which needs no loss scaling); losses get float32.

    Args:
        device: where batches go.
        max_epochs: to train.
        train_data_loader: of batches with `image`, `target` and `mask`, each `(B, 1, X, Y, Z)`.
        generator: the player that translates.
        reconstruction: loss of (outputs of all stages coarse to fine, target, mask).
        adversary: the discriminator and its rules, or None.
        average: follows the generator, or None.
        options: `generate`: maps a batch of sources to the list of its outputs, the last being the translation
            (default: the network itself); `amp`: bf16 autocast; `train_handlers`: ignite handlers.
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
        chosen = dict(options or {})
        # MONAI's own `amp` builds a CUDA gradient scaler, which bf16 does not need.
        self.half = bool(chosen.pop("amp", False))
        self.generator, self.reconstruction, self.adversary, self.average = (
            generator,
            reconstruction,
            adversary,
            average,
        )
        self.generate: Generate = chosen.pop("generate", None) or (lambda source: [generator.network(source)])
        super().__init__(
            device=torch.device(device),
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            handlers=chosen.pop("train_handlers", None),
            event_names=[*PairedEvents],
        )
        if chosen:
            raise ValueError(f"expected options generate, amp, train_handlers, got {', '.join(sorted(chosen))}")

    def _iteration(self, engine: Engine, batchdata: Batch) -> dict[str, Any]:
        source, target, mask = (
            batchdata[key].to(engine.state.device, non_blocking=True) for key in ("image", "target", "mask")
        )
        outputs, loss, g_loss = self._move_generator(source, target, mask)
        engine.fire_event(PairedEvents.GENERATOR_STEP_COMPLETED)
        d_loss = torch.zeros(())
        if self._adversary_plays():
            d_loss = self._move_discriminator(source * mask, target * mask, outputs[-1].detach() * mask)
            engine.fire_event(PairedEvents.DISCRIMINATOR_STEP_COMPLETED)
        return {"loss": loss.item(), "g_loss": g_loss.item(), "d_loss": d_loss.item(), "pred": outputs[-1].detach()}

    def _move_generator(self, source: Tensor, target: Tensor, mask: Tensor) -> tuple[Sequence[Tensor], Tensor, Tensor]:
        self.generator.network.train()
        with self._autocast():
            outputs = [image.float() for image in self.generate(source)]
        loss = self.reconstruction(outputs, target, mask)
        g_loss = torch.zeros((), device=loss.device)
        if self.adversary is not None and self.adversary.is_felt(int(self.state.epoch)):
            with self._autocast():
                logits = self.adversary.judge(source * mask, outputs[-1] * mask)
            g_loss = self.adversary.g_loss(logits.float())
            balance = gradient_norm(loss, outputs[-1]) / gradient_norm(g_loss, outputs[-1]).clamp_min(1e-12)
            loss = loss + self.adversary.weight * balance * g_loss
        self.generator.step(loss)
        if self.average is not None:
            self.average.update(self.generator.network)
        return outputs, loss, g_loss

    def _move_discriminator(self, source: Tensor, target: Tensor, translation: Tensor) -> Tensor:
        adversary = self.adversary
        if adversary is None:
            raise RuntimeError("expected an adversary, got none")
        adversary.player.network.train()
        with self._autocast():
            real, fake = adversary.judge(source, target), adversary.judge(source, translation)
        loss = adversary.d_loss(real.float(), fake.float())
        adversary.player.step(loss)
        return loss

    def _adversary_plays(self) -> bool:
        return self.adversary is not None and self.adversary.plays(int(self.state.epoch))

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.state.device.type, dtype=torch.bfloat16, enabled=self.half)
