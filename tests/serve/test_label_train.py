"""A training through the server: pairs of its datastore in, a bundle with other weights out, which it then serves."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests
import torch
from label_server import Server, needs_server, serving

from medgen.provenance import file_sha256
from medgen.simulate.sample import head_grid, simulate_t1

pytestmark = needs_server

GRID = head_grid((48, 56, 44), (3.5, 3.6, 3.8))
NAME = "brain_t1_to_t2"


def head(path: Path, seed: int, *, inverted: bool = False) -> None:
    image = np.rint(simulate_t1(GRID, seed=seed))
    voxels = (image.max() - image) * (image > 60) if inverted else image
    saved = nibabel.Nifti1Image(voxels.astype(np.int16), GRID.affine)
    saved.header.set_xyzt_units("mm")
    saved.set_qform(GRID.affine, code=1)
    saved.set_sform(GRID.affine, code=1)
    nibabel.save(saved, path)


def quickly(bundle: Path, folder: Path) -> Path:
    """A copy of a bundle whose training is over soon: two windows of 64 voxels an epoch, one step of everything."""
    copy = folder / bundle.name
    shutil.copytree(bundle, copy)
    config = copy / "configs" / "train.yaml"
    text = config.read_text()
    for old, new in (
        ("window: [96, 96, 96]", "window: [64, 64, 64]"),
        ("iterations_per_epoch: 50", "iterations_per_epoch: 2"),
        ("interval: 10", "interval: 1"),
    ):
        assert old in text
        text = text.replace(old, new)
    config.write_text(text)
    return copy


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("train")
    studies = folder / "studies"
    studies.mkdir()
    for seed in (1, 2):
        head(studies / f"head{seed}.nii.gz", seed)
    bundle = quickly(repository / "bundles" / NAME, folder / "bundles")
    with serving(folder / "app", str(studies), [str(bundle)], "--trust") as running:
        yield running


def start(server: Server, **params: object) -> dict[str, object]:
    assert requests.post(f"{server.url}/train/{NAME}", json=params, timeout=60).ok
    return server.wait_for("train")


@pytest.mark.slow
def test_images_without_targets_are_not_trained_on(server: Server) -> None:
    nothing = start(server, max_epochs=1)
    assert nothing["status"] == "ERROR"
    assert "expected images with a final label, which is the target image" in " ".join(nothing["details"])


def test_pairs_become_weights_that_can_be_asked_for(server: Server, tmp_path: Path) -> None:
    for seed in (1, 2):
        head(tmp_path / "target.nii.gz", seed, inverted=True)
        with (tmp_path / "target.nii.gz").open("rb") as file:
            put = requests.put(
                f"{server.url}/datastore/label", params={"image": f"head{seed}", "tag": "final"}, files={"label": file}
            )
        assert put.ok
    done = start(server, max_epochs=1, name="ours", val_split=0.5)
    assert done["status"] == "DONE", done["details"]

    info = requests.get(f"{server.url}/info/", timeout=60).json()
    assert info["models"][NAME]["config"]["weights"] == ["bundle", "ours"]
    assert info["train_stats"][NAME]["ours"]["epochs"] == 1
    assert set(info["train_stats"][NAME]["ours"]["measured"]) >= {"psnr_db"}
    copy = server.folder / "train" / NAME / "ours" / "bundle" / f"{NAME}-ours"
    metadata = json.loads((copy / "configs" / "metadata.json").read_text())
    assert "headline" not in metadata
    assert metadata["weights_sha256"] == {"models/model.pt": file_sha256(copy / "models" / "model.pt")}

    own, ours = (server.infer(NAME, "head1", result_extension=".nii", weights=name) for name in ("bundle", "ours"))
    assert own.ok
    assert ours.ok
    assert own.content != ours.content
    told = server.infer(NAME, "head1", output="json", weights="ours").json()["provenance"]
    assert told["bundle"] == f"{NAME}-ours"
    assert told["weights_sha256"] == metadata["weights_sha256"]["models/model.pt"]


@pytest.mark.slow
def test_a_name_that_is_no_name_of_a_folder_is_refused(server: Server) -> None:
    record = start(server, name="../elsewhere")
    assert record["status"] == "ERROR"
    assert "expected a name of letters, digits, - and _" in " ".join(record["details"])


def test_a_training_begins_with_the_bundles_weights_unless_told_otherwise(server: Server) -> None:
    own = torch.load(server.folder.parent / "bundles" / NAME / "models" / "model.pt", weights_only=True)
    after = torch.load(server.folder / "train" / NAME / "ours" / "model.pt", weights_only=True)
    moved = max(float((after[name] - own[name]).abs().max()) for name in own if own[name].is_floating_point())
    assert 0 < moved < 0.5
