"""A hastened resampling gives MONAI's voxels and MONAI's metadata, there and back; what it cannot do MONAI does."""

import itertools
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    CropForegroundd,
    Invertd,
    Orientationd,
    ResampleToMatch,
    ResampleToMatchd,
    Spacing,
    Spacingd,
    SpatialResample,
    SpatialResampled,
    Transform,
)
from monai.transforms.spatial import array as monai_spatial
from numpy.typing import NDArray

from medgen.prepare import resample
from medgen.prepare.resample import hasten
from medgen.read.reader import read_volume

Rows = NDArray[np.float64]
SHAPE = (13, 18, 11)
OF_RANGE = 1e-4
ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


def affine_of(
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0),
    order: tuple[int, ...] = (0, 1, 2),
    signs: tuple[int, ...] = (1, 1, 1),
    degrees: float = 0.0,
) -> Rows:
    """Axes of the volume along these axes of the patient, scaled, then turned about two of them."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) * signs)[:, list(order)] * spacing
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    about_z = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    affine[:3, :3] = about_z @ about_x @ affine[:3, :3]
    affine[:3, 3] = (-31.7, 12.2, 55.1)
    return affine


def scan(affine: Rows, shape: tuple[int, ...] = SHAPE, channels: int = 1, dtype: Any = torch.float32) -> MetaTensor:
    values = torch.from_numpy(np.random.default_rng(3).normal(100, 300, (channels, *shape)))
    image = MetaTensor(values.to(dtype), affine=torch.as_tensor(affine))
    image.meta.update({"filename_or_obj": "scan.nii", "pixdim": np.array([1, *np.linalg.norm(affine[:3, :3], axis=0)])})
    return image


def books(image: torch.Tensor) -> list[Any]:
    """All that MONAI knows of an image but the ids of transforms, which are those of one object each."""
    assert isinstance(image, MetaTensor)
    return [
        image.is_batch,
        *(plain(part) for part in (image.pending_operations, dict(image.meta), image.applied_operations)),
    ]


def plain(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [entry for key in sorted(value, key=str) if key != "id" for entry in (str(key), *plain(value[key]))]
    if isinstance(value, list | tuple) and not all(isinstance(part, int) for part in value):
        return [entry for part in value for entry in plain(part)]
    if isinstance(value, torch.Tensor | np.ndarray):
        return [str(np.asarray(value).dtype), np.asarray(value).tolist()]
    return [type(value).__name__, value]


def require_equal(fast: torch.Tensor, slow: torch.Tensor, *, exact: bool = False) -> None:
    assert type(fast) is type(slow)
    assert fast.shape == slow.shape
    assert fast.dtype == slow.dtype
    one, other = np.asarray(fast), np.asarray(slow)
    allowed = 0.0 if exact else OF_RANGE * float(np.ptp(other)) + 1e-9  # an image may lie outside altogether
    assert np.abs(one - other).max() <= allowed
    if isinstance(slow, MetaTensor):
        assert books(fast) == books(slow)


@contextmanager
def left_to_monai() -> Iterator[list[torch.Size]]:
    """Notes the images that MONAI itself resamples, but for the single voxel over which it keeps its books."""
    whole: list[torch.Size] = []
    own = monai_spatial.spatial_resample

    def noted(img: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        whole.extend([img.shape] if img.numel() > 1 else [])
        return own(img, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monai_spatial, "spatial_resample", noted)
        yield whole


def there_and_back(
    make: Callable[[], Transform], image: torch.Tensor, *, fast: bool | None = True, exact: bool = False
) -> None:
    """Compares a hastened transform with MONAI's, forward and inverse, and whether it left the work to MONAI."""
    slow_step, fast_step = make(), hasten(make())
    slow = slow_step(image.clone())
    with left_to_monai() as whole:
        quick = fast_step(image.clone())
        back = fast_step.inverse(quick.clone())
    assert fast is None or len(whole) == (0 if fast else 2)
    require_equal(quick, slow, exact=exact)
    require_equal(back, slow_step.inverse(slow.clone()), exact=exact)


