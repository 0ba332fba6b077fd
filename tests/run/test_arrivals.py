"""Files that arrive in a folder: which belong together, and what has changed."""

from pathlib import Path

from incoming import push, save_nifti

from medgen.read.arrivals import Arrivals, joined


def test_studies_that_claim_one_series_are_joined() -> None:
    name_of = joined([("b", "1"), ("a", "1"), ("c", "2"), ("d", "3"), ("d", "2"), ("e", "3")])
    assert [name_of(study) for study in "abcde"] == ["a", "a", "c", "c", "c"]


def test_files_of_a_study_belong_together_wherever_they_lie(tmp_path: Path) -> None:
    one, two = push(tmp_path / "in" / "a", 1), push(tmp_path / "in" / "b", 2)
    (tmp_path / "in" / "c").mkdir()
    one[0].rename(tmp_path / "in" / "c" / "x.dcm")
    arrivals = Arrivals(tmp_path / "in")
    studies = arrivals.look()
    assert sorted(len(study.files) for study in studies.values()) == [6, 6]
    assert arrivals.look() == studies
    two[-1].write_bytes(two[-1].read_bytes() + b"\0\0")
    changed = arrivals.look()
    assert [name for name in changed if changed[name] != studies[name]] == [
        name for name in changed if two[-1] in changed[name].files
    ]


def test_what_decides_about_each_other_belongs_together(tmp_path: Path) -> None:
    for name in ("sub-01_T1w.nii.gz", "sub-01_T2w.nii.gz", "sub-02_T1w.nii.gz", "x.nii", "X.nii.gz", "y.nii"):
        save_nifti(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    found = {tuple(file.name for file in study.files) for study in Arrivals(tmp_path).look().values()}
    assert found == {
        ("sub-01_T1w.nii.gz", "sub-01_T2w.nii.gz"),
        ("sub-02_T1w.nii.gz",),
        ("X.nii.gz", "x.nii"),
        ("y.nii",),
    }


def test_half_a_header_is_a_study_of_its_own_until_the_rest_is_there(tmp_path: Path) -> None:
    files = push(tmp_path, 1)
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[:200])
    files[1].write_bytes(b"")
    arrivals = Arrivals(tmp_path)
    assert sorted(len(study.files) for study in arrivals.look().values()) == [1, 1, 4]
    files[0].write_bytes(whole)
    assert sorted(len(study.files) for study in arrivals.look().values()) == [1, 5]
