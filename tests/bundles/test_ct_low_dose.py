"""What must survive a denoiser of CT: padding, metal, air, storage, a single slice; and what its card claims."""

import csv
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from pydicom import Dataset, dcmread
from skimage.restoration import denoise_nl_means

from medgen.geometry import Grid
from medgen.metrics.ct_noise import score_noise, shift_by_tissue
from medgen.metrics.observer import disc, matched_sum
from medgen.metrics.sharpness import disc_transfer
from medgen.metrics.smoothing import WEIGHTS_HU, total_variation
from medgen.prepare.intensity import hu_to_unit
from medgen.read.discover import find_cases
from medgen.read.reader import read_image
from medgen.run.bundle import open_bundle
from medgen.run.dose import write_low_dose
from medgen.run.job import RunRequest, manifest_pairs, predict_case, run_job
from medgen.simulate.dicom import write_series
from medgen.simulate.dose import scanned
from medgen.simulate.trunk import trunk_hu

BUNDLE = "ct_low_dose_denoising"
AFFINE = np.diag([3.0, 3.0, 5.0, 1.0])
# On slices of the abdomen at a quarter of the dose: dB above the best of total variation and non-local means.
GAIN_DB = 0.4
NOISE_HU = 30.0  # white, which no scanner makes: less of it is known for noise than of theirs

pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")


def truth(slices: int = 4) -> npt.NDArray[np.float32]:
    """A trunk with metal, a slice of air alone, and a round field of view that cuts the trunk off."""
    grid = Grid((109, 93, slices), AFFINE)
    volume = trunk_hu(grid, 3)
    volume[60:63, 40:42] = 2900.0
    volume[60:63, 42] = 8000.0
    if slices > 1:
        volume[..., -1] = -1000.0
    x, y = np.meshgrid(*[np.linspace(-1, 1, n) for n in grid.shape[:2]], indexing="ij")
    outside = np.hypot(x, y) > 0.8
    assert (volume[outside] > -300).any()  # it does cut
    return np.where(outside[..., None], -2000.0, volume).astype(np.float32)


def scan(slices: int = 4, noise_hu: float = NOISE_HU) -> npt.NDArray[np.float32]:
    """The same with noise, in air and metal as well; padding has none."""
    clean = truth(slices)
    grain = np.random.default_rng(0).normal(scale=noise_hu, size=clean.shape)
    return np.where(clean <= -1500, clean, clean + grain).round().astype(np.float32)


def error(image: npt.NDArray[np.float32], inside: npt.NDArray[np.bool_]) -> float:
    """Root of the mean squared error of what shows `truth` [HU]."""
    return float(np.sqrt(((image - truth(image.shape[2]))[inside] ** 2).mean()))


def result_of(folder: Path, image: npt.NDArray[np.float32], **changes: object) -> npt.NDArray[np.float32]:
    """What the bundle writes for one NIfTI file."""
    path = folder / "in" / "sub-1_CT.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(image.astype(np.int16), AFFINE), path)
    request = RunRequest(BUNDLE, path.parent, folder / "out", device="cpu", preview=False)
    run_job(replace(request, **changes))
    [written] = (folder / "out").rglob("*_CT.nii.gz")
    return np.asarray(nib.load(written).dataobj, dtype=np.float32)


def test_padding_and_metal_stay_bit_for_bit_and_the_rest_comes_nearer_to_the_truth(tmp_path: Path) -> None:
    before, clean = scan(19), truth(19)  # more than one window
    after = result_of(tmp_path, before)
    kept = (before <= -1500) | (before > 3071)
    assert kept.sum() > 1000
    assert np.array_equal(after[kept], before[kept])
    tissue, air = (clean > -300) & (clean < 300), ~kept & (clean == -1000)
    assert error(after, tissue) < 0.9 * NOISE_HU
    assert error(after, air) < 0.9 * NOISE_HU
    alone = air[..., -1]
    assert abs(float((after[..., -1] - clean[..., -1])[alone].mean())) < 8  # what lies below -1024 HU is seen clipped
    dense = clean == 2900
    assert np.abs(after - before)[dense].max() < 290  # a tenth


@pytest.mark.parametrize("slices", [1, 2])
def test_few_slices_are_enough(tmp_path: Path, slices: int) -> None:
    after = result_of(tmp_path, scan(slices))
    assert after.shape == (109, 93, slices)
    assert error(after, np.abs(truth(slices)) < 300) < 0.9 * NOISE_HU


@pytest.mark.slow
def test_faint_discs_keep_their_contrast_and_edges_their_sharpness() -> None:
    """Not invented, not erased: discs in water as a scanner sees them at a quarter of the dose."""
    side, radius, middle = 1.0, 10.0, (127.5, 127.5)
    bundle = open_bundle(BUNDLE, device="cpu")
    for contrast in (-20.0, 0.0, 100.0):
        plane = -1000 + 1000 * disc((256, 256), middle, 100.0, side) + contrast * disc((256, 256), middle, radius, side)
        rng = np.random.default_rng(0)
        low = np.stack([scanned(plane, (side, side), 0.25, rng, kernel="soft") for _ in range(6)], axis=-1)
        units = torch.from_numpy(hu_to_unit(low.astype(np.float32)))
        with torch.no_grad():
            made = [bundle.inferer(units[None, None, ..., n : n + 1], bundle.network)[0, 0, ..., 0] for n in range(6)]
        mean = np.mean([1000 * one.numpy() for one in made], axis=0)
        seen, given = (matched_sum(image, middle, radius, side) for image in (mean, low.mean(axis=-1)))
        assert abs(seen - given) < max(2.0, 0.15 * abs(contrast))
        if contrast == 100:
            after, before = (disc_transfer(image, middle, radius, side).half for image in (mean, low.mean(axis=-1)))
            assert after > 0.85 * before