@pytest.mark.parametrize("pixdim", [(1.0, 1.0, 1.0), (0.4, 0.9, 2.5), (1.7, 0.8, 0.8), (3.0, 3.0, 3.0)])
@pytest.mark.parametrize("spacing", [(0.94, 0.94, 1.0), (0.5, 0.5, 3.3), (2.0, 1.0, 0.7)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_spacing(spacing: tuple[float, ...], pixdim: tuple[float, ...], align_corners: bool) -> None:
    there_and_back(lambda: Spacing(pixdim, align_corners=align_corners), scan(affine_of(spacing)))


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
@pytest.mark.parametrize("diagonal", [False, True])
def test_every_orientation(order: tuple[int, ...], signs: tuple[int, ...], diagonal: bool) -> None:
    image = scan(affine_of((0.7, 1.3, 2.1), order, signs))
    there_and_back(lambda: Spacing((1.0, 1.1, 1.2), diagonal=diagonal), image)


@pytest.mark.parametrize("degrees", [0.5, 9.0, 45.0])
def test_a_tilted_volume_keeps_its_axes(degrees: float) -> None:
    there_and_back(lambda: Spacing((1.0, 1.0, 1.0)), scan(affine_of((0.7, 1.3, 2.1), degrees=degrees)))


@pytest.mark.parametrize("degrees", [0.01, 9.0])
def test_oblique_grids_are_left_to_monai(degrees: float) -> None:
    image = scan(affine_of((0.7, 1.3, 2.1), degrees=degrees))
    there_and_back(lambda: Spacing((1.0, 1.0, 1.0), diagonal=True), image, fast=False, exact=True)


def test_an_affine_rounded_as_headers_round_is_no_obstacle() -> None:
    affine = affine_of((0.7, 1.3, 2.1), degrees=9).astype(np.float32).astype(np.float64)
    there_and_back(lambda: Spacing((1.0, 1.0, 1.0)), scan(affine, (90, 80, 70)))


def test_a_sheared_volume_is_left_to_monai() -> None:
    affine = affine_of((0.7, 1.3, 2.1))
    affine[1, 2] += 0.4
    there_and_back(lambda: Spacing((1.0, 1.0, 1.0)), scan(affine), fast=False, exact=True)


@pytest.mark.parametrize("padding_mode", ["border", "zeros", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(20, 40, 9), (5, 60, 30), (2, 3, 70)])
def test_beyond_the_edge(padding_mode: str, mode: str, align_corners: bool, size: tuple[int, ...]) -> None:
    image = scan(affine_of((1.0, 1.3, 2.1)), channels=2)
    target = affine_of((0.83, 0.9, 1.7), (0, 2, 1), (1, -1, 1))
    target[:3, 3] = (-33.1, 20.9, 40.6)
    step = SpatialResample(mode, padding_mode, align_corners)
    quick, slow = (
        step_of(image.clone(), dst_affine=torch.as_tensor(target), spatial_size=size)
        for step_of in (hasten(SpatialResample(mode, padding_mode, align_corners)), step)
    )
    require_equal(quick, slow, exact=mode == "nearest")


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 24)] * 3),
    size=st.tuples(*[st.integers(2, 24)] * 3),
    scale=st.tuples(*[st.sampled_from([0.25, 1 / 3, 0.5, 0.94, 1.0, 1.5, 2.0, 3.0])] * 3),
    shift=st.tuples(*[st.sampled_from([-3.5, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 4.0])] * 3),
    orientation=st.sampled_from(ORIENTATIONS),
    mode=st.sampled_from(["bilinear", "nearest"]),
    padding_mode=st.sampled_from(["border", "zeros", "reflection"]),
    align_corners=st.booleans(),
)
def test_any_parallel_grid(
    shape: tuple[int, ...],
    size: tuple[int, ...],
    scale: tuple[float, ...],
    shift: tuple[float, ...],
    orientation: tuple[tuple[int, ...], tuple[int, ...]],
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> None:
    """Half a voxel's shift puts voxels midway between two: the same label must win as in MONAI."""
    image = scan(np.eye(4), shape)
    target = affine_of(scale, *orientation)
    target[:3, 3] = np.where(np.array(orientation[1]) > 0, 0, np.array(shape) - 1) + shift
    quick, slow = (
        step(image.clone(), dst_affine=torch.as_tensor(target), spatial_size=size)
        for step in (
            hasten(SpatialResample(mode, padding_mode, align_corners)),
            SpatialResample(mode, padding_mode, align_corners),
        )
    )
    require_equal(quick, slow, exact=mode == "nearest")


@pytest.mark.parametrize("degrees", [0.0, 9.0])
@pytest.mark.parametrize("spacing", [(0.94, 1.3, 3.3), (2.0, 0.5, 4.0)])
@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.float32])
def test_label_maps_are_the_same_labels(degrees: float, spacing: tuple[float, ...], dtype: torch.dtype) -> None:
    labels = MetaTensor(
        torch.from_numpy(np.random.default_rng(0).integers(0, 5, (3, *SHAPE))).to(dtype),
        affine=torch.as_tensor(affine_of(spacing, degrees=degrees)),
    )
    make: list[Transform] = [Spacing((1.0, 1.0, 1.0), mode="nearest"), hasten(Spacing((1.0, 1.0, 1.0), mode="nearest"))]
    slow, quick = (step(labels.clone()) for step in make)
    require_equal(quick, slow, exact=True)
    require_equal(make[1].inverse(quick), make[0].inverse(slow), exact=True)


