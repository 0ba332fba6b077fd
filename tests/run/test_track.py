"""Numbers go where they were asked to go, in order, and nothing else goes with them."""

import sqlite3
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medgen.errors import BundleError
from medgen.run.track import open_tracker


def log_two(tracker: str, folder: Path) -> None:
    opened = open_tracker(tracker, folder, "brain")
    for step, value in ((1, 1.0), (2, 0.5)):
        opened.log({"loss": value}, step)
    opened.close()


def test_tensorboard_reads_them_back(tmp_path: Path) -> None:
    log_two("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 0.5)]


# SQLAlchemy and MLflow warn of each other's coming versions.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_mlflow_reads_them_back_from_one_file_and_knows_no_user(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="medgen[mlflow] is not installed")
    log_two("mlflow", tmp_path)
    log_two("mlflow", tmp_path)  # a second run joins the first one's experiment
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("brain").experiment_id
    runs = client.search_runs([experiment])
    assert len(runs) == 2
    assert [m.value for m in client.get_metric_history(runs[0].info.run_id, "loss")] == [1.0, 0.5]
    assert runs[0].data.params == {}
    assert set(runs[0].data.tags) <= {"mlflow.runName"}
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        users = {row[0] for row in database.execute("select user_id from runs")}
    assert users <= {None, "", "unknown"}


def test_none_writes_nothing_and_others_are_refused(tmp_path: Path) -> None:
    log_two("none", tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BundleError, match="tensorboard, mlflow or none"):
        open_tracker("wandb", tmp_path, "brain")
