"""`medgen train`: refuses what would spoil the night, trains, measures, continues, and leaves a card."""

import csv
import json
import re
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from medgen.cli import app
from medgen.errors import BundleError, ManifestError, NoInputError, UntrustedError
from medgen.run.build import gather, write_manifest
from medgen.run.catalog import find_bundle, list_bundles
from medgen.run.preflight import check_items, leaks
from medgen.run.train import TrainEvent, TrainRequest, plan_training, train_job
from medgen.run.train_config import open_training
from medgen.simulate.sample import head_grid, simulate_t1

BUNDLE = "brain_t1_to_t2"


def volume(path: Path, shift: float = 0.0, value: float | None = None) -> str:
    affine = np.diag([1.0, 1.1, 1.2, 1.0])
    affine[0, 3] = shift
    voxels = np.full((6, 7, 8), value) if value is not None else np.arange(6 * 7 * 8.0).reshape(6, 7, 8)
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), affine), path)
    return str(path)


def smoke(output: Path, *changes: str, tracker: str = "none", **options: object) -> TrainRequest:
    return TrainRequest(BUNDLE, output, config="smoke", changes=changes, tracker=tracker, **options)  # type: ignore[arg-type]


def test_pairs_on_one_grid_pass(tmp_path: Path) -> None:
    item = {"image": volume(tmp_path / "a.nii.gz"), "target": volume(tmp_path / "b.nii.gz"), "patient": "p"}
    checks = check_items([item], registers=False)
    assert not [check for check in checks if check.wrong]
    assert checks[0].finding == "1, of 1 patients"
    assert any("values" in check.finding for check in checks)


@pytest.mark.parametrize(
    ("registers", "paired", "wrong"), [(False, True, True), (True, True, False), (False, False, False)]
)
def test_pairs_on_two_grids_are_wrong_unless_they_are_registered_or_no_pairs(
    tmp_path: Path, registers: bool, paired: bool, wrong: bool
) -> None:
    item = {"image": volume(tmp_path / "a.nii.gz"), "target": volume(tmp_path / "b.nii.gz", shift=9), "patient": "p"}
    checks = check_items([item], registers=registers, paired=paired)
    assert any(check.wrong for check in checks) == wrong


def test_what_is_missing_constant_or_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.nii.gz").write_text("no image")
    items = [
        {"image": str(tmp_path / "gone.nii.gz"), "patient": "1"},
        {"image": volume(tmp_path / "flat.nii.gz", value=3.0), "patient": "2"},
        {"image": str(tmp_path / "text.nii.gz"), "patient": "3"},
    ]
    wrong = [check.what for check in check_items(items, registers=True) if check.wrong]
    assert [Path(name).name for name in wrong] == ["gone.nii.gz", "flat.nii.gz", "text.nii.gz"]


def test_a_ct_that_is_not_in_hu_is_wrong_wherever_in_the_list_it_stands(tmp_path: Path) -> None:
    names = [f"{n}.nii.gz" for n in range(20)]
    for name in names:
        nib.save(
            nib.Nifti1Image(np.linspace(-1000, 1500, 336).reshape(6, 7, 8).astype(np.float32), np.eye(4)),
            tmp_path / name,
        )
    items = [{"target": str(tmp_path / name), "patient": name} for name in names]
    items[-1]["target"] = volume(tmp_path / "scaled.nii.gz")  # 0 to 335
    checks = check_items(items, registers=True, ranges={"target": [-300, 150]})
    (wrong,) = [check for check in checks if check.wrong]
    assert wrong.what.endswith("scaled.nii.gz")
    assert "expected values from below -300 to above 150" in wrong.finding
    assert [check.finding for check in checks if check.what == "values"] == ["read of 8 of the 20 items"]


def test_labels_and_zipped_files_are_checked_too(tmp_path: Path) -> None:
    volume(tmp_path / "labels.nii")
    with zipfile.ZipFile(tmp_path / "labels.nii.zip", "w") as archive:
        archive.write(tmp_path / "labels.nii", "labels.nii")
    (tmp_path / "bad.nii.zip").write_text("no archive")
    items = [{"head": str(tmp_path / f"{name}.nii.zip"), "patient": name} for name in ("labels", "bad", "gone")]
    checks = check_items(items, registers=False)
    assert [Path(check.what).name for check in checks if check.wrong] == ["bad.nii.zip", "gone.nii.zip"]
    found = [check.finding for check in checks if check.what.endswith("labels.nii.zip")]
    assert [finding.partition(" ")[0] for finding in found] == ["values"]


