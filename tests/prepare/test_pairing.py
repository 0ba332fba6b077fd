"""Pairing: the same grid both ways, known motions found again, and brains cut out of heads."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  # the name that SimpleITK's own documentation uses
import torch
from monai.data import MetaTensor
from scipy.ndimage import binary_erosion

from medgen.errors import GeometryError
from medgen.geometry import Grid
from medgen.prepare.pairing import RegisterToSourced, StripByAtlasd, from_sitk, register, resample, to_sitk
from medgen.simulate.brain import simulate_brain
from medgen.simulate.sample import head_grid
from medgen.simulate.signal import t1_weighted, t2_weighted

GRID = head_grid((46, 54, 41), (3.9, 4.1, 4.4), tilt_degrees=9.0)
FRACTIONS = simulate_brain(GRID, seed=2)
T1, T2 = t1_weighted(FRACTIONS), t2_weighted(FRACTIONS)


def tensor(volume: np.ndarray, grid: Grid) -> MetaTensor:
    return MetaTensor(torch.from_numpy(np.asarray(volume, np.float32))[None], affine=torch.from_numpy(grid.affine))


def moved(grid: Grid, shift_mm: tuple[float, float, float]) -> Grid:
    affine = grid.affine.copy()
    affine[:3, 3] += shift_mm
    return Grid(grid.shape, affine)


def test_sitk_and_back_keeps_the_voxels_and_their_places() -> None:
    image = to_sitk(T1, GRID.affine)
    np.testing.assert_array_equal(from_sitk(image), T1)
    for index in ((0, 0, 0), (45, 3, 20)):
        lps = np.array(image.TransformIndexToPhysicalPoint(index))
        ras = (GRID.affine @ [*index, 1])[:3]
        np.testing.assert_allclose(lps * [-1, -1, 1], ras, atol=1e-3)


def test_a_sheared_grid_is_refused() -> None:
    affine = GRID.affine.copy()
    affine[0, 2] += 1.5
    with pytest.raises(GeometryError, match="perpendicular"):
        to_sitk(T1, affine)


def test_a_pair_on_one_grid_is_left_alone() -> None:
    item = {"image": tensor(T1, GRID), "target": tensor(T2, GRID)}
    assert RegisterToSourced("target")(item)["target"] is item["target"]


def test_what_a_target_does_not_cover_is_told_from_what_is_empty_in_it() -> None:
    """A CT whose field of view ends in the middle of the MR: below it is not air, but nothing known."""
    x, y, z = GRID.shape
    half, cut = Grid((x, y, z // 2), GRID.affine), T2[:, :, : z // 2]
    known = np.ones(GRID.shape, np.float32)
    known[:5] = 0
    item = {"image": tensor(T1, GRID), "target": tensor(cut, half), "mask": tensor(known, GRID)}
    result = RegisterToSourced("target", outside=-1000.0, mask_key="mask")(item)
    mask = result["mask"][0].numpy()
    assert set(np.unique(mask)) == {0, 1}
    assert mask[:5].max() == 0
    assert mask[5:, :, : z // 2 - 3].mean() > 0.98
    assert mask[:, :, z // 2 + 3 :].max() == 0
    assert (result["target"][0].numpy()[:, :, z // 2 + 3 :] == -1000).all()
    whole = RegisterToSourced("target", mask_key="mask")({"image": tensor(T1, GRID), "target": tensor(T2, GRID)})
    assert whole["mask"].min() == 1


def test_a_patient_who_moved_is_brought_back() -> None:
    """The T2 carries headers that are wrong by a known shift; registered, it agrees with the truth again."""
    shift = (5.0, -4.0, 3.0)
    item = {"image": tensor(T1, GRID), "target": tensor(T2, moved(GRID, shift))}
    result = RegisterToSourced("target")(item)["target"]
    assert torch.equal(result.affine, item["image"].affine)
    still = resample(to_sitk(T2, moved(GRID, shift).affine), to_sitk(T1, GRID.affine), sitk.Transform())
    inner = (slice(4, -4),) * 3
    before, after = (np.abs(v[inner] - T2[inner]).mean() for v in (still, result[0].numpy()))
    assert after < 0.35 * before


@pytest.mark.parametrize("origin", [(0.0, 0.0, 0.0), (0.0, -239.0, 150.0)])
def test_a_stripped_pair_that_an_earlier_registration_missed_is_aligned(origin: tuple[float, float, float]) -> None:
    """On one grid already, but the content is off by millimetres; the masks' common rim must not hold it there."""
    brain = np.asarray(sum(FRACTIONS[name] for name in ("csf", "grey", "white"))) > 0.5
    shift, grid = (3.0, -2.5, 2.0), moved(GRID, origin)
    off = resample(to_sitk(T2, moved(GRID, shift).affine), to_sitk(T1, GRID.affine), sitk.Transform())
    item = {"image": tensor(T1 * brain, grid), "target": tensor(off * brain, grid)}
    result = RegisterToSourced("target", align=True)(item)["target"][0].numpy()
    compared = (result > 0) & binary_erosion(brain, iterations=2)
    before, after = (np.abs(v - T2)[compared].mean() for v in (off, result))
    assert after < 0.5 * before
    assert (result[~brain] == 0).mean() > 0.9
    assert np.percentile(result[result > 0], 1) > 0.05 * np.median(result[result > 0])  # no rim of nearly nothing


