"""A bundle with the weights of a training: it runs with those, and claims nothing that was measured of the old ones."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from zoo_like import METADATA, double_weights, write_bundle

from medgen.errors import BundleError
from medgen.run.bundle import open_bundle
from medgen.run.catalog import find_bundle
from medgen.run.retrained import with_trained_weights

# MONAI 1.6 announces that Orientationd's default `labels` will change; bundles of the model zoo do not name them.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*labels.*:FutureWarning"),
    # MONAI's LoadImaged tells that an optional DICOM codec is absent.
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning"),
]


def weights(factor: float) -> dict[str, torch.Tensor]:
    return {name: value * factor for name, value in double_weights().items()}


def factor(bundle: Path) -> float:
    return float(open_bundle(str(bundle), trust=True, device="cpu").network.weight.detach())


def test_the_best_weights_take_the_place_of_the_bundles_own(tmp_path: Path) -> None:
    metadata = deepcopy(METADATA) | {"headline": {"metric": "PSNR", "value": 99}, "eval_metrics": {"psnr": 99}}
    bundle = find_bundle(str(write_bundle(tmp_path / "doubled", metadata=metadata, own=True)))
    before = {path: path.read_bytes() for path in bundle.folder.rglob("*") if path.is_file()}
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(BundleError, match="expected weights of a training in run"):
        with_trained_weights(bundle, run, tmp_path / "new")
    assert not (tmp_path / "new").exists()

    torch.save(weights(3), run / "model.pt")
    assert factor(with_trained_weights(bundle, run, tmp_path / "new")) == 6
    torch.save(weights(5), run / "best.pt")
    copy = with_trained_weights(bundle, run, tmp_path / "new")
    assert factor(copy) == 10
    told = json.loads((copy / "configs" / "metadata.json").read_text())
    assert "headline" not in told
    assert "eval_metrics" not in told
    assert told["task"] == METADATA["task"]
    assert {path: path.read_bytes() for path in bundle.folder.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob(".*"))
