"""`medgen train`, whole: check, train, measure, and leave a card that says what came out."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser

import medgen
from medgen.engines.health import HealthMonitor
from medgen.errors import BundleError, MedgenError, NoInputError, root_cause
from medgen.run.checkpoint import FINAL, checkpoints
from medgen.run.preflight import Check, check_items, leaks, registers_pairs
from medgen.run.track import Tracker, open_tracker
from medgen.run.train_config import TrainRequest, open_training
from medgen.run.training import start
from medgen.run.validate import BEST, TABLE, Validator
from medgen.run.weights import find_weights
from medgen.write.atomic import atomic_text

CARD, RECORD = "README.md", "train.json"
_LOG_EVERY = 10
_NUMBERS = ("loss", "g_loss", "d_loss", "cycle_loss", "reconstruction_loss", "kl")


@dataclass(frozen=True)
class TrainEvent:
    """What a progress display is told.

    Attributes:
        kind: `begin`, `iteration`, `epoch`, `validation`, `health` or `end`.
        epoch: current one, from 1.
        epochs: to be done.
        iteration: of this epoch, from 1.
        iterations: in an epoch.
        numbers: losses, or means of the validation.
        samples_per_second: lately.
        message: what health found, in words.
    """

    kind: Literal["begin", "iteration", "epoch", "validation", "health", "end"]
    epoch: int = 0
    epochs: int = 0
    iteration: int = 0
    iterations: int = 0
    numbers: Mapping[str, float] = field(default_factory=dict)
    samples_per_second: float = 0.0
    message: str = ""


Listen = Callable[[TrainEvent], None]


@dataclass(frozen=True)
class TrainSummary:
    """How a training ended.

    Attributes:
        epochs: done, of all runs in the folder.
        seconds: of this run.
        measured: the best epoch's validation, mean over cases; empty where there was none.
        findings: of the health monitor, in words.
        output: the folder.
    """

    epochs: int
    seconds: float
    measured: Mapping[str, float]
    findings: tuple[str, ...]
    output: Path


def plan_training(request: TrainRequest) -> list[Check]:
    """Returns what `medgen train --dry-run` shows: everything that is checked before the first step.

    Raises:
        MedgenError: the config cannot be opened.
    """
    _, parser = open_training(request)
    items = _parsed(parser, "train::dataset::data")
    ranges = parser.get("ranges", None)
    registers = registers_pairs(parser["train::preprocessing"]) if "train::preprocessing" in parser else False
    checks = check_items(items, registers=registers, paired=not _unpaired(parser), ranges=ranges)
    if "validate::dataset::data" in parser:
        held_out = _parsed(parser, "validate::dataset::data")
        registers = "validate::preprocessing" in parser and registers_pairs(parser["validate::preprocessing"])
        checks += check_items(held_out, registers=registers, ranges=ranges) if held_out else []
        checks += leaks(items, held_out)
    return checks


def train_job(request: TrainRequest, listen: Listen = lambda event: None) -> TrainSummary:
    """Trains a bundle; in a folder that holds a run of it, goes on with that run.

    Raises:
        MedgenError: something is wrong with the config or the data; nothing has been trained.
    """
    wrong = [check for check in plan_training(request) if check.wrong]
    if wrong:
        more = f" (and {len(wrong) - 1} more; see --dry-run)" if len(wrong) > 1 else ""
        raise NoInputError(f"{wrong[0].what}: {wrong[0].finding}{more}")
    entry, parser = open_training(request)
    request.output.mkdir(parents=True, exist_ok=True)
    found = checkpoints(request.output)
    resume = str(found[-1]) if found else ""
    if request.weights and not resume:
        _load_weights(parser, request, entry.folder)
    if "initialize" in parser:
        _parsed(parser, "initialize")
    trainer: Engine = _parsed(parser, "train::trainer")
    validator = _parsed(parser, "validate::evaluator") if "validate::evaluator" in parser else None
    monitor = _parsed(parser, "health") if "health" in parser else None
    tracker = open_tracker(request.tracker, request.output, entry.name)
    Watch(trainer, tracker, listen, validator, monitor)
    began = time.perf_counter()
    checkpoint = dict(_parsed(parser, "checkpoint"))
    checkpoint |= {n: part for n, part in (("validator", validator), ("health", monitor)) if part is not None}
    try:
        start(trainer, _parsed(parser, "train::dataset::data"), checkpoint, str(request.output), resume)
    finally:
        tracker.close()
    findings = tuple(f"epoch {f.epoch}: {f.message}" for f in monitor.findings) if monitor else ()
    seconds = time.perf_counter() - began
    measured = validator.best_means if validator is not None else {}
    summary = TrainSummary(int(trainer.state.epoch), seconds, measured, findings, request.output)
    _write_card(summary, request, entry.name)
    listen(TrainEvent("end", summary.epochs, summary.epochs, numbers=summary.measured))
    return summary


class Watch:
    """Tells a display and a tracker how a trainer is doing."""

    def __init__(
        self,
        trainer: Engine,
        tracker: Tracker,
        listen: Listen,
        validator: Validator | None,
        monitor: HealthMonitor | None,
    ) -> None:
        self.trainer, self.tracker, self.listen, self.monitor = trainer, tracker, listen, monitor
        self.validator = validator
        self._told, self._since, self._samples, self._begun = 0, time.perf_counter(), 0, False
        if monitor is not None:
            monitor.attach(trainer)
        if validator is not None:
            validator.listen = self._validated
            validator.attach(trainer)
        trainer.add_event_handler(Events.EPOCH_STARTED, self._starts)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._iterated)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: listen(self._event("epoch", self._numbers())))

    def _starts(self, engine: Engine) -> None:
        if not self._begun:  # not when the engine starts: a checkpoint is loaded then, and with it the epoch
            self._begun, self._since = True, time.perf_counter()
            self._told = len(self.monitor.findings) if self.monitor else 0  # those of the checkpoint were told
            self.listen(self._event("begin"))

    def _iterated(self, engine: Engine) -> None:
        self._samples += len(self._output().get("pred", ())) or 1
        for finding in self.monitor.findings[self._told :] if self.monitor else ():
            self._told += 1
            self.listen(self._event("health", message=finding.message))
        if int(engine.state.iteration) % _LOG_EVERY == 0:
            health = self.monitor.summary() if self.monitor else {}
            numbers = self._numbers()
            self.tracker.log(numbers | {f"health/{k}": v for k, v in health.items()}, int(engine.state.iteration))
            self.listen(self._event("iteration", numbers))

    def _validated(self, means: Mapping[str, float]) -> None:
        self.tracker.log({f"validation/{k}": v for k, v in means.items()}, int(self.trainer.state.iteration))
        self.listen(self._event("validation", means))

    def _output(self) -> Mapping[str, Any]:
        output = self.trainer.state.output
        return output[0] if isinstance(output, list) else output or {}

    def _numbers(self) -> dict[str, float]:
        return {name: float(self._output()[name]) for name in _NUMBERS if name in self._output()}

    def _event(self, kind: Any, numbers: Mapping[str, float] | None = None, message: str = "") -> TrainEvent:  # noqa: ANN401
        state, now = self.trainer.state, time.perf_counter()
        rate = self._samples / max(now - self._since, 1e-9)
        if kind == "epoch":
            self._since, self._samples = now, 0
        length = int(state.epoch_length or 0)
        place = (int(state.iteration) - 1) % length + 1 if length and state.iteration else 0
        epoch, epochs = max(1, int(state.epoch)), int(state.max_epochs or 0)
        return TrainEvent(kind, epoch, epochs, place, length, numbers or {}, rate, message)


def _parsed(parser: ConfigParser, name: str) -> Any:  # noqa: ANN401 - a config holds anything
    try:
        return parser.get_parsed_content(name)
    except MedgenError:
        raise
    except Exception as error:  # the config runs arbitrary code
        cause = root_cause(error)
        if isinstance(cause, MedgenError):
            raise cause from error
        raise BundleError(f"{name} of the config cannot be built: {type(cause).__name__}: {cause}") from error


def _unpaired(parser: ConfigParser) -> bool:
    return "UnpairedTrainer" in str(parser["train::trainer"])


def _load_weights(parser: ConfigParser, request: TrainRequest, folder: Path) -> None:
    path = find_weights(folder, "") if request.weights == "bundle" else Path(request.weights)
    if not path.is_file():
        raise BundleError(f"expected weights at {request.weights}, found no file")
    state = torch.load(path, map_location="cpu", weights_only=True)
    networks = [_parsed(parser, "network")]
    if "average" in parser:
        networks.append(_parsed(parser, "average").network)
    for network in networks:
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise BundleError(f"the weights in {path.name} do not fit the config's network: {reason}") from error


def _files(folder: Path) -> str:
    """Says which of a training's results are there."""
    told = {TABLE: "Each case and epoch", BEST: "Weights of the best epoch", FINAL: "Weights of the last epoch"}
    return "\n".join(f"{what}: `{name}`." for name, what in told.items() if (folder / name).is_file())


def _write_card(summary: TrainSummary, request: TrainRequest, bundle: str) -> None:
    """Writes what a model card needs and only its author can finish, and the same for programs."""
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in summary.measured.items()) or "| not measured | |"
    found = "\n".join(f"- {line}" for line in summary.findings) or "- Nothing was found."
    data = request.data.name if request.data else "the manifests that the bundle names"
    text = f"""# {bundle}: a training

Trained for {summary.epochs} epochs with medgen {medgen.__version__} on {data}. Not a medical device.

## Validation, best epoch
| metric | mean over cases |
|---|---|
{rows}

{_files(summary.output)}

## Health
{found}

## To be written
- What the training data are: scanners, sequences, patients, consent, licence.
- Results on patients of another hospital, with intervals: `medgen evaluate`.
- Where it fails, and what nobody should use it for.
"""
    atomic_text(summary.output / CARD, text)
    record = {
        "bundle": bundle,
        "config": request.config,
        "changes": list(request.changes),
        "medgen": medgen.__version__,
        "epochs": summary.epochs,
        "seconds": round(summary.seconds, 1),
        "measured": dict(summary.measured),
        "findings": list(summary.findings),
    }
    atomic_text(summary.output / RECORD, json.dumps(record, indent=2) + "\n")
