"""Every file found is in a case or left out with a reason, and nobody's sessions are told apart as two patients."""

from pathlib import Path

import pytest

from medgen.errors import NoInputError
from medgen.read.cohort_files import compile_pattern, find_cohort

PAIR = {"image": "T1w", "target": "T2w"}


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def bids(folder: Path, name: str, *endings: str) -> Path:
    stem = name.replace("/", "_")
    return touch(folder, *(f"{name}/anat/{stem}_{ending}.nii.gz" for ending in endings))


def test_bids_with_and_without_sessions(tmp_path: Path) -> None:
    bids(tmp_path, "sub-01/ses-a", "T1w", "T2w")
    bids(tmp_path, "sub-01/ses-b", "acq-fast_T1w", "T2w", "FLAIR")
    bids(tmp_path, "sub-02", "T1w", "T2w")
    touch(tmp_path, "derivatives/sub-02/anat/sub-02_T1w.nii.gz", "sub-02/anat/sub-02_T1w.json")
    cases, left_out = find_cohort([tmp_path], PAIR)
    assert [(c.patient, c.session) for c in cases] == [("sub-01", "ses-a"), ("sub-01", "ses-b"), ("sub-02", "")]
    assert cases[1].files["image"] == tmp_path / "sub-01/ses-b/anat/sub-01_ses-b_acq-fast_T1w.nii.gz"
    assert left_out == []


def test_what_is_left_out_says_why(tmp_path: Path) -> None:
    bids(tmp_path, "sub-01", "T1w")
    bids(tmp_path, "sub-02", "run-1_T1w", "run-2_T1w", "T2w")
    bids(tmp_path, "sub-03/ses-1", "T1w", "T2w")
    cases, left_out = find_cohort([tmp_path], PAIR)
    assert [c.name for c in cases] == ["sub-03 ses-1"]
    runs = ", ".join(f"sub-02/anat/sub-02_run-{n}_T1w.nii.gz" for n in (1, 2))
    assert left_out == ["sub-01: no target", f"sub-02: 2 candidates for image ({runs})"]
    assert [c.name for c in find_cohort([tmp_path], {"image": "run-2_T1w", "target": "T2w"})[0]] == ["sub-02"]


def test_one_file_is_not_image_and_target(tmp_path: Path) -> None:
    touch(tmp_path, "a/t1.nii.gz")
    cases, left_out = find_cohort([tmp_path], {"image": "{patient}/*.nii.gz", "target": "{patient}/t1.nii.gz"})
    assert (cases, left_out) == ([], ["a: one file in two roles"])


def test_a_plain_folder_and_dicom_series(tmp_path: Path) -> None:
    touch(tmp_path, "p1/t1/1.dcm", "p1/t1/2.dcm", "p1/t2/1.dcm", ".hidden/t1/1.dcm", "old/p9/t1/1.dcm")
    cases, _ = find_cohort([tmp_path], {"image": "{patient}/t1", "target": "{patient}/t2"})
    assert [c.files for c in cases] == [{"image": tmp_path / "p1/t1", "target": tmp_path / "p1/t2"}]


def test_one_role_alone_and_unpaired_roles_make_a_case_of_each_file(tmp_path: Path) -> None:
    touch(tmp_path, "mr/a-1.nii", "mr/a-2.nii", "ct/b-1.nii")
    patterns = {"image": "mr/{patient}-*.nii", "target": "ct/{patient}-*.nii"}
    alone, _ = find_cohort([tmp_path], {"image": patterns["image"]})
    assert [(c.patient, c.files["image"].name) for c in alone] == [("a", "a-1.nii"), ("a", "a-2.nii")]
    cases, left_out = find_cohort([tmp_path], patterns, unpaired=True)
    assert [(c.patient, *c.files) for c in cases] == [("a", "image"), ("a", "image"), ("b", "target")]
    assert left_out == []


def test_the_same_code_in_two_folders_is_one_patient_and_two_cases(tmp_path: Path) -> None:
    for place in ("a", "b"):
        touch(tmp_path, f"{place}/p1/t1.nii", f"{place}/p1/t2.nii")
    pair = {"image": "{patient}/t1.nii", "target": "{patient}/t2.nii"}
    cases, left_out = find_cohort([tmp_path / "a", tmp_path / "b"], pair)
    assert [c.patient for c in cases] == ["p1", "p1"]
    assert [c.files["target"].relative_to(tmp_path).parts[0] for c in cases] == ["a", "b"]
    assert left_out == []


@pytest.mark.parametrize(
    ("pattern", "path", "patient"),
    [
        ("{patient}-*-T1.nii.gz", "IXI012-HH-1211-T1.nii.gz", "IXI012"),
        ("{patient}/{patient}_t1.nii", "p1/p1_t1.nii", "p1"),
        ("{patient}/{patient}_t1.nii", "p1/p2_t1.nii", None),
        ("**/{patient}/mr.nii", "task1/brain/B1/mr.nii", "B1"),
        ("**/{patient}/mr.nii", "B1/mr.nii", "B1"),
        ("oct/*/*-{patient}-*.jpeg", "oct/cnv/CNV-451136-5.jpeg", "451136"),
        ("./{patient}.nii", "a+b.nii", "a+b"),
        ("{patient}.nii", "folder/a.nii", None),
    ],
)
def test_patterns(pattern: str, path: str, patient: str | None) -> None:
    match = compile_pattern(pattern).fullmatch(path)
    assert (match["patient"] if match else None) == patient


@pytest.mark.parametrize(
    "pattern", ["", "t1.nii.gz", "{subject}/t1.nii", "../{patient}.nii", "/data/{patient}.nii", "T1w*"]
)
def test_a_pattern_that_cannot_tell_patients_is_refused(pattern: str) -> None:
    with pytest.raises(NoInputError, match="expected a BIDS suffix such as T1w, or a pattern"):
        compile_pattern(pattern)


def test_sessions_in_one_role_only_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match=r"\{session\} in all patterns or in none"):
        find_cohort([tmp_path], {"image": "{patient}/{session}/t1.nii", "target": "{patient}/t2.nii"})
