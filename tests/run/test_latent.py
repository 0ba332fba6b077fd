"""Scans as latents of a bundle, from the command line on."""

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from medgen.cli import app
from medgen.geometry import Grid
from medgen.nets.vae import SpatialVAE
from medgen.provenance import file_sha256
from medgen.simulate.brain import simulate_brain
from medgen.simulate.brain_mr import random_brain_mr
from medgen.simulate.sample import head_grid

pytestmark = [
    # MONAI's LoadImaged tells that an optional DICOM codec is absent.
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning"),
]
BOX = "64,72,64"
NETWORK = {"channels": [8, 16], "blocks": [1, 1], "latent_channels": 4}
AXES = [["L", "R"], ["P", "A"], ["I", "S"]]
CONFIG = {
    "contrast": "FLAIR",
    "network_def": {"_target_": "medgen.nets.vae.SpatialVAE", **NETWORK},
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": AXES},
            {"_target_": "Spacingd", "keys": "image", "pixdim": [1.0, 1.0, 1.0], "mode": "bilinear"},
            {"_target_": "medgen.prepare.brain.FindBraind", "keys": "image"},
            {"_target_": "medgen.prepare.intensity.NormaliseSourced", "keys": "image"},
            {"_target_": "CropForegroundd", "keys": ["image", "brain"], "source_key": "brain", "allow_smaller": True},
            {"_target_": "medgen.prepare.lesion.DeclareContrastd", "keys": "image", "contrast": "@contrast"},
        ],
    },
    "inferer": {
        "_target_": "medgen.infer.latent.LatentScorer",
        "score": {"_target_": "medgen.infer.latent.find_score", "name": "residual-signed"},
        "windows": {"_target_": "medgen.infer.windows.WindowInferer", "roi_size": 64, "roi_multiple": 4},
    },
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "medgen.prepare.lesion.CleanHeatd", "keys": "pred", "erode_mm": 1.0},
            {"_target_": "medgen.infer.regions.ScoreRegionsd", "keys": "pred"},
            {
                "_target_": "Invertd",
                "keys": "pred",
                "transform": "@preprocessing",
                "orig_keys": "image",
                "nearest_interp": False,
            },
        ],
    },
}


def write_flair(path: Path, seed: int, spacing: tuple[float, float, float] = (2.0, 2.2, 2.1)) -> Grid:
    grid = head_grid((44, 46, 42), spacing)
    parts = simulate_brain(grid, seed=seed, head=False)
    image = 500 * random_brain_mr(parts, "FLAIR", np.random.default_rng(seed), 2.1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(image.astype(np.int16), grid.affine), path)
    return grid


def small_bundle(folder: Path, seed: int) -> Path:
    """A bundle that scores FLAIR with a small network of random weights."""
    bundle = folder / f"vae{seed}"
    for part in ("configs", "models"):
        (bundle / part).mkdir(parents=True)
    torch.manual_seed(seed)
    network = SpatialVAE(**NETWORK)
    torch.save(network.state_dict(), bundle / "models" / "model.pt")
    (bundle / "configs" / "inference.yaml").write_text(yaml.safe_dump(CONFIG))
    image = {"type": "image", "format": "magnitude", "modality": "MR", "num_channels": 2, "spatial_shape": ["4*n"] * 3}
    fields = {
        "version": "0.1.0",
        "task": "scores",
        "output_unit": "score",
        "output_process": "scored",
        "output_suffix": "heat",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": image}},
        "weights_sha256": {"models/model.pt": file_sha256(bundle / "models" / "model.pt")},
    }
    (bundle / "configs" / "metadata.json").write_text(json.dumps(fields))
    return bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("bundles"), 0)


