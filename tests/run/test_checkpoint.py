"""Checkpoints are whole, whatever happens while one is written."""

from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from medgen.run import checkpoint
from medgen.run.checkpoint import CheckpointKeeper, WeightsSaver, checkpoints


def engine_with(folder: Path, **options: int) -> tuple[Engine, nn.Linear]:
    torch.manual_seed(0)
    network = nn.Linear(2, 1)
    engine = Engine(lambda engine, batch: None)
    CheckpointKeeper(folder, {"network": network, "trainer": engine}, **options).attach(engine)
    WeightsSaver(network, str(folder)).attach(engine)
    return engine, network


def test_the_newest_are_kept_and_the_last_epoch_is_one_of_them(tmp_path: Path) -> None:
    engine, network = engine_with(tmp_path, every=2, keep=2)
    (tmp_path / "checkpoint_epoch=mine.pt").touch()
    engine.run([0], max_epochs=9)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint_epoch=8.pt", "checkpoint_epoch=9.pt"]
    state = torch.load(checkpoints(tmp_path)[-1], weights_only=True)
    assert state["trainer"]["iteration"] == 9
    final = torch.load(tmp_path / "model.pt", weights_only=True)
    assert torch.equal(final["weight"], state["network"]["weight"])
    assert torch.equal(final["weight"], network.weight)


def test_one_that_is_cut_off_leaves_the_others_and_nothing_under_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = engine_with(tmp_path, every=1)

    def half(state: object, path: Path) -> None:
        Path(path).write_bytes(b"half a file")
        raise KeyboardInterrupt

    engine.add_event_handler(Events.EPOCH_STARTED(once=3), lambda: monkeypatch.setattr(checkpoint.torch, "save", half))
    with pytest.raises(KeyboardInterrupt):
        engine.run([0], max_epochs=5)
    monkeypatch.undo()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint_epoch=1.pt", "checkpoint_epoch=2.pt"]
    assert torch.load(checkpoints(tmp_path)[-1], weights_only=True)["trainer"]["iteration"] == 2
    assert not (tmp_path / "model.pt").exists()
