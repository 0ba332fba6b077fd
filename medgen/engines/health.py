"""Watches a GAN while it trains, says which failure it sees, and does what it was told to do about it."""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from ignite.engine import Engine, Events
from torch import Tensor, distributed
from torch.nn import functional

from medgen.engines import symptoms
from medgen.engines.player import across_ranks
from medgen.engines.symptoms import Limits

Ailment = Literal["vanishing", "collapse", "oscillation", "dead"]
Remedy = Literal["warn", "slow", "rollback", "stop"]

_log = logging.getLogger(__name__)
_SERIES = ("loss", "g_loss", "d_loss", "d_real", "d_fake", "d_accuracy", "g_pull", "g_norm", "d_norm")
_POOLED = 4
_LEAST_MEASURED = 4  # of diversity, for a verdict; see `symptoms.collapse`


@dataclass(frozen=True)
class Finding:
    """One failure, when it was seen and what was done.

    Attributes:
        ailment: which one.
        message: the numbers and the advice, in words.
        epoch: when.
        iteration: when, over all epochs.
        remedy: what was done.
    """

    ailment: Ailment
    message: str
    epoch: int
    iteration: int
    remedy: Remedy


class HealthMonitor:
    """An ignite handler that reads each iteration's output and judges it every `every` iterations.

    It knows no trainer: it reads the numbers that `Adversary.learn` and the trainers here publish (what is absent is
    not judged), and `pred` and `real` images for diversity.

    Args:
        remedy: `warn` logs; `slow` also halves the rate of the discriminators; `rollback` also returns to the last
            epoch that ended healthy, one that ended a `window` before the finding, as most failures are seen late;
            `stop` ends the training, after which the last checkpoint is the diagnosis's.
        discriminators: optimizers whose rate `slow` and `rollback` halve. A schedule that sets their rate anew each
            step undoes it.
        checkpoint: everything with a state, for `rollback`.
        window: iterations that are looked back on.
        every: iterations between two judgements.
        patience: iterations at the start that are not judged: a generator at its start makes all images alike.
        limits: where a number becomes a symptom.

    Raises:
        ValueError: `rollback` without a checkpoint, or `slow` without a discriminator.
    """

    def __init__(
        self,
        remedy: Remedy = "warn",
        discriminators: Sequence[torch.optim.Optimizer] = (),
        checkpoint: Mapping[str, Any] | None = None,
        window: int = 400,
        every: int = 50,
        patience: int = 400,
        limits: Limits | None = None,
    ) -> None:
        if remedy == "rollback" and not checkpoint:
            raise ValueError("expected a checkpoint to roll back to, got none; name what has a state")
        if remedy == "slow" and not discriminators:
            raise ValueError("expected the optimizers of the discriminators to slow down, got none")
        self.remedy, self.discriminators, self.checkpoint = remedy, list(discriminators), dict(checkpoint or {})
        self.window, self.every, self.patience, self.limits = window, every, patience, limits or Limits()
        self.history: dict[str, deque[float]] = {name: deque(maxlen=window) for name in _SERIES}
        self.history["diversity"] = deque(maxlen=max(_LEAST_MEASURED, window // every))  # measured once in `every`
        self.images: dict[str, deque[Tensor]] = {name: deque(maxlen=64) for name in ("pred", "real")}
        self.gaps: deque[Tensor] = deque(maxlen=window)
        self.spread, self.strongest_pull = 0.0, 0.0
        self.findings: list[Finding] = []
        self._healthy: list[tuple[int, dict[str, Any]]] = []
        self._seen = 0
        self._silent_until: dict[Ailment, int] = {}

    def attach(self, engine: Engine) -> None:
        """Watches this engine."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        if self.remedy == "rollback":
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._keep)

    def __call__(self, engine: Engine) -> None:
        """Takes in one iteration."""
        output = engine.state.output[0] if isinstance(engine.state.output, list) else engine.state.output
        self._seen += 1
        for name in _SERIES:
            if name in output:
                self.history[name].append(float(output[name]))
        if "pred" in output and "real" in output:
            pred, real = _thumbnails(output["pred"]), _thumbnails(output["real"])
            self.images["pred"].extend(pred)
            self.images["real"].extend(real)
            self.gaps.append(pred.mean(0) - real.mean(0))
        if self._seen % self.every == 0:
            self._measure_diversity()
            self.strongest_pull = max(self.strongest_pull, symptoms.peak(self.history["g_pull"]))
            if self._seen >= self.patience:
                self._judge(engine)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed training must know to judge as if it had not stopped; not the epochs to return to."""
        return {
            "findings": [asdict(finding) for finding in self.findings],
            "strongest_pull": self.strongest_pull,
            "spread": self.spread,
            "seen": self._seen,
            "silent_until": dict(self._silent_until),
            "history": {name: list(values) for name, values in self.history.items()},
            "images": {name: list(rows) for name, rows in self.images.items()},
            "gaps": list(self.gaps),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a checkpoint."""
        self.findings = [Finding(**finding) for finding in state["findings"]]
        self.strongest_pull, self.spread = float(state["strongest_pull"]), float(state["spread"])
        self._seen, self._silent_until = int(state["seen"]), dict(state["silent_until"])
        self._forget()
        for name, values in state["history"].items():
            self.history[name].extend(values)
        for name, rows in state["images"].items():
            self.images[name].extend(rows)
        self.gaps.extend(state["gaps"])

    def summary(self) -> dict[str, float]:
        """Returns the means over the window of what health is read from, for a log: what was seen so far of it."""
        means = {name: sum(values) / len(values) for name, values in self.history.items() if values}
        return {
            name: means[name] for name in ("d_accuracy", "g_pull", "g_norm", "d_norm", "diversity") if name in means
        }

    def _measure_diversity(self) -> None:
        pred, real = (list(self.images[name]) for name in ("pred", "real"))
        if min(len(pred), len(real)) >= 8:
            self.spread = symptoms.mean_distance(torch.stack(real).numpy())
            if self.spread > 0:
                self.history["diversity"].append(symptoms.mean_distance(torch.stack(pred).numpy()) / self.spread)

    def _judge(self, engine: Engine) -> None:
        found: dict[Ailment, str | None] = {
            "dead": symptoms.dead(self.history, self.limits),
            "vanishing": symptoms.vanishing(self.history, self.limits, self.strongest_pull),
            "collapse": symptoms.collapse(self.history, self.limits),
            "oscillation": symptoms.oscillation(
                self.history, self._path(), self.spread, self.limits, int(engine.state.epoch_length or 0)
            ),
        }
        for ailment, message in _of_first_rank(found).items():
            if message is not None and self._seen >= self._silent_until.get(ailment, 0):
                self._silent_until[ailment] = self._seen + self.window
                self._act(engine, ailment, message)

    def _path(self) -> npt.NDArray[np.float32]:
        return torch.stack(list(self.gaps)).numpy() if self.gaps else np.zeros((0, 1), np.float32)

    def _act(self, engine: Engine, ailment: Ailment, message: str) -> None:
        state = engine.state
        self.findings.append(Finding(ailment, message, int(state.epoch), int(state.iteration), self.remedy))
        _log.warning("epoch %d: %s", state.epoch, message)
        if self.remedy == "stop":
            engine.terminate()
        if self.remedy in ("slow", "rollback") and ailment != "collapse":
            for optimizer in self.discriminators:
                for group in optimizer.param_groups:
                    group["lr"] *= 0.5
        if self.remedy == "rollback" and self._healthy:
            self._roll_back(0 if ailment == "dead" else self.window)

    def _keep(self, engine: Engine) -> None:
        """Keeps the state of an epoch in which nothing was found, nor found lately: then it may still be ill.

        A failure is found up to a window after it began, so the newest such state is not enough; of those older than a
        window, the newest is.
        """
        if self._seen < max(self._silent_until.values(), default=0):
            return
        if not self._healthy or self._seen - self._healthy[-1][0] >= self.window // 4:
            state = {name: deepcopy(part.state_dict()) for name, part in self.checkpoint.items()}
            self._healthy.append((self._seen, state))
        while len(self._healthy) > 1 and self._seen - self._healthy[1][0] >= self.window:
            del self._healthy[0]

    def _roll_back(self, iterations: int) -> None:
        """Returns to the newest healthy state that is at least so many iterations old, or to the oldest."""
        old = [place for place, (seen, _) in enumerate(self._healthy) if self._seen - seen >= iterations]
        del self._healthy[max(old, default=0) + 1 :]  # what came after it led here
        state = self._healthy[-1][1]
        rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.discriminators]
        for name, part in self.checkpoint.items():
            part.load_state_dict(deepcopy(state[name]))
        for optimizer, kept in zip(self.discriminators, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, kept, strict=True):
                group["lr"] = rate
        self._forget()

    def _forget(self) -> None:
        remembered: list[deque[Any]] = [*self.history.values(), *self.images.values(), self.gaps]
        for values in remembered:
            values.clear()


def _of_first_rank(found: dict[Ailment, str | None]) -> dict[Ailment, str | None]:
    """What the first process of `torchrun` found: were each to act on its own share, they would part."""
    if not across_ranks():
        return found
    box = [found]
    distributed.broadcast_object_list(box)
    return box[0]


def _thumbnails(images: Tensor) -> Tensor:
    """Shrinks `(B, C, ...)` to at most 4 voxels along each axis `(B, F)`: enough to tell images apart."""
    images = images.detach().float().cpu()
    spatial = images.shape[2:]
    if spatial:
        pool: dict[int, Any] = {
            1: functional.adaptive_avg_pool1d,
            2: functional.adaptive_avg_pool2d,
            3: functional.adaptive_avg_pool3d,
        }
        images = pool[len(spatial)](images, [min(n, _POOLED) for n in spatial])
    return images.flatten(1)
