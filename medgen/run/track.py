"""Numbers of a training for those who compare trainings: TensorBoard or MLflow, numbers only."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter

from medgen.errors import BundleError


class Tracker(Protocol):
    """Where numbers go."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Records numbers at an iteration."""

    def close(self) -> None:
        """Writes what is held back."""


class NoTracker:
    """Records nothing."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Forgets the numbers."""

    def close(self) -> None:
        """Has nothing to write."""


class TensorBoardTracker:
    """Writes event files: `tensorboard --logdir RUN_DIR`."""

    def __init__(self, folder: Path) -> None:
        self.writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Records numbers at an iteration."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is held back."""
        self.writer.close()


class MLflowTracker:
    """Writes to `RUN_DIR/mlflow.db` (sqlite): `mlflow ui --backend-store-uri sqlite:///RUN_DIR/mlflow.db`.

    Only the bundle's name and numbers are recorded; MLflow's own habit of noting user and command line is not used.
    """

    def __init__(self, folder: Path, bundle: str) -> None:
        try:
            import mlflow  # noqa: PLC0415 - for those who ask for it
        except ImportError as error:
            raise BundleError(
                "expected MLflow for --track mlflow, it is not installed; pip install 'medgen[mlflow]'"
            ) from error
        uri = f"sqlite:///{(folder / 'mlflow.db').absolute()}"
        self.client: Any = mlflow.MlflowClient(tracking_uri=uri)
        found = self.client.get_experiment_by_name(bundle)
        experiment = found.experiment_id if found else self.client.create_experiment(bundle)
        self.run = self.client.create_run(experiment).info.run_id

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Records numbers at an iteration."""
        for name, value in numbers.items():
            self.client.log_metric(self.run, name, value, step=step)

    def close(self) -> None:
        """Ends the run."""
        self.client.set_terminated(self.run)


def open_tracker(name: str, folder: Path, bundle: str) -> Tracker:
    """Returns the tracker of this name, `"tensorboard"`, `"mlflow"` or `"none"`.

    Raises:
        BundleError: it is not installed, or there is none of this name.
    """
    if name == "tensorboard":
        return TensorBoardTracker(folder)
    if name == "mlflow":
        return MLflowTracker(folder, bundle)
    if name == "none":
        return NoTracker()
    raise BundleError(f"expected --track tensorboard, mlflow or none, got {name}")