def test_labels_midway_in_a_grid_that_strays_are_left_to_monai() -> None:
    labels, halved = scan(np.eye(4)), np.diag([0.5, 0.5, 0.5, 1.0])
    halved[0, 1] = 1e-9
    step = hasten(SpatialResample("nearest"))
    for shift, times in ((0.0, 1), (0.1, 0)):  # a tenth from the middle, it is clear which is nearest
        halved[:3, 3] = shift
        with left_to_monai() as whole:
            quick = step(labels, torch.as_tensor(halved), (20, 30, 18))
        assert len(whole) == times
        require_equal(quick, SpatialResample("nearest")(labels, torch.as_tensor(halved), (20, 30, 18)), exact=True)


def test_a_single_slice_between_corners_is_left_to_monai() -> None:
    found = []
    for step in (hasten(Spacing((1.0, 1.0, 9.0), align_corners=True)), Spacing((1.0, 1.0, 9.0), align_corners=True)):
        with pytest.warns(UserWarning, match="unit-size grids"):
            found.append(step(scan(affine_of((0.9, 0.9, 2.0)), (9, 9, 2))))
    require_equal(*found, exact=True)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("precision", [np.float64, np.float32])
def test_any_type_of_number(dtype: torch.dtype, precision: type) -> None:
    image = scan(affine_of((0.94, 0.94, 1.2)), channels=3, dtype=dtype)
    there_and_back(lambda: Spacing((1.0, 1.0, 1.0), dtype=precision), image)


@pytest.mark.parametrize("mode", ["bicubic", 0, 1, 3])
def test_other_interpolations_are_left_to_monai(mode: str | int) -> None:
    image = scan(affine_of((0.94, 0.94, 1.2)))
    if mode == "bicubic":  # which torch has in two dimensions only
        with pytest.raises(RuntimeError, match="bicubic"):
            hasten(Spacing((1.0, 1.0, 1.0), mode=mode))(image)
        return
    there_and_back(lambda: Spacing((1.0, 1.0, 1.0), mode=mode), image, fast=False, exact=True)


def test_a_plane_is_left_to_monai() -> None:
    image = MetaTensor(torch.rand(1, 30, 40), affine=torch.diag(torch.tensor([0.5, 0.7, 1.0])))
    there_and_back(lambda: Spacing((1.0, 1.0)), image, fast=False, exact=True)


def test_lazy_resampling_is_left_to_monai() -> None:
    image = scan(affine_of((0.94, 0.94, 1.2)))
    slow, quick = (step(image) for step in (Spacing((1.0,) * 3, lazy=True), hasten(Spacing((1.0,) * 3, lazy=True))))
    assert quick.pending_operations
    assert quick.peek_pending_shape() == slow.peek_pending_shape()


def test_gradients_pass_through_monai() -> None:
    image = scan(affine_of((0.94, 0.94, 1.2))).requires_grad_()
    hasten(Spacing((1.0, 1.0, 1.0)))(image).sum().backward()
    assert image.grad is not None


@pytest.mark.parametrize("settings_of", [{"scale_extent": True, "align_corners": True}, {"recompute_affine": True}])
def test_settings_of_spacing(settings_of: dict[str, bool]) -> None:
    image = scan(affine_of((0.94, 0.94, 1.2)))
    slow, quick = (
        step(image) for step in (Spacing((1.0,) * 3, **settings_of), hasten(Spacing((1.0,) * 3, **settings_of)))
    )
    require_equal(quick, slow)


def test_a_spacing_that_is_kept_within_limits() -> None:
    there_and_back(
        lambda: Spacing((1.0, 1.0, 1.0), min_pixdim=(0.9, 0.9, 0.9), max_pixdim=(1.1, 1.1, 1.1)),
        scan(affine_of((0.94, 1.05, 2.0))),
    )


def test_an_image_without_metadata() -> None:
    image = torch.rand(2, *SHAPE)
    how = {"dst_affine": torch.diag(torch.tensor([0.9, 1.2, 1.5, 1.0])), "spatial_size": (14, 15, 7)}
    require_equal(hasten(SpatialResample())(image, **how), SpatialResample()(image, **how))


