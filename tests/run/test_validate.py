"""What a validation keeps: the best weights, and numbers of the cases that have one."""

import math
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import nn

from medgen.run.validate import BEST, Validator


def run(folder: Path, scores: list[list[float]], key: str = "dice") -> Validator:
    """Three epochs, two cases; `scores` by epoch and case."""
    network = nn.Conv3d(1, 1, 1)
    numbers = iter(value for epoch in scores for value in epoch)
    items = [{"image": torch.ones(1, 4, 4, 4), "target": torch.ones(1, 4, 4, 4)} for _ in scores[0]]
    validator = Validator(
        network,
        items,
        lambda image, net: net(image),
        lambda p, item: {"dice": next(numbers), "one": 1.0},
        key,
        str(folder),
        1,
    )
    engine = Engine(lambda engine, batch: None)
    engine.state.device = torch.device("cpu")
    validator.attach(engine)
    engine.add_event_handler(Events.EPOCH_STARTED, lambda e: nn.init.constant_(network.weight, float(e.state.epoch)))
    engine.run([0], max_epochs=len(scores))
    return validator


def test_the_best_epoch_is_kept_with_its_numbers(tmp_path: Path) -> None:
    validator = run(tmp_path, [[0.1, 0.3], [0.5, 0.7], [0.4, 0.4]])
    assert validator.best_means["dice"] == np.mean([0.5, 0.7])
    assert torch.load(tmp_path / BEST, weights_only=True)["weight"].flatten() == 2
    again = run(tmp_path / "again", [[0.0, 0.0]])
    again.load_state_dict(validator.state_dict())
    assert again.best_means == validator.best_means


def test_cases_without_a_number_do_not_spoil_the_mean(tmp_path: Path) -> None:
    validator = run(tmp_path, [[math.nan, 0.3], [math.nan, math.nan]])
    assert validator.best_means == {"dice": 0.3, "one": 1.0}
    assert validator.best == 0.3
