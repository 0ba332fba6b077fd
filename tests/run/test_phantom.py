"""People drawn as files: pairs on one grid, one patient a head, the same again from the same seed."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from medgen.cli import app
from medgen.errors import NoInputError
from medgen.provenance import file_sha256
from medgen.read.manifest import check_manifest, datalist_from_manifest
from medgen.run.phantom import write_phantoms
from medgen.simulate.head import LABELS

pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")


@pytest.fixture
def heads(tmp_path: Path) -> Path:
    """A manifest of one labelled head of shells."""
    radius = np.sqrt(sum((axis - 19.5) ** 2 for axis in np.indices((40, 40, 40))))
    labels = np.zeros(radius.shape, np.uint8)
    for limit, name in ((18, "soft"), (15, "bone"), (12, "csf"), (11, "grey"), (7, "white")):
        labels[radius < limit] = LABELS[name]
    path = tmp_path / "data" / "labels.nii.gz"
    path.parent.mkdir()
    nib.Nifti1Image(labels, np.diag([1.0, 1.0, 1.0, 1.0])).to_filename(path)
    entry = {"path": "labels.nii.gz", "sha256": file_sha256(path), "size_bytes": path.stat().st_size}
    manifest = {
        "schema": "medgen-manifest-1",
        "name": "heads",
        "description": "shells",
        "license": "none",
        "source": "made here",
        "cases": [{"patient": "shells", "files": {"head": entry}, "split": "test"}],
    }
    (tmp_path / "data" / "heads.json").write_text(json.dumps(manifest))
    return tmp_path / "data" / "heads.json"


def test_pairs_share_a_grid_and_the_manifest_finds_them(heads: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    ran = CliRunner().invoke(app, ["phantom", "--data", str(heads), "-o", str(output), "--count", "2"])
    assert ran.exit_code == 0, ran.output
    assert "2 people" in ran.output
    assert check_manifest(output / "manifest.json", None) == []
    items = datalist_from_manifest(output / "manifest.json", "test", None)
    assert len(items) == 2
    assert len({item["patient"] for item in items}) == 1
    for item in items:
        mr, ct = nib.load(item["image"]), nib.load(item["target"])
        assert np.array_equal(mr.affine, ct.affine)
        values = ct.get_fdata()
        assert values.min() == -1000
        assert values.max() > 600
        assert mr.get_fdata().min() >= 0
    first, second = (nib.load(item["target"]).get_fdata() for item in items)
    assert np.abs(first - second).mean() > 10  # other people


def test_the_same_seed_gives_the_same_files(heads: Path, tmp_path: Path) -> None:
    sums = [
        [f["sha256"] for f in write_phantoms(heads, tmp_path / name, count=1, seed=seed).cases[0]["files"].values()]
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    assert sums[0] == sums[1]
    assert sums[0] != sums[2]


def test_a_manifest_without_heads_is_refused(heads: Path, tmp_path: Path) -> None:
    text = heads.read_text().replace('"head"', '"image"')
    heads.write_text(text)
    with pytest.raises(NoInputError, match="heads"):
        write_phantoms(heads, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_heads_of_one_patient_are_sessions_and_other_people(heads: Path, tmp_path: Path) -> None:
    manifest = json.loads(heads.read_text())
    manifest["cases"] = [{**manifest["cases"][0], "session": name} for name in ("1", "2")]
    heads.write_text(json.dumps(manifest))
    cases = write_phantoms(heads, tmp_path / "out", count=1).cases
    assert [case["session"] for case in cases] == ["ses-01", "ses-02"]
    assert cases[0]["files"]["target"]["sha256"] != cases[1]["files"]["target"]["sha256"]