def test_unpaired_items_need_no_partner(tmp_path: Path) -> None:
    items = [
        {"image": volume(tmp_path / "mr.nii.gz"), "patient": "1"},
        {"target": volume(tmp_path / "ct.nii.gz", shift=9), "patient": "2"},
    ]
    assert not [check for check in check_items(items, registers=False, paired=False) if check.wrong]


def test_nothing_to_train_on_is_wrong() -> None:
    assert check_items([], registers=True)[0].wrong


def test_a_patient_in_both_splits_is_a_leak() -> None:
    found = leaks([{"patient": "a"}, {"patient": "b"}], [{"patient": "b"}])
    assert [(check.what, check.wrong) for check in found] == [("b", True)]
    assert leaks([{"patient": "a"}], [{"patient": "b"}]) == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TrainEvent]]:
    folder = tmp_path_factory.mktemp("run")
    events: list[TrainEvent] = []
    train_job(smoke(folder, "train.trainer.max_epochs=2", tracker="tensorboard"), events.append)
    return folder, events


def test_a_training_leaves_weights_a_table_pictures_and_a_card(trained: tuple[Path, list[TrainEvent]]) -> None:
    folder, _ = trained
    best = torch.load(folder / "best.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in best.values())
    with (folder / "validation.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["epoch"] for row in rows] == ["2"]
    assert float(rows[0]["psnr_db"]) > 0
    assert (folder / "samples" / "epoch-0002.png").stat().st_size > 1000
    card = (folder / "README.md").read_text()
    assert f"{float(rows[0]['psnr_db']):.4g}" in card
    assert "Not a medical device" in card
    assert json.loads((folder / "train.json").read_text())["epochs"] == 2
    assert list((folder / "tensorboard").glob("events*"))


def test_what_is_tracked_are_numbers_and_nobody(tmp_path: Path) -> None:
    """Twelve iterations: numbers are told after every tenth."""
    train_job(smoke(tmp_path, "train.trainer.max_epochs=6", tracker="tensorboard"))
    [events] = (tmp_path / "tensorboard").glob("events*")
    told = EventAccumulator(str(tmp_path / "tensorboard"))
    told.Reload()
    assert {"loss", "g_loss", "d_loss", "health/g_norm", "validation/psnr_db"} <= set(told.Tags()["scalars"])
    [loss] = told.Scalars("loss")
    assert loss.step == 10
    assert loss.value > 0
    assert b"simulated-" not in events.read_bytes()  # what the patients of the smoke training are called


def test_an_ailment_is_told_at_once_and_stands_in_card_and_record(tmp_path: Path) -> None:
    events: list[TrainEvent] = []
    # No samples are ten times as different as real images, so each run has collapsed by this limit.
    limit = "health.limits={_target_: medgen.engines.symptoms.Limits, diversity: 10.0}"
    changes = ["train.trainer.max_epochs=20", "health.every=2", "health.patience=2", limit, "health.remedy=stop"]
    train_job(smoke(tmp_path, *changes), events.append)
    [message] = [event.message for event in events if event.kind == "health"]
    assert message.startswith("mode collapse")
    record = json.loads((tmp_path / "train.json").read_text())
    assert record["epochs"] < 20
    [finding] = record["findings"]
    assert message in finding
    assert finding in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("name", [entry.name for entry in list_bundles()])
def test_the_smoke_training_of_every_bundle_runs_by_the_command(tmp_path: Path, name: str) -> None:
    summary = train_job(TrainRequest(name, tmp_path, config="smoke", tracker="none"))
    assert summary.epochs in {1, 2}  # one for each thing that is learnt
    assert summary.measured
    card = (tmp_path / "README.md").read_text()
    named = re.findall(r"`([a-z]+\.(?:pt|csv))`", card)
    assert named
    assert all((tmp_path / file).is_file() for file in named)


def head(path: Path, seed: int, ct: bool) -> str:
    grid = head_grid((34, 38, 36), (2.0, 2.1, 2.2))
    image = simulate_t1(grid, seed=seed)
    voxels = image / image.max() * 1500 - 1000 if ct else image
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), grid.affine), path)
    return str(path)


def cohort(folder: Path, in_hu: bool = True) -> Path:
    """A manifest of three people with MR and CT, one of them for validation."""
    for person in range(3):
        for role in ("T1w", "CT"):
            head(folder / f"sub-{person}_{role}.nii.gz", person, ct=in_hu and role == "CT")
    patterns = {"image": "sub-{patient}_T1w.nii.gz", "target": "sub-{patient}_CT.nii.gz"}
    found = gather([folder], patterns)
    write_manifest(found, folder / "cohort.json", {"train": 0.67, "validation": 0.33}, source="x", data_license="x")
    return folder / "cohort.json"


