"""Watches a GAN while it trains, says which failure it sees, and does what it was told to do about it."""

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from ignite.engine import Engine, Events
from torch import distributed

from medgen.engines.player import across_ranks
from medgen.engines.symptoms import Limits
from medgen.engines.vitals import Ailment, Vitals

Remedy = Literal["warn", "slow", "rollback", "stop"]

_log = logging.getLogger(__name__)
_BACK = "back"  # where the output of a cycle has what the other direction published
_NAMES = {"": "", _BACK: "way back: "}


@dataclass(frozen=True)
class Finding:
    """One failure, when it was seen and what was done.

    Attributes:
        ailment: which one.
        message: the numbers and the advice, in words.
        epoch: when.
        iteration: when, over all epochs.
        remedy: what was done, which may be less than what was asked for.
    """

    ailment: Ailment
    message: str
    epoch: int
    iteration: int
    remedy: Remedy


class HealthMonitor:
    """An ignite handler that reads each iteration's output and judges it every `every` iterations.

    It knows no trainer: it reads the numbers that `Adversary.learn` and the trainers here publish (what is absent is
    not judged), and `pred` and `real` images for diversity. A cycle's other direction, `back` in the output, is judged
    in the same way.

    Args:
        remedy: `warn` logs; `slow` also halves the rate of the discriminators, unless samples have collapsed, which a
            slower discriminator would make worse: then it only warns; `rollback` does what `slow` does and returns to
            the last epoch that ended healthy, one that ended a `window` before the finding, as most failures are seen
            late; where no epoch has ended healthy yet, and so right after a resume, there is none to return to; `stop`
            ends the training, after which the last checkpoint is the diagnosis's.
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
        self.vitals = {name: Vitals(window, every) for name in _NAMES}
        self.findings: list[Finding] = []
        self._healthy: list[tuple[int, dict[str, Any]]] = []
        self._seen = 0
        self._silent_until: dict[str, int] = {}

    def attach(self, engine: Engine) -> None:
        """Watches this engine."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        if self.remedy == "rollback":
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._keep)

    def __call__(self, engine: Engine) -> None:
        """Takes in one iteration."""
        output = engine.state.output[0] if isinstance(engine.state.output, list) else engine.state.output
        self._seen += 1
        self.vitals[""].take(output)
        self.vitals[_BACK].take(output.get(_BACK, {}))
        if self._seen % self.every == 0:
            for vitals in self.vitals.values():
                vitals.measure()
            if self._seen >= self.patience:
                self._judge(engine)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed training must know to judge as if it had not stopped; not the epochs to return to."""
        return {
            "findings": [asdict(finding) for finding in self.findings],
            "seen": self._seen,
            "silent_until": dict(self._silent_until),
            "vitals": {name: vitals.state_dict() for name, vitals in self.vitals.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a checkpoint."""
        self.findings = [Finding(**finding) for finding in state["findings"]]
        self._seen, self._silent_until = int(state["seen"]), dict(state["silent_until"])
        for name, vitals in self.vitals.items():
            vitals.load_state_dict(state["vitals"][name])

    def summary(self) -> dict[str, float]:
        """Returns the means over the window of what health is read from, for a log: what was seen so far of it."""
        back = {f"{_BACK}_{name}": value for name, value in self.vitals[_BACK].summary().items()}
        return self.vitals[""].summary() | back

    def _judge(self, engine: Engine) -> None:
        length = int(engine.state.epoch_length or 0)
        found = {
            (name, ailment): message
            for name, vitals in self.vitals.items()
            for ailment, message in vitals.judged(self.limits, length).items()
        }
        for (name, ailment), message in _of_first_rank(found).items():
            place = f"{name}{ailment}"
            if message is not None and self._seen >= self._silent_until.get(place, 0):
                self._silent_until[place] = self._seen + self.window
                self._act(engine, ailment, _NAMES[name] + message)

    def _act(self, engine: Engine, ailment: Ailment, message: str) -> None:
        state = engine.state
        _log.warning("epoch %d: %s", state.epoch, message)
        done: Remedy = "warn"
        if self.remedy == "stop":
            engine.terminate()
            done = "stop"
        if self.remedy in ("slow", "rollback") and ailment != "collapse" and self.discriminators:
            for optimizer in self.discriminators:
                for group in optimizer.param_groups:
                    group["lr"] *= 0.5
            done = "slow"
        if self.remedy == "rollback" and self._healthy:
            self._roll_back(0 if ailment == "dead" else self.window)
            done = "rollback"
        self.findings.append(Finding(ailment, message, int(state.epoch), int(state.iteration), done))

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
        for vitals in self.vitals.values():
            vitals.forget()


def _of_first_rank(found: dict[tuple[str, Ailment], str | None]) -> dict[tuple[str, Ailment], str | None]:
    """What the first process of `torchrun` found: were each to act on its own share, they would part."""
    if not across_ranks():
        return found
    box = [found]
    distributed.broadcast_object_list(box)
    return box[0]
