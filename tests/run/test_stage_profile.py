"""Where the time went: every stage of every case has its seconds, and every stage that ran a flame graph."""

import csv
import time
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner
from zoo_like import case_of, smooth_volume, write_bundle

from medgen.cli import app
from medgen.infer.conversions import cache_folder, kept
from medgen.run.records import CaseOutcome
from medgen.run.stage_profile import StageProfile
from medgen.run.steps import Steps

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*labels.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning"),
]


def _slow_steps(seconds: float) -> Steps:
    def step(case: Any, item: Any) -> Any:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            pass
        return item

    def write(case: Any, item: Any) -> CaseOutcome:
        step(case, item)
        return CaseOutcome(PurePosixPath("x"), (), "")

    return Steps(step, step, step, write)


def test_seconds_are_those_that_a_stage_took_and_what_fails_counts_too(tmp_path: Path) -> None:
    def fail(case: Any, item: Any) -> Any:
        raise ValueError("broken")

    profile, slow = StageProfile(), _slow_steps(0.05)
    steps = profile.around(Steps(slow.read, slow.prepare, fail, slow.write))
    case = case_of(Path("a.nii.gz"))
    assert steps.read(case, "sha") == "sha"
    steps.prepare(case, 1)
    with pytest.raises(ValueError, match="broken"):
        steps.compute(case, 1)
    profile.write(tmp_path / "profile")
    (row,) = csv.DictReader((tmp_path / "profile" / "stages.csv").read_text(encoding="utf-8").splitlines())
    assert 0.05 <= float(row["seconds_read"]) < 0.5
    assert float(row["seconds_compute"]) < 0.05
    assert row["seconds_write"] == ""
    html = (tmp_path / "profile" / "read.html").read_text()
    assert "_slow_steps" in html or "step" in html
    assert not (tmp_path / "profile" / "write.html").exists()


def test_one_flag_profiles_a_run(tmp_path: Path) -> None:
    bundle, scans, output = write_bundle(tmp_path / "zoo"), tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for name in "ab":
        affine = np.diag([1.5, 1.5, 1.5, 1.0])
        nib.save(nib.Nifti1Image(smooth_volume((24, 22, 20)), affine), scans / f"{name}.nii.gz")
    words = ["run", str(bundle), "-i", str(scans), "-o", str(output), "--trust", "--device", "cpu", "--profile"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader((output / "profile" / "stages.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["case"] for row in rows] == ["a.nii.gz", "b.nii.gz"]
    assert all(float(row[f"seconds_{stage}"]) > 0 for row in rows for stage in ("read", "prepare", "compute", "write"))
    names = {file.name for file in (output / "profile").glob("*.html")}
    assert names == {"read.html", "prepare.html", "compute.html", "write.html"}


def test_the_cache_is_listed_and_cleared_by_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDGEN_CACHE", str(tmp_path / "cache"))
    kept("openvino", {}, lambda folder: (folder / "n.bin").write_bytes(bytes(3_000_000)) and None, about="a network")
    listed = CliRunner().invoke(app, ["cache", "list"])
    assert "3.0 MB  a network" in listed.output
    assert str(cache_folder()) in listed.output
    assert '"about": "a network"' in CliRunner().invoke(app, ["cache", "list", "--json"]).output
    cleared = CliRunner().invoke(app, ["cache", "clear"])
    assert "3.0 MB freed" in cleared.output
    assert "a network" not in CliRunner().invoke(app, ["cache", "list"]).output
