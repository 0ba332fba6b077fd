"""What a training leaves behind while it runs and at its end, written whole or not at all."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from medgen.engines.player import rank
from medgen.write.atomic import atomic_write

FINAL = "model.pt"
_NAME = re.compile(r"checkpoint_epoch=(\d+)\.pt")


class CheckpointKeeper:
    """An ignite handler that writes a checkpoint every few epochs and after the last, and keeps the newest ones.

    A process killed at any instant leaves the checkpoints that it had finished, each of them whole. Of the processes of
    `torchrun` the first writes.

    Args:
        folder: for `checkpoint_epoch=N.pt`.
        states: everything with a state, the engine too.
        every: epochs between two checkpoints.
        keep: so many of them.
    """

    def __init__(self, folder: Path, states: Mapping[str, Any], every: int = 2, keep: int = 3) -> None:
        self.folder, self.states, self.every, self.keep = folder, dict(states), every, keep

    def attach(self, engine: Engine) -> None:
        """Writes after epochs of this engine."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Writes, if it is time."""
        epoch = int(engine.state.epoch)
        if rank() > 0 or (epoch % self.every and epoch != int(engine.state.max_epochs or 0)):
            return
        with atomic_write(self.folder / f"checkpoint_epoch={epoch}.pt") as part:
            torch.save({name: state.state_dict() for name, state in self.states.items()}, part)
        for old in checkpoints(self.folder)[: -self.keep]:
            old.unlink()


class WeightsSaver:
    """An ignite handler that writes the weights of a network when the training ends.

    Args:
        network: whose weights are the result, such as a moving average.
        output_dir: for `model.pt`.
    """

    def __init__(self, network: nn.Module, output_dir: str) -> None:
        self.network, self.folder = network, Path(output_dir)

    def attach(self, engine: Engine) -> None:
        """Writes at the end of this engine."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Writes."""
        if rank() == 0:
            with atomic_write(self.folder / FINAL) as part:
                torch.save(self.network.state_dict(), part)


def checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints in a folder, the newest last."""
    found = {int(name[1]): path for path in folder.glob("*.pt") if (name := _NAME.fullmatch(path.name))}
    return [found[epoch] for epoch in sorted(found)]
