"""What hangs on to a brain is cut off by the average brain; what is no usual brain is left alone."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  # the name that SimpleITK's own documentation uses
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from scipy.ndimage import distance_transform_edt

from medgen.errors import BundleError, IntensityError
from medgen.prepare.brain import FindBraind, find_brain
from medgen.prepare.brain_shape import distance_mm, read_shape, within_shape
from medgen.prepare.pairing import to_sitk

AFFINE = np.array([[2.0, 0, 0, -100], [0, 2.0, 0, -130], [0, 0, 2.0, -80], [0, 0, 0, 1]])


def brain_of(shift: float = 0.0, tilt: float = 0.0, size: float = 1.0) -> np.ndarray:
    """An egg with a smaller one below its back: a brain and its cerebellum, `(100, 120, 90)` at 2 mm."""
    x, y, z = (AFFINE[:3, :3] @ np.indices((100, 120, 90)).reshape(3, -1) + AFFINE[:3, 3:]).reshape(3, 100, 120, 90)
    y, z = np.cos(tilt) * (y - shift) - np.sin(tilt) * (z - 20), np.sin(tilt) * (y - shift) + np.cos(tilt) * (z - 20)
    great = (x / 68) ** 2 + (y / 86) ** 2 + (z / 55) ** 2 < size**2
    small = (x / 45) ** 2 + ((y + 50) / 30) ** 2 + ((z + 45) / 25) ** 2 < size**2
    return np.asarray(great | small)


SHAPE = to_sitk(brain_of().astype(np.float32), AFFINE)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "tilt", "size"), [(0, 0, 1.0), (12, 0.25, 1.08), (-10, -0.2, 0.92)])
def test_a_neck_and_an_eye_are_cut_off_and_the_brain_stays(shift: float, tilt: float, size: float) -> None:
    brain = brain_of(shift, tilt, size)
    found = brain.copy()
    found[40:60, 20:45, :25] = True  # muscles of the neck, down to the edge of the scan
    found[62:80, 95:112, 12:24] = True  # an eye
    kept = within_shape(found, AFFINE, SHAPE)
    assert dice(found, brain) < 0.97
    assert dice(kept, brain) > 0.98
    assert kept[brain].mean() > 0.99
    assert not (kept & ~found).any()
    assert not kept[:, :, :4].any()


@pytest.mark.slow
def test_what_no_usual_brain_fits_is_left_alone() -> None:
    rod = np.zeros((100, 120, 90), dtype=bool)
    rod[48:52, 5:115, 43:47] = True
    np.testing.assert_array_equal(within_shape(rod, AFFINE, SHAPE), rod)


@pytest.mark.slow
def test_a_stripped_image_is_not_confined_and_a_head_is(tmp_path: Path) -> None:
    file = tmp_path / "shape.nii.gz"
    sitk.WriteImage(SHAPE, str(file))
    brain = brain_of()
    neck = brain.copy()
    neck[40:60, 20:45, :25] = True
    rng = np.random.default_rng(0)
    stripped = np.where(neck, 100 + rng.normal(size=neck.shape), 0).astype(np.float32)
    head = np.where(neck, stripped, np.float32(5) + rng.random(neck.shape, dtype=np.float32))
    made = {
        name: FindBraind("image", shape=str(file))(
            {"image": MetaTensor(torch.from_numpy(volume)[None], affine=torch.from_numpy(AFFINE))}
        )["brain"][0].numpy()
        > 0
        for name, volume in (("stripped", stripped), ("head", head))
    }
    assert made["stripped"][neck].all()
    assert not made["head"][:, :, :4].any()
    assert made["head"][brain].mean() > 0.95


def test_a_missing_average_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="expected an average brain at"):
        read_shape(str(tmp_path / "none.nii.gz"))


def test_a_head_whose_air_is_zero_is_not_taken_for_a_brain() -> None:
    brain = brain_of(size=0.8)
    away = distance_transform_edt(~brain, 2.0)
    shell = (away > 8) & (away < 16)
    head = np.where(brain, 100.0, np.where(shell, 90.0, np.where(away <= 8, 5.0, 0.0))).astype(np.float32)
    found = find_brain(head[:, :, 20:70], (2.0, 2.0, 2.0))  # a slab: no larger than a brain
    assert dice(found, brain[:, :, 20:70]) > 0.9
    assert not found[shell[:, :, 20:70]].any()


def test_what_is_centred_on_zero_is_refused() -> None:
    brain = brain_of()
    scores = np.where(brain, np.random.default_rng(0).normal(size=brain.shape), 0).astype(np.float32)
    with pytest.raises(IntensityError, match="expected magnitudes"):
        FindBraind("image")({"image": MetaTensor(torch.from_numpy(scores)[None], affine=torch.from_numpy(AFFINE))})


def test_where_nothing_is_thick_no_brain_is_found() -> None:
    noise = np.random.default_rng(0).random((60, 60, 60), dtype=np.float32) ** 8
    with pytest.raises(IntensityError, match="expected a brain"):
        find_brain(noise, (1.0, 1.0, 1.0))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999),
    share=st.sampled_from([0.002, 0.05, 0.5, 0.98]),
    spacing=st.tuples(*[st.sampled_from([0.7, 1.0, 2.3, 5.0])] * 3),
)
def test_distances_are_scipys(seed: int, share: float, spacing: tuple[float, float, float]) -> None:
    target = np.random.default_rng(seed).random((13, 11, 9)) < share
    target[4, 5, 6] = True
    expected = distance_transform_edt(~target, spacing)
    np.testing.assert_allclose(distance_mm(target, spacing), expected, rtol=1e-5, atol=1e-5)


def test_nothing_is_far_from_everything() -> None:
    assert np.isinf(distance_mm(np.zeros((3, 3, 3), dtype=np.bool_), (1.0, 1.0, 1.0))).all()
