"""Every step of a plan computes what MONAI's class does: values to float32's rounding, places and labels exactly."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from monai import transforms as mt
from monai.data import MetaTensor
from monai.data.utils import AFFINE_TOL, compute_importance_map
from torch import Tensor

from medgen.errors import NotExactError
from medgen.infer.window_mean import Windows, importance, weighted_mean
from medgen.infer.windows import WindowInferer
from medgen.prepare.planes import AFFINE_TOLERANCE
from medgen.prepare.resample import hasten
from medgen.run import quick_compile
from medgen.run.quick_steps import Placed, take_steps

pytestmark = pytest.mark.filterwarnings("ignore:.*labels.*:FutureWarning")

OF_RANGE = 1e-6
SHAPES = st.tuples(*[st.integers(3, 24)] * 3)
SPACINGS = st.tuples(*[st.sampled_from([0.5, 0.7, 0.9375, 1.0, 1.3, 2.0, 3.3])] * 3)
PIXDIMS = st.lists(st.sampled_from([-1.0, 0.8, 1.0, 1.5, 2.5]), min_size=1, max_size=3)
CODES = st.sampled_from(["RAS", "LPS", "SPL", "PIR", "ASL"])
SEEDS = st.integers(0, 2**16)


def image_of(shape: tuple[int, ...], seed: int, channels: int = 1) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(120, 300, (channels, *shape)).astype(np.float32)
    drawn[:, 0] = 0  # some of it is background
    return drawn


def affine_of(spacing: tuple[float, ...], seed: int, degrees: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    turn = np.radians(degrees)
    about = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about @ (np.eye(3)[:, rng.permutation(3)] * rng.choice([-1, 1], 3) * spacing)
    affine[:3, 3] = rng.uniform(-80, 80, 3)
    return affine


def tensor_of(voxels: np.ndarray, affine: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(voxels.copy()), torch.from_numpy(affine), meta={"space": "RAS"})


def steps_of(step: Any, rules: Mapping[type, Any]) -> list[dict[str, Any]]:
    return quick_compile._rule(step, (step.keys[0],), rules)


VALUES = [
    lambda: mt.ScaleIntensityd("image"),
    lambda: mt.ScaleIntensityd("image", minv=-1.0, maxv=1.5),
    lambda: mt.ScaleIntensityRanged("image", -175, 250, 0.0, 1.0, clip=True),
    lambda: mt.ScaleIntensityRanged("image", -57.3, 164.1, -1, 1),
    lambda: mt.ScaleIntensityRanged("image", 3, 9),
    lambda: mt.ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0.0, 1.0),
    lambda: mt.ScaleIntensityRangePercentilesd("image", 2, 98, -1.0, 1.0, clip=True, channel_wise=True),
    lambda: mt.ScaleIntensityRangePercentilesd("image", 1, 99, None, None),
    lambda: mt.NormalizeIntensityd("image"),
    lambda: mt.NormalizeIntensityd("image", nonzero=True),
    lambda: mt.NormalizeIntensityd("image", nonzero=True, channel_wise=True),
    lambda: mt.ShiftIntensityd("image", -12.7),
    lambda: mt.EnsureTyped("image", dtype=torch.float32),
]


@pytest.mark.parametrize("make", VALUES)
@settings(max_examples=15, deadline=None)
@given(shape=SHAPES, seed=SEEDS)
def test_values_before(make: Any, shape: tuple[int, ...], seed: int) -> None:
    voxels = image_of(shape, seed)
    expected = np.asarray(make()({"image": tensor_of(voxels, np.eye(4))})["image"])
    before = voxels.copy()
    steps = steps_of(make(), {**quick_compile._ANYWHERE, **quick_compile._BEFORE})
    got = take_steps(Placed(voxels, np.eye(4)), steps).voxels
    assert got.dtype == np.float32
    assert np.abs(got - expected).max() <= OF_RANGE * np.ptp(expected)
    np.testing.assert_array_equal(voxels, before)  # it is shown in the preview


def test_percentiles_of_a_large_image() -> None:
    voxels = image_of((110, 100, 100), 3)
    step = mt.ScaleIntensityRangePercentilesd("image", 0.5, 99.5, 0.0, 1.0)
    expected = np.asarray(step({"image": tensor_of(voxels, np.eye(4))})["image"])
    got = take_steps(Placed(voxels, np.eye(4)), steps_of(step, quick_compile._BEFORE)).voxels
    np.testing.assert_array_equal(got, expected)


AFTER = [
    (lambda: mt.Activationsd("pred", sigmoid=True), OF_RANGE),
    (lambda: mt.Activationsd("pred", softmax=True), OF_RANGE),
    (lambda: mt.AsDiscreted("pred", argmax=True), 0),
    (lambda: mt.AsDiscreted("pred", threshold=0.5), 0),
    (lambda: mt.AsDiscreted("pred", argmax=True, threshold=1), 0),
    (lambda: mt.AsDiscreted("pred", rounding="torchrounding"), 0),
    (lambda: mt.ScaleIntensityRanged("pred", 0, 1, -1024, 3000), OF_RANGE),
]


@pytest.mark.parametrize(("make", "allowed"), AFTER)
@settings(max_examples=15, deadline=None)
@given(shape=SHAPES, seed=SEEDS, channels=st.integers(1, 4))
def test_values_after(make: Any, allowed: float, shape: tuple[int, ...], seed: int, channels: int) -> None:
    voxels = np.round(image_of(shape, seed, channels) / 100, 1)
    expected = np.asarray(make()({"pred": tensor_of(voxels, np.eye(4))})["pred"])
    steps = steps_of(make(), {**quick_compile._ANYWHERE, **quick_compile._AFTER})
    got = take_steps(Placed(voxels, np.eye(4)), steps).voxels
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= allowed * np.ptp(expected)


@settings(max_examples=150, deadline=None)
@given(
    shape=SHAPES,
    spacing=SPACINGS,
    pixdim=PIXDIMS,
    codes=CODES,
    seed=SEEDS,
    degrees=st.sampled_from([0.0, 0.0, 7.0]),
    diagonal=st.booleans(),
    turned_first=st.booleans(),
    nearest=st.booleans(),
    mode=st.sampled_from(["bilinear", "bilinear", "nearest"]),
    padding=st.sampled_from(["border", "zeros", "reflection"]),
)
def test_there_and_back(  # noqa: PLR0917
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    pixdim: list[float],
    codes: str,
    seed: int,
    degrees: float,
    diagonal: bool,
    turned_first: bool,
    nearest: bool,
    mode: str,
    padding: str,
) -> None:
    def make() -> mt.Compose:
        turn = mt.Orientationd("image", axcodes=codes)
        space = mt.Spacingd("image", pixdim=pixdim, mode=mode, padding_mode=padding, diagonal=diagonal)
        return hasten(mt.Compose([turn, space] if turned_first else [space, turn]))

    affine, voxels = affine_of(spacing, seed, degrees), image_of(shape, seed)
    compose = make()
    steps = [step for part in compose.transforms for step in steps_of(part, quick_compile._BEFORE)]
    try:
        seen = take_steps(Placed(voxels, affine), steps)
        pred = image_of(seen.voxels.shape[1:], seed + 1, channels=2)
        back = take_steps(Placed(pred, seen.affine, seen.moves), [{"do": "invert", "nearest": nearest}])
    except NotExactError:
        assume(False)  # such a case goes the usual way
    item = compose({"image": tensor_of(voxels, affine)})
    exact = mode == "nearest"
    _require_same(seen, item["image"], exact=exact)
    item["pred"] = MetaTensor(torch.from_numpy(pred.copy()), meta=item["image"].meta)
    invert = mt.Invertd("pred", compose, orig_keys="image", nearest_interp=nearest)
    _require_same(back, invert(item)["pred"], exact=exact or nearest)


@settings(max_examples=60, deadline=None)
@given(
    shape=SHAPES,
    margin=st.sampled_from([0, 1, (0, 2, 1)]),
    allow_smaller=st.booleans(),
    share=st.sampled_from([0.01, 0.3]),
    seed=SEEDS,
)
def test_crops_there_and_back(
    shape: tuple[int, ...], margin: Any, allow_smaller: bool, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    voxels = (rng.random((1, *shape)) < share).astype(np.float32)
    affine = affine_of((1.0, 1.5, 2.0), seed)
    crop = mt.CropForegroundd("image", "image", margin=margin, allow_smaller=allow_smaller)
    compose = mt.Compose([crop, mt.Orientationd("image", "RAS")])
    steps = [step for part in compose.transforms for step in steps_of(part, quick_compile._BEFORE)]
    try:
        seen = take_steps(Placed(voxels, affine), steps)
    except NotExactError:
        assume(False)
    item = compose({"image": tensor_of(voxels, affine)})
    _require_same(seen, item["image"], exact=True)
    pred = rng.normal(size=seen.voxels.shape).astype(np.float32)
    back = take_steps(Placed(pred, seen.affine, seen.moves), [{"do": "invert", "nearest": False}])
    item["pred"] = MetaTensor(torch.from_numpy(pred.copy()), meta=item["image"].meta)
    _require_same(back, mt.Invertd("pred", compose, orig_keys="image", nearest_interp=False)(item)["pred"], exact=True)


def _require_same(got: Placed, expected: MetaTensor, *, exact: bool) -> None:
    assert got.voxels.shape == tuple(expected.shape)
    np.testing.assert_allclose(got.affine, expected.affine.numpy(), atol=1e-9)
    far = np.abs(got.voxels - np.asarray(expected)).max()
    assert far <= (0 if exact else OF_RANGE * np.ptp(np.asarray(expected)) + 1e-9)


def test_what_is_not_done_exactly_is_not_done() -> None:
    oblique = affine_of((1.0, 1.0, 1.0), 1, degrees=20.0)
    space = {"do": "space", "pixdim": [0.7] * 3, "diagonal": True, "how": ["bilinear", "border", False]}
    image = Placed(image_of((9, 9, 9), 1), oblique)
    with pytest.raises(NotExactError, match="parallel"):
        take_steps(image, [space])
    # Every second voxel lies midway between two of the coarser grid.
    halves = {**space, "pixdim": [2.0] * 3, "diagonal": False}
    seen = take_steps(Placed(image.voxels, np.eye(4)), [halves])
    with pytest.raises(NotExactError, match="midway"):
        take_steps(seen, [{"do": "invert", "nearest": True}])


class _Network:
    """A convolution, as a stream of tensors and of arrays."""

    batch = 1

    def __init__(self, value: float = 0.3) -> None:
        self.layer = torch.nn.Conv3d(1, 2, 3, padding=1)
        torch.nn.init.constant_(self.layer.weight, value)

    def stream(self, groups: Any) -> Any:
        for group, windows in groups:
            with torch.no_grad():
                output = torch.tanh(self.layer(torch.as_tensor(np.ascontiguousarray(windows)) / 500))
            yield group, output if isinstance(windows, Tensor) else (output.numpy(),)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(5, 40)] * 3),
    roi=st.tuples(*[st.sampled_from([0, 8, 16, 24])] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.7]),
    mode=st.sampled_from(["gaussian", "constant"]),
    padding=st.sampled_from([0.0, -1.5, "replicate", "reflect", "circular"]),
    adapt=st.booleans(),
    seed=SEEDS,
)
def test_windows_are_put_together_as_in_torch(
    shape: tuple[int, ...],
    roi: tuple[int, ...],
    overlap: float,
    mode: Any,
    padding: float | str,
    adapt: bool,
    seed: int,
) -> None:
    inferer = WindowInferer(roi, overlap, mode, padding=padding, adapt=adapt, precision="fp32", roi_multiple=4)
    volume, network = image_of(shape, seed)[None], _Network()
    try:
        got = weighted_mean(volume, network, quick_compile._windows(inferer))
    except NotExactError:
        assume(False)
    expected = inferer(torch.from_numpy(volume), network).numpy()
    assert np.abs(got - expected).max() <= OF_RANGE * np.ptp(expected)


def test_weights_are_monais_and_a_nan_is_refused() -> None:
    how = quick_compile._windows(WindowInferer((96, 33, 20), mode="gaussian"))
    expected = compute_importance_map((96, 33, 20), "gaussian", 0.125).numpy()
    np.testing.assert_array_equal(importance((96, 33, 20), how), expected)
    unknown = Windows(how.roi_size, how.overlap, how.roi_multiple, how.sigma_scale, how.mode, 0.0, adapt=False)
    np.testing.assert_allclose(importance((96, 33, 20), unknown), expected, rtol=1e-6)
    assert AFFINE_TOLERANCE == AFFINE_TOL


def test_a_window_with_a_nan_ends_the_case_as_in_torch() -> None:
    inferer = WindowInferer((8, 8, 8))
    volume, network = np.zeros((1, 1, 12, 8, 8), np.float32), _Network(float("nan"))
    with pytest.raises(Exception, match="NaN or infinity") as ours:
        weighted_mean(volume, network, quick_compile._windows(inferer))
    with pytest.raises(type(ours.value)) as theirs:
        inferer(torch.from_numpy(volume), network)
    assert str(ours.value) == str(theirs.value)
