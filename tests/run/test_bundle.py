"""A bundle opens only when it is whole, trusted and holds the weights it names; each refusal says what to do."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from zoo_like import METADATA, double_weights, write_bundle, zoo_config

from medgen.errors import BundleError, DeviceError, UntrustedError
from medgen.provenance import file_sha256
from medgen.run.bundle import open_bundle
from medgen.run.device import pick_device

# MONAI 1.6 announces that Orientationd's default `labels` will change; bundles of the model zoo do not name them.
pytestmark = pytest.mark.filterwarnings("ignore:.*labels.*:FutureWarning")

NET = """
import torch
from {package}.factor import FACTOR


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, image):
        return image * FACTOR
"""


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("MEDGEN_BUNDLES", str(folder))
    return folder


def _scripted(folder: Path, factor: int) -> Path:
    """A bundle whose network lies in its own `scripts`, and multiplies by `factor`."""
    config = zoo_config() | {"network_def": {"_target_": "scripts.net.Net"}}
    write_bundle(folder, config, weights={"weight": torch.zeros(1)})
    (folder / "scripts").mkdir()
    (folder / "scripts" / "__init__.py").touch()
    (folder / "scripts" / "factor.py").write_text(f"FACTOR = {factor}")
    (folder / "scripts" / "net.py").write_text(NET.format(package="scripts"))
    return folder


def test_foreign_bundle_is_refused_with_its_code_unless_trusted(tmp_path: Path) -> None:
    sign = tmp_path / "ran"
    config = zoo_config() | {"inferer": f"$__import__('os').mkdir({str(sign)!r})"}
    folder = write_bundle(tmp_path / "zoo", config)
    with pytest.raises(UntrustedError, match="--trust") as refused:
        open_bundle(folder, device="cpu")
    assert not sign.exists()
    assert ("import", "import glob", "configs/inference.json: imports::0") in refused.value.items
    with pytest.raises(BundleError, match="inferer as a callable"):
        open_bundle(folder, trust=True, device="cpu")
    assert sign.exists()


@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_weights_are_loaded_plain_or_nested(tmp_path: Path, key: str | None) -> None:
    weights = double_weights() if key is None else {key: double_weights(), "epoch": 3}
    bundle = open_bundle(write_bundle(tmp_path / "zoo", weights=weights), trust=True, device="cpu")
    assert not bundle.network.training
    with torch.no_grad():
        assert bundle.network(torch.full((1, 1, 2, 2, 2), 3.0)).unique().tolist() == [6.0]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch 2.13 announces the end of TorchScript
def test_torchscript_is_taken_where_there_is_no_checkpoint(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "zoo")
    (folder / "models" / "model.pt").unlink()
    network = torch.nn.Conv3d(1, 1, 1)
    network.load_state_dict(double_weights())
    torch.jit.script(network).save(folder / "models" / "model.ts")
    bundle = open_bundle(folder, trust=True, device="cpu")
    with torch.no_grad():
        assert bundle.network(torch.ones(1, 1, 2, 2, 2)).unique().tolist() == [2.0]


@pytest.mark.parametrize("loader", ["handlers", "checkpointloader"])
def test_weights_are_those_that_the_configs_own_loader_names(tmp_path: Path, loader: str) -> None:
    config = zoo_config() | {"file": "$'model_lowres.pt'"}
    handler = config["handlers"].pop(0) | {"load_path": "$@bundle_root + '/models/' + @file"}
    config |= {"handlers": [*config["handlers"], handler]} if loader == "handlers" else {loader: handler}
    folder = write_bundle(tmp_path / "zoo", config)
    torch.save({**double_weights(), "bias": torch.full((1,), 5.0)}, folder / "models" / "model_lowres.pt")
    bundle = open_bundle(folder, trust=True, device="cpu")
    assert bundle.network.bias.item() == 5.0
    assert bundle.weights_sha256 == file_sha256(folder / "models" / "model_lowres.pt")
    (folder / "models" / "model_lowres.pt").unlink()
    with pytest.raises(BundleError, match=r"model_lowres\.pt, found none"):
        open_bundle(folder, trust=True, device="cpu")


def test_a_change_reaches_the_config_and_the_settings(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "zoo")
    plain = open_bundle(folder, trust=True, device="cpu")
    changed = open_bundle(folder, trust=True, device="cpu", changes=["inferer.roi_size=[8, 8, 8]"])
    assert tuple(changed.inferer.roi_size) == (8, 8, 8)
    assert changed.settings["set"] == ["inferer.roi_size=[8, 8, 8]"]
    assert "set" not in plain.settings
    with pytest.raises(BundleError, match="did you mean inferer::roi_size"):
        open_bundle(folder, trust=True, device="cpu", changes=["inferer.roisize=8"])


def test_own_bundle_needs_no_trust_and_reads_yaml(shelf: Path) -> None:
    write_bundle(shelf / "own", own=True)
    bundle = open_bundle("own", device="cpu")
    assert bundle.own
    assert bundle.image_key == "image"
    assert bundle.settings["roi_size"] == [16, 16, 16]
    assert len(bundle.weights_sha256) == 64


def test_own_bundle_must_name_its_weights(shelf: Path) -> None:
    write_bundle(shelf / "own", own=False)
    with pytest.raises(BundleError, match=r"weights_sha256 to name models/model\.pt"):
        open_bundle("own", device="cpu")


@pytest.mark.parametrize("own", [True, False])
def test_other_weights_than_the_named_ones_are_refused(shelf: Path, tmp_path: Path, own: bool) -> None:
    folder = write_bundle((shelf if own else tmp_path) / "bundle", own=True)
    torch.save({**double_weights(), "bias": torch.ones(1)}, folder / "models" / "model.pt")
    with pytest.raises(BundleError, match="SHA-256"):
        open_bundle(folder, trust=True, device="cpu")


def test_weights_file_with_code_in_it_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "zoo", weights=torch.nn.Conv3d(1, 1, 1))
    with pytest.raises(BundleError, match="weights alone"):
        open_bundle(folder, trust=True, device="cpu")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "zoo", weights={"other": torch.zeros(1)})
    with pytest.raises(BundleError, match="2 tensors missing, 1 unexpected"):
        open_bundle(folder, trust=True, device="cpu")


def test_all_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    config = {key: value for key, value in zoo_config().items() if key not in {"postprocessing", "inferer"}}
    folder = write_bundle(tmp_path / "zoo", config)
    (folder / "models" / "model.pt").unlink()
    (folder / "large_files.yml").write_text("large_files: []")
    with pytest.raises(BundleError) as refused:
        open_bundle(folder, trust=True, device="cpu")
    for part in ("inferer in configs/inference.json", "postprocessing in", "models/model.pt", "download_large_files"):
        assert part in str(refused.value)
    assert "network_def" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_channels": 2, "channel_def": {"0": "T1", "1": "FLAIR"}}, "2 channels: T1, FLAIR"),
        ({"format": "latent"}, "latent"),
        ({"type": "points"}, "points"),
        ({"spatial_shape": [64, 64]}, "2 axes"),
    ],
)
def test_input_other_than_one_volume_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    metadata = deepcopy(METADATA)
    metadata["network_data_format"]["inputs"]["image"] |= changes
    with pytest.raises(BundleError, match=told):
        open_bundle(write_bundle(tmp_path / "zoo", metadata=metadata), trust=True, device="cpu")


@pytest.mark.parametrize("changes", [{"type": "object", "format": "dict"}, {"format": "classes"}])
def test_output_other_than_an_image_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    metadata = deepcopy(METADATA)
    metadata["network_data_format"]["outputs"]["pred"] |= changes
    with pytest.raises(BundleError, match=f"an image as output.*{changes['format']}"):
        open_bundle(write_bundle(tmp_path / "zoo", metadata=metadata), trust=True, device="cpu")


def test_several_images_to_load_are_refused_by_name(tmp_path: Path) -> None:
    config = zoo_config()
    config["preprocessing"]["transforms"][0]["keys"] = ["artery", "vein"]
    with pytest.raises(BundleError, match="loads artery, vein"):
        open_bundle(write_bundle(tmp_path / "zoo", config), trust=True, device="cpu")


def test_second_input_is_refused(tmp_path: Path) -> None:
    metadata = deepcopy(METADATA)
    metadata["network_data_format"]["inputs"]["label"] = metadata["network_data_format"]["inputs"]["image"]
    with pytest.raises(BundleError, match="image, label"):
        open_bundle(write_bundle(tmp_path / "zoo", metadata=metadata), trust=True, device="cpu")


def test_parts_of_the_wrong_kind_are_named_at_once(tmp_path: Path) -> None:
    config = zoo_config() | {"network_def": "$1", "inferer": "$2", "postprocessing": "$3"}
    config["preprocessing"]["transforms"].pop(0)
    with pytest.raises(BundleError) as refused:
        open_bundle(write_bundle(tmp_path / "zoo", config), trust=True, device="cpu")
    for part in ("LoadImaged", "network_def", "inferer", "postprocessing"):
        assert part in str(refused.value)


def test_reader_that_is_not_installed_is_not_missed(tmp_path: Path) -> None:
    config = zoo_config()
    load = config["preprocessing"]["transforms"].pop(0) | {"reader": "monai.data.NoSuchReader"}
    config |= {"first": [load], "rest": config["preprocessing"]["transforms"]}
    config["preprocessing"] = {"_target_": "Compose", "transforms": "$@first + @rest"}
    assert open_bundle(write_bundle(tmp_path / "zoo", config), trust=True, device="cpu").image_key == "image"


def test_missing_package_is_told_with_what_the_metadata_asks_for(tmp_path: Path) -> None:
    config = zoo_config() | {"network_def": {"_target_": "scripts.net.Net"}}
    asked = {"optional_packages_version": {"einops": "0.7.0"}, "monai_version": "1.0.1"}
    folder = write_bundle(tmp_path / "zoo", config, {**deepcopy(METADATA), **asked})
    (folder / "scripts").mkdir()
    (folder / "scripts" / "net.py").write_text("import no_such_package")
    told = r"No module named 'no_such_package'; it was made for MONAI 1\.0\.1, this is .*; it asks for .*einops 0\.7\.0"
    with pytest.raises(BundleError, match=told):
        open_bundle(folder, trust=True, device="cpu")


def test_pickle_of_the_bundles_own_is_told_apart_from_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = zoo_config() | {"architecture": "$torch.load(@bundle_root + '/models/search.pt')"}
    config["network_def"]["kernel_size"] = "$int(@architecture['kernel'][0])"
    folder = write_bundle(tmp_path / "zoo", config)
    torch.save({"kernel": np.ones(1)}, folder / "models" / "search.pt")
    with pytest.raises(BundleError, match="set TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1"):
        open_bundle(folder, trust=True, device="cpu")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.warns(UserWarning, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        assert open_bundle(folder, trust=True, device="cpu").network.kernel_size == (1, 1, 1)


def test_scripts_of_two_bundles_do_not_collide(tmp_path: Path) -> None:
    first = open_bundle(_scripted(tmp_path / "first", 3), trust=True, device="cpu")
    second = open_bundle(_scripted(tmp_path / "second", 5), trust=True, device="cpu")
    assert first.network(torch.ones(1)).item() == 3
    assert second.network(torch.ones(1)).item() == 5


def test_scripts_are_not_importable_without_trust(tmp_path: Path) -> None:
    folder = _scripted(tmp_path / "zoo", 3)
    (folder / "scripts" / "__init__.py").write_text(f"import os; os.mkdir({str(tmp_path / 'ran')!r})")
    with pytest.raises(UntrustedError):
        open_bundle(folder, device="cpu")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("form", ["segmentation", "labels"])
def test_label_maps_and_units_are_told_from_the_format(tmp_path: Path, form: str) -> None:
    metadata = deepcopy(METADATA)
    metadata["network_data_format"]["outputs"]["pred"]["format"] = form
    kind = open_bundle(write_bundle(tmp_path / "seg_net", metadata=metadata), trust=True, device="cpu").output
    assert (kind.suffix, kind.modality, kind.unit) == ("dseg", "MR", "label")
    metadata["network_data_format"]["outputs"]["pred"]["format"] = "hounsfield"
    kind = open_bundle(write_bundle(tmp_path / "mr_to_ct", metadata=metadata), trust=True, device="cpu").output
    assert (kind.suffix, kind.modality, kind.unit) == ("MrToCt", "CT", "HU")


def test_settings_change_with_the_config(tmp_path: Path) -> None:
    first = open_bundle(write_bundle(tmp_path / "a"), trust=True, device="cpu")
    config = zoo_config()
    config["preprocessing"]["transforms"][3]["pixdim"] = [2.0, 2.0, 2.0]
    second = open_bundle(write_bundle(tmp_path / "b", config), trust=True, device="cpu")
    assert first.settings != second.settings


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:0", "", "mps"])
def test_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match="auto, cpu, cuda"):
        pick_device(name)


def test_absent_gpu_is_an_error_and_never_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    with pytest.raises(DeviceError, match="--device cpu"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == torch.device("cuda:0")
    with pytest.raises(DeviceError, match="there are 2"):
        pick_device("cuda:2")
