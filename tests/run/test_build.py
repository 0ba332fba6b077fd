"""`medgen manifest build`, from the command line to a manifest that `check`, `run` and a training read."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from medgen.cli import app
from medgen.errors import ManifestError
from medgen.read.manifest import check_manifest, datalist_from_manifest
from medgen.run.job import manifest_pairs


def medgen(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def bids(folder: Path, patients: int, sessions: int = 1) -> Path:
    for patient in range(patients):
        for session in range(sessions):
            stem = f"sub-{patient:02}_ses-{session}"
            names = (f"sub-{patient:02}/ses-{session}/anat/{stem}_{ending}.nii.gz" for ending in ("T1w", "T2w"))
            touch(folder, *names)
    return folder


def built(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_bids_folder_becomes_a_valid_manifest(tmp_path: Path) -> None:
    folder = bids(tmp_path / "Köln 2", 10, sessions=2)
    (folder / "sub-03/ses-1/anat/sub-03_ses-1_T2w.nii.gz").unlink()
    file = tmp_path / "My Cohort.json"
    words = ("manifest", "build", folder, "-o", file, "--image", "T1w", "--target", "T2w", "--license", "CC0")
    ended = medgen(*words)
    assert ended.exit_code == 0, ended.output
    assert "left out  sub-03 ses-1: no target\n" in ended.output
    assert "19 cases, 1 left out; patients: 8 train" in ended.output
    manifest = built(file)
    assert (manifest["name"], manifest["license"], manifest["source"]) == ("my-cohort", "CC0", "not stated")
    assert len(manifest["cases"]) == 19
    assert manifest["cases"][0]["files"]["image"]["path"] == "sub-00/ses-0/anat/sub-00_ses-0_T1w.nii.gz"
    assert manifest["cases"][0]["files"]["image"]["size_bytes"] == 41
    assert check_manifest(file, folder) == []
    assert len(datalist_from_manifest(file, "train", folder)) >= 15
    again = tmp_path / "my-cohort.json"
    assert medgen(*words[:4], again, *words[5:]).exit_code == 0
    assert built(again) == manifest


def test_an_existing_file_stays_unless_told_otherwise(tmp_path: Path) -> None:
    bids(tmp_path, 3)
    file = tmp_path / "c.json"
    file.write_text("mine")
    words = ("manifest", "build", tmp_path, "-o", file, "--image", "T1w")
    refused = medgen(*words)
    assert refused.exit_code == 2
    assert "c.json, which exists; try --overwrite" in refused.output
    assert file.read_text() == "mine"
    assert medgen(*words, "--overwrite").exit_code == 0
    assert check_manifest(file) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--image T1w --target FLAIR", "found none and left out 2"),
        ("--image {patient}/nothing.nii", "found none and left out 0"),
        ("--image T1w --target T2w", "expected a patient with image for each of train, validation, test, got 2"),
        ("--image T1w --split train=0.5", "expected a split such as"),
        ("--image t1.nii", "expected a BIDS suffix such as T1w"),
        ("--image T1w --also Mask=T2w --split train=1", "'Mask' does not match"),
    ],
)
def test_what_cannot_be_built_ends_with_2_and_writes_nothing(tmp_path: Path, words: str, message: str) -> None:
    ended = medgen("manifest", "build", bids(tmp_path / "d", 2), "-o", tmp_path / "c.json", *words.split())
    assert ended.exit_code == 2
    assert message in ended.output
    assert not (tmp_path / "c.json").exists()


def test_what_no_manifest_can_list_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a/t1.nii", "b/t1.nii", "c/t1.nii", "d:1/t1.nii")
    (tmp_path / "b/t1.nii").write_text("a/t1.nii")
    (tmp_path / "c/t1.nii").write_text("")
    (tmp_path / "e").mkdir()
    (tmp_path / "e/t1.nii").symlink_to("nowhere")
    file = tmp_path / "c.json"
    ended = medgen("manifest", "build", tmp_path, "-o", file, "--image", "{patient}/t1.nii", "--split", "train=1")
    assert ended.exit_code == 0
    reasons = [line.removeprefix("left out  ") for line in ended.output.splitlines() if line.startswith("left out  ")]
    assert reasons == [
        "b: its image has the content of a/t1.nii",
        "c: c/t1.nii is empty",
        "d:1: 'd:1/t1.nii' has a character that a manifest's path cannot have",
        "e: e/t1.nii cannot be read: No such file or directory",
    ]
    assert [case["patient"] for case in built(file)["cases"]] == ["a"]
    assert check_manifest(file) == []


def test_unpaired_images_and_targets_are_in_every_split(tmp_path: Path) -> None:
    touch(tmp_path, *(f"mr/m{n}.nii" for n in range(6)), *(f"ct/c{n}.nii" for n in range(4)), "ct/m0.nii")
    patterns = ("--image", "mr/{patient}.nii", "--target", "ct/{patient}.nii")
    file = tmp_path / "c.json"
    ended = medgen("manifest", "build", tmp_path, "-o", file, *patterns, "--unpaired")
    assert ended.exit_code == 0, ended.output
    assert check_manifest(file) == []
    for split in ("train", "validation", "test"):
        items = datalist_from_manifest(file, split, tmp_path)
        assert {key for item in items for key in item} == {"image", "target", "patient"}
    assert [len(case["files"]) for case in built(file)["cases"]] == [1] * 11


def test_paths_begin_at_the_folder_that_all_share(tmp_path: Path) -> None:
    for place in ("a", "b"):
        bids(tmp_path / place, 1)
        (tmp_path / place / "sub-00/ses-0/anat/sub-00_ses-0_T1w.nii.gz").write_text(place)
    file = tmp_path / "c.json"
    words = ("--image", "T1w", "--split", "train=1")
    ended = medgen("manifest", "build", tmp_path / "a", tmp_path / "b", "-o", file, *words)
    assert f"wrote {file}, with paths relative to {tmp_path}\n" in ended.output
    assert [case["files"]["image"]["path"][:2] for case in built(file)["cases"]] == ["a/", "b/"]
    assert check_manifest(file) == []


def test_unpaired_cases_cannot_be_evaluated(tmp_path: Path) -> None:
    touch(tmp_path, "ct/c.nii")
    file = tmp_path / "c.json"
    words = ("--image", "mr/{patient}.nii", "--target", "ct/{patient}.nii", "--unpaired", "--split", "test=1")
    assert medgen("manifest", "build", tmp_path, "-o", file, *words).exit_code == 0
    with pytest.raises(ManifestError, match="expected an image and a target for every case of test, one has no image"):
        manifest_pairs(file, "test", tmp_path)


def test_check_answers_for_a_data_set_known_only_by_its_address() -> None:
    ended = medgen("manifest", "check", "brats")
    assert ended.exit_code == 0
    assert ended.output.startswith(
        "valid; lists no files, only where to get them: registration, https://www.synapse.org/"
    )
    assert "ixi-2mm, ixi, " in medgen("manifest", "check", "nothing").output
