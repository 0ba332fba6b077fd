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
from medgen.simulate.ophthalmic import as_photograph, write_opt
from tests.read.eyes import bscan, save, volume
from tests.read.series import SHAPE, oblique_affine, voxels, write, write_enhanced

SECRETS = {"PatientName": "Möller^Änne", "PatientID": "ID-4711", "PatientBirthDate": "19610203"}


def nifti(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(voxels().astype(np.int16), oblique_affine()).to_filename(path)
    return path


def found(source: Path, **options: object) -> list[Case]:
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


def eyes(source: Path, **options: object) -> list[Case]:
    return found(source, modality="OPT", **options)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """B-scans of every kind, and what a bundle of B-scans must not score."""
    save(tmp_path / "in/A.PNG", bscan())
    save(tmp_path / "in/sub/v.tif", volume())
    save(tmp_path / "in/tiny.jpg", bscan(shape=(32, 80)))
    write_opt(
        tmp_path / "in/Möller/1.dcm", volume(), laterality="R", edit=lambda d: setattr(d, "PatientName", "Möller")
    )
    write_opt(tmp_path / "in/Möller/2.dcm", volume(), laterality="L")
    nifti(tmp_path / "in/brain.nii.gz")
    write(tmp_path / "in/brain", ProtocolName="localizer")
    write(tmp_path / "in/shot", SOPClassUID="1.2.840.10008.5.1.4.1.1.7", SeriesInstanceUID="1.2.9")
    (tmp_path / "in/readme.txt").write_text("no image")
    return tmp_path / "in"


def test_a_bundle_of_eyes_takes_b_scans_and_refuses_volumes_of_anything_else(mixed: Path) -> None:
    cases = {str(c.relative): c for c in eyes(mixed)}
    taken = [c for c in cases.values() if not (c.excluded or c.refused)]
    assert sorted((c.kind, c.modality, c.description) for c in taken) == [
        ("dicom", "OPT", "Macula, left eye"),
        ("dicom", "OPT", "Macula, right eye"),
        ("picture", "", "8-bit PNG"),
        ("picture", "", "8-bit TIFF of 5 pages"),
    ]
    assert all(c.name.startswith("dicom-") and "Möller" not in c.name for c in taken if c.kind == "dicom")
    assert len({c.name for c in cases.values()}) == len(cases) == 8
    assert (str(cases["A.PNG"].stem), cases["A.PNG"].extension) == ("A", ".PNG")
    expected = "expected OCT B-scans (JPEG, PNG, TIFF, or DICOM OPT/OP), got "
    assert cases["brain.nii.gz"].refused == expected + "a NIfTI file"
    assert cases["brain"].refused == expected + "DICOM of modality MR"
    assert "64 x 64 pixels or more, got 32 x 80" in cases["tiny.jpg"].refused
    assert cases["shot"].excluded == "secondary capture"


def test_for_any_other_bundle_pictures_and_eyes_are_what_they_were(mixed: Path) -> None:
    for cases in (found(mixed), found(mixed, modality="MR")):
        assert [str(c.relative) for c in cases if not c.excluded] == ["brain.nii.gz"]
        assert {c.kind for c in cases} == {"nifti", "dicom"}
        assert sum(c.excluded == "modality OPT: not a CT, MR or PET volume image" for c in cases) == 2
    (alone,) = found(mixed / "A.PNG")
    assert alone.excluded == "not a format that medgen reads (NIfTI or DICOM)"


def test_two_pictures_never_share_a_stem(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "A.tif", "b.png"):
        save(tmp_path / name, bscan())
    cases = eyes(tmp_path)
    assert len({str(c.stem).lower() for c in cases}) == len({c.name for c in cases}) == 4
    assert [str(c.stem) for c in cases if c.name == "b.png"] == ["b"]


def test_hashed_pictures(tmp_path: Path) -> None:
    save(tmp_path / "Anna.png", bscan())
    (tmp_path / "Berta.jpg").write_bytes(b"")
    for case in eyes(tmp_path, hash_paths=True):
        assert case.name.startswith("picture-")
        assert not {"Anna", "Berta"} & set(f"{case.name}|{case.stem}|{case.refused}".replace(".", "|").split("|"))


def test_pictures_of_an_earlier_output_are_no_input(tmp_path: Path) -> None:
    save(tmp_path / "a.png", bscan())
    save(tmp_path / "out/a_heat.png", bscan())
    (tmp_path / "out/.medgen").mkdir()
    assert [c.name for c in eyes(tmp_path)] == ["a.png"]


def test_copies_of_an_eye_are_one_case_and_a_photograph_is_one(tmp_path: Path) -> None:
    path = write_opt(tmp_path / "1.dcm", volume())
    shutil.copy(path, tmp_path / "copy.dcm")
    write_opt(tmp_path / "op.dcm", volume(), seed=1, edit=as_photograph)
    first, second = sorted(eyes(tmp_path), key=lambda c: c.modality, reverse=True)
    assert (first.flags, second.modality) == (("duplicates-dropped",), "OP")


def bscan_manifest(folder: Path, **case: object) -> Path:
    about = {"schema": "medgen-manifest-1", "name": "n", "description": "d", "license": "l", "source": "s"}
    (folder / "m.json").write_text(json.dumps(about | {"cases": [{"patient": "p", "split": "test", **case}]}))
    return folder / "m.json"


def test_a_manifest_lists_the_b_scans_of_a_volume_in_order(tmp_path: Path) -> None:
    files = [{"path": save(tmp_path / f"{9 - k}.png", bscan(k)).name, "sha256": "0" * 64} for k in range(3)]
    spacing = {"lateral": 11.5, "axial": 3.87, "between": 240}
    (case,) = eyes(bscan_manifest(tmp_path, bscans=files, spacing_um=spacing))
    assert [f.name for f in case.files] == ["9.png", "8.png", "7.png"]
    assert (case.spacing_um, case.flags, case.description) == ((11.5, 3.87, 240.0), (), "8-bit PNG, 3 files")
    assert case.grid is not None
    np.testing.assert_allclose(case.grid.spacing_mm, (0.0115, 0.00387, 0.24))
    (turned,) = eyes(bscan_manifest(tmp_path, bscans=files[::-1], spacing_um=spacing))
    (unsaid,) = eyes(bscan_manifest(tmp_path, bscans=files))
    assert len({input_sha256(c) for c in (case, turned, unsaid)}) == 3
    (tmp_path / "8.png").unlink()
    assert "8.png: expected a JPEG" in eyes(tmp_path / "m.json")[0].refused
    assert [bool(c.excluded or c.refused) for c in found(tmp_path / "m.json")] == [True, True, True]


def test_a_manifest_of_single_jpegs_is_an_input(tmp_path: Path) -> None:
    save(tmp_path / "a.jpeg", bscan())
    files = {"image": {"path": "a.jpeg", "sha256": "0" * 64}}
    assert [c.name for c in eyes(bscan_manifest(tmp_path, files=files))] == ["a.jpeg"]


def test_datalist_of_b_scans(mixed: Path) -> None:
    items = datalist(str(mixed), modality="OPT")
    assert [i["stem"] for i in items[:2]] == ["A", "sub/v"]
    assert items[0]["image"] == str(mixed / "A.PNG")
    assert sum(isinstance(i["image"], str) and i["image"].endswith(".dcm") for i in items) == 2
    assert [i for i in items if i["stem"] == "brain"]  # listed, so that reading it raises the reason


def test_what_medgen_derived_is_no_input_and_what_it_simulated_is(tmp_path: Path) -> None:
    write(tmp_path / "a", SeriesInstanceUID="1.2.1", SoftwareVersions=["medgen 0.1.0", "bundle 0.2.0"])
    write(tmp_path / "b", SeriesInstanceUID="1.2.2", SoftwareVersions=["syngo medgen"])
    write(tmp_path / "c", SeriesInstanceUID="1.2.3", Manufacturer="medgen", SoftwareVersions="1")
    excluded = {case.relative.name: case.excluded for case in find_cases(tmp_path, salt=b"")}
    assert excluded == {"a": "derived by medgen", "b": "", "c": ""}


def test_some_files_of_a_folder_are_called_as_in_the_whole(tmp_path: Path) -> None:
    write(tmp_path / "dicom")
    for name in ("x/a.nii", "x/b.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(voxels().astype(np.int16), np.eye(4)), tmp_path / name)
    whole = {case.name: case for case in find_cases(tmp_path, salt=b"s")}
    some = [tmp_path / "x" / "b.nii.gz", tmp_path / "gone.nii", *sorted((tmp_path / "dicom").iterdir())]
    part = {case.name: case for case in find_cases(tmp_path, salt=b"s", among=some)}
    assert len(part) == 2
    assert all((case.stem, case.relative) == (whole[name].stem, whole[name].relative) for name, case in part.items())
