"""A tree of studies as MONAI Label can list it: every image once, series as folders, and nothing touched."""

from pathlib import Path

import nibabel
import pytest
from anogan_like import write_bscan
from zoo_like import oblique_affine, smooth_volume

from medgen.read.discover import find_cases, input_sha256
from medgen.serve.studies import listed_folder
from medgen.simulate.dicom import write_series


def nifti(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(smooth_volume((9, 8, 7), seed), oblique_affine())
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    nifti(root / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    nifti(root / "a" / "b_c.nii", 1)
    nifti(root / "a_b" / "c.nii", 2)
    (root / "a" / "broken.nii.gz").write_text("hello")
    (root / "a" / "notes.txt").write_text("hello")
    (root / "export").mkdir()
    for seed in (1, 2):  # one folder, as exports are
        write_series(tmp_path / f"{seed}", smooth_volume((9, 8, 7), seed), oblique_affine(), "MR", seed=seed)
        for file in (tmp_path / f"{seed}").rglob("*.dcm"):
            file.rename(root / "export" / f"{seed}-{file.name}")
    write_bscan(root / "eyes" / "left.png", 3)
    return root


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_image_of_a_tree_has_one_link_that_leads_to_it(tree: Path, tmp_path: Path) -> None:
    before = files(tree)
    flat = listed_folder(tree, tmp_path / "flat", ["MR"])
    assert files(tree) == before
    links = sorted(path for path in flat.iterdir() if not path.name.startswith(".") and path.name != "links.json")
    names = [path.name for path in links]
    assert "sub-01_anat_sub-01_T1w.nii.gz" in names
    assert "a_broken.nii.gz" in names
    assert [name for name in names if name.startswith("a_b_c")] == ["a_b_c-" + names[0].split("-")[1], "a_b_c.nii"]
    assert len([name for name in names if name.endswith(".dicom")]) == 2
    assert len(links) == 6
    cases = [find_cases(link, salt=b"") for link in links]
    assert [len(found) for found in cases] == [1] * 6
    originals = find_cases(tree, salt=b"")
    assert sorted(input_sha256(found[0]) for found in cases) == sorted(
        input_sha256(case) for case in originals if not case.excluded
    )


def test_pictures_are_images_where_a_bundle_takes_eyes(tree: Path, tmp_path: Path) -> None:
    flat = listed_folder(tree, tmp_path / "flat", ["MR", "OPT"])
    assert (flat / "eyes_left.png").resolve() == (tree / "eyes" / "left.png").resolve()
    assert (flat / "sub-01_anat_sub-01_T1w.nii.gz").exists()


def test_links_keep_their_names_follow_the_tree_and_leave_labels_alone(tree: Path, tmp_path: Path) -> None:
    flat = listed_folder(tree, tmp_path / "flat", ["MR"])
    before = {path.name for path in flat.iterdir()}
    (flat / "labels" / "final").mkdir(parents=True)
    (flat / "labels" / "final" / "a_b_c.nii").write_text("mine")
    (tree / "sub-01" / "anat" / "sub-01_T1w.nii.gz").unlink()
    nifti(tree / "sub-02" / "anat" / "sub-02_T1w.nii.gz", 5)
    after = {path.name for path in listed_folder(tree, tmp_path / "flat", ["MR"]).iterdir()}
    assert after - before == {"labels", "sub-02_anat_sub-02_T1w.nii.gz"}
    assert before - after == {"sub-01_anat_sub-01_T1w.nii.gz"}
    assert (flat / "labels" / "final" / "a_b_c.nii").read_text() == "mine"


def test_a_folder_that_monai_label_can_list_is_listed_itself(tree: Path, tmp_path: Path) -> None:
    nifti(tree / "here.nii.gz")
    assert listed_folder(tree, tmp_path / "flat", ["MR"]) == tree
    assert not (tmp_path / "flat").exists()


def test_a_study_does_not_take_the_place_of_an_upload(tmp_path: Path) -> None:
    source, listed = tmp_path / "in", tmp_path / "out"
    nifti(source / "a" / "b.nii")
    listed_folder(source, listed, ["MR"])
    (listed / "a_c.nii").write_bytes(b"an upload")
    nifti(source / "a" / "c.nii")
    for _ in range(2):  # starts of the server
        listed_folder(source, listed, ["MR"])
        assert (listed / "a_c.nii").read_bytes() == b"an upload"
        assert sum(path.is_symlink() for path in listed.glob("a_*.nii")) == 2
