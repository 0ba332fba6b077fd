"""The scripts behind the cards' numbers still fit the code: each says what it takes; what `speed.py` tells is true."""

import json
import math
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medgen.errors import UntrustedError
from medgen.run.bundle import open_bundle
from medgen.run.metadata import read_metadata
from medgen.run.trust_code import list_code

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(BENCHMARKS.glob("*.py"))
sys.path.append(str(BENCHMARKS))  # at the end, where it hides nothing; the scripts' parts are a package there

from race.arms import common_env, medgen_arm, monai_arms  # noqa: E402
from race.bundles import NETWORKS, ROI, network_of, write_bundle  # noqa: E402
from race.compare import compare, difference  # noqa: E402
from race.contest import Contest, Race  # noqa: E402
from race.heads import enlarged, gather  # noqa: E402
from race.machine import flop_of  # noqa: E402
from race.table import page  # noqa: E402
from race.timed import computed_by, run, slope, spacing  # noqa: E402


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_says_what_it_takes(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(script.parent)
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    assert script.stem in capsys.readouterr().out


def write(path: Path, voxels: Any, affine: Any = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.asarray(voxels, np.float32), np.eye(4) if affine is None else affine), path)


def test_a_difference_is_told_over_the_range_of_the_reference() -> None:
    reference = np.linspace(-100, 100, 64).reshape(4, 4, 4)
    assert difference("a", reference, reference).psnr_db == math.inf
    shifted = difference("a", reference, reference + 2)
    assert shifted.max_abs == pytest.approx(0.01)
    assert shifted.psnr_db == pytest.approx(40.0)
    scaled = difference("a", 10 * reference, 10 * (reference + 2))
    assert (scaled.max_abs, scaled.psnr_db) == pytest.approx((shifted.max_abs, shifted.psnr_db))


def test_results_are_paired_by_their_scan_whatever_an_arm_calls_them(tmp_path: Path) -> None:
    ours, theirs, scans = tmp_path / "ours", tmp_path / "theirs", ["h-1_T1w.nii.gz", "h-10_T1w.nii.gz"]
    for number, scan in enumerate(scans):
        write(theirs / scan.replace(".nii", "_trans.nii"), np.eye(3)[None] * (number + 1))
        write(ours / "deep" / scan.replace("T1w", "synth"), np.eye(3)[None] * (number + 1))
    assert [one.psnr_db for one in compare(scans, theirs, ours)] == [math.inf, math.inf]
    rows = [f"{scan},done,deep/{scans[1 - n].replace('T1w', 'synth')}" for n, scan in enumerate(scans)]
    (ours / "cases.csv").write_text("\n".join(["input,status,output", *rows]))
    assert all(one.max_abs > 0 for one in compare(scans, theirs, ours)), "medgen's own table was not believed"