def test_the_right_spacing_already_is_not_resampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "_with_voxels", None)
    image = scan(affine_of((1.0, 1.0, 1.0)))
    quick, slow = hasten(Spacing((1.0, 1.0, 1.0)))(image), Spacing((1.0, 1.0, 1.0))(image)
    require_equal(quick, slow, exact=True)
    assert quick.data_ptr() == image.data_ptr()


def test_what_does_not_vary_stays_exactly_as_it_is() -> None:
    image = scan(affine_of((0.94, 0.94, 1.0)))
    image[...] = -1024.1
    assert bool((hasten(Spacing((1.0, 1.0, 1.0)))(image) == image[0, 0, 0, 0]).all())


def steps() -> Compose:
    return Compose(
        [
            Orientationd(["image", "label"], axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            Spacingd(["image", "label"], pixdim=(1.0, 1.0, 1.0), mode=("bilinear", "nearest")),
            CropForegroundd(["image", "label"], source_key="image", select_fn=lambda x: x > 0, allow_smaller=True),
        ]
    )


@pytest.mark.parametrize("nearest", [False, True])
def test_invertd_that_holds_the_original_compose(nearest: bool) -> None:
    affine = affine_of((0.94, 1.2, 2.0), (2, 0, 1), (-1, 1, -1), degrees=4)
    item = {"image": scan(affine), "label": scan(affine, dtype=torch.int16)}
    found = []
    for change in (lambda x: x, hasten):
        preprocessing = steps()
        undo = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=nearest)  # before it is hastened
        assert change(preprocessing) is preprocessing
        seen = preprocessing({key: value.clone() for key, value in item.items()})
        seen["pred"] = seen["image"] * 2
        found.append(undo(seen))
    for key in ("image", "label", "pred"):
        require_equal(found[1][key], found[0][key], exact=key == "label")
    assert found[1]["pred"].shape == item["image"].shape
    np.testing.assert_array_equal(found[1]["pred"].affine, found[0]["pred"].affine)


def test_resampling_to_match() -> None:
    image, target = scan(affine_of((1.0, 1.3, 2.1))), scan(affine_of((0.8, 0.8, 0.8)), (20, 21, 22))
    step = hasten(ResampleToMatchd("image", key_dst="target", padding_mode="zeros"))
    slow = ResampleToMatchd("image", key_dst="target", padding_mode="zeros")({"image": image, "target": target})[
        "image"
    ]
    with left_to_monai() as whole:
        quick = step({"image": image, "target": target})["image"]
    assert not whole
    require_equal(quick, slow)


def test_resampling_to_an_affine() -> None:
    item = {"image": scan(affine_of((1.0, 1.3, 2.1))), "dst_affine": torch.as_tensor(affine_of((0.8, 0.8, 0.8)))}
    step = hasten(SpatialResampled("image"))
    quick, slow = step(dict(item)), SpatialResampled("image")(dict(item))
    require_equal(quick["image"], slow["image"])
    assert step.inverse(quick)["image"].shape == item["image"].shape


def test_only_what_resamples_is_changed_however_deep_it_lies() -> None:
    inner = Spacingd("image", pixdim=(1.0, 1.0, 1.0))
    matched = ResampleToMatch()
    orientation = Orientationd("image", axcodes="RAS", labels=None)
    whole = hasten(Compose([Compose([orientation, inner]), matched]))
    assert hasten(whole) is whole
    assert type(orientation) is Orientationd
    assert type(inner) is Spacingd
    assert type(inner.spacing_transform.sp_resample) is resample.SpatialResample
    assert type(matched) is resample.ResampleToMatch
    assert type(pickle.loads(pickle.dumps(inner)).spacing_transform.sp_resample) is resample.SpatialResample


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name",
    [
        "t1_t2/ms-raw01-study1/t1.nii.gz",
        "t1_t2/glioma-fg6692-native/t1.nii.gz",
        "brain_t1",
        "ct/fnndsc-abdomen-80slices.nii.gz",
        "dicom/siemens-t1-supine",
    ],
)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_real_scans(real_data: Path, name: str, mode: str) -> None:
    path = real_data / name
    path = next(path.glob("*.nii.gz"), path) if path.is_dir() else path
    volume = read_volume([path])
    image = MetaTensor(torch.from_numpy(volume.image)[None], affine=torch.as_tensor(volume.grid.affine))
    nearest = mode == "nearest"  # labels of a tilted scan may lie too near the middle of two
    there_and_back(lambda: Spacing((1.4,) * 3, mode=mode), image, fast=None if nearest else True, exact=nearest)
