"""The commands, whole, from the command line to the files, with a foreign bundle that doubles its input."""

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from incoming import rows
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner, Result

from medgen.cli import app
from medgen.simulate.dicom import write_series

# MONAI 1.6 announces that Orientationd's default `labels` will change; bundles of the model zoo do not name them.
pytestmark = pytest.mark.filterwarnings("ignore:.*labels.*:FutureWarning")

AFFINE = np.eye(4)
AFFINE[:3, :3] = Rotation.from_euler("xyz", [8, -5, 12], degrees=True).as_matrix() @ np.diag([-1.1, 1.4, 2.2])
AFFINE[:3, 3] = [20, -30, 5]
AFFINE_DICOM = np.array([[-0.9, 0, 0, 20], [0, -1.3, 0, 30], [0, 0, 3.0, 5], [0, 0, 0, 1]])


def image(shape: tuple[int, int, int] = (18, 21, 12), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 900, shape).astype(np.int16)


def save(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)


def medgen(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good NIfTI files, one below a space and an umlaut, one that is no NIfTI, and a DICOM series."""
    folder = tmp_path_factory.mktemp("cohort")
    save(folder / "sub-01" / "anat" / "sub-01_T1w.nii.gz", image())
    save(folder / "Köln 2" / "scan.nii", image(seed=1))
    (folder / "broken.nii.gz").write_text("this is no image")
    write_series(folder / "Doe^Jane" / "s1", image((20, 16, 9), seed=2).astype(np.float32), AFFINE_DICOM, "MR", seed=1)
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "results"


def test_a_mixed_cohort_is_done_or_accounted_for(cohort: Path, bundle: Path, output: Path) -> None:
    ended = medgen("run", bundle, "-i", cohort, "-o", output, "--trust", "--format", "both")
    assert ended.exit_code == 1, ended.output
    found = rows(output)
    assert sorted(row["status"] for row in found.values()) == ["done", "done", "done", "failed"]
    assert found["broken.nii.gz"]["stage"] == "read"
    assert list(next(iter(found.values())))[:6] == ["case", "input", "status", "stage", "reason", "output"]
    result = nib.load(output / "sub-01" / "anat" / "sub-01_desc-synthFromT1w_Double.nii.gz")
    source = nib.load(cohort / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    assert result.shape == source.shape
    np.testing.assert_allclose(result.affine, source.affine, atol=1e-5)
    run = json.loads((output / "run.json").read_text())
    assert run["counts"] == {"done": 3, "failed": 1, "skipped": 0}
    assert run["weights_sha256"]
    report = (output / "report.html").read_text(encoding="utf-8")
    assert report.count("<img") == 3
    assert "broken.nii.gz" in report


def test_nothing_that_is_written_names_the_patient(cohort: Path, bundle: Path, output: Path) -> None:
    medgen("run", bundle, "-i", cohort, "-o", output, "--trust")
    private = output / ".medgen" / "paths.private.csv"
    assert private.stat().st_mode & 0o077 == 0
    assert "Doe^Jane" in private.read_text(encoding="utf-8")
    for path in output.rglob("*"):
        assert "Doe" not in path.name
        if path.is_file() and path != private and path.suffix in {".csv", ".json", ".html", ".log"}:
            assert "Doe" not in path.read_text(encoding="utf-8"), path


def test_the_same_command_again_does_nothing_again(cohort: Path, bundle: Path, output: Path) -> None:
    first = medgen("run", bundle, "-i", cohort / "sub-01", "-o", output, "--trust")
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.nii.gz")}
    again = medgen("run", bundle, "-i", cohort / "sub-01", "-o", output, "--trust")
    assert first.exit_code == again.exit_code == 0
    assert "1 kept" in again.output
    assert before
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.nii.gz")} == before


def test_a_changed_bundle_does_it_again_and_says_so(cohort: Path, bundle: Path, output: Path, tmp_path: Path) -> None:
    copy = tmp_path / "double"
    shutil.copytree(bundle, copy)
    medgen("run", copy, "-i", cohort / "sub-01", "-o", output, "--trust")
    metadata = copy / "configs" / "metadata.json"
    metadata.write_text(metadata.read_text().replace('"version": "0.1.0"', '"version": "0.2.0"'))
    again = medgen("run", copy, "-i", cohort / "sub-01", "-o", output, "--trust")
    assert "1 done" in again.output
    assert "bundle version 0.1.0 -> 0.2.0" in again.output


def test_a_foreign_bundle_shows_its_code_and_does_not_run(cohort: Path, bundle: Path, output: Path) -> None:
    ended = medgen("run", bundle, "-i", cohort, "-o", output)
    assert ended.exit_code == 2
    assert "import glob" in ended.output
    assert "--trust" in ended.output
    assert not output.exists()


@pytest.mark.parametrize(
    "words", [("-i", "nowhere"), ("-i", "{empty}"), ("-i", "{cohort}", "--only", "nothing like it")]
)
def test_nothing_to_do_is_never_a_success(
    words: tuple[str, ...], cohort: Path, bundle: Path, output: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    places = [word.format(empty=tmp_path / "empty", cohort=cohort) for word in words]
    ended = medgen("run", bundle, *places, "-o", output, "--trust")
    assert ended.exit_code == 2
    assert "expected" in ended.output
    assert not output.exists()


def test_a_dry_run_tells_and_writes_nothing(cohort: Path, bundle: Path, output: Path) -> None:
    ended = medgen("run", bundle, "-i", cohort, "-o", output, "--dry-run", "--json")
    assert ended.exit_code == 0
    assert sorted(row["would_be"] for row in json.loads(ended.stdout)) == ["failed", "run", "run", "run"]
    assert not output.exists()


def test_parts_share_the_cohort(cohort: Path, bundle: Path, output: Path) -> None:
    for part in ("1/2", "2/2"):
        medgen("run", bundle, "-i", cohort, "-o", output, "--trust", "--part", part)
    assert sorted(row["status"] for row in rows(output).values()) == ["done", "done", "done", "failed"]
    assert len(json.loads((output / "run.json").read_text())["runs"]) == 2


def test_hashed_paths_hide_the_files_names_too(
    cohort: Path, bundle: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["medgen", "run", str(bundle), "-i", str(cohort / "sub-01"), "-o", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    medgen("run", bundle, "-i", cohort / "sub-01", "-o", output, "--trust", "--hash-paths")
    public = [path for path in output.rglob("*") if path.is_file() and "private" not in path.name]
    assert public
    assert not [path for path in public if "sub-01" in str(path.relative_to(output))]
    assert "sub-01" not in (output / "cases.csv").read_text()
    assert not any("sub-01" in path.read_text() for path in (output / "run.json", output / "report.html"))


def test_inspect_tells_what_is_there_and_what_would_be_refused(cohort: Path) -> None:
    ended = medgen("inspect", cohort, "--json")
    found = {row["where"]: row for row in json.loads(ended.stdout)}
    assert found["broken.nii.gz"]["verdict"] == "refuse"
    assert found["Köln 2/scan.nii"]["shape"] == [18, 21, 12]
    series = next(row for row in found.values() if row["kind"] == "dicom")
    assert (series["modality"], series["files"], series["verdict"]) == ("MR", 9, "take")
    np.testing.assert_allclose(sorted(series["spacing_mm"]), [0.9, 1.3, 3.0], atol=1e-3)


def test_inspect_reads_voxels_when_asked(tmp_path: Path) -> None:
    voxels = image().astype(np.float32)
    voxels[2, 3, 4] = np.nan
    save(tmp_path / "nan.nii.gz", voxels)
    assert json.loads(medgen("inspect", tmp_path, "--json").stdout)[0]["verdict"] == "take"
    deep = json.loads(medgen("inspect", tmp_path, "--voxels", "--json").stdout)[0]
    assert deep["verdict"] == "refuse"
    assert "NaN" in deep["reason"]


def test_list_names_every_bundle_with_its_weights_and_its_number() -> None:
    bundles = json.loads(medgen("list", "--json").stdout)
    said = medgen("list").stdout
    assert "brain_t1_to_t2" in [bundle["name"] for bundle in bundles]
    for bundle in bundles:
        assert bundle["weights"] == "verified"
        assert all(bundle[key] in said for key in ("name", "version", "task", "headline"))


def test_the_version_is_that_of_the_package() -> None:
    assert medgen("--version").stdout.strip() == version("medgen")


def test_the_package_runs_as_a_module() -> None:
    told = subprocess.run([sys.executable, "-m", "medgen", "--version"], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == version("medgen")


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "x/y"])
def test_a_part_that_is_none_is_refused(part: str, cohort: Path, bundle: Path, output: Path) -> None:
    ended = medgen("run", bundle, "-i", cohort, "-o", output, "--trust", "--part", part)
    assert ended.exit_code == 2
