"""A bundle that scores B-scans of eyes, with nothing learnt: brightness, and its highest place."""

from collections.abc import Hashable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import MapTransform
from zoo_like import METADATA, write_bundle, zoo_config

from medgen.case import RegionScore
from medgen.infer.regions import REGIONS_KEY, SCAN_KEY


class ScoreBrightnessd(MapTransform):
    """Adds what a scoring bundle adds: one region at the highest place, and a score of the scan."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        heat = np.asarray(item["pred"][0])
        peak = np.unravel_index(int(heat.argmax()), heat.shape)
        x, y, z = (np.asarray(item["pred"].affine) @ [*map(float, peak), 1.0])[:3].tolist()
        item[REGIONS_KEY] = [RegionScore("brightest band", float(heat.max()), 0.1, (x, y, z), 1.0)]
        item[SCAN_KEY] = float(heat.max())
        return item


def eye_config() -> dict[str, Any]:
    """The inference config: read, double, score, save."""
    config = zoo_config()
    config["datalist"] = {
        "_target_": "medgen.read.discover.datalist",
        "dataset_dir": "@dataset_dir",
        "modality": "OPT",
    }
    config["dataset"]["data"] = "@datalist"
    config["preprocessing"]["transforms"] = [
        {
            "_target_": "LoadImaged",
            "keys": "image",
            "reader": "medgen.read.reader.BScanReader",
            "ensure_channel_first": True,
        },
    ]
    config["inferer"]["roi_size"] = [64, 64, 1]
    config["postprocessing"]["transforms"] = [
        {"_target_": "eye_like.ScoreBrightnessd", "keys": "pred"},
        {
            "_target_": "medgen.write.save.SaveResultd",
            "keys": "pred",
            "output_dir": "@output_dir",
            "suffix": "heat",
            "unit": "score",
            "process": "scored",
            "dataset_dir": "@dataset_dir",
        },
    ]
    return config


def write_eye_bundle(folder: Path) -> Path:
    """Writes the bundle."""
    metadata = deepcopy(METADATA) | {
        "modality_in": "OPT",
        "modality_out": "OPT",
        "output_suffix": "heat",
        "output_unit": "score",
        "output_process": "scored",
        "output_description": "Anomaly heat map",
    }
    metadata["network_data_format"]["inputs"]["image"]["modality"] = "OPT"
    return write_bundle(folder, eye_config(), metadata)