def test_a_missing_result_and_another_grid_are_no_agreement(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x_trans.nii.gz", np.ones((2, 2, 2)))
    write(tmp_path / "b" / "x_trans.nii.gz", np.ones((2, 2, 2)), np.diag([2.0, 2, 2, 1]))
    assert not compare(["x.nii.gz"], tmp_path / "a", tmp_path / "b")[0].same_grid
    write(tmp_path / "b" / "x_trans.nii.gz", np.ones((2, 2, 3)))
    assert not compare(["x.nii.gz"], tmp_path / "a", tmp_path / "b")[0].same_grid
    with pytest.raises(FileNotFoundError, match=r"y\.nii\.gz"):
        compare(["y.nii.gz"], tmp_path / "a", tmp_path / "b")


def test_a_command_is_timed_with_its_memory_and_its_results(tmp_path: Path) -> None:
    code = "import time; kept = b'1' * 80_000_000; open('{0}/a.nii.gz', 'w').close(); time.sleep(0.3); "
    code += "open('{0}/b.nii.gz', 'w').close()"
    output, ours = tmp_path / "output", np.ones(25_000_000)  # memory of whoever starts it is none of its own
    turn = run([sys.executable, "-c", code.format(output)], os.environ, output, tmp_path / "logs" / "log")
    assert turn.code == 0
    assert 80e6 < turn.peak_bytes < ours.nbytes
    assert turn.minor_faults > 1000
    assert turn.seconds > turn.done[1] > turn.done[0] > 0
    assert turn.done[1] - turn.done[0] == pytest.approx(0.3, abs=0.2)
    failed = run([sys.executable, "-c", "raise SystemExit('no such thing')"], os.environ, output, tmp_path / "log")
    assert (failed.code, failed.done, failed.said) == (1, (), "no such thing")


def test_what_a_further_scan_costs_is_the_same_by_both_means() -> None:
    start, scan = 5.0, 2.0
    done = [start + scan * (number + 1) for number in range(4)]
    assert spacing(done) == pytest.approx(scan)
    assert slope(done[-1], done[0], 4) == pytest.approx(scan)


def test_what_computed_the_network_is_read_from_the_run(tmp_path: Path) -> None:
    assert computed_by(tmp_path) == {}
    choice = {"backend": "openvino", "precision": "bf16"}
    (tmp_path / "run.json").write_text(json.dumps({"bundle": "light", "runs": [{"computed_by": choice}]}))
    assert computed_by(tmp_path) == choice


def test_operations_are_counted_exactly() -> None:
    assert flop_of(torch.nn.Conv3d(3, 5, 3, padding=1), (1, 3, 8, 8, 8)) == 2 * 3 * 5 * 27 * 512
    up = torch.nn.ConvTranspose3d(4, 2, 2, stride=2)  # each voxel that comes in gives 2^3 that go out
    assert flop_of(up, (1, 4, 8, 8, 8)) == 2 * 4 * 2 * 8 * 512
    light = network_of(NETWORKS["light"])
    assert flop_of(light, (1, 1, 32, 32, 32)) / 32**3 == pytest.approx(11534, abs=1)
    assert ROI == 96


@pytest.mark.parametrize("name", ["light", "heavy"])
def test_a_bundle_is_one_that_anybody_could_have_sent(name: str, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / name, name, network_of(NETWORKS[name]))
    with pytest.raises(UntrustedError):
        open_bundle(folder, device="cpu")
    bundle = open_bundle(folder, trust=True, device="cpu")
    assert bundle.network(torch.zeros(1, 1, 32, 32, 32)).shape == (1, 1, 32, 32, 32)
    assert read_metadata(folder).input_channels == 1
    code = {item.what for item in list_code(folder, folder / "configs" / "inference.yaml")}
    assert {"SlidingWindowInferer", "SaveImaged", "SupervisedEvaluator"} <= code
    assert not [what for what in code if "medgen" in what]


def test_a_larger_head_has_so_many_times_the_voxels(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz", np.random.default_rng(0).random((10, 12, 8)))
    larger = nibabel.load(enlarged(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", 8))
    assert larger.shape == (20, 24, 16)
    assert larger.header.get_zooms() == (1, 1, 1)
    folder = gather([tmp_path / "a.nii.gz"], tmp_path / "in")
    assert [path.name for path in gather([tmp_path / "b.nii.gz"], folder).iterdir()] == ["b.nii.gz"]


def turn(seconds: float, done: list[float]) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "user": seconds,
        "system": 0.1,
        "peak_bytes": 2e9,
        "minor_faults": 1e6,
        "code": 0,
        "done": done,
    }


def raw_of(**changes: Any) -> dict[str, Any]:
    stages = {"read": 0.1, "prepare": 0.2, "compute": 4.0, "write": 0.3}
    slow = {"name": "bundle run", "command": "python -m monai.bundle run", "said": "", "first": turn(9, [8]),
            "watched": turn(16, []), "many": [turn(16, [7, 15])] * 2, "one": [turn(8, [7])] * 2,
            "differences": [{"max_abs": 0.0, "psnr_db": None, "same_grid": True}],
            "stages": [{**stages, "windows": 27, "network": 3.9}]}  # fmt: skip
    fast = {**slow, "name": "medgen auto", "watched": None, "many": [turn(8, [5, 7])] * 2, "one": [turn(6, [5])] * 2,
            "differences": [{"max_abs": 2e-3, "psnr_db": 61.25, "same_grid": True}],
            "stages": [{**stages, "compute": 1.0}]}  # fmt: skip
    lost = {**slow, "name": "medgen bf16", "first": None, "watched": None, "many": [], "one": [], "differences": [],
            "stages": [], "said": "Traceback\nno such precision"}  # fmt: skip
    machine = {"cpu": "CPU", "cores": 2, "threads": 2, "memory_gb": 8, "gpu": "", "system": "Linux", "python": "3",
               "device": "cpu", "versions": {"torch": "2"}}  # fmt: skip
    contest = {"name": "light network", "volumes": 2, "flop_per_window": 10**10, "window_voxels": 96**3,
               "arms": [slow, fast, lost]}  # fmt: skip
    peaks = [{"fp32": 500.0, "bf16": 900.0, "copy": 40.0}, {"fp32": 540.0, "bf16": 1000.0, "copy": 41.0}]
    growth = {"scans": [{"arm": "medgen auto", "scans": 1, "s": 6.0}]}
    return {"machine": machine, "peaks": peaks, "loads": [0.1], "contests": [contest], "growth": growth, **changes}


def test_the_page_says_how_many_times_as_fast_and_how_much_of_the_peak() -> None:
    text = page(raw_of())
    row = next(line for line in text.splitlines() if line.startswith("| medgen auto | 8.0"))
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[4:7] == ["2.00 (2.00-2.00)", "4.00 (4.00-4.00)", "2.00 (2.00-2.00)"]
    assert cells[-3:-1] == ["2.0e-03", "61.2"]
    assert "27 windows a scan, 270 GFLOP a scan" in text
    inside = next(line for line in text.splitlines() if line.startswith("| medgen auto | 0.10"))
    assert inside.endswith("| 270 | 50% | 27% |")
    assert "medgen bf16 gave no result: no such precision" in text
    assert "nothing here says how fast a GPU is" in text


def test_what_is_written_can_be_drawn_again(tmp_path: Path) -> None:
    speed = runpy.run_path(str(BENCHMARKS / "speed.py"))
    raw = raw_of()
    raw["contests"][0]["arms"][0]["differences"][0]["psnr_db"] = math.inf
    speed["write_results"](raw, tmp_path)
    again = json.loads((tmp_path / "speed.json").read_text())
    written = (tmp_path / "speed.md").read_text()
    speed["write_results"](again, tmp_path)
    assert (tmp_path / "speed.md").read_text() == written
    assert "identical" in written
    assert (tmp_path / "speed.png").stat().st_size > 1000


@pytest.mark.slow
def test_arms_that_run_the_same_bundle_are_timed_watched_and_compared(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle = write_bundle(tmp_path / "light", "light", network_of(NETWORKS["light"]))
    scans = [tmp_path / f"scan-{number}_T1w.nii.gz" for number in range(2)]
    for number, scan in enumerate(scans):
        write(scan, gaussian_filter(np.random.default_rng(number).random((40, 50, 60)), 2), np.diag([-1, 1, 1, 1]))
    arms = [monai_arms()[0], medgen_arm("medgen fp32", "--trust --device cpu --precision fp32 --backend torch")]
    places = {"bundle": str(bundle), "name": str(bundle)}
    race = Race(
        Contest("light", places, scans, arms, common_env("cpu", tmp_path / "caches"), tmp_path / "run"), say=print
    )
    race.warm_up()
    race.round(0)
    monai, ours = (json.loads(json.dumps(arm)) for arm in race.to_json()["arms"])
    assert (monai["said"], ours["said"]) == ("", "")
    assert [stages["windows"] for stages in monai["stages"]] == [1, 1]
    assert all(stages["compute"] >= stages["network"] > 0 and stages["write"] > 0 for stages in monai["stages"])
    assert [one["same_grid"] for one in ours["differences"]] == [True, True]
    assert max(one["max_abs"] for one in ours["differences"]) < 1e-4
    assert len(ours["many"][0]["done"]) == 2
    assert ours["stages"][0].keys() == {"read", "prepare", "compute", "write"}