def test_strength_goes_from_the_input_to_the_result(tmp_path: Path) -> None:
    before = scan()
    none, quarter, half, full = (
        result_of(tmp_path / str(part), before, changes=(f"strength={part}",)) for part in (0.0, 0.25, 0.5, 1.0)
    )
    assert np.array_equal(none, before)
    assert np.abs(half - (before + full) / 2).max() <= 1.01  # rounded to whole HU
    steps = np.abs(np.stack([quarter, half, full]) - before)
    assert (np.diff(steps, axis=0) >= -1).all()


def test_a_coronal_series_and_a_chest_are_done_and_flagged(tmp_path: Path) -> None:
    volume = scan(24)
    coronal = np.ascontiguousarray(volume[:, ::5])
    affine = AFFINE @ np.diag([1.0, 5.0, 1.0, 1.0])
    chest = volume.copy()
    chest[20:90, 30:60] = -800.0
    for name, image, place in (("coronal", coronal, affine), ("chest", chest, AFFINE)):
        (tmp_path / "in").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(image.astype(np.int16), place), tmp_path / "in" / f"{name}_CT.nii.gz")
    run_job(RunRequest(BUNDLE, tmp_path / "in", tmp_path / "out", device="cpu", preview=False))
    with (tmp_path / "out" / "cases.csv").open(newline="") as stream:
        rows = {Path(row["case"]).name: row for row in csv.DictReader(stream)}
    assert {row["status"] for row in rows.values()} == {"done"}
    assert "input-resolution" in rows["coronal_CT.nii.gz"]["flags"]
    assert "not-validated" in rows["chest_CT.nii.gz"]["flags"]


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_dicom_of_either_storage_gives_a_series_in_hu_with_its_padding(tmp_path: Path, signed: bool) -> None:
    volume = scan()
    volume = np.maximum(volume, -2000.0 if signed else -1024.0)

    def edit(dataset: Dataset, index: int) -> None:
        if signed:
            dataset.PixelRepresentation, dataset.RescaleIntercept = 1, 0
            dataset.PixelData = np.ascontiguousarray(volume[..., index].T).astype("<i2").tobytes()
        dataset.ConvolutionKernel = "B30f"

    write_series(tmp_path / "in", volume, AFFINE, "CT", edit=edit)
    run_job(RunRequest(BUNDLE, tmp_path / "in", tmp_path / "out", device="cpu", preview=False, formats="dicom"))
    first = dcmread(next((tmp_path / "out").rglob("*.dcm")))
    assert (first.ConvolutionKernel, first.SeriesDescription) == ("B30f", "Denoised CT, not for diagnosis")
    assert "SyntheticData" not in first
    assert ("PixelPaddingValue" in first) == signed
    [case] = find_cases(next((tmp_path / "out").rglob("*.dcm")).parent, salt=b"")
    made = read_image(case)[0].numpy()
    [given] = find_cases(tmp_path / "in", salt=b"")
    original = read_image(given)[0].numpy()
    assert made.shape == original.shape
    kept = original <= -1500
    assert kept.any() == signed
    assert np.array_equal(made[kept], original[kept])
    assert abs(float((made - original)[~kept].mean())) < 2


@pytest.mark.slow
@pytest.mark.real_data
def test_a_tilted_head_is_done_where_that_is_asked_for_and_flagged(real_data: Path, tmp_path: Path) -> None:
    request = RunRequest(BUNDLE, real_data / "dicom" / "ge-head-ct-tilted", tmp_path, device="cpu", preview=False)
    run_job(replace(request, allow_irregular=True))
    with (tmp_path / "cases.csv").open(newline="") as stream:
        [row] = list(csv.DictReader(stream))
    assert row["status"] == "done"
    assert "not-validated" in row["flags"]


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("kernel", ["own", "soft", "sharp"])
def test_an_abdomen_at_a_quarter_of_its_dose_is_nearer_than_any_filter(
    real_data: Path, tmp_path: Path, kernel: str
) -> None:
    write_low_dose(real_data / "ct" / "crlm-1004", tmp_path / "pairs", fraction=0.25, slices=4, kernel=kernel)
    [pair] = manifest_pairs(tmp_path / "pairs" / "manifest.json", "test")
    low, full = (np.asarray(read_image(case)[0].numpy()) for case in (pair.case, pair.truth))
    made = np.asarray(predict_case(open_bundle(BUNDLE, device="cpu"), pair.case).image)
    score = score_noise(made, full)
    filters = [(total_variation, w) for w in WEIGHTS_HU] + [(non_local_means, s) for s in (6, 9, 13, 19, 28)]
    best = [score_noise(each(low, strength), full) for each, strength in filters]
    assert score.psnr_db > max(each.psnr_db for each in best) + GAIN_DB
    assert score.ssim >= max(best, key=lambda each: each.psnr_db).ssim
    assert max(abs(shift) for shift in shift_by_tissue(made, full).values() if not np.isnan(shift)) < 2


def non_local_means(scan: npt.NDArray[np.float32], noise_hu: float) -> npt.NDArray[np.float32]:
    planes = [
        denoise_nl_means(scan[..., z], patch_size=5, patch_distance=6, h=0.8 * noise_hu, sigma=noise_hu, fast_mode=True)
        for z in range(scan.shape[2])
    ]
    return np.stack(planes, axis=-1)
