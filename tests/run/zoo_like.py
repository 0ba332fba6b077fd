"""Bundles as others write them, made in a temporary folder: JSON as in the MONAI model zoo, and a YAML one as ours."""

import json
from copy import deepcopy
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
import yaml
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter

from medgen.case import Case
from medgen.provenance import file_sha256

# Multiplies by 2 and adds nothing: what comes out says exactly what was done to the image before and after.
DOUBLE = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 1, "kernel_size": 1}

METADATA: dict[str, Any] = {
    "schema": "https://project-monai.github.io/schema/meta_schema_20240725.json",
    "version": "0.1.0",
    "changelog": {"0.1.0": "complete the model package"},
    "monai_version": "1.6.1",
    "pytorch_version": "2.13.0",
    "numpy_version": "2.2.0",
    "required_packages_version": {"nibabel": "5.3.2"},
    "task": "T1 enhancement",
    "description": "A network that doubles a T1 image",
    "authors": "nobody",
    "copyright": "nobody",
    "network_data_format": {
        "inputs": {
            "image": {
                "type": "image",
                "format": "magnitude",
                "modality": "MR",
                "num_channels": 1,
                "spatial_shape": [16, 16, 16],
                "dtype": "float32",
                "value_range": [0, 1],
                "is_patch_data": True,
                "channel_def": {"0": "image"},
            }
        },
        "outputs": {
            "pred": {
                "type": "image",
                "format": "magnitude",
                "num_channels": 1,
                "spatial_shape": [16, 16, 16],
                "dtype": "float32",
                "value_range": [],
                "is_patch_data": True,
                "channel_def": {"0": "image"},
            }
        },
    },
}


def zoo_config() -> dict[str, Any]:
    """The inference config of an image-to-image bundle, laid out as those of the model zoo are."""
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "/workspace/data",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/*.nii.gz')))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": deepcopy(DOUBLE),
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
                {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 1.5], "mode": "bilinear"},
                {"_target_": "ScaleIntensityd", "keys": "image"},
                {"_target_": "EnsureTyped", "keys": "image"},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': i} for i in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "sw_batch_size": 4, "overlap": 0.5},
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
        "initialize": ["$monai.utils.set_determinism(seed=123)"],
        "run": ["$@evaluator.run()"],
    }


def write_bundle(
    folder: Path,
    config: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
    *,
    weights: object = None,
    own: bool = False,
) -> Path:
    """Writes a bundle; `own` writes YAML and names the weights' SHA-256, as the bundles of medgen do."""
    config = zoo_config() if config is None else config
    metadata = deepcopy(METADATA) if metadata is None else metadata
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    torch.save(double_weights() if weights is None else weights, folder / "models" / "model.pt")
    if own:
        metadata["weights_sha256"] = {"models/model.pt": file_sha256(folder / "models" / "model.pt")}
        (folder / "configs" / "inference.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    else:
        (folder / "configs" / "inference.json").write_text(json.dumps(config, indent=4))
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata, indent=4))
    return folder


def double_weights(channels: int = 1) -> dict[str, torch.Tensor]:
    """The state dict of a 1x1x1 convolution that multiplies by 2."""
    return {"weight": torch.full((channels, 1, 1, 1, 1), 2.0), "bias": torch.zeros(channels)}


def oblique_affine() -> np.ndarray:
    """An oblique grid with another spacing along each axis, in LPS-like order so that reorienting has work to do."""
    turn = 0.2
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-0.9, -1.1, 2.7])
    affine[:3, 3] = (30.0, 41.0, -17.0)
    return affine


def smooth_volume(shape: tuple[int, int, int] = (29, 34, 17), seed: int = 0) -> np.ndarray:
    """A volume without structure finer than a few voxels, in `[0, 1000]`."""
    noise = gaussian_filter(np.random.default_rng(seed).random(shape), 3.0)
    return ((noise - noise.min()) / (noise.max() - noise.min()) * 1000).astype(np.float32)


def image_of(volume: np.ndarray, affine: np.ndarray) -> MetaTensor:
    """The volume as the readers of medgen hand it on, `(1, X, Y, Z)`."""
    return MetaTensor(torch.from_numpy(volume)[None], affine=torch.from_numpy(affine))


def case_of(path: Path) -> Case:
    """A case of one NIfTI file."""
    stem = PurePosixPath(path.name.removesuffix(".nii.gz"))
    return Case(str(stem), "nifti", (path,), stem, PurePosixPath(path.name), ".nii.gz")
