"""One case through a bundle: what comes out is what MONAI's own run makes, on the grid of what went in."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from zoo_like import (
    METADATA,
    case_of,
    double_weights,
    image_of,
    oblique_affine,
    smooth_volume,
    write_bundle,
    zoo_config,
)

from medgen.case import Result
from medgen.errors import BundleError, GeometryError, IntensityError, OutputError
from medgen.geometry import Grid
from medgen.run import predict
from medgen.run.bundle import NEAREST_LABELS_FLAG, OpenBundle, open_bundle

pytestmark = [
    # MONAI 1.6 announces that Orientationd's default `labels` will change; bundles of the model zoo do not name them.
    pytest.mark.filterwarnings("ignore:.*labels.*:FutureWarning"),
    # MONAI's evaluator turns on CUDA autocast when a config says `amp: true`, on a CPU as well.
    pytest.mark.filterwarnings("ignore:CUDA is not available or torch_xla:UserWarning"),
    # MONAI's LoadImaged tells that an optional DICOM codec is absent.
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning"),
]


def _run(bundle: OpenBundle, volume: np.ndarray, affine: np.ndarray) -> Result:
    prepared = predict.prepare(bundle, case_of(Path("x.nii.gz")), image_of(volume, affine), input_sha256="ab")
    return predict.finish(bundle, predict.compute(bundle, prepared))


def _plain_config() -> dict[str, Any]:
    """Reorients but neither resamples nor rescales, so that doubling comes back exact."""
    config = zoo_config()
    del config["preprocessing"]["transforms"][3:5]
    return config


def _open(folder: Path, config: dict[str, Any] | None = None, **kwargs: object) -> OpenBundle:
    return open_bundle(write_bundle(folder, config, **kwargs), trust=True, device="cpu")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., OpenBundle]:
    return lambda config=None, **kwargs: _open(tmp_path / "zoo", config, **kwargs)


@pytest.fixture(scope="module")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> OpenBundle:
    return _open(tmp_path_factory.mktemp("bundles") / "zoo", _plain_config())


@pytest.fixture(scope="module")
def resampling(tmp_path_factory: pytest.TempPathFactory) -> OpenBundle:
    return _open(tmp_path_factory.mktemp("bundles") / "zoo")


def test_doubling_comes_back_doubled_voxel_by_voxel(doubling: OpenBundle) -> None:
    volume, affine = smooth_volume(), oblique_affine()
    result = _run(doubling, volume, affine)
    np.testing.assert_allclose(result.image, 2 * volume, rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(result.source, volume)
    np.testing.assert_allclose(result.grid.affine, affine)
    assert result.image.dtype == np.float32
    assert result.flags == ()
    assert result.provenance.input_sha256 == "ab"
    assert set(result.seconds) == {"prepare", "compute", "finish"}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(*[st.integers(9, 25)] * 3),
    spacing=st.tuples(st.floats(0.6, 2.0), st.floats(0.6, 2.0), st.floats(0.6, 4.0)),
    signs=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
    order=st.permutations([0, 1, 2]),
    turn=st.floats(-0.6, 0.6),
)
def test_result_lies_on_the_grid_of_the_input(
    resampling: OpenBundle,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    signs: tuple[float, float, float],
    order: list[int],
    turn: float,
) -> None:
    rotation = np.array([[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]])
    affine = np.eye(4)
    affine[:3, :3] = (rotation @ np.diag(signs))[:, order] @ np.diag(spacing)
    affine[:3, 3] = (-11.0, 7.0, 23.0)
    result = _run(resampling, smooth_volume(shape), affine)
    assert result.image.shape == shape
    assert result.grid.differs_from(Grid(shape, affine)) == ""
    assert np.isfinite(result.image).all()


@pytest.mark.parametrize("loading", [{}, {"ensure_channel_first": True}, {"image_only": False}, {"simple_keys": True}])
def test_result_equals_monais_own_run_of_the_same_config(tmp_path: Path, loading: dict[str, bool]) -> None:
    volume, affine = smooth_volume(), oblique_affine()
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "case.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume, affine), path)
    config = zoo_config()
    config["preprocessing"]["transforms"][0] |= loading
    if "ensure_channel_first" in loading:
        del config["preprocessing"]["transforms"][1]
    folder = write_bundle(tmp_path / "zoo", config)
    workflow = ConfigWorkflow(
        config_file=str(folder / "configs" / "inference.json"),
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(folder),
        dataset_dir=str(path.parent),
        output_dir=str(tmp_path / "monai"),
    )
    workflow.initialize()
    workflow.run()
    theirs = nibabel.load(tmp_path / "monai" / "case_trans.nii.gz")
    ours = _run(open_bundle(folder, trust=True, device="cpu"), volume, affine)
    np.testing.assert_allclose(ours.image, theirs.get_fdata(dtype=np.float32), atol=1e-5)
    assert ours.grid.differs_from(Grid(theirs.shape, theirs.affine)) == ""


def test_segmentation_of_two_channels_becomes_a_label_map(make: Callable[..., OpenBundle]) -> None:
    config = _plain_config() | {"network_def": {**zoo_config()["network_def"], "out_channels": 2}}
    steps = config["postprocessing"]["transforms"]
    steps.insert(0, {"_target_": "Activationsd", "keys": "pred", "softmax": True})
    steps.insert(2, {"_target_": "AsDiscreted", "keys": "pred", "argmax": True})
    weights = {"weight": torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1, 1), "bias": torch.tensor([0.0, -500.0])}
    metadata = deepcopy(METADATA)
    metadata["network_data_format"]["outputs"]["pred"] |= {"format": "segmentation", "num_channels": 2}
    volume = smooth_volume()
    result = _run(make(config, weights=weights, metadata=metadata), volume, oblique_affine())
    clear = np.abs(volume - 500) > 0.1
    np.testing.assert_array_equal(result.image[clear], (volume > 500)[clear])
    assert result.kind.unit == "label"


def _labels_0_and_2() -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, Any]]:
    """Config, weights and metadata of a bundle that resamples, and says 2 where the image is bright, else 0."""
    config = zoo_config() | {"network_def": {**zoo_config()["network_def"], "out_channels": 3}}
    config["postprocessing"]["transforms"].insert(0, {"_target_": "AsDiscreted", "keys": "pred", "argmax": True})
    weights = {"weight": torch.tensor([0.0, 0.0, 1.0]).reshape(3, 1, 1, 1, 1), "bias": torch.tensor([0.0, -9.0, -0.5])}
    metadata = deepcopy(METADATA)
    metadata["network_data_format"]["outputs"]["pred"] |= {"format": "labels", "num_channels": 3}
    return config, weights, metadata


def test_labels_that_the_bundle_would_blend_stay_the_labels_of_the_network(make: Callable[..., OpenBundle]) -> None:
    config, weights, metadata = _labels_0_and_2()
    bundle = make(config, weights=weights, metadata=metadata)
    result = _run(bundle, smooth_volume(), oblique_affine())
    assert np.unique(result.image).tolist() == [0, 2]
    assert NEAREST_LABELS_FLAG in result.flags
    assert result.grid.differs_from(Grid(result.image.shape, oblique_affine())) == ""


def test_bundle_that_keeps_labels_whole_by_itself_is_left_alone(make: Callable[..., OpenBundle]) -> None:
    config, weights, metadata = _labels_0_and_2()
    config["postprocessing"]["transforms"][1]["nearest_interp"] = True
    result = _run(make(config, weights=weights, metadata=metadata), smooth_volume(), oblique_affine())
    assert np.unique(result.image).tolist() == [0, 2]
    assert result.flags == ()


def test_segmentation_that_is_no_label_map_ends_the_case(make: Callable[..., OpenBundle]) -> None:
    metadata = deepcopy(METADATA)
    metadata["network_data_format"]["outputs"]["pred"]["format"] = "segmentation"
    with pytest.raises(IntensityError, match="whole numbers in the label map of zoo"):
        _run(make(metadata=metadata), smooth_volume(), oblique_affine())


def test_network_that_takes_more_channels_than_the_file_has_gets_what_preprocessing_adds(
    make: Callable[..., OpenBundle],
) -> None:
    config = _plain_config() | {"network_def": {**zoo_config()["network_def"], "in_channels": 2}}
    config["preprocessing"]["transforms"].append({"_target_": "RepeatChanneld", "keys": "image", "repeats": 2})
    metadata = deepcopy(METADATA)
    metadata["network_data_format"]["inputs"]["image"]["num_channels"] = 2
    weights = {"weight": torch.ones(1, 2, 1, 1, 1), "bias": torch.zeros(1)}
    volume = smooth_volume()
    result = _run(make(config, weights=weights, metadata=metadata), volume, oblique_affine())
    np.testing.assert_allclose(result.image, 2 * volume, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("channel_first", [True, False])
def test_one_image_for_a_network_of_four_ends_the_case(make: Callable[..., OpenBundle], channel_first: bool) -> None:
    config = _plain_config()
    if not channel_first:
        del config["preprocessing"]["transforms"][1:3]
    metadata = deepcopy(METADATA)
    metadata["network_data_format"]["inputs"]["image"]["num_channels"] = 4
    shape = r"\(1, 34, 29, 17\)|\(1, 29, 34, 17\)" if channel_first else r"\(29, 34, 17\)"
    with pytest.raises(BundleError, match=f"expected 4 channels and 3 dimensions.*{shape}"):
        _run(make(config, metadata=metadata), smooth_volume(), oblique_affine())


def test_volume_goes_slice_by_slice_through_a_flat_network(make: Callable[..., OpenBundle]) -> None:
    config = _plain_config()
    config["network_def"]["_target_"] = "torch.nn.Conv2d"
    config["inferer"] = {"_target_": "SliceInferer", "roi_size": [32, 32], "spatial_dim": 2}
    metadata = deepcopy(METADATA)
    for side, name in (("inputs", "image"), ("outputs", "pred")):
        metadata["network_data_format"][side][name]["spatial_shape"] = [32, 32]
    weights = {"weight": torch.full((1, 1, 1, 1), 2.0), "bias": torch.zeros(1)}
    volume = smooth_volume()
    result = _run(make(config, weights=weights, metadata=metadata), volume, oblique_affine())
    np.testing.assert_allclose(result.image, 2 * volume, rtol=1e-5, atol=1e-3)


def test_several_channels_are_refused_with_the_number(make: Callable[..., OpenBundle]) -> None:
    config = _plain_config() | {"network_def": {**zoo_config()["network_def"], "out_channels": 2}}
    with pytest.raises(OutputError, match="got 2"):
        _run(make(config, weights=double_weights(2)), smooth_volume(), oblique_affine())


def test_foreign_bundle_that_never_goes_back_is_told_so(make: Callable[..., OpenBundle]) -> None:
    config = zoo_config()
    del config["postprocessing"]["transforms"][0]
    result = _run(make(config), smooth_volume(), oblique_affine())
    assert predict.OWN_GRID_FLAG in result.flags
    assert result.grid.spacing_mm == pytest.approx((1.5, 1.5, 1.5))
    assert result.image.shape == result.source.shape == result.grid.shape
    np.testing.assert_allclose(result.image, 2 * result.source, atol=1e-4)


def test_own_bundle_that_never_goes_back_fails_the_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDGEN_BUNDLES", str(tmp_path))
    config = zoo_config()
    del config["postprocessing"]["transforms"][0]
    write_bundle(tmp_path / "own", config, own=True)
    with pytest.raises(GeometryError, match="Invertd"):
        _run(open_bundle("own", device="cpu"), smooth_volume(), oblique_affine())


def test_nan_from_a_network_ends_the_case(make: Callable[..., OpenBundle]) -> None:
    weights = {**double_weights(), "bias": torch.tensor([float("nan")])}
    with pytest.raises(IntensityError, match="NaN"):
        _run(make(_plain_config(), weights=weights), smooth_volume(), oblique_affine())


def test_network_with_two_outputs_is_refused(make: Callable[..., OpenBundle]) -> None:
    bundle = make(_plain_config())
    object.__setattr__(bundle, "inferer", lambda inputs, network: (network(inputs), inputs))
    with pytest.raises(BundleError, match="tuple"):
        _run(bundle, smooth_volume(), oblique_affine())


def test_plain_tensor_from_an_inferer_still_comes_back_to_its_grid(resampling: OpenBundle, tmp_path: Path) -> None:
    bundle = _open(tmp_path / "zoo")
    object.__setattr__(bundle, "inferer", lambda inputs, network: resampling.inferer(inputs, network).as_tensor())
    volume, affine = smooth_volume(), oblique_affine()
    np.testing.assert_array_equal(_run(bundle, volume, affine).image, _run(resampling, volume, affine).image)


def test_what_the_input_check_and_the_reader_noticed_is_kept(doubling: OpenBundle, tmp_path: Path) -> None:
    bundle = _open(tmp_path / "zoo", _plain_config())
    seen = []

    def check(image: MetaTensor) -> SimpleNamespace:
        seen.append(tuple(image.shape))
        return SimpleNamespace(flags=("input-contrast",))

    object.__setattr__(bundle, "input_check", check)
    image = image_of(smooth_volume(), oblique_affine())
    image.meta["medgen_flags"] = "regridded"
    prepared = predict.prepare(bundle, case_of(Path("x.nii.gz")), image)
    assert seen == [(1, 29, 34, 17)]
    assert prepared.flags == ("regridded", "input-contrast")


def test_error_raised_on_purpose_comes_out_of_monais_wrapping(tmp_path: Path) -> None:
    bundle = _open(tmp_path / "zoo", _plain_config())

    def refuse(data: object) -> object:
        raise IntensityError("no brain")

    bundle.preprocessing.transforms = (*bundle.preprocessing.transforms, refuse)
    with pytest.raises(IntensityError, match="no brain"):
        _run(bundle, smooth_volume(), oblique_affine())


def test_cases_prepared_and_finished_at_the_same_time_keep_their_grids(resampling: OpenBundle) -> None:
    volumes = [smooth_volume((17 + n, 21, 13), seed=n) for n in range(8)]
    alone = [_run(resampling, volume, oblique_affine()).image for volume in volumes]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda volume: _run(resampling, volume, oblique_affine()).image, volumes))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
