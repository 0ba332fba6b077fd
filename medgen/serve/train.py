"""A bundle as a train task of MONAI Label: pairs of images and their final labels, by way of `medgen train`."""

import json
import logging
import os
import re
import time
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from medgen.errors import MedgenError, NoInputError
from medgen.provenance import file_sha256
from medgen.run.catalog import BundleFolder
from medgen.run.metadata import read_metadata
from medgen.run.retrained import with_trained_weights
from medgen.run.train import TrainEvent, train_job
from medgen.run.train_config import TrainRequest
from medgen.write.atomic import atomic_text

_log = logging.getLogger(__name__)

_UNUSABLE = 422
_MOST_EPOCHS = 100_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_TRAIN, _BUNDLE, _RECORD = "train", "bundle", "train.json"


def trained(app_dir: Path, bundle: str) -> dict[str, Path]:
    """Returns the bundles that trainings of one have made, by the trainings' names, oldest first."""
    found = sorted(
        (app_dir / _TRAIN / bundle).glob(f"*/{_BUNDLE}/*/models/model.pt"), key=lambda path: path.stat().st_mtime
    )
    return {path.parents[3].name: path.parents[1] for path in found}


class BundleTrain(TrainTask):  # type: ignore[misc]  # MONAI Label is untyped
    """Trains a bundle on what the datastore holds: each image with a final label, which is its target image.

    Args:
        bundle: which.
        app_dir: runs are kept in `train/<bundle>` there.
        trust: run its code although it did not come with medgen.
    """

    def __init__(self, bundle: BundleFolder, app_dir: Path, *, trust: bool = False) -> None:
        super().__init__(f"Train {bundle.name} on pairs of the datastore")
        self._bundle, self._folder, self._trust = bundle, app_dir / _TRAIN / bundle.name, trust
        self._version = read_metadata(bundle.folder).fields.get("version", "")

    def info(self) -> dict[str, Any]:
        """Returns what a client is told."""
        return {**super().info(), "version": self._version}

    def config(self) -> dict[str, Any]:
        """Returns what a client may set."""
        return {"pretrained": True, "max_epochs": 20, "val_split": 0.2, "name": ""}

    def stats(self) -> dict[str, Any]:
        """Returns the records of the runs so far."""
        files = sorted(self._folder.glob(f"*/{_RECORD}"))
        return {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in files}

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Trains until the epochs are done, and leaves a bundle with the new weights.

        Args:
            request: see `config`; `name` of an earlier run goes on with that.
            datastore: with images and their labels.

        Raises:
            HTTPException: 422 with the reason, if there are no pairs, or they cannot be used.
        """
        asked = {**self.config(), **request}
        try:
            epochs, held_out = int(_number(asked, "max_epochs", 1, _MOST_EPOCHS)), _number(asked, "val_split", 0, 0.9)
            output = self._folder / _run_name(str(asked["name"]))
            output.mkdir(parents=True, exist_ok=True)
            data_root = write_manifest(output / "data.json", datastore, held_out)
            train = TrainRequest(
                str(self._bundle.folder),
                output,
                data=output / "data.json",
                data_root=data_root,
                changes=(f"max_epochs={epochs}",),
                weights="bundle" if asked["pretrained"] else "",
                tracker="none",
                trust=self._trust,
            )
            summary = train_job(train, _tell)
            name = f"{self._bundle.name}-{output.name}"
            bundle = with_trained_weights(self._bundle, output, output / _BUNDLE / name)
        except MedgenError as error:
            raise HTTPException(_UNUSABLE, str(error)) from None  # its last lines are all that a client sees
        return {
            "weights": output.name,
            "epochs": summary.epochs,
            "measured": dict(summary.measured),
            "bundle": str(bundle),
        }


def write_manifest(file: Path, datastore: Datastore, held_out: float) -> Path:
    """Writes a data manifest of a datastore's pairs, and returns the folder that its paths are relative to.

    Args:
        file: to write.
        datastore: of which images with a final label are taken, the label being the target image.
        held_out: share of the pairs that the training is measured on.

    Raises:
        NoInputError: there are no pairs, or no images as targets.
    """
    if isinstance(datastore, DICOMWebDatastore):
        raise NoInputError("expected a folder of studies to train on; final labels of a DICOMweb server are masks")
    pairs = sorted((Path(item["image"]), Path(item["label"])) for item in datastore.datalist() if item)
    if not pairs:
        raise NoInputError("expected images with a final label, which is the target image, got none in the datastore")
    root = Path(os.path.commonpath([path.parent for pair in pairs for path in pair]))
    kept = len(pairs) - min(round(held_out * len(pairs)), len(pairs) - 1)
    cases = [
        {
            "patient": f"image-{number:04}",  # each image of the datastore counts as a patient of its own
            "session": "1",
            "split": "train" if number < kept else "validation",
            "files": {
                role: {"path": path.relative_to(root).as_posix(), "sha256": file_sha256(path)}
                for role, path in (("image", image), ("target", target))
            },
        }
        for number, (image, target) in enumerate(pairs)
    ]
    about = {"schema": "medgen-manifest-1", "name": "datastore", "description": "Pairs of a MONAI Label datastore"}
    atomic_text(file, json.dumps({**about, "license": "unknown", "source": "local", "cases": cases}, indent=1))
    return root


def _number(asked: dict[str, Any], name: str, least: float, most: float) -> float:
    try:
        value = float(asked[name])
    except (TypeError, ValueError):
        value = -1.0
    if not least <= value <= most:
        raise NoInputError(f"expected a number from {least:g} to {most:g} as {name}, got {asked[name]!r}")
    return value


def _run_name(asked: str) -> str:
    if asked and not _NAME.fullmatch(asked):  # it becomes a folder
        raise NoInputError(f"expected a name of letters, digits, - and _, got {asked!r}")
    return asked or time.strftime("%Y%m%d-%H%M%S")


def _tell(event: TrainEvent) -> None:
    if event.kind in {"epoch", "validation", "health"}:
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in event.numbers.items())
        _log.info("%s %d of %d: %s", event.kind, event.epoch, event.epochs, event.message or numbers)
