"""Every image below an input is a case with its own name and stem, which give nobody away, in a stable order."""

import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medgen.case import Case
from medgen.errors import NoInputError
from medgen.read.discover import datalist, find_cases, input_sha256, require_cases
from tests.read.series import SHAPE, oblique_affine, voxels, write, write_enhanced

SECRETS = {"PatientName": "Möller^Änne", "PatientID": "ID-4711", "PatientBirthDate": "19610203"}


def nifti(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(voxels().astype(np.int16), oblique_affine()).to_filename(path)
    return path


def found(source: Path, **options: bool) -> list[Case]:
    return find_cases(source, salt=b"salt", **options)


def test_a_mixed_tree(tmp_path: Path) -> None:
    nifti(tmp_path / "sub-01/anat/sub-01_T1w.nii.gz")
    nifti(tmp_path / "mit Umläuten und Leerzeichen/b.NII")
    write(tmp_path / "MÖLLER_ÄNNE/S 1", **SECRETS)
    (tmp_path / "readme.txt").write_text("no image")
    nifti(tmp_path / ".hidden/c.nii")
    nifti(tmp_path / "sub-01/._T1w.nii.gz")
    cases = found(tmp_path)
    assert [c.kind for c in cases] == ["nifti", "nifti", "dicom"]
    assert [str(c.stem) for c in cases[:2]] == ["mit Umläuten und Leerzeichen/b", "sub-01/anat/sub-01_T1w"]
    assert cases[1].name == "sub-01/anat/sub-01_T1w.nii.gz"
    assert cases[2].name.startswith("dicom-")
    assert str(cases[2].stem) == cases[2].name
    assert all(c.grid is not None and c.grid.shape == SHAPE and not c.refused for c in cases)
    assert [c.name for c in cases] == [c.name for c in found(tmp_path)]


def test_nobody_is_given_away(tmp_path: Path) -> None:
    write(tmp_path / "Möller", **SECRETS, SeriesDescription="T1 moeller 4711 ID-4711", SeriesInstanceUID="1.2.3.4")
    (case,) = found(tmp_path)
    told = f"{case.name} {case.stem} {case.description} {case.refused} {case.excluded} {case.flags}"
    for secret in ("Möller", "moeller", "Änne", "4711", "19610203", "1.2.3.4"):
        assert secret.lower() not in told.lower()


def test_a_dicom_name_depends_on_salt_and_series_only(tmp_path: Path) -> None:
    files = write(tmp_path / "a")
    (before,) = found(tmp_path)
    for file in files:
        shutil.move(file, tmp_path / f"{file.stem}.IMA")
    (after,) = found(tmp_path)
    assert after.name == before.name
    (other,) = find_cases(tmp_path, salt=b"other")
    assert other.name != before.name


def test_hashed_paths(tmp_path: Path) -> None:
    nifti(tmp_path / "Anna.nii.gz")
    (tmp_path / "Berta.nii").write_bytes(b"")
    for case in found(tmp_path, hash_paths=True):
        assert case.name.startswith("nifti-")
        assert "Anna" not in f"{case.name}{case.stem}{case.refused}"
        assert "Berta" not in f"{case.name}{case.stem}{case.refused}"


def test_two_cases_never_share_a_stem(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz", "A.nii", "b.nii"):
        nifti(tmp_path / name)
    cases = found(tmp_path)
    assert len({str(c.stem).lower() for c in cases}) == len(cases) == 4
    assert len({c.name for c in cases}) == 4
    assert [str(c.stem) for c in cases if c.name == "b.nii"] == ["b"]


def test_a_series_spread_and_copied_over_folders_is_one_case(tmp_path: Path) -> None:
    files = write(tmp_path / "a")
    (tmp_path / "b").mkdir()
    shutil.move(files[0], tmp_path / "b")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    (case,) = found(tmp_path)
    assert (len(case.files), case.flags) == (SHAPE[2], ("duplicates-dropped",))


def test_what_cannot_be_used_is_a_case_with_its_reason(tmp_path: Path) -> None:
    write(tmp_path / "gap")[2].unlink()
    write(tmp_path / "scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesInstanceUID="1.2.3")
    (tmp_path / "broken.dcm").write_bytes(b"not DICOM at all")
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    cases = found(tmp_path)
    assert len({c.name for c in cases}) == 4
    assert sorted(c.excluded for c in cases if c.excluded) == ["localizer"]
    refused = sorted(c.refused for c in cases if c.refused)
    assert refused[0].startswith("1 slices missing")
    assert refused[1] == "empty.nii.gz: expected a NIfTI file, got an empty one"
    assert "expected a DICOM" in refused[2]


def test_an_irregular_series_when_allowed(tmp_path: Path) -> None:
    write(tmp_path)[2].unlink()
    (case,) = found(tmp_path, allow_irregular=True)
    assert (case.refused, case.flags) == ("", ("regridded",))
    assert case.grid is not None
    assert case.grid.shape == SHAPE


def test_volumes_of_one_multiframe_file(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "e.dcm", {4.9: voxels(), 9.8: voxels()}, oblique_affine())
    cases = found(tmp_path)
    assert [c.volume for c in cases] == ["echo=4.9", "echo=9.8"]
    assert len({c.name for c in cases}) == len({input_sha256(c) for c in cases}) == 2


def test_an_earlier_output_and_loops_of_links(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii")
    nifti(tmp_path / "out/a_T2w.nii")
    (tmp_path / "out/.medgen").mkdir()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/back").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "dangling.nii").symlink_to(tmp_path / "nowhere.nii")
    cases = found(tmp_path)
    assert [c.name for c in cases] == ["a.nii", "dangling.nii"]
    assert "got nothing" in cases[1].refused


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    (case,) = found(tmp_path)
    assert case.refused == "folder cannot be read: Permission denied"


@pytest.mark.parametrize("name", ["list.txt", "list.tsv", "list.csv"])
def test_lists(tmp_path: Path, name: str) -> None:
    nifti(tmp_path / "in/a b.nii.gz")
    write(tmp_path / "in/series")
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8" + bytes(300))
    separator = "\t" if name.endswith("tsv") else ","
    rows = ["in/a b.nii.gz", "# a comment", "", "in/series", "photo.jpg", "in/a b.nii.gz"]
    table = [f"id{separator}path", *(f"1{separator}{r}" if r and r[0] != "#" else r for r in rows)]
    (tmp_path / name).write_text("\n".join(rows if name.endswith("txt") else table), encoding="utf-8")
    cases = found(tmp_path / name)
    assert [c.kind for c in cases if not c.excluded] == ["nifti", "dicom"]
    assert cases[0].name == "in/a b.nii.gz"
    assert [c.excluded for c in cases if c.excluded] == ["not a format that medgen reads (NIfTI or DICOM)"]


def test_a_list_of_paths_elsewhere_names_them_below_what_they_share(tmp_path: Path) -> None:
    nifti(tmp_path / "data/x/a.nii")
    nifti(tmp_path / "data/y/a.nii")
    (tmp_path / "home").mkdir()
    source = tmp_path / "home/list.txt"
    source.write_text("\n".join(str(tmp_path / "data" / d / "a.nii") for d in "xy"))
    assert [str(c.stem) for c in found(source)] == ["x/a", "y/a"]


def test_a_listed_path_that_is_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("gone.nii.gz\ngone_folder\n")
    assert [bool(c.refused) for c in found(tmp_path / "list.txt")] == [True, True]


def test_a_table_without_paths(tmp_path: Path) -> None:
    (tmp_path / "list.tsv").write_text("id\tage\n1\t2\n")
    with pytest.raises(NoInputError, match="expected a column `path` or `image`, got id, age"):
        found(tmp_path / "list.tsv")


def test_a_manifest(tmp_path: Path) -> None:
    nifti(tmp_path / "p1/t1.nii.gz")
    nifti(tmp_path / "p1/t2.nii.gz")
    file = {"path": "p1/t1.nii.gz", "sha256": "0" * 64}
    case = {"patient": "p1", "split": "test", "files": {"image": file, "target": {**file, "path": "p1/t2.nii.gz"}}}
    manifest = {
        "schema": "medgen-manifest-1",
        "name": "n",
        "description": "d",
        "license": "l",
        "source": "s",
        "cases": [case],
    }
    (tmp_path / "m.json").write_text(json.dumps(manifest))
    assert [c.name for c in found(tmp_path / "m.json")] == ["p1/t1.nii.gz"]


def test_nothing(tmp_path: Path) -> None:
    assert found(tmp_path) == []
    with pytest.raises(NoInputError, match="found none"):
        require_cases(found(tmp_path))
    with pytest.raises(NoInputError, match="got nothing at gone"):
        found(tmp_path / "gone")
    assert datalist(str(tmp_path)) == datalist(str(tmp_path / "gone")) == datalist("") == []


def test_datalist_for_a_bundle(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a/b.nii.gz")
    files = write(tmp_path / "series")
    write(tmp_path / "scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesInstanceUID="1.2.3")
    first, second = datalist(str(tmp_path))
    assert first == {"image": str(path), "stem": "a/b"}
    assert sorted(second["image"]) == sorted(map(str, files))


def test_the_content_hash_follows_content_not_names(tmp_path: Path) -> None:
    write(tmp_path / "a")
    (case,) = found(tmp_path)
    before = input_sha256(case)
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert input_sha256(found(tmp_path)[0]) == before
    with (tmp_path / "b/0001.dcm").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x77")
    assert input_sha256(found(tmp_path)[0]) != before