def test_a_pair_that_would_have_to_leap_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    brain = np.asarray(sum(FRACTIONS[name] for name in ("csf", "grey", "white"))) > 0.5
    off = resample(
        to_sitk(T2 * brain, moved(GRID, (14.0, 0.0, 0.0)).affine), to_sitk(T1, GRID.affine), sitk.Transform()
    )
    item = {"image": tensor(T1 * brain, GRID), "target": tensor(off, GRID)}
    assert RegisterToSourced("target", align=True)(item)["target"] is item["target"]
    assert "left as it is" in caplog.text


def test_a_pair_that_misses_by_less_than_a_voxel_keeps_its_sharpness() -> None:
    brain = np.asarray(sum(FRACTIONS[name] for name in ("csf", "grey", "white"))) > 0.5
    shift = tuple(0.3 * s for s in GRID.spacing_mm)
    off = resample(to_sitk(T2 * brain, moved(GRID, shift).affine), to_sitk(T1, GRID.affine), sitk.Transform())
    item = {"image": tensor(T1 * brain, GRID), "target": tensor(off, GRID)}
    assert RegisterToSourced("target", align=True)(item)["target"] is item["target"]


def test_registering_twice_gives_the_same_motion() -> None:
    fixed, moving = to_sitk(T1, GRID.affine), to_sitk(T2, moved(GRID, (3.0, 2.0, -2.0)).affine)
    assert register(fixed, moving).GetParameters() == pytest.approx(register(fixed, moving).GetParameters(), abs=1e-6)


def test_resampling_stays_in_the_range_of_the_image() -> None:
    fixed = to_sitk(T1, moved(GRID, (1.7, 2.2, 1.1)).affine)
    result = resample(to_sitk(T2, GRID.affine), fixed, sitk.Transform())
    assert result.min() >= 0
    assert result.max() <= T2.max()


def test_a_head_is_stripped_where_the_item_says_so(tmp_path: Path) -> None:
    brain = np.asarray(FRACTIONS["grey"] + FRACTIONS["white"]) > 0.5
    for name, volume in (("head", T1), ("brain", T1 * brain)):
        nibabel.save(nibabel.Nifti1Image(volume.astype(np.float32), GRID.affine), tmp_path / f"{name}.nii.gz")
    strip = StripByAtlasd(["image", "target"], "head.nii.gz", "brain.nii.gz", root=str(tmp_path), margin_mm=0.0)
    where = moved(GRID, (6.0, 4.0, -5.0))
    item = {"image": tensor(T1, where), "target": tensor(T2, where)}
    whole, stripped = strip({**item, "strip": False}), strip({**item, "strip": True})
    assert whole["image"] is item["image"]
    kept = stripped["image"][0].numpy() > 0
    assert np.array_equal(kept, stripped["target"][0].numpy() > 0)
    overlap = 2 * (kept & brain).sum() / (kept.sum() + brain.sum())
    assert overlap > 0.85


def test_a_ct_is_filled_up_with_air_and_what_is_missing_is_passed_over() -> None:
    fixed = to_sitk(np.zeros((12, 12, 12), np.float32), np.eye(4))
    moving = to_sitk(np.full((6, 12, 12), 40.0, np.float32), np.eye(4))
    moved = resample(moving, fixed, sitk.Transform(3, sitk.sitkIdentity), outside=-1000.0)
    assert moved[0, 6, 6] == pytest.approx(40)
    assert moved[-1, 6, 6] == -1000
    register = RegisterToSourced("target", allow_missing_keys=True)
    assert register({"image": 1}) == {"image": 1}
    assert register({"target": 1}) == {"target": 1}
