"""Evaluation: the truth scores best, the negative is beside it, a bad case costs itself, grids are brought together."""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from medgen.case import Case, OutputKind, Result
from medgen.errors import BundleError, GeometryError, IntensityError, NoInputError
from medgen.geometry import Grid
from medgen.provenance import Provenance
from medgen.run.compare import write_comparison
from medgen.run.evaluate import REGRIDDED_FLAG, Pair, evaluate
from medgen.run.protocol import find_protocol

AFFINE = np.array([[-1.9, 0.2, 0.0, 20.0], [0.2, 2.3, 0.1, -30.0], [0.0, -0.1, 3.1, 5.0], [0.0, 0.0, 0.0, 1.0]])
KIND = OutputKind("T2w", "MR", "Synthetic T2-weighted")
Volume = npt.NDArray[np.float32]


def _source(seed: int = 0) -> Volume:
    rng = np.random.default_rng(seed)
    image = np.zeros((26, 22, 18), dtype=np.float32)
    image[4:-4, 3:-3, 3:-3] = 100 + 300 * rng.random((18, 16, 12), dtype=np.float32)
    return image


def _truth(source: Volume) -> Volume:
    wave = 150 * np.sin(np.arange(source.shape[0], dtype=np.float32))[:, None, None]
    return np.where(source > 0, 900 - source + wave, 0).astype(np.float32)


def _metrics(output: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((output / "metrics.csv").read_text().splitlines()))


def _pixels(path: Path) -> npt.NDArray[np.int64]:
    with Image.open(path) as picture:
        return np.asarray(picture, dtype=np.int64)


def _case(folder: Path, name: str, image: Volume, affine: npt.NDArray[np.float64] = AFFINE) -> Case:
    path = folder / f"{name}.nii.gz"
    nib.Nifti1Image(image, affine).to_filename(path)
    return Case(path.name, "nifti", (path,), PurePosixPath("sub", name), PurePosixPath(path.name), ".nii.gz")


def _predictor(make: Callable[[Volume], Volume]) -> Callable[[Case], Result]:
    def predict(case: Case) -> Result:
        image = nib.load(case.files[0])
        source = np.asarray(image.dataobj, dtype=np.float32)
        grid = Grid(source.shape, np.asarray(image.affine, dtype=np.float64))
        return Result(case, KIND, make(source), source, grid, Provenance("b", "0", "w"), flags=("input-contrast",))

    return predict


def _pairs(folder: Path, count: int) -> list[Pair]:
    sources = [_source(n) for n in range(count)]
    return [
        Pair(_case(folder, f"t1-{n}", s), _case(folder, f"t2-{n}", _truth(s)), f"p{n}") for n, s in enumerate(sources)
    ]


def test_a_perfect_prediction_is_told_from_the_input_itself(tmp_path: Path) -> None:
    perfect = evaluate(_pairs(tmp_path, 1), _predictor(_truth), tmp_path / "a").rows[0]
    copied = evaluate(_pairs(tmp_path, 1), _predictor(lambda source: source), tmp_path / "b").rows[0]
    assert perfect.score is not None
    assert copied.score is not None
    assert copied.simple is not None
    assert perfect.score["ssim"] == pytest.approx(1.0)
    assert copied.score["ssim"] < copied.simple["ssim"] < 1
    assert copied.score["psnr_db"] < copied.simple["psnr_db"] < perfect.score["psnr_db"]
    assert perfect.simple == copied.simple


def test_writes_a_row_a_case_a_summary_and_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    noisy = _predictor(lambda s: _truth(s) + rng.normal(0, 30, s.shape).astype(np.float32))
    evaluation = evaluate(_pairs(tmp_path, 3), noisy, tmp_path / "out")
    rows = _metrics(tmp_path / "out")
    assert [row["case"] for row in rows] == ["t1-0.nii.gz", "t1-1.nii.gz", "t1-2.nii.gz"]
    assert all(row["status"] == "done" and row["flags"] == "input-contrast" for row in rows)
    assert all(_pixels(tmp_path / "out" / row["picture"]).shape[1] > 100 for row in rows)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    found = summary["metrics"]["psnr_db"]["prediction"]
    values = [float(row["psnr_db"]) for row in rows]
    assert found["patients"] == 3
    assert found["mean"] == pytest.approx(np.mean(values), abs=1e-4)
    assert found["median"] == pytest.approx(np.median(values), abs=1e-4)
    assert min(values) - 1e-4 <= found["interval"][0] <= found["mean"] <= found["interval"][1] <= max(values) + 1e-4
    gains = [float(row["psnr_db"]) - float(row["negative_psnr_db"]) for row in rows]
    assert summary["metrics"]["psnr_db"]["gain"]["mean"] == pytest.approx(np.mean(gains), abs=1e-4)
    text = (tmp_path / "out" / "summary.txt").read_text()
    assert text == evaluation.table()
    assert f"{found['mean']:.2f}" in text
    assert "3 of 3 cases scored" in text