@pytest.fixture(scope="module")
def codes(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codes")
    for seed in range(4):
        write_flair(folder / f"scan{seed}_FLAIR.nii.gz", seed)
        medgen(
            "latent",
            "encode",
            bundle,
            "-i",
            folder / f"scan{seed}_FLAIR.nii.gz",
            "-o",
            folder / f"{seed}.npz",
            "--box",
            BOX,
        )
    return folder


def medgen(*words: object, code: int = 0) -> str:
    trust = ["--trust"] if words[:2] != ("latent", "map") else []
    done = CliRunner().invoke(app, [*map(str, words), *trust])
    assert done.exit_code == code, done.output
    return str(done.output)


def test_a_scan_is_stored_and_comes_back_on_its_own_grid(bundle: Path, tmp_path: Path) -> None:
    grid = write_flair(tmp_path / "in_FLAIR.nii.gz", 0)
    said = medgen("latent", "encode", bundle, "-i", tmp_path / "in_FLAIR.nii.gz", "-o", tmp_path / "code.npz")
    size = (tmp_path / "code.npz").stat().st_size
    assert f"{size} bytes, {8 * size / np.prod(grid.shape):.3g} bits a voxel" in said
    assert " dB when decoded" in said
    medgen("latent", "decode", bundle, tmp_path / "code.npz", "-o", tmp_path / "out.nii.gz")
    image = nib.load(tmp_path / "out.nii.gz")
    assert Grid(image.shape, image.affine).differs_from(grid) == ""
    medgen("latent", "decode", bundle, tmp_path / "code.npz", "-o", tmp_path / "own.nii.gz", "--own-grid")
    assert nib.load(tmp_path / "own.nii.gz").header.get_zooms() == (1.0, 1.0, 1.0)


def test_the_latent_of_another_model_is_refused(codes: Path, tmp_path: Path) -> None:
    other = small_bundle(tmp_path, 1)
    said = medgen("latent", "decode", other, codes / "0.npz", "-o", tmp_path / "out.nii.gz", code=2)
    assert "expected a latent of vae1 with weights" in said
    assert not (tmp_path / "out.nii.gz").exists()


def test_a_walk_begins_and_ends_at_its_ends(bundle: Path, codes: Path, tmp_path: Path) -> None:
    medgen("latent", "interpolate", bundle, codes / "0.npz", codes / "1.npz", "-o", tmp_path, "--steps", 3)
    for number, share in ((0, "0.00"), (1, "1.00")):
        medgen("latent", "decode", bundle, codes / f"{number}.npz", "-o", tmp_path / "end.nii.gz", "--own-grid")
        walked, end = (
            np.asarray(nib.load(tmp_path / name).dataobj) for name in (f"{2 * number:02d}_{share}.nii.gz", "end.nii.gz")
        )
        np.testing.assert_array_equal(walked, end)
    assert (tmp_path / "walk.png").is_file()
    assert len(list(tmp_path.glob("0*_*.nii.gz"))) == 3


def test_moving_one_number_changes_the_scan_and_not_moving_it_does_not(
    bundle: Path, codes: Path, tmp_path: Path
) -> None:
    medgen("latent", "traverse", bundle, codes / "0.npz", "-o", tmp_path, "--number", 2, "--steps", 3)
    low, middle, high = (
        np.asarray(nib.load(tmp_path / f"{m}.nii.gz").dataobj) for m in ("00_-3.0", "01_+0.0", "02_+3.0")
    )
    assert np.abs(low.astype(int) - high).max() > 0
    medgen("latent", "decode", bundle, codes / "0.npz", "-o", tmp_path / "end.nii.gz", "--own-grid")
    np.testing.assert_array_equal(middle, np.asarray(nib.load(tmp_path / "end.nii.gz").dataobj))
    said = medgen("latent", "traverse", bundle, codes / "0.npz", "-o", tmp_path, "--number", 9, code=2)
    assert "expected a number from 0 to 3, got 9" in said


def test_adding_nothing_of_a_concept_leaves_the_scan(bundle: Path, codes: Path, tmp_path: Path) -> None:
    for group, numbers in (("a", (0, 1)), ("b", (2, 3))):
        (tmp_path / group).mkdir()
        for number in numbers:
            shutil.copy(codes / f"{number}.npz", tmp_path / group)
    out = tmp_path / "out"
    groups = ("--having", tmp_path / "a", "--lacking", tmp_path / "b")
    medgen("latent", "concept", bundle, "-o", out, *groups, "--to", codes / "2.npz", "--amounts", "0,1")
    medgen("latent", "decode", bundle, codes / "2.npz", "-o", out / "end.nii.gz", "--own-grid")
    names = ("00_+0.00.nii.gz", "end.nii.gz", "01_+1.00.nii.gz")
    first, end, moved = (np.asarray(nib.load(out / name).dataobj) for name in names)
    np.testing.assert_array_equal(first, end)
    assert np.any(moved != first)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_a_map_has_a_place_for_every_latent(codes: Path, tmp_path: Path, method: str) -> None:
    medgen("latent", "map", codes, "-o", tmp_path, "--method", method)
    rows = list(csv.DictReader((tmp_path / "map.csv").read_text().splitlines()))
    assert [row["latent"] for row in rows] == ["0", "1", "2", "3"]
    assert np.isfinite([[float(row["x"]), float(row["y"])] for row in rows]).all()
    assert (tmp_path / "map.png").is_file()


def test_samples_follow_their_seed(bundle: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        medgen("sample", bundle, "-o", tmp_path / name, "--count", 2, "--seed", seed, "--box", "32,32,32")
    first, again = (np.asarray(nib.load(tmp_path / n / "sample-3.nii.gz").dataobj) for n in ("a", "b"))
    np.testing.assert_array_equal(first, again)
    assert np.any(np.asarray(nib.load(tmp_path / "a" / "sample-4.nii.gz").dataobj) != first)
    assert (tmp_path / "a" / "samples.png").is_file()
    said = medgen("sample", bundle, "-o", tmp_path / "d", "--box", "33,32,32", code=2)
    assert "multiples of 4" in said


def test_a_bundle_without_a_latent_says_so(tmp_path: Path) -> None:
    said = medgen("sample", "brain_t1_to_t2", "-o", tmp_path, code=2)
    assert "expected a bundle with an autoencoder, got brain_t1_to_t2" in said


def test_a_run_scores_cases_and_a_wrong_input_costs_itself(bundle: Path, tmp_path: Path) -> None:
    write_flair(tmp_path / "in" / "sub-1_FLAIR.nii.gz", 0)
    nib.save(nib.Nifti1Image(np.zeros((20, 20, 20), np.int16), np.eye(4)), tmp_path / "in" / "sub-2_FLAIR.nii.gz")
    medgen("run", bundle, "-i", tmp_path / "in", "-o", tmp_path / "out", "--format", "both", code=1)
    rows = {row["case"]: row for row in csv.DictReader((tmp_path / "out" / "cases.csv").read_text().splitlines())}
    assert rows["sub-2_FLAIR.nii.gz"]["status"] == "failed"
    done = rows["sub-1_FLAIR.nii.gz"]
    heat = nib.load(tmp_path / "out" / done["output"]).get_fdata()
    assert done["output"] == "sub-1_desc-scoredFromFLAIR_heat.nii.gz"
    assert np.isfinite(heat).all()
    assert float(done["score"]) > 0
    (table,) = (tmp_path / "out").glob("*_regions.csv")
    assert "none: there is no healthy reference of these settings" in table.read_text()
    assert [path.name for path in (tmp_path / "out").rglob("*.dcm")] == ["0001.dcm"]


def write_controls(folder: Path) -> Path:
    """Three people, each with a lesion mask, and their manifest."""
    cases = []
    for seed in range(3):
        names = {"image": f"{seed}_FLAIR.nii.gz", "target": f"{seed}_mask.nii.gz"}
        grid = write_flair(folder / names["image"], seed)
        lesion = np.zeros(grid.shape, np.int16)
        lesion[20:24, 20:24, 20:24] = 1
        nib.save(nib.Nifti1Image(lesion, grid.affine), folder / names["target"])
        files = {role: {"path": name, "sha256": file_sha256(folder / name)} for role, name in names.items()}
        cases.append({"patient": f"p{seed}", "split": "train", "files": files})
    manifest = {"schema": "medgen-manifest-1", "name": "own", "description": "x", "license": "x", "source": "x"}
    (folder / "own.json").write_text(json.dumps({**manifest, "cases": cases}))
    return folder / "own.json"


def test_a_control_that_cannot_be_used_costs_itself_alone(bundle: Path, tmp_path: Path) -> None:
    calibrated = tmp_path / "vae0"
    shutil.copytree(bundle, calibrated)
    place = {"_target_": "medgen.infer.reference.HealthyReference.load", "path": str(tmp_path / "reference.json")}
    (calibrated / "configs" / "inference.yaml").write_text(yaml.safe_dump({**CONFIG, "reference": place}))
    manifest = write_controls(tmp_path)
    content = json.loads(manifest.read_text())
    empty = tmp_path / content["cases"][0]["files"]["image"]["path"]
    nib.save(nib.Nifti1Image(np.zeros((20, 20, 20), np.int16), np.eye(4)), empty)
    content["cases"][0]["files"]["image"]["sha256"] = file_sha256(empty)
    manifest.write_text(json.dumps(content))
    said = medgen("calibrate", calibrated, "--data", manifest, "-o", tmp_path / "reference.json", code=1)
    assert "regions of healthy tissue of 2 patients" in said
    assert "left out: 0_FLAIR.nii.gz" in said


def test_a_latent_is_written_to_npz_alone(bundle: Path, tmp_path: Path) -> None:
    write_flair(tmp_path / "0_FLAIR.nii.gz", 0)
    said = medgen("latent", "encode", bundle, "-i", tmp_path / "0_FLAIR.nii.gz", "-o", tmp_path / "a.lat", code=2)
    assert "expected a file .npz" in said


def test_calibrated_on_healthy_scans_a_run_has_p_values_and_of_other_weights_none(bundle: Path, tmp_path: Path) -> None:
    calibrated = tmp_path / "vae0"
    shutil.copytree(bundle, calibrated)
    place = {"_target_": "medgen.infer.reference.HealthyReference.load", "path": str(tmp_path / "reference.json")}
    config = {**CONFIG, "evidence": "residual-signed", "reference": place}
    (calibrated / "configs" / "inference.yaml").write_text(yaml.safe_dump(config))
    said = medgen("calibrate", calibrated, "--data", write_controls(tmp_path), "-o", tmp_path / "reference.json")
    assert "regions of healthy tissue of 3 patients" in said
    assert "all patients" in said
    medgen("run", calibrated, "-i", tmp_path / "0_FLAIR.nii.gz", "-o", tmp_path / "out")
    (table,) = (tmp_path / "out").glob("*_regions.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert all(0 < float(row["p"]) <= 1 for row in rows[1:])
    reference = json.loads((tmp_path / "reference.json").read_text())
    (tmp_path / "reference.json").write_text(json.dumps({**reference, "weights_sha256": "b" * 64}))
    said = medgen("run", calibrated, "-i", tmp_path / "0_FLAIR.nii.gz", "-o", tmp_path / "out2", code=2)
    assert "expected a healthy reference of these weights" in said
