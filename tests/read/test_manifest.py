"""A manifest that could leak a patient from one split to another, or name a file it does not mean, is not valid."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medgen.errors import ManifestError
from medgen.read.manifest import check_manifest, datalist_from_manifest, load_manifest


def file(folder: Path, name: str) -> dict[str, str]:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(name)
    return {"path": name, "sha256": hashlib.sha256(name.encode()).hexdigest()}


@pytest.fixture
def manifest(tmp_path: Path) -> dict[str, Any]:
    def case(patient: str, split: str, session: str = "1") -> dict[str, Any]:
        files = {role: file(tmp_path, f"{patient}/{session}/{role}.nii.gz") for role in ("image", "target")}
        return {"patient": patient, "session": session, "split": split, "files": files}

    cases = [case("a", "train"), case("a", "train", "2"), case("b", "validation"), case("c", "test")]
    about = {"name": "set-1", "description": "d", "license": "CC0", "source": "made up"}
    return {"schema": "medgen-manifest-1", **about, "cases": cases}


def save(folder: Path, manifest: dict[str, Any]) -> Path:
    path = folder / "set-1.json"
    path.write_text(json.dumps(manifest))
    return path


def test_a_valid_manifest(tmp_path: Path, manifest: dict[str, Any]) -> None:
    path = save(tmp_path, manifest)
    assert check_manifest(path) == []
    assert load_manifest(path)["name"] == "set-1"


def test_the_data_may_be_elsewhere(tmp_path: Path, manifest: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "away").mkdir()
    path = save(tmp_path / "away", manifest)
    assert "cases/0/files/image: a/1/image.nii.gz is missing below the data root" in check_manifest(path)
    assert check_manifest(path, tmp_path) == []
    monkeypatch.setenv("MEDGEN_DATA", str(tmp_path))
    assert check_manifest(path) == []


def test_the_datalist_of_a_split(tmp_path: Path, manifest: dict[str, Any]) -> None:
    items = datalist_from_manifest(save(tmp_path, manifest), "train", tmp_path)
    assert [i["patient"] for i in items] == ["a", "a"]
    assert items[1]["target"] == str(tmp_path / "a/2/target.nii.gz")
    with pytest.raises(ManifestError, match="expected a split of train, validation, test, got valid"):
        datalist_from_manifest(save(tmp_path, manifest), "valid", tmp_path)


def leak(manifest: dict[str, Any]) -> None:
    manifest["cases"][1]["split"] = "test"


def escape(manifest: dict[str, Any]) -> None:
    manifest["cases"][0]["files"]["image"]["path"] = "../outside.nii.gz"


def absolute(manifest: dict[str, Any]) -> None:
    manifest["cases"][0]["files"]["image"]["path"] = "/etc/hostname"


def wrong_hash(manifest: dict[str, Any]) -> None:
    manifest["cases"][2]["files"]["target"]["sha256"] = "0" * 64


def twice(manifest: dict[str, Any]) -> None:
    manifest["cases"][3]["files"]["image"] = manifest["cases"][0]["files"]["image"]


def no_license(manifest: dict[str, Any]) -> None:
    del manifest["license"]


def unknown_split(manifest: dict[str, Any]) -> None:
    manifest["cases"][0]["split"] = "training"


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (leak, "patient a is in test and train; a patient belongs to one split"),
        (escape, "cases/0/files/image: expected a path below the data root, got ../outside.nii.gz"),
        (absolute, "cases/0/files/image: expected a path below the data root, got /etc/hostname"),
        (wrong_hash, "cases/2/files/target: b/1/target.nii.gz is not the file whose sha256 the manifest states"),
        (twice, "cases/0/files/image and cases/3/files/image have the same path: image a/1/image.nii.gz"),
        (no_license, "top level: 'license' is a required property"),
        (unknown_split, "cases/0/split: 'training' is not one of ['train', 'validation', 'test']"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, manifest: dict[str, Any], damage: Callable[[dict[str, Any]], None], problem: str
) -> None:
    damage(manifest)
    assert problem in check_manifest(save(tmp_path, manifest))


@pytest.mark.parametrize("damage", [leak, escape])
def test_a_leaking_or_escaping_manifest_gives_no_datalist(
    tmp_path: Path, manifest: dict[str, Any], damage: Callable[[dict[str, Any]], None]
) -> None:
    damage(manifest)
    with pytest.raises(ManifestError):
        datalist_from_manifest(save(tmp_path, manifest), "train")


def test_no_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ManifestError, match=r"a.json: expected a data manifest in JSON"):
        load_manifest(tmp_path / "a.json")
    assert len(check_manifest(tmp_path / "a.json")) == 1


def test_the_manifests_that_come_with_the_project(repository: Path) -> None:
    for path in (repository / "data_manifests").glob("*.json"):
        if path.name != "schema.json":
            load_manifest(path)
