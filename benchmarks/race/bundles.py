"""Two bundles as the MONAI model zoo lays them out, with networks trained just enough that decibels mean something."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml
from monai.bundle import ConfigParser
from scipy.ndimage import gaussian_filter

from medgen.simulate.sample import head_grid, simulate_t1

Volume = npt.NDArray[np.float32]

VERSION = 1  # of what is written here; a bundle in the work folder is used as long as this stays
ROI = 96
NETWORKS: dict[str, dict[str, Any]] = {
    "light": {
        "_target_": "UNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 1,
        "channels": [16, 32, 64, 128],
        "strides": [2, 2, 2],
        "num_res_units": 2,
        "norm": "instance",
    },
    "heavy": {
        "_target_": "BasicUNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 1,
        "features": [16, 16, 32, 64, 128, 16],
    },
}
_STEPS = {"light": 300, "heavy": 200}
_PATCH, _BATCH = 48, 2
_PERSON = 1000  # whom they learn from; the volumes of the benchmark show others


def zoo_config(network: dict[str, Any]) -> dict[str, Any]:
    """Returns the inference config of an image-to-image bundle as those of the model zoo are."""
    return {
        "imports": ["$import glob"],
        "bundle_root": ".",
        "dataset_dir": "/workspace/data",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/*.nii.gz')))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
                {"_target_": "Spacingd", "keys": "image", "pixdim": [1.0, 1.0, 1.0], "mode": "bilinear"},
                {
                    "_target_": "ScaleIntensityRangePercentilesd",
                    "keys": "image",
                    "lower": 0.5,
                    "upper": 99.5,
                    "b_min": 0.0,
                    "b_max": 1.0,
                },
                {"_target_": "EnsureTyped", "keys": "image"},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': i} for i in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": [ROI] * 3,
            "sw_batch_size": 4,
            "overlap": 0.25,
            "mode": "gaussian",
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "separate_folder": False},
            ],
        },
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "$@bundle_root + '/models/model.pt'",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            },
            {"_target_": "StatsHandler", "iteration_log": False},
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
            "amp": True,
        },
        "run": ["$@evaluator.run()"],
    }


def zoo_metadata(name: str) -> dict[str, Any]:
    """Returns metadata that meet MONAI's schema."""
    one: dict[str, Any] = {
        "type": "image",
        "format": "magnitude",
        "modality": "MR",
        "num_channels": 1,
        "spatial_shape": [ROI] * 3,
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": True,
        "channel_def": {"0": "image"},
    }
    return {
        "schema": "https://project-monai.github.io/schema/meta_schema_20240725.json",
        "version": f"0.{VERSION}.0",
        "changelog": {f"0.{VERSION}.0": "written by a benchmark"},
        "monai_version": "1.6.1",
        "pytorch_version": "2.10.0",
        "numpy_version": "2.0.0",
        "required_packages_version": {"nibabel": "5.3.2"},
        "task": "Another contrast of a head, by formula",
        "description": f"The {name} network of the speed benchmark; of no other use",
        "authors": "medgen",
        "copyright": "Apache-2.0",
        "network_data_format": {"inputs": {"image": one}, "outputs": {"pred": one}},
    }


def network_of(network: dict[str, Any]) -> torch.nn.Module:
    """Builds a network from its definition in a config."""
    built: torch.nn.Module = ConfigParser({"network_def": network}).get_parsed_content("network_def")
    return built


def other_contrast(image: Volume) -> Volume:
    """Returns what the networks learn to make of an image in `[0, 1]`: the head inverted, and slightly blurred.

    Example:
        >>> other_contrast(np.zeros((4, 4, 4), np.float32)).max().item()
        0.0
    """
    head = gaussian_filter(image, 2.0) > 0.1
    return np.asarray(gaussian_filter((1 - image) * head, 1.0), dtype=np.float32)


def train(network: torch.nn.Module, steps: int) -> float:
    """Trains a network on patches of one simulated head; returns the mean absolute error of the last tenth of steps."""
    head = simulate_t1(head_grid((128, 160, 136), (1.3, 1.3, 1.3)), seed=_PERSON)
    low, high = np.percentile(head, [0.5, 99.5])
    image = ((head - low) / (high - low)).astype(np.float32)
    pair = torch.from_numpy(np.stack([image, other_contrast(image)]))
    rng = np.random.default_rng(_PERSON)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    errors = []
    network.train()
    for _ in range(steps):
        starts = rng.integers(0, np.array(image.shape) - _PATCH + 1, (_BATCH, 3)).tolist()
        cut = [pair[:, x : x + _PATCH, y : y + _PATCH, z : z + _PATCH] for x, y, z in starts]
        images, targets = torch.stack(cut)[:, :, None].unbind(1)
        loss = (network(images) - targets).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        errors.append(loss.item())
    return float(np.mean(errors[-max(1, steps // 10) :]))


def write_bundle(folder: Path, name: str, network: torch.nn.Module) -> Path:
    """Writes a bundle with the weights of a network, whole or not at all.

    Args:
        folder: of the bundle, which must not exist.
        name: of `NETWORKS`.
        network: which it defines.
    """
    part = folder.with_name(f"{folder.name}.part")
    for inner in ("configs", "models"):
        (part / inner).mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), part / "models" / "model.pt")
    (part / "configs" / "inference.yaml").write_text(yaml.safe_dump(zoo_config(NETWORKS[name]), sort_keys=False))
    (part / "configs" / "metadata.json").write_text(json.dumps(zoo_metadata(name), indent=2))
    return part.rename(folder)


def find_bundle(work: Path, name: str, say: Callable[[str], None]) -> Path:
    """Returns the bundle in the work folder; writes it first if it is not there."""
    folder = work / f"bundles-{VERSION}" / name
    if not folder.is_dir():
        say(f"training the {name} network, once")
        began = time.monotonic()
        torch.manual_seed(_PERSON)
        network = network_of(NETWORKS[name])
        error = train(network, _STEPS[name])
        write_bundle(folder, name, network)
        say(f"  mean absolute error {error:.3f} of 1, {time.monotonic() - began:.0f} s")
    return folder
