"""A bundle of B-scans, whole: pictures and DICOM of eyes in, heat maps out, and a brain is refused, never scored."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from eye_like import write_eye_bundle
from incoming import rows
from monai.bundle import ConfigWorkflow
from typer.testing import CliRunner, Result
from zoo_like import write_bundle

from medgen.cli import app
from medgen.provenance import file_sha256
from medgen.read.manifest import datalist_from_manifest
from medgen.run.job import manifest_pairs
from medgen.run.preflight import check_items
from medgen.simulate.dicom import write_series
from medgen.simulate.ophthalmic import write_opt
from tests.read.eyes import bscan, save, volume

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*labels.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:CUDA is not available or torch_xla:UserWarning"),
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning"),
]


def medgen(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_eye_bundle(tmp_path_factory.mktemp("bundles") / "eyes")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    save(folder / "a.png", bscan())
    save(folder / "a.JPG", bscan(1))
    save(folder / "sub" / "v.tif", volume(highest=4095))
    write_opt(folder / "Doe^Jane" / "1.dcm", volume())
    (folder / "broken.jpeg").write_text("this is no picture")
    rng = np.random.default_rng(0)
    nib.save(nib.Nifti1Image(rng.integers(0, 900, (18, 21, 12)).astype(np.int16), np.eye(4)), folder / "brain.nii.gz")
    write_series(folder / "mr", rng.uniform(0, 900, (20, 16, 9)), np.diag([-0.9, -1.3, 3, 1]), "MR", seed=1)
    return folder


def test_a_mixed_cohort_is_scored_or_refused(cohort: Path, bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    ended = medgen("run", bundle, "-i", cohort, "-o", output, "--trust", "--jobs", "2")
    assert ended.exit_code == 1, ended.output
    found = rows(output)
    failed = {name: row for name, row in found.items() if row["status"] == "failed"}
    assert {row["stage"] for row in failed.values()} == {"read"}
    expected = "expected OCT B-scans (JPEG, PNG, TIFF, or DICOM OPT/OP), got "
    assert sorted(row["reason"] for row in failed.values()) == [
        "broken.jpeg: expected a JPEG, PNG or TIFF picture, got 18 bytes of something else",
        expected + "DICOM of modality MR",
        expected + "a NIfTI file",
    ]
    done = {name: row for name, row in found.items() if row["status"] == "done"}
    assert len(done) == 4
    assert all(row["score"] for row in done.values())
    assert float(done["a.png"]["score"]) == 2 * bscan().max()
    assert done["a.png"]["flags"] == "spacing-unknown"
    assert done["a.png"]["output"] != done["a.JPG"]["output"]
    assert done["a.png"]["output"].startswith("a-")
    made = nib.load(output / done["sub/v.tif"]["output"])
    np.testing.assert_allclose(np.asarray(made.dataobj), 2 * volume(highest=4095).astype(np.float32))
    (eye,) = (row for name, row in done.items() if name.startswith("dicom-"))
    (path,) = (output / eye["output"]).iterdir()
    assert pydicom.dcmread(path).SOPClassUID == "1.2.840.10008.5.1.4.1.1.30"
    assert (output / "report.html").read_text(encoding="utf-8").count("<img") == 4
    assert json.loads((output / "run.json").read_text())["counts"] == {"done": 4, "failed": 3, "skipped": 0}
    for path in output.rglob("*"):
        assert "Doe" not in path.name


def test_a_run_into_its_own_input_takes_no_picture_of_its_own(cohort: Path, bundle: Path, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", bscan())
    words = ("run", bundle, "-i", tmp_path / "in", "-o", tmp_path / "in" / "out", "--trust")
    assert medgen(*words).exit_code == 0
    assert list((tmp_path / "in" / "out").glob("*.png"))
    again = medgen(*words)
    assert again.exit_code == 0
    assert "1 kept" in again.output
    assert list(rows(tmp_path / "in" / "out")) == ["a.png"]


def test_inspect_shows_pictures_to_a_bundle_of_them(cohort: Path, bundle: Path) -> None:
    told = {row["where"]: row for row in json.loads(medgen("inspect", cohort, "--bundle", bundle, "--json").stdout)}
    assert (told["a.png"]["verdict"], told["a.png"]["description"]) == ("take", "picture 8-bit PNG")
    assert told["sub/v.tif"]["shape"] == [96, 80, 5]
    assert told["brain.nii.gz"]["verdict"] == told["mr"]["verdict"] == "refuse"
    assert "a.png" not in medgen("inspect", cohort).stdout


def test_monais_own_run_writes_the_same_map(bundle: Path, tmp_path: Path) -> None:
    save(tmp_path / "in" / "p.png", bscan())
    write_opt(tmp_path / "in" / "1.dcm", volume())
    workflow = ConfigWorkflow(
        config_file=str(bundle / "configs" / "inference.json"),
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(bundle),
        dataset_dir=str(tmp_path / "in"),
        output_dir=str(tmp_path / "monai"),
    )
    workflow.initialize()
    workflow.run()
    made = nib.load(tmp_path / "monai" / "p_desc-scored_heat.nii.gz")
    np.testing.assert_allclose(np.asarray(made.dataobj)[..., 0], 2 * bscan().astype(np.float32))
    assert len(list((tmp_path / "monai").glob("dicom-*.nii.gz"))) == 1
    medgen("run", bundle, "-i", tmp_path / "in" / "p.png", "-o", tmp_path / "out", "--trust")
    ours = nib.load(tmp_path / "out" / "p_desc-scored_heat.nii.gz")
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(made.dataobj))
    np.testing.assert_array_equal(ours.affine, made.affine)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    def entry(path: Path) -> dict[str, str]:
        return {"path": path.relative_to(tmp_path).as_posix(), "sha256": file_sha256(path)}

    stack = [entry(save(tmp_path / "v" / f"{k}.png", bscan(k))) for k in range(3)]
    truth = entry(save(tmp_path / "v" / "mask.tif", (volume(3) > 200).astype(np.uint16)))
    image = entry(save(tmp_path / "b.jpeg", bscan(4)))
    mask = entry(save(tmp_path / "mask.png", (bscan(4) > 200).astype(np.uint16)))
    eye = entry(write_opt(tmp_path / "e.dcm", volume()))
    spacing = {"lateral": 11.5, "axial": 3.87, "between": 240}
    cases = [
        {"patient": "p", "split": "test", "bscans": stack, "files": {"target": truth}, "spacing_um": spacing},
        {"patient": "q", "split": "test", "files": {"image": image, "target": mask}},
        {"patient": "r", "split": "train", "files": {"image": eye}},
    ]
    about = {"schema": "medgen-manifest-1", "name": "n", "description": "d", "license": "l", "source": "s"}
    (tmp_path / "m.json").write_text(json.dumps(about | {"cases": cases}))
    return tmp_path / "m.json"


def test_a_manifest_is_run_checked_and_paired(manifest: Path, bundle: Path, tmp_path: Path) -> None:
    assert medgen("manifest", "check", manifest).exit_code == 0
    ended = medgen("run", bundle, "-i", manifest, "-o", tmp_path / "out", "--trust")
    assert ended.exit_code == 0, ended.output
    found = rows(tmp_path / "out")
    assert found["v/0.png"]["grid"] == "96x80x3"
    assert found["v/0.png"]["flags"] == ""
    stack, single = manifest_pairs(manifest, "test", None, "OPT")
    assert [f.name for f in stack.case.files] == ["0.png", "1.png", "2.png"]
    assert stack.case.name == "v/0.png"
    assert (single.case.kind, single.truth.kind) == ("picture", "picture")
    for pair in (stack, single):
        assert pair.case.grid is not None
        assert pair.truth.grid is not None
        assert not pair.truth.grid.differs_from(pair.case.grid)


def test_items_of_a_manifest_are_checked_before_a_training(manifest: Path) -> None:
    items = [item for split in ("test", "train") for item in datalist_from_manifest(manifest, split)]
    checks = check_items(items, registers=False, paired=False)
    assert [check for check in checks if check.wrong] == []
    assert sum("1st and 99th percentile" in check.finding for check in checks) == 5
    (manifest.parent / "v" / "1.png").unlink()
    assert next(check.finding for check in check_items(items, registers=False) if check.wrong) == "is not there"


def test_another_bundle_leaves_pictures_and_eyes_out(cohort: Path, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "double")
    medgen("run", other, "-i", cohort, "-o", tmp_path / "out", "--trust")
    found = rows(tmp_path / "out")
    assert {row["status"] for row in found.values()} == {"done", "skipped"}
    assert not [name for name in found if name.endswith((".png", ".JPG", ".tif", ".jpeg"))]
    (eye,) = (row for row in found.values() if row["status"] == "skipped")
    assert eye["reason"] == "modality OPT: not a CT, MR or PET volume image"
