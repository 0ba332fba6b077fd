"""The picture shows the patient the right way round, in true proportions, whatever the order of the array's axes."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medgen.geometry import Grid
from medgen.write.preview import write_preview
from write.conftest import CT, DENOISED, T2, Make, nifti_case, result_of


def block_in_corner(grid: Grid, ras: np.ndarray) -> np.ndarray:
    """A bright block in the octant of the volume that lies towards `ras` (signs), on a dim body."""
    indices = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"))
    centre = (np.array(grid.shape) - 1) / 2
    places = np.tensordot(grid.affine[:3, :3], indices - centre.reshape(3, 1, 1, 1), axes=1)
    inside = np.all(places * ras.reshape(3, 1, 1, 1) > 0, axis=0)
    return np.where(inside, 1000.0, 300.0).astype(np.float32)


def brightness_by_quarter(path: Path) -> dict[str, float]:
    """Mean brightness of the quarters of the axial view of the result, in the lower left of the page."""
    with Image.open(path) as picture:
        page = np.asarray(picture.convert("L"), dtype=float)
    half = (page.shape[0] - 44) // 2
    view = page[half + 40 : half * 2 - 20, : int(page.shape[1] * 0.3)]
    rows, columns = view.shape[0] // 2, view.shape[1] // 2
    return {
        "front right": view[:rows, :columns].mean(),
        "front left": view[:rows, columns:].mean(),
        "back right": view[rows:, :columns].mean(),
        "back left": view[rows:, columns:].mean(),
    }


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_the_patients_right_is_on_the_left_and_the_front_is_up_in_any_axis_order(tmp_path: Path) -> None:
    for order, signs in (((0, 1, 2), (1, 1, 1)), ((2, 0, 1), (-1, 1, -1)), ((1, 2, 0), (-1, -1, 1))):
        affine = np.eye(4)
        affine[:3, :3] = (np.diag([2.0, 2.1, 2.2]) * np.array(signs))[:, order]
        grid = Grid((20, 20, 20), affine)
        image = block_in_corner(grid, np.array([1, 1, -1]))
        image = np.maximum(image, block_in_corner(grid, np.array([1, 1, 1])))  # front right, through all slices
        case = nifti_case(tmp_path / "in.nii", grid)
        write_preview(result_of(case, grid, image=image), tmp_path / "p.png")
        quarters = brightness_by_quarter(tmp_path / "p.png")
        assert max(quarters, key=quarters.__getitem__) == "front right", (order, signs, quarters)


def test_thick_slices_are_drawn_in_true_proportions(tmp_path: Path) -> None:
    grid = Grid((60, 90, 10), np.diag([1.0, 1.0, 9.0, 1.0]))
    case = nifti_case(tmp_path / "in.nii", grid)
    write_preview(result_of(case, grid), tmp_path / "p.png")
    width, height = size_of(tmp_path / "p.png")
    axial, coronal, sagittal = (200, 300), (200, 300), (300, 300)  # 60x90, 60x90 and 90x90 mm at 300 pixels for 90 mm
    assert width == axial[0] + coronal[0] + sagittal[0] + 2 * 6
    assert height == 2 * (300 + 22 + 6) + 44


def test_every_kind_of_result_has_a_picture_and_it_is_soon_there(tmp_path: Path, from_dicom: Make) -> None:
    for kind, image in ((T2, None), (CT, None), (T2, np.zeros(from_dicom().grid.shape))):
        result = from_dicom(kind, image=image, flags=["regridded"])
        started = time.process_time()
        write_preview(result, tmp_path / "p.png")
        assert time.process_time() - started < 2
        assert size_of(tmp_path / "p.png")[0] > 300


def test_a_name_longer_than_the_picture_is_shortened_not_wrapped(tmp_path: Path, oblique: Grid) -> None:
    case = nifti_case(tmp_path / "in.nii", oblique, name="a/" * 80 + "sub-01_T1w")
    write_preview(result_of(case, oblique), tmp_path / "p.png")
    assert size_of(tmp_path / "p.png")[0] < 1000


def test_a_scan_and_what_was_denoised_of_it_are_shown_in_one_window(tmp_path: Path) -> None:
    grid = Grid((40, 40, 12), np.diag([1.0, 1.0, 3.0, 1.0]))
    image = np.full(grid.shape, -1000.0, dtype=np.float32)
    image[5:35, 5:35, 2:10] = 40.0
    image[10, 10, 5] = 3000.0  # of which percentiles would make another window
    case = nifti_case(tmp_path / "in.nii", grid)
    greys = []
    for kind in (DENOISED, CT):
        result = replace(result_of(case, grid, kind, image=image), source=image)
        write_preview(result, tmp_path / "p.png")
        with Image.open(tmp_path / "p.png") as picture:
            page = np.asarray(picture.convert("L"), dtype=float)
        half = (page.shape[0] - 44) // 2
        greys.append([page[top + 60 : top + half - 60, 60:200].mean() for top in (0, half)])
    assert greys[0][0] == pytest.approx(greys[0][1], abs=1)
    assert greys[1][0] != pytest.approx(greys[1][1], abs=20)
