"""What every trainer here does alike: precision, ranks, seeds by epoch, gradients flushed at an epoch's end."""

import os
import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import Trainer
from torch import Tensor, distributed, nn

from medgen.engines.player import MovingAverage, Player, rank, share_weights
from medgen.errors import DeviceError

Batch = Mapping[str, Any]
Amp = bool | Literal["bf16", "fp16"]
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class ImageTrainer(Trainer):  # type: ignore[misc]
    """The part of a trainer that does not depend on what is trained; subclasses write `_iteration`.

    An epoch's random numbers depend on the seed and the epoch alone, so that a training resumed from the checkpoint of
    any epoch equals one that never stopped, bit for bit on the CPU. A sampler with `set_epoch` is told the epoch.

    Args:
        device: where batches go.
        max_epochs: to train.
        train_data_loader: of batches.
        players: everything whose weights move.
        options: `amp`: autocast of the networks' passes, `bf16` (or true: needs no loss scaling), `fp16` (scaled) or
            false; losses get float32; `seed`: of the epochs' random numbers, None leaves them alone; `deterministic`:
            only algorithms that give the same result again (slower; for the process, from here on). On a GPU torch has
            none for the gradients of replicate padding and of interpolation, which most networks here use: it warns
            of those and goes on; `train_handlers`: ignite handlers.
        names: further options that the subclass reads.
        averages: which player each moving average follows, None for one that nothing follows.

    Raises:
        ValueError: an option has another name.
        DeviceError: in training, a convolution would see too few planes for bfloat16 on a CPU.
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable[Batch],
        players: Sequence[Player],
        options: Mapping[str, Any] | None = None,
        names: Sequence[str] = (),
        averages: Sequence[tuple[Player, MovingAverage | None]] = (),
    ) -> None:
        chosen = dict(options or {})
        known = ("amp", "seed", "deterministic", "train_handlers", *names)
        if unknown := sorted(set(chosen) - set(known)):
            raise ValueError(f"expected options {', '.join(known)}, got {', '.join(unknown)}")
        self.players, self.averages = list(players), list(averages)
        for network in [p.network for p in players] + [average.network for _, average in averages if average]:
            share_weights(network)  # processes may have begun with different ones
        self.half = _half(chosen.get("amp", False))
        self.seed: int | None = chosen.get("seed")
        if chosen.get("deterministic", False):
            torch.use_deterministic_algorithms(mode=True, warn_only=torch.device(device).type == "cuda")
        if self.half is torch.float16:
            for player in self.players:
                player.scaler = player.scaler or torch.amp.GradScaler(torch.device(device).type)
        if self.half is torch.bfloat16 and torch.device(device).type == "cpu":
            for player in self.players:
                _refuse_two_planes(player.network)
        # MONAI's own `amp` builds a CUDA gradient scaler whatever the precision.
        super().__init__(
            device=torch.device(device),
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            handlers=chosen.get("train_handlers"),
        )
        self.add_event_handler(Events.EPOCH_STARTED, self._begin_epoch)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._flush)

    def _begin_epoch(self, engine: Engine) -> None:
        epoch = int(engine.state.epoch)
        if self.seed is not None:
            seed = (self.seed * 1_000_003 + epoch * 1009 + rank()) % 2**32
            # Not MONAI's set_determinism: it also turns off cuDNN's choice of the fastest algorithm.
            torch.manual_seed(seed)
            np.random.seed(seed)  # MONAI's transforms draw from the global state
            random.seed(seed)
        sampler = getattr(self.data_loader, "sampler", None)
        if sampler is not None and hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)

    def _flush(self, engine: Engine) -> None:
        for player in self.players:
            if player.flush():
                self._follow(player)

    def _follow(self, player: Player) -> None:
        """Lets the moving average of a player that has moved come after it."""
        for followed, average in self.averages:
            if followed is player and average is not None:
                average.update(player.network)

    def _to_device(self, batch: Batch, *keys: str) -> list[Tensor]:
        """Images as plain tensors: slicing a batch of MetaTensors compares their histories, and can fail."""
        plain = [batch[key].as_subclass(Tensor) for key in keys]
        return [image.to(self.state.device, non_blocking=True) for image in plain]

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.state.device.type, dtype=self.half or torch.bfloat16, enabled=self.half is not None)


def _refuse_two_planes(network: nn.Module) -> None:
    """Lets a network fail where its gradient would be wrong, and mostly finite, without anybody noticing.

    oneDNN, as torch 2.13 has it, reads memory that was never written in the weight gradient of bfloat16 convolutions
    whose input has two planes along the first axis; found with kernels of 3x3x3 and a stride of 1, by comparing with
    float32 on a CPU with AVX-512. Kernels of one voxel and strides of two give what float32 gives.
    """

    def check(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].shape[2] == 2 and torch.is_grad_enabled():
            raise DeviceError(
                "expected more than 2 planes along the first axis in a bfloat16 convolution on the CPU (its gradient "
                f"is wrong there), got an input of {tuple(inputs[0].shape)}; try a larger window, or `amp` false"
            )

    for module in network.modules():
        if isinstance(module, nn.Conv3d) and module.kernel_size[0] > 1 and module.stride[0] == 1:
            module.register_forward_pre_hook(check)


def _half(amp: Amp) -> torch.dtype | None:
    if not amp:
        return None
    name = "bf16" if amp is True else amp
    if name not in _HALF:
        raise ValueError(f"expected amp to be true, false, {' or '.join(_HALF)}, got {amp!r}")
    return _HALF[name]


def losses_of(output: Mapping[str, Any]) -> dict[str, float]:
    """Picks the losses out of an iteration's output, as `StatsHandler(output_transform=...)` prints them."""
    return {key: float(output[key]) for key in ("loss", "g_loss", "d_loss") if key in output}


def join_ranks() -> torch.device:
    """Joins the processes that `torchrun` started; returns the device of this one. Alone, it only picks the device.

    Example:
        `torchrun --nproc_per_node 2 -m monai.bundle run --config_file configs/train.yaml ...`
    """
    cuda = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if cuda:
        torch.cuda.set_device(local)  # what objects that are broadcast pass through
    if "RANK" in os.environ and not distributed.is_initialized():
        distributed.init_process_group("nccl" if cuda else "gloo")
    return torch.device("cuda", local) if cuda else torch.device("cpu")
