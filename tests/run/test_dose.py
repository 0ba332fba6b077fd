"""Pairs at two doses as files: the fit finds what noise a scan was made with, and what cannot be used costs itself."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from medgen.cli import app
from medgen.errors import NoInputError
from medgen.read.manifest import check_manifest
from medgen.run.dose import fit_own_noise, write_low_dose
from medgen.simulate.dose import CtScanner, scanned

pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")

_PIXEL_MM = 0.8
_SCANNER = CtScanner(photons=2e5, views=180)


def _noisy(slices: int, kernel: float = 1.0, side: int = 128) -> np.ndarray:
    """A cylinder of 60 HU, as a scanner with known flux and kernel sees it."""
    away = np.hypot(*np.meshgrid(*[np.arange(side) - (side - 1) / 2] * 2, indexing="ij"))
    phantom = np.where(away < 0.45 * side, 60.0, -1000.0).astype(np.float32)
    rng = np.random.default_rng(5)
    planes = [scanned(phantom, (_PIXEL_MM,) * 2, 1.0, rng, kernel=kernel, scanner=_SCANNER) for _ in range(slices)]
    return np.stack(planes, axis=-1)


def _save(volume: np.ndarray, path: Path, sides_mm: tuple[float, float] = (_PIXEL_MM, _PIXEL_MM)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(np.rint(volume).astype(np.int16), np.diag([*sides_mm, 2.0, 1.0])).to_filename(path)
    return path


@pytest.mark.parametrize("kernel", [0.7, 1.2])
def test_the_fit_finds_flux_and_kernel(kernel: float) -> None:
    fit = fit_own_noise(_noisy(6, kernel), _PIXEL_MM, CtScanner(photons=1e6, views=180))
    assert fit is not None
    assert fit.kernel == pytest.approx(kernel, abs=0.15)
    assert fit.photons == pytest.approx(_SCANNER.photons, rel=0.3)
    assert fit.regions == 6


def test_no_uniform_region_no_fit() -> None:
    noise = np.random.default_rng(0).normal(0, 400, (96, 96, 1)).astype(np.float32)
    assert fit_own_noise(noise, _PIXEL_MM) is None


def test_neither_a_phantom_without_noise_nor_coarse_pixels_can_be_fitted() -> None:
    clean = np.full((128, 128, 2), 60.0, dtype=np.float32)
    assert fit_own_noise(clean, _PIXEL_MM, CtScanner(views=90)) is None
    assert (
        fit_own_noise(clean + np.random.default_rng(0).normal(0, 0.3, clean.shape), _PIXEL_MM, CtScanner(views=90))
        is None
    )
    assert fit_own_noise(_noisy(6, 0.7), 4.0, CtScanner(photons=1e6, views=180)) is None


def test_pairs_share_a_grid_and_the_middle_slices_stay_where_they_are(tmp_path: Path) -> None:
    volume = _noisy(5)
    _save(volume, tmp_path / "in" / "a.nii.gz")
    cohort, told = write_low_dose(tmp_path / "in", tmp_path / "out", fraction=0.25, slices=3)
    assert check_manifest(tmp_path / "out" / "manifest.json") == []
    assert len(cohort.cases) == 1
    assert "3 slices" in told["a.nii.gz"]
    low, full = (nib.load(tmp_path / "out" / "a" / f"a_{what}.nii.gz") for what in ("low", "full"))
    assert np.array_equal(low.affine, full.affine)
    assert full.affine[2, 3] == 2.0
    assert np.array_equal(np.asarray(full.dataobj), np.rint(volume[..., 1:4]))
    inside = np.s_[40:88, 40:88]
    more = np.asarray(low.dataobj)[inside].std() / np.asarray(full.dataobj)[inside].std()
    assert more == pytest.approx(2.0, rel=0.2)  # a quarter of the dose, twice the noise


def test_the_fit_looks_at_slices_that_are_not_written(tmp_path: Path) -> None:
    volume = _noisy(3)
    volume[..., 1] = np.random.default_rng(0).normal(0, 400, volume.shape[:2])
    _save(volume, tmp_path / "in" / "a.nii.gz")
    _, told = write_low_dose(tmp_path / "in", tmp_path / "out", fraction=0.5, slices=1)
    assert told["a.nii.gz"].endswith("fitted in 2 regions")


def test_what_cannot_be_used_costs_that_case_alone(tmp_path: Path) -> None:
    _save(_noisy(1), tmp_path / "in" / "good.nii.gz")
    _save(_noisy(1), tmp_path / "in" / "oblong.nii.gz", (0.8, 1.1))
    (tmp_path / "in" / "text.nii.gz").write_text("no scan")
    result = CliRunner().invoke(app, ["lowdose", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "oblong.nii.gz: left out: expected square pixels, got 0.8 x 1.1 mm" in result.output
    assert "text.nii.gz: left out: " in result.output
    cases = json.loads((tmp_path / "out" / "manifest.json").read_text())["cases"]
    assert [case["patient"] for case in cases] == ["good"]


def test_flux_and_kernel_can_be_given_where_nothing_can_be_fitted(tmp_path: Path) -> None:
    thin = np.full((64, 64, 1), -1000.0)
    thin[20:44, 20:44] = 40.0
    _save(thin, tmp_path / "in" / "thin.nii.gz")
    _, told = write_low_dose(tmp_path / "in", tmp_path / "out", fraction=0.5, photons=1e6, kernel="soft")
    assert told == {"thin.nii.gz": "1 slices, 1e+06 photons, kernel soft"}
    with pytest.raises(NoInputError, match="try --photons with --kernel"):
        write_low_dose(tmp_path / "in", tmp_path / "other", fraction=0.5)


def test_rays_that_are_too_dark_are_told(tmp_path: Path) -> None:
    _save(_noisy(1, 0.7), tmp_path / "in" / "a.nii.gz")
    _, bright = write_low_dose(tmp_path / "in", tmp_path / "out", fraction=0.5, photons=1e6, kernel="soft")
    _, dark = write_low_dose(tmp_path / "in", tmp_path / "out", fraction=0.01, photons=1e4, kernel="soft")
    assert "biased" not in bright["a.nii.gz"]
    assert "% of the rays of its middle slice" in dark["a.nii.gz"]


def test_an_empty_folder_starts_nothing(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match="expected CT"):
        write_low_dose(tmp_path, tmp_path / "out", fraction=0.5)


def test_files_of_one_name_in_two_folders_and_pairs_of_an_earlier_call_are_told_apart(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        _save(_noisy(1, kernel=0.8 if folder == "one" else 1.2), tmp_path / "in" / folder / "ct.nii.gz")
    cohort, told = write_low_dose(tmp_path / "in", tmp_path / "out", fraction=0.5)
    assert len(told) == 2
    assert [case["patient"] for case in cohort.cases] == ["one-ct", "two-ct"]
    shared = [
        nib.load(tmp_path / "out" / name / f"{name}_low.nii.gz").get_fdata()
        - nib.load(tmp_path / "out" / name / f"{name}_full.nii.gz").get_fdata()
        for name in ("one-ct", "two-ct")
    ]
    assert abs(np.corrcoef(shared[0].ravel(), shared[1].ravel())[0, 1]) < 0.1  # each has noise of its own
    again, _ = write_low_dose(tmp_path / "in" / "two", tmp_path / "out", fraction=0.25)
    assert [case["patient"] for case in again.cases] == ["ct"]


def test_names_that_would_be_the_same_are_made_different(tmp_path: Path) -> None:
    for number, name in enumerate(("p1/ct", "p1-ct", "p1_ct")):
        _save(_noisy(1) + number, tmp_path / "in" / f"{name}.nii.gz")
    cohort, told = write_low_dose(tmp_path / "in", tmp_path / "out", fraction=0.5)
    assert len(told) == 3
    assert sorted(case["patient"] for case in cohort.cases) == ["p1-ct", "p1-ct-2", "p1-ct-3"]
    assert len(list((tmp_path / "out").rglob("*_low.nii.gz"))) == 3
