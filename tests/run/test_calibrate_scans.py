"""A reference of normal scans: an entry a scan, by weights that had not seen it, and p-values that rest on it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from anogan_like import Scan, random_weights, write_anogan_bundle, write_bscan, write_cohort
from eye_like import write_eye_bundle
from typer.testing import CliRunner, Result

from medgen.cli import app
from medgen.errors import BundleError, NoInputError
from medgen.infer.normal_scans import NormalScans
from medgen.infer.regions import REGIONS_KEY, SCAN_KEY
from medgen.provenance import file_sha256
from medgen.read.reader import read_image
from medgen.run.bundle import OpenBundle, open_bundle
from medgen.run.calibrate import controls_of, scored
from medgen.run.calibrate_scans import fit_normal_scans, scores_bscans

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*labels.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:CUDA is not available or torch_xla:UserWarning"),
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning"),
]

SCANS = [
    *(Scan(f"n{n}.png", f"p{n}", split="train") for n in range(5)),
    Scan("broken.png", "p5", split="train", broken=True),
    Scan("sick.png", "p6", "fluid", "train"),
    Scan("other.png", "p7"),
]
NAMES = [f"p{n}" for n in range(5)]
UNSEEN = ["p1", "p3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With weights that had not seen two of the patients."""
    made = tmp_path_factory.mktemp("eyes")
    torch.save(random_weights(1), made / "fold.pt")
    return made


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    return write_anogan_bundle(folder / "bundle")


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Path:
    return write_cohort(folder, SCANS)


@pytest.fixture
def opened(bundle: Path) -> OpenBundle:
    return open_bundle(bundle, trust=True, device="cpu", reference=False)


@pytest.fixture(scope="module")
def calibrated(bundle: Path, manifest: Path, folder: Path) -> tuple[Result, Path]:
    """What `medgen calibrate` says, and the reference that it wrote."""
    output = folder / "normal.json"
    unseen = f"{','.join(UNSEEN)}={folder / 'fold.pt'}"
    return medgen("calibrate", bundle, "--data", manifest, "-o", output, "--unseen", unseen, "--trust"), output