def with_data(output: Path, manifest: Path, *changes: str) -> TrainRequest:
    small = ["max_epochs=1", "iterations_per_epoch=2", "window=[64, 64, 64]", "adversarial_weight=0", "workers=0"]
    small += ["train.dataloader.persistent_workers=false", "train.dataloader.prefetch_factor=null"]
    return TrainRequest("brain_mr_to_ct", output, data=manifest, changes=(*small, *changes), tracker="none")


# MONAI's LoadImaged tells that an optional DICOM codec is absent.
@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")
def test_a_bundle_trains_on_somebody_elses_pairs(tmp_path: Path) -> None:
    summary = train_job(with_data(tmp_path / "run", cohort(tmp_path)))
    assert summary.measured["mae_hu"] > 0
    with (tmp_path / "run" / "validation.csv").open() as stream:
        assert len({row["patient"] for row in csv.DictReader(stream)}) == 1
    assert all(torch.isfinite(value).all() for value in torch.load(tmp_path / "run" / "model.pt").values())


def test_data_that_would_spoil_a_training_are_refused_before_it_starts(tmp_path: Path) -> None:
    manifest = cohort(tmp_path)
    with pytest.raises(NoInputError, match="a patient belongs to one split"):
        train_job(with_data(tmp_path / "run", manifest, "validate.dataset.data.split=train"))
    with pytest.raises(NoInputError, match="in HU"):
        train_job(with_data(tmp_path / "run", cohort(tmp_path, in_hu=False)))
    (tmp_path / "sub-1_CT.nii.gz").unlink()
    with pytest.raises(NoInputError, match="is not there"):
        train_job(with_data(tmp_path / "run", manifest))
    assert not (tmp_path / "run").exists()


def test_it_tells_how_it_goes(trained: tuple[Path, list[TrainEvent]]) -> None:
    kinds = [event.kind for event in trained[1]]
    assert kinds[0] == "begin"
    assert kinds.count("epoch") == 2
    assert kinds.count("validation") == 1
    assert kinds[-1] == "end"
    epoch = next(event for event in trained[1] if event.kind == "epoch")
    assert {"loss", "g_loss", "d_loss"} <= set(epoch.numbers)
    assert epoch.samples_per_second > 0


def weights(path: Path) -> torch.Tensor:
    return torch.cat([value.flatten() for value in torch.load(path, weights_only=True).values()])


