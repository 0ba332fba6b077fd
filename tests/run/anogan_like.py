"""A bundle that screens B-scans, the parts of `oct_anogan` around a small random network, and scans for it."""

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser
from zoo_like import METADATA, write_bundle

from medgen.provenance import file_sha256
from medgen.simulate.oct import simulate_bscan
from medgen.simulate.retina import Lesion
from tests.read.eyes import save

SHIPPED = Path(__file__).parents[2] / "bundles" / "oct_anogan" / "configs" / "inference.yaml"
SHAPE = (192, 496)  # A-scans and pixels of depth: 2.2 mm of a retina
_CHANNELS = [4, 4, 4, 4]
NETWORK: dict[str, Any] = {
    "_target_": "medgen.nets.anogan.AnoGan",
    "generator": {
        "_target_": "medgen.nets.dcgan.LatentGenerator",
        "latent": 8,
        "start": [4, 4],
        "channels": _CHANNELS,
        "growth": "transposed",
    },
    "judge": {"_target_": "medgen.nets.dcgan.ImageJudge", "channels": _CHANNELS, "size": [64, 64]},
    "encoder": {
        "_target_": "medgen.nets.dcgan.LatentEncoder",
        "latent": 8,
        "size": [64, 64],
        "channels": _CHANNELS,
    },
}


@dataclass(frozen=True)
class Scan:
    """One case of a cohort: a B-scan by formula, or a file that is no picture."""

    name: str
    patient: str
    kind: str = "normal"
    split: str = "test"
    broken: bool = False


def random_weights(seed: int) -> dict[str, torch.Tensor]:
    """A network that has learnt nothing; another seed is another."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        state: dict[str, torch.Tensor] = ConfigParser(NETWORK).get_parsed_content().state_dict()
    return state


def write_anogan_bundle(folder: Path) -> Path:
    """Writes the bundle, without a reference of normal scans."""
    config = yaml.safe_load(SHIPPED.read_text(encoding="utf-8")) | {"network_def": deepcopy(NETWORK)}
    metadata = deepcopy(METADATA) | {
        "modality_in": "OPT",
        "modality_out": "OPT",
        "output_suffix": "heat",
        "output_unit": "score",
        "output_process": "scored",
        "output_description": "Anomaly heat map",
        "evaluation": "screening",
    }
    for side in metadata["network_data_format"].values():
        for tensor in side.values():
            tensor |= {"modality": "OPT", "spatial_shape": [64, 64], "value_range": [-1, 1]}
    return write_bundle(folder, config, metadata, weights=random_weights(0), own=True)


def write_bscan(path: Path, seed: int, lesion: Lesion = "") -> Path:
    """Saves a simulated B-scan as a picture."""
    return save(path, np.asarray(simulate_bscan(seed, SHAPE, lesion).image, dtype=np.uint16))


def write_cohort(folder: Path, scans: Sequence[Scan]) -> Path:
    """Saves scans, of seeds that count on, and returns their manifest; a class "" is not written."""
    lesions: dict[str, Lesion] = {"neovascular": "neovascular", "fluid": "fluid"}
    cases = []
    for seed, scan in enumerate(scans):
        path = folder / scan.name
        if scan.broken:
            path.write_text("this is no picture")
        else:
            write_bscan(path, seed, lesions.get(scan.kind, ""))
        files = {"image": {"path": scan.name, "sha256": file_sha256(path)}}
        shown = {"class": scan.kind} if scan.kind else {}
        cases.append({"patient": scan.patient, "split": scan.split, "files": files} | shown)
    about = {"schema": "medgen-manifest-1", "name": "eyes", "description": "d", "license": "l", "source": "s"}
    (folder / "eyes.json").write_text(json.dumps(about | {"cases": cases}))
    return folder / "eyes.json"
