"""A network with what moves its weights: clipping, accumulation, loss scaling, ranks."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed, nn

from medgen.layout import channels_last

_log = logging.getLogger(__name__)


@dataclass
class Player:
    """A network and what moves its weights.

    Attributes:
        network: already on the trainer's device.
        optimizer: of its parameters.
        clip_norm: gradients are scaled down to this norm; 0 leaves them alone.
        accumulate: losses whose mean gradient makes one step: a batch that does not fit, in parts.
        scaler: scales losses up so that fp16 gradients do not vanish; bf16 and fp32 need none.
        norm: of the last gradient before clipping, for those who watch; NaN until there is one.
        refused: steps left out so far because the gradient was not finite.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    clip_norm: float = 1.0
    accumulate: int = 1
    scaler: "torch.amp.GradScaler | None" = None
    norm: float = field(default=math.nan, init=False)
    refused: int = field(default=0, init=False)
    _held: int = field(default=0, init=False)

    def step(self, loss: Tensor) -> bool:
        """Moves the weights down the gradient of `loss`; returns whether it did.

        A gradient that is not finite moves nothing: half-precision convolutions over a handful of voxels can give one
        (seen with bf16 on the CPU on windows of 32 voxels), and one such step would end a training.
        """
        return move([self], loss)[0]

    def flush(self) -> bool:
        """Steps with the gradients held so far, fewer than `accumulate`; returns whether the weights moved."""
        if not self._held:
            return False
        moved = self._apply(self.scaler)
        if self.scaler is not None:
            self.scaler.update()
        return moved

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint must hold: state dicts only."""
        scaler = self.scaler.state_dict() if self.scaler is not None else {}
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "scaler": scaler}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a checkpoint."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._held = 0  # gradients that belong to other weights are forgotten
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(dict(state["scaler"]))

    def _prepare(self) -> None:
        if self._held == 0:
            self.optimizer.zero_grad(set_to_none=True)

    def _arrived(self, scaler: "torch.amp.GradScaler | None") -> bool:
        self._held += 1
        return self._held >= self.accumulate and self._apply(scaler)

    def _apply(self, scaler: "torch.amp.GradScaler | None") -> bool:
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        if self._held > 1:
            for p in parameters:
                p.grad.div_(self._held)  # type: ignore[union-attr]
        self._held = 0
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        average_over_ranks(parameters)
        self.norm = float(nn.utils.clip_grad_norm_(parameters, self.clip_norm if self.clip_norm > 0 else math.inf))
        moved = math.isfinite(self.norm)
        # The norm is that of all ranks: a scaler knows of its own rank's overflow alone, and would let the others step.
        if moved and scaler is not None:
            scaler.step(self.optimizer)
        elif moved:
            self.optimizer.step()
        else:
            self.refused += 1
            _log.warning("a step of %s was left out: its gradient is not finite", type(self.network).__name__)
        return moved


def move(players: Sequence[Player], loss: Tensor) -> list[bool]:
    """Moves several networks down the gradient of one loss that they share; returns which of them moved.

    The first player's scaler serves all.
    """
    for player in players:
        player._prepare()
    scaler = players[0].scaler
    (scaler.scale(loss) if scaler is not None else loss).backward()  # type: ignore[no-untyped-call]
    moved = [player._arrived(scaler) for player in players]
    if scaler is not None and players[0]._held == 0:
        scaler.update()
    return moved


def across_ranks() -> bool:
    """Says whether this process is one of several."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def rank() -> int:
    """Returns which of several processes this one is, from 0; 0 alone."""
    return distributed.get_rank() if across_ranks() else 0


def average_over_ranks(parameters: Sequence[nn.Parameter]) -> None:
    """Averages gradients over the processes of `torchrun`, so that all ranks take the same step; alone, does nothing.

    By hand, where DistributedDataParallel would do it in the backward pass: a GAN runs several backward passes over
    networks of which it moves only one, which DDP's hooks take for a fault.
    """
    if not across_ranks():
        return
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    start = 0
    for p in parameters:
        if p.grad is not None:
            p.grad.copy_(flat[start : start + p.numel()].view_as(p))
            start += p.numel()


def on_device(network: nn.Module, device: torch.device | str) -> nn.Module:
    """Moves a network to a device, the weights of its convolutions channels last: what those want there."""
    return channels_last(network.to(device))


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Keeps gradients out of a network that is only looked through: saves their time, and they cannot pile up."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad = False
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad = True


def share_weights(network: nn.Module) -> None:
    """Gives the network of every process of `torchrun` the weights and buffers of the first one's."""
    if across_ranks():
        for tensor in (*network.parameters(), *network.buffers()):
            distributed.broadcast(tensor.data, src=0)


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
