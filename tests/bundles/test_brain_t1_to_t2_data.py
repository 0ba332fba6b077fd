"""The manifests of this bundle: the validation patient is never trained on, and the files are the ones named."""

from pathlib import Path

import pytest
import yaml

from medgen.read.manifest import check_manifest, load_manifest

ROOT = Path(__file__).parents[2]
MANIFESTS = ("ms-mni", "ms-raw", "glioma")
VALIDATION = "glioma-fg6692"


def test_the_validation_patient_is_in_no_training_split() -> None:
    cases = [case for name in MANIFESTS for case in load_manifest(ROOT / "data_manifests" / f"{name}.json")["cases"]]
    trained = [case for case in cases if case["split"] == "train"]
    assert len(trained) == 9
    assert [case["patient"] for case in cases if case["split"] != "train"] == [VALIDATION]
    assert [f["path"] for case in trained for f in case["files"].values() if VALIDATION in f["path"]] == []


def test_the_training_reads_these_manifests_and_no_others() -> None:
    config = yaml.safe_load((ROOT / "bundles" / "brain_t1_to_t2" / "configs" / "train.yaml").read_text())
    data = config["train"]["dataset"]["data"]
    assert {group["manifest"] for group in data["groups"]} == {f"{name}.json" for name in MANIFESTS}
    assert "split" not in data


@pytest.mark.real_data
@pytest.mark.parametrize("name", MANIFESTS)
def test_the_files_are_the_ones_that_were_trained_on(name: str, real_data: Path) -> None:
    assert check_manifest(ROOT / "data_manifests" / f"{name}.json", real_data) == []
