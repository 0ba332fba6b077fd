"""A manifest that could leak a patient from one split to another, or name a file it does not mean, is not valid."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medgen.errors import ManifestError
from medgen.read.manifest import (
    Listed,
    check_manifest,
    datalist_from_manifest,
    find_manifest,
    image_paths,
    listed_images,
    load_manifest,
    where_to_get,
)


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


def test_a_case_may_have_a_class(tmp_path: Path, manifest: dict[str, Any]) -> None:
    manifest["cases"][0]["class"] = "normal"
    path = save(tmp_path, manifest)
    assert check_manifest(path) == []
    assert [item.get("class") for item in datalist_from_manifest(path, "train")] == ["normal", None]
    manifest["cases"][0]["class"] = ""
    assert check_manifest(save(tmp_path, manifest)) == ["cases/0/class: '' should be non-empty"]


def with_bscans(folder: Path, manifest: dict[str, Any]) -> None:
    case = manifest["cases"][0]
    del case["files"]["image"]
    case["bscans"] = [file(folder, f"a/{n}.png") for n in range(3)]
    case["spacing_um"] = {"lateral": 11.5, "axial": 3.87}


def test_b_scans_in_place_of_an_image(tmp_path: Path, manifest: dict[str, Any]) -> None:
    with_bscans(tmp_path, manifest)
    path = save(tmp_path, manifest)
    assert check_manifest(path) == []
    item = datalist_from_manifest(path, "train", tmp_path)[0]
    assert item["image"] == [f"{tmp_path}/a/0.png#spacing_um:11.5,3.87", *(f"{tmp_path}/a/{n}.png" for n in (1, 2))]
    assert item["target"] == str(tmp_path / "a/1/target.nii.gz")
    listed = Listed.parse(item["image"])
    assert (listed.spacing_um, listed.marked()) == ((11.5, 3.87), item["image"])
    assert listed_images(path)[1][0] == listed
    assert len(image_paths(path)[1]) == 6
    del manifest["cases"][0]["files"]
    assert check_manifest(save(tmp_path, manifest)) == []
    assert load_manifest(path)["cases"][0]["files"] == {}


def test_what_is_wrong_with_b_scans_is_named(tmp_path: Path, manifest: dict[str, Any]) -> None:
    with_bscans(tmp_path, manifest)
    (tmp_path / "a/1.png").write_text("other")
    manifest["cases"][0]["bscans"][2] = manifest["cases"][0]["bscans"][0]
    problems = check_manifest(save(tmp_path, manifest))
    assert "cases/0/bscans/0 and cases/0/bscans/2 have the same path: bscan a/0.png" in problems
    assert "cases/0/bscans/1: a/1.png is not the file whose sha256 the manifest states" in problems
    manifest["cases"][0]["files"]["image"] = manifest["cases"][0]["bscans"][0]
    assert any("cases/0/files" in problem for problem in check_manifest(save(tmp_path, manifest)))
    del manifest["cases"][0]["bscans"], manifest["cases"][0]["files"]
    assert "cases/0: 'files' is a required property" in check_manifest(save(tmp_path, manifest))


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


def wrong_size(manifest: dict[str, Any]) -> None:
    manifest["cases"][2]["files"]["target"]["size_bytes"] = 7


def leads_out(manifest: dict[str, Any]) -> None:
    manifest["downloads"] = [{"address": "https://example.org/a.zip", "path": "a.zip", "unpack": "../a"}]


def no_way_to_get_it(manifest: dict[str, Any]) -> None:
    manifest |= {"access": "registration", "address": "https://example.org"}


def no_files(manifest: dict[str, Any]) -> None:
    del manifest["cases"]


def unknown_split(manifest: dict[str, Any]) -> None:
    manifest["cases"][0]["split"] = "training"


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (leak, "patient a is in test and train; a patient belongs to one split"),
        (escape, "cases/0/files/image: expected a path below the data root, got ../outside.nii.gz"),
        (absolute, "cases/0/files/image: expected a path below the data root, got /etc/hostname"),
        (wrong_hash, "cases/2/files/target: b/1/target.nii.gz is not the file whose sha256 the manifest states"),
        (wrong_size, "cases/2/files/target: b/1/target.nii.gz has 17 bytes, the manifest states 7"),
        (leads_out, "downloads/0/unpack: expected a path below the data root, got ../a"),
        (no_way_to_get_it, "top level: 'how_to_get' is a required property"),
        (no_files, "top level: 'address' is a required property"),
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


@pytest.fixture
def address_only(tmp_path: Path, manifest: dict[str, Any]) -> Path:
    no_files(manifest)
    access = {"access": "request", "address": "https://example.org/data", "how_to_get": "Write to the author."}
    return save(tmp_path, manifest | access)


def test_a_data_set_known_only_by_its_address(address_only: Path) -> None:
    assert check_manifest(address_only) == []
    assert load_manifest(address_only)["cases"] == []
    assert where_to_get(load_manifest(address_only)) == "request, https://example.org/data. Write to the author."


@pytest.mark.parametrize("read", [image_paths, lambda path: datalist_from_manifest(path, "train")])
def test_it_gives_no_files_but_says_how_to_get_them(address_only: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(ManifestError, match=r"lists no files; [^\n]*\nrequest, https://example\.org/data\. Write"):
        read(address_only)


def test_a_manifest_is_found_by_path_or_by_the_name_of_one_that_comes_with_medgen(
    tmp_path: Path, manifest: dict[str, Any], repository: Path
) -> None:
    path = save(tmp_path, manifest)
    assert find_manifest(path) == path
    assert find_manifest(Path("ixi")) == repository / "data_manifests" / "ixi.json"
    with pytest.raises(ManifestError, match=r"medgen knows .*brats, "):
        find_manifest(Path("schema"))


def shipped() -> list[str]:
    folder = Path(__file__).parents[2] / "data_manifests"
    return sorted(path.stem for path in folder.glob("*.json") if path.name != "schema.json")


@pytest.mark.parametrize("name", shipped())
def test_the_manifests_that_come_with_the_project(repository: Path, name: str) -> None:
    assert load_manifest(repository / "data_manifests" / f"{name}.json")["name"] == name


@pytest.mark.real_data
@pytest.mark.parametrize("name", shipped())
def test_the_files_they_name_are_the_ones_they_mean(repository: Path, real_data: Path, name: str) -> None:
    assert check_manifest(repository / "data_manifests" / f"{name}.json", real_data) == []