def medgen(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_reference_has_an_entry_a_normal_scan_and_says_what_was_left_out(
    calibrated: tuple[Result, Path], bundle: Path
) -> None:
    ended, output = calibrated
    assert ended.exit_code == 1, ended.output
    assert "left out: broken.png" in ended.output
    reference = NormalScans.load(str(output))
    assert isinstance(reference, NormalScans)
    assert [one.patient for one in reference.patients] == NAMES  # neither the sick, nor the broken, nor another split's
    assert reference.simulated == ()
    assert reference.weights_sha256 == file_sha256(bundle / "models" / "model.pt")
    assert "finder=encoder stride=16 feature_weight=0.1" in reference.score
    for one in reference.patients:
        assert one.scan is not None
        assert one.scan > 0
        assert len(one.regions) == 6
    assert reference.describe() in ended.output
    assert "scans against 5 normal ones of 5 people, smallest p 0.17, parts against 30 of theirs" in ended.output
    assert "3 of them scored by these very weights" in ended.output


def test_patients_of_whom_weights_are_given_are_scored_by_those(
    calibrated: tuple[Result, Path], opened: OpenBundle, manifest: Path, folder: Path
) -> None:
    reference = NormalScans.load(str(calibrated[1]))
    fold = file_sha256(folder / "fold.pt")
    assert fold != reference.weights_sha256
    assert {one.patient: one.weights_sha256 for one in reference.patients} == {
        name: fold if name in UNSEEN else reference.weights_sha256 for name in NAMES
    }
    own = {control.patient: control.scan for control in controls_of(manifest, modality="OPT")}
    for weights, names in ((random_weights(0), set(NAMES) - set(UNSEEN)), (random_weights(1), set(UNSEEN))):
        opened.network.load_state_dict(weights)
        for one in reference.patients:
            if one.patient not in names:
                continue
            item = scored(opened, own[one.patient], read_image(own[one.patient]))
            assert one.scan == pytest.approx(item[SCAN_KEY], rel=1e-4)
            assert one.regions == pytest.approx([region.evidence for region in item[REGIONS_KEY]], rel=1e-4)


def test_other_weights_give_other_scores_and_the_bundle_gets_its_own_back(
    opened: OpenBundle, manifest: Path, folder: Path
) -> None:
    controls = controls_of(manifest, modality="OPT")
    before = {name: value.clone() for name, value in opened.network.state_dict().items()}
    plain = fit_normal_scans(opened, controls)
    crossed = fit_normal_scans(opened, controls, unseen=dict.fromkeys(UNSEEN, folder / "fold.pt"))
    assert plain.describe().endswith("5 of them scored by these very weights")
    changed = {new.patient for old, new in zip(plain.patients, crossed.patients, strict=True) if old != new}
    assert changed == set(UNSEEN)
    assert all(torch.equal(value, before[name]) for name, value in opened.network.state_dict().items())


def test_a_broken_scan_is_told_of_and_nothing_else_is_lost(opened: OpenBundle, manifest: Path) -> None:
    controls = controls_of(manifest, modality="OPT")
    lost: list[tuple[str, str]] = []
    heard: list[tuple[str, int, int]] = []
    fit_normal_scans(
        opened,
        controls,
        listen=lambda *what: heard.append(what),
        leave_out=lambda what, error: lost.append((what, str(error))),
    )
    assert [what for what, _ in lost] == ["broken.png"]
    assert "expected a JPEG, PNG or TIFF picture" in lost[0][1]
    assert heard == [(control.scan.name, number, 6) for number, control in enumerate(controls)]
    with pytest.raises(NoInputError, match="normal scans, got none of 1 that can be used"):
        fit_normal_scans(opened, [control for control in controls if control.scan.name == "broken.png"])


def test_calibrating_on_nothing_or_for_strangers_is_refused(opened: OpenBundle, manifest: Path, folder: Path) -> None:
    with pytest.raises(NoInputError, match="got none without a scan"):
        fit_normal_scans(opened, [])
    with pytest.raises(NoInputError, match="got p6 without a scan"):  # who is sick, and so no control
        fit_normal_scans(opened, controls_of(manifest, modality="OPT"), unseen={"p6": folder / "fold.pt"})


def test_weights_that_do_not_fit_are_refused(opened: OpenBundle, manifest: Path, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "strange.pt")
    with pytest.raises(BundleError, match="to fit network_def"):
        fit_normal_scans(opened, controls_of(manifest, modality="OPT"), unseen={"p0": tmp_path / "strange.pt"})


def test_only_a_bundle_that_scores_bscans_is_taken_for_one(opened: OpenBundle, tmp_path: Path) -> None:
    assert scores_bscans(opened)
    other = open_bundle(write_eye_bundle(tmp_path / "eyes"), trust=True, device="cpu", reference=False)
    assert not scores_bscans(other)
    with pytest.raises(BundleError, match="declares a healthy reference"):
        fit_normal_scans(other, [])


@pytest.mark.parametrize("lesion", ["", "fluid"])
def test_a_run_has_p_values_by_the_formula_of_scan_and_parts(
    lesion: str, calibrated: tuple[Result, Path], bundle: Path, tmp_path: Path
) -> None:
    write_bscan(tmp_path / "in" / "a.png", 50, "fluid" if lesion else "")
    words = ("run", bundle, "-i", tmp_path / "in", "-o", tmp_path / "out", "--trust")
    ended = medgen(*words, "--set", f"reference.path={calibrated[1]}")
    assert ended.exit_code == 0, ended.output
    (table,) = (tmp_path / "out").glob("*_regions.csv")
    with table.open(encoding="utf-8") as stream:
        scan, *parts = csv.DictReader(stream)
    reference = NormalScans.load(str(calibrated[1]))
    assert scan["region"] == "whole scan"
    assert scan["reference"] == reference.describe()
    assert len(parts) == 6
    scans = np.array([one.scan for one in reference.patients])
    regions = np.concatenate([one.regions for one in reference.patients])
    for row, known in ((scan, scans), *((part, regions) for part in parts)):
        score = float(row["evidence"])  # of four digits
        fewest, most = (int((known >= score * (1 + sign * 1e-3)).sum()) for sign in (1, -1))
        counted = float(row["p"]) * (len(known) + 1) - 1
        assert fewest - 0.01 <= counted <= most + 0.01
        assert counted == pytest.approx(round(counted), abs=0.01)
    assert {len(scans), len(regions)} == {5, 30}
    order = sorted(parts, key=lambda part: float(part["evidence"]))
    assert [float(part["p"]) for part in order] == sorted((float(part["p"]) for part in parts), reverse=True)


def test_a_reference_of_other_weights_or_settings_gives_no_p_values(
    calibrated: tuple[Result, Path], bundle: Path, tmp_path: Path
) -> None:
    write_bscan(tmp_path / "in" / "a.png", 50)
    words = ("run", bundle, "-i", tmp_path / "in", "--trust", "--set", f"reference.path={calibrated[1]}")
    assert medgen(*words, "-o", tmp_path / "other", "--set", "stride=32").exit_code == 0
    (table,) = (tmp_path / "other").glob("*_regions.csv")
    with table.open(encoding="utf-8") as stream:
        assert {row["p"] for row in csv.DictReader(stream)} == {""}
    content = json.loads(calibrated[1].read_text()) | {"weights_sha256": "b" * 64}
    (tmp_path / "strange.json").write_text(json.dumps(content))
    ended = medgen(*words, "-o", tmp_path / "out", "--set", f"reference.path={tmp_path / 'strange.json'}")
    assert ended.exit_code == 2
    assert "expected a healthy reference of these weights" in " ".join(ended.output.split())


def test_a_calibration_without_broken_scans_ends_well(
    bundle: Path, manifest: Path, folder: Path, tmp_path: Path
) -> None:
    content = json.loads(manifest.read_text())
    content["cases"] = [case for case in content["cases"] if case["patient"] in {"p0", "p1", "p6"}]
    (tmp_path / "two.json").write_text(json.dumps(content))
    words = ("calibrate", bundle, "--data", tmp_path / "two.json", "--data-root", folder, "--trust")
    ended = medgen(*words, "-o", tmp_path / "reference.json")
    assert ended.exit_code == 0, ended.output
    assert [one.patient for one in NormalScans.load(str(tmp_path / "reference.json")).patients] == ["p0", "p1"]
    assert "left out" not in ended.output


def test_weights_that_are_not_there_are_named(bundle: Path, manifest: Path, tmp_path: Path) -> None:
    words = ("calibrate", bundle, "--data", manifest, "-o", tmp_path / "r.json", "--trust")
    ended = medgen(*words, "--unseen", f"p0={tmp_path / 'gone.pt'}")
    assert ended.exit_code == 2
    assert not (tmp_path / "r.json").exists()