def test_the_same_command_goes_on_where_the_last_one_ended(
    trained: tuple[Path, list[TrainEvent]], tmp_path: Path
) -> None:
    """Two epochs and then two more equal four in one piece, bit for bit."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_job(smoke(whole, "train.trainer.max_epochs=4"))
    train_job(smoke(parts, "train.trainer.max_epochs=2"))
    began: list[TrainEvent] = []
    train_job(smoke(parts, "train.trainer.max_epochs=4"), began.append)
    assert [event.epoch for event in began if event.kind in {"begin", "epoch"}] == [3, 3, 4]
    assert torch.equal(weights(parts / "best.pt"), weights(whole / "best.pt"))
    measured = [json.loads((folder / "train.json").read_text())["measured"] for folder in (whole, parts)]
    assert measured[0] == measured[1] != {}
    again = train_job(smoke(parts, "train.trainer.max_epochs=4"))  # nothing is left to do; what was measured stays
    assert dict(again.measured) == measured[0]


def test_weights_to_begin_with_are_those_the_first_step_starts_from(
    trained: tuple[Path, list[TrainEvent]], tmp_path: Path
) -> None:
    still = ["train.trainer.max_epochs=1", "optimizer.lr=0", "optimizer.adam_lr=0"]
    train_job(smoke(tmp_path, *still, weights=str(trained[0] / "best.pt")))
    torch.testing.assert_close(weights(tmp_path / "best.pt"), weights(trained[0] / "best.pt"))


def test_the_bundles_own_weights_are_one_word(trained: tuple[Path, list[TrainEvent]], tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(find_bundle(BUNDLE).folder, mine, ignore=shutil.ignore_patterns("*.pt", "*.png"))
    shutil.copy(trained[0] / "best.pt", mine / "models" / "model.pt")
    still = ("train.trainer.max_epochs=1", "optimizer.lr=0", "optimizer.adam_lr=0")
    request = TrainRequest(str(mine), tmp_path / "run", config="smoke", changes=still, weights="bundle", tracker="none")
    with pytest.raises(UntrustedError):
        train_job(request)
    train_job(replace(request, trust=True))
    torch.testing.assert_close(weights(tmp_path / "run" / "best.pt"), weights(trained[0] / "best.pt"))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"other": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(BundleError, match="do not fit"):
        train_job(smoke(tmp_path / "run", weights=str(tmp_path / "other.pt")))


@pytest.mark.parametrize(
    ("change", "word"), [("max_epoch=3", "names? something|name something"), ("novalue", "key=value")]
)
def test_a_change_of_nothing_is_refused(tmp_path: Path, change: str, word: str) -> None:
    with pytest.raises(BundleError, match=word):
        open_training(smoke(tmp_path, change))


def test_a_manifest_cannot_replace_data_that_a_config_makes_itself(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text("{}")
    with pytest.raises(BundleError, match="makes its data itself"):
        open_training(smoke(tmp_path, data=tmp_path / "m.json"))


def test_nothing_to_train_on_starts_nothing(tmp_path: Path) -> None:
    request = TrainRequest(BUNDLE, tmp_path / "run", data_root=tmp_path / "empty", tracker="none")
    with pytest.raises(NoInputError, match="items"):
        train_job(request)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("2.5E+1", 25.0), ("0.5", 0.5), ("e3", "e3"), ("[1, 2]", [1, 2])]
)
def test_numbers_are_numbers_however_they_are_written(tmp_path: Path, text: str, value: object) -> None:
    _, parser = open_training(TrainRequest(BUNDLE, tmp_path, changes=(f"learning_rate={text}",)))
    assert parser["learning_rate"] == value


@pytest.mark.parametrize(
    "change", ["generator.accumulate=2", "adversary.flip=0.1", "train.trainer.options.deterministic=true"]
)
def test_arguments_that_a_config_leaves_to_their_defaults_can_be_set(tmp_path: Path, change: str) -> None:
    _, parser = open_training(TrainRequest("brain_mr_to_ct", tmp_path, changes=(change,)))
    name, _, value = change.partition("=")
    assert str(parser[name.replace(".", "::")]).lower() == value


@pytest.mark.parametrize("change", ["generator.acumulate=2", "rival.nothing.deeper=1"])
def test_what_no_component_takes_is_refused(tmp_path: Path, change: str) -> None:
    with pytest.raises(BundleError, match="something in the config"):
        open_training(TrainRequest("brain_mr_to_ct", tmp_path, changes=(change,)))


def test_the_variable_says_where_the_data_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDGEN_DATA", str(tmp_path / "data"))
    _, parser = open_training(TrainRequest("brain_mr_to_ct", tmp_path / "run"))
    assert parser["dataset_dir"] == str(tmp_path / "data")


def test_a_manifest_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no file at"):
        open_training(TrainRequest(BUNDLE, tmp_path / "run", data=tmp_path / "mine.json"))


def test_a_manifest_of_ours_is_known_by_its_name(tmp_path: Path) -> None:
    request = TrainRequest(BUNDLE, tmp_path / "run", data=Path("glioma"), data_root=tmp_path)
    _, parser = open_training(request)
    assert Path(parser["train::dataset::data::groups"][0]["manifest"]).name == "glioma.json"


def test_a_manifest_is_measured_on_the_pairs_of_its_validation_split(tmp_path: Path) -> None:
    _, parser = open_training(TrainRequest("brain_mr_to_ct", tmp_path / "run", data=Path("glioma"), data_root=tmp_path))
    assert parser["validate::dataset::data::split"] == "validation"
    assert parser["validate::dataset::data::groups"][0]["roles"] == ["image", "target"]
    assert "roles" not in parser["train::dataset::data::groups"][0]
    assert parser["dataset_dir"] == str(tmp_path)


def test_an_unknown_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="configs/trian"):
        plan_training(TrainRequest(BUNDLE, tmp_path, config="trian"))


def invoke(*arguments: Sequence[str] | str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_a_dry_run_checks_and_writes_nothing(tmp_path: Path) -> None:
    code, said = invoke("train", BUNDLE, "-o", tmp_path / "run", "--config", "smoke", "--dry-run")
    assert code == 0
    assert "items: 2, of 2 patients" in said
    assert not (tmp_path / "run").exists()


def test_the_command_trains_and_says_where_the_card_is(tmp_path: Path) -> None:
    code, said = invoke("train", BUNDLE, "-o", tmp_path / "run", "--config", "smoke", "--track", "none")
    assert code == 0
    assert "README.md" in said
    assert "psnr_db" in said