def test_one_bad_case_costs_that_case(tmp_path: Path) -> None:
    pairs = _pairs(tmp_path, 2)

    def predict(case: Case) -> Result:
        if case is pairs[0].case:
            raise IntensityError("expected finite voxels, got NaN")
        return _predictor(_truth)(case)

    evaluation = evaluate(pairs, predict, tmp_path / "out")
    assert evaluation.failed == 1
    rows = _metrics(tmp_path / "out")
    assert [row["status"] for row in rows] == ["failed", "done"]
    assert rows[0]["reason"] == "expected finite voxels, got NaN"
    assert rows[0]["psnr_db"] == ""
    assert evaluation.spreads()["ssim"]["prediction"].patients == 1


def test_a_truth_on_another_grid_is_brought_over_by_its_header_and_said(tmp_path: Path) -> None:
    places = np.stack(np.meshgrid(*[np.arange(n) for n in (26, 22, 18)], indexing="ij"))
    world = np.einsum("ij,jxyz->ixyz", AFFINE[:3, :3], places)
    smooth = (300 + 100 * np.sin(world[0] / 15) * np.cos(world[1] / 17) + 80 * np.cos(world[2] / 14)).astype(np.float32)
    turned = AFFINE @ np.array([[0, -1, 0, 25], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    truth = np.ascontiguousarray(np.swapaxes(smooth[::-1], 0, 1))
    pair = Pair(_case(tmp_path, "t1", smooth), _case(tmp_path, "t2", truth, turned), "p")
    row = evaluate([pair], _predictor(lambda source: source), tmp_path / "out").rows[0]
    assert REGRIDDED_FLAG in row.flags
    assert row.score is not None
    assert row.score["psnr_db"] > 60


def test_a_brain_mask_decides_what_counts(tmp_path: Path) -> None:
    source = _source()
    mask = np.zeros_like(source)
    mask[8:14, 6:12, 5:11] = 1
    case, truth = _case(tmp_path, "t1", source), _case(tmp_path, "t2", _truth(source))
    row = evaluate([Pair(case, truth, "p", _case(tmp_path, "mask", mask))], _predictor(_truth), tmp_path / "o").rows[0]
    assert row.score is not None
    assert row.score["voxels"] == int((mask * (source > 0)).sum())


def test_nothing_to_evaluate_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NoInputError):
        evaluate([], _predictor(_truth), tmp_path)


def test_a_failed_evaluation_still_has_a_summary(tmp_path: Path) -> None:
    def predict(case: Case) -> Result:
        raise GeometryError("uneven slices")

    evaluation = evaluate(_pairs(tmp_path, 1), predict, tmp_path / "out")
    assert "0 of 1 cases scored" in evaluation.table()
    assert math.isnan(evaluation.rows[0].seconds)


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_a_picture_shows_the_patient_the_same_way_round_on_every_grid(
    tmp_path: Path, signs: tuple[int, ...], order: tuple[int, ...]
) -> None:
    source = np.pad(_source(), ((1, 0), (1, 0), (1, 0)))[:-1, :-1, :-1][:25, :21, :17]
    source[18:, :, :] *= 3  # brighter on the patient's right: the left of the picture
    affine = np.diag([1.0, 1.3, 1.7, 1.0])
    flips = np.array(signs)
    ends = np.where(flips < 0, np.array(source.shape) - 1, 0)
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for axis, original in enumerate(order):
        turn[original, axis] = flips[original]
        turn[original, 3] = ends[original]
    moved = np.ascontiguousarray(source[tuple(slice(None, None, s) for s in signs)].transpose(order))
    grids = [Grid(source.shape, affine), Grid(moved.shape, affine @ turn)]
    pages = []
    for name, image, grid in zip("ab", (source, moved), grids, strict=True):
        case = Case(name, "nifti", (), PurePosixPath(name), PurePosixPath(name), ".nii")
        result = Result(case, KIND, image, image, grid, Provenance("b", "0", "w"))
        write_comparison(result, image, tmp_path / f"{name}.png")
        pages.append(_pixels(tmp_path / f"{name}.png"))
    assert np.array_equal(pages[0], pages[1])
    tile = pages[0][18:, : pages[0].shape[1] // 4, 0]
    half = tile.shape[1] // 2
    assert tile[:, :half].mean() > 1.5 * tile[:, half:].mean()


def test_a_picture_of_a_denoised_ct_has_one_window_and_shows_its_middle_larger(tmp_path: Path) -> None:
    ct = np.full((60, 60, 3), -1000, np.float32)
    ct[6:54, 6:54] = 40
    ct[28:32, 28:32] = 240
    case = Case("a", "nifti", (), PurePosixPath("a"), PurePosixPath("a"), ".nii")
    kind = OutputKind("CT", "CT", "Denoised CT", "HU", "denoised")
    grid = Grid(ct.shape, np.diag([1.0, 1.0, 5.0, 1.0]))
    write_comparison(Result(case, kind, ct + 20, ct - 100, grid, Provenance("b", "0", "w")), ct, tmp_path / "p.png")
    page = _pixels(tmp_path / "p.png")
    assert page.shape[1] == 4 * 320
    height = page.shape[0] // 2
    source, result, truth, difference = (page[18:height, n * 320 : (n + 1) * 320] for n in range(4))
    greys = [int(np.median(tile[..., 0])) for tile in (source, result, truth)]
    assert greys == [round(255 * (hu + 160) / 400) for hu in (-60, 60, 40)]
    assert np.median(difference[..., 0]) == round(255 * 20 / 40)  # a tenth of the window is full red
    assert difference[..., 2].max() == 0
    inner = page[height + 18 :, 2 * 320 : 3 * 320, 0]
    assert (inner > 250).mean() > 4 * (truth[..., 0] > 250).mean()


def test_air_that_only_the_prediction_has_counts_against_it(tmp_path: Path) -> None:
    ct = np.full((26, 22, 18), -1000, np.float32)
    ct[4:-4, 3:-3, 3:-3] = 40
    ct[8:12, 8:12, 8:12] = 900
    inventing = ct.copy()
    inventing[15, 10, 9] = -900
    pair = Pair(_case(tmp_path, "mr", _source()), _case(tmp_path, "ct", ct), "p")
    hounsfield = find_protocol("hounsfield")
    spreads = evaluate([pair], _predictor(lambda source: inventing), tmp_path / "out", hounsfield).spreads()
    assert spreads["air_dice"]["prediction"].mean == 0
    assert spreads["bone_dice"]["prediction"].mean == 1
    exact = evaluate([pair], _predictor(lambda source: ct), tmp_path / "exact", hounsfield).spreads()
    assert "prediction" not in exact.get("air_dice", {})


def test_a_ct_on_another_grid_is_filled_up_with_air(tmp_path: Path) -> None:
    ct = np.full((26, 22, 18), 40, np.float32)
    ct[12:15, 10:12, 8:10] = 900  # an image of one value is none
    shifted = AFFINE.copy()
    shifted[:3, 3] += 8 * AFFINE[:3, 0]
    pair = Pair(_case(tmp_path, "mr", _source()), _case(tmp_path, "ct", ct, shifted), "p")
    seen = []
    hounsfield = find_protocol("hounsfield")
    spy = replace(hounsfield, score=lambda p, t, s, m: seen.append(t) or hounsfield.score(p, t, s, m))
    evaluate([pair], _predictor(lambda source: 0 * source), tmp_path / "out", spy)
    assert seen[0][0].max() < -900
    assert np.median(seen[0][20]) == pytest.approx(40)


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(BundleError, match="hounsfield"):
        find_protocol("psnr")


def test_a_denoised_ct_is_measured_beside_total_variation_in_both_windows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clean = np.full((64, 64, 2), -800, np.float32)
    clean[8:-8, 8:-8] = 40
    clean[20:40, 20:40] = 100
    clean[44:50, 44:50] = 800
    noisy = np.rint(clean + 30 * rng.normal(size=clean.shape)).astype(np.float32)
    pair = Pair(_case(tmp_path, "low", noisy), _case(tmp_path, "full", clean), "p")
    dose = find_protocol("dose")
    kept = evaluate([pair], _predictor(lambda source: source), tmp_path / "kept", dose).rows[0]
    assert kept.score is not None
    assert kept.simple is not None
    assert kept.simple["psnr_db"] > kept.score["psnr_db"] + 5
    assert kept.score["full_rmse_hu"] == pytest.approx(30, rel=0.05)
    assert kept.score["rmse_hu"] < kept.score["full_rmse_hu"]  # air and bone are clipped
    brighter = evaluate([pair], _predictor(lambda source: clean + 3), tmp_path / "moved", dose).rows[0]
    assert brighter.score is not None
    assert brighter.score["shift_hu"] == pytest.approx(3 * ((clean > -160) & (clean < 240)).mean(), abs=0.01)
