"""A line an epoch off a terminal, a bar on it, and what needs attention stays to be read."""

import io

from rich.console import Console

from medgen.progress import Progress, TrainProgress
from medgen.run.steps import Event
from medgen.run.train import TrainEvent


def test_a_training_is_told_in_lines() -> None:
    stream = io.StringIO()
    with TrainProgress(Console(file=stream)) as progress:
        progress.hear(TrainEvent("begin", 1, 4))
        progress.hear(TrainEvent("iteration", 1, 4, 1, 2, {"loss": 0.5}, 2.0))
        progress.hear(TrainEvent("health", 1, 4, message="mode collapse: all alike"))
        progress.hear(TrainEvent("epoch", 1, 4, 2, 2, {"loss": 0.25}, 2.0))
        progress.hear(TrainEvent("validation", 1, 4, numbers={"psnr_db": 20.5}))
    lines = stream.getvalue().splitlines()
    assert lines == [
        "health: mode collapse: all alike",
        "epoch 1 of 4: loss 0.25, 2 samples/s, 0 min left",
        "epoch 1: validation psnr_db 20.5",
    ]


def test_on_a_terminal_the_bar_names_epoch_losses_rate_and_time_left() -> None:
    stream = io.StringIO()
    with TrainProgress(Console(file=stream, force_terminal=True, width=160)) as progress:
        progress.hear(TrainEvent("begin", 1, 2, 0, 5))
        progress.hear(TrainEvent("iteration", 1, 2, 3, 5, {"g_loss": 0.125}, 4.0))
        progress._bar.refresh()
    shown = stream.getvalue()
    assert all(part in shown for part in ("epoch 1", "3/10", "g_loss 0.125", "4 samples/s", "left"))


def test_what_was_done_before_a_resume_is_not_taken_for_speed() -> None:
    stream = io.StringIO()
    progress = TrainProgress(Console(file=stream))
    progress.hear(TrainEvent("begin", 11, 75, 0, 50))
    progress._began -= 60  # the first epoch after the resume took a minute
    progress.hear(TrainEvent("epoch", 11, 75, 50, 50, {"loss": 0.5}, 1.0))
    assert "64 min left" in stream.getvalue()
    assert progress._bar.tasks[0].completed == 550


def test_of_what_is_done_only_what_is_flagged_stays_on_a_terminal() -> None:
    stream = io.StringIO()
    with Progress(Console(file=stream, force_terminal=True, width=160)) as progress:
        progress.hear(Event("begin", 2, 0))
        progress.hear(Event("done", 2, 1, "good"))
        progress.hear(Event("done", 2, 2, "doubtful", reason="flagged input-contrast"))
    assert "done doubtful: flagged input-contrast" in stream.getvalue()
    assert "done good" not in stream.getvalue()
