"""A plain 3D U-Net with L1 on the pairs of `brain_t1_to_t2`: the baseline that the bundle's card compares with.

python benchmarks/plain_unet.py --data-root DIR --output DIR [--minutes 25] [--groups ms-mni ...] [--exclude PATIENT]

It sees the same prepared pairs, mirrored and cut at random but not damaged otherwise. What comes out is a bundle of its
own in OUTPUT/bundle, so that `medgen evaluate OUTPUT/bundle --trust --data MANIFEST` measures both alike.
"""

import argparse
import hashlib
import json
import math
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.bundle import ConfigParser
from monai.networks.nets import UNet
from monai.transforms import Randomizable
from monai.utils import set_determinism

from medgen.prepare.degrade import RandWindowd
from medgen.prepare.draws import WeightedDraws

BUNDLE = Path(__file__).parents[1] / "bundles" / "brain_t1_to_t2"
NETWORK = {
    "_target_": "monai.networks.nets.UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 1,
    "channels": [16, 32, 64, 128],
    "strides": [2, 2, 2],
    "num_res_units": 2,
}
_SIDE = 96


def prepared_pairs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the pairs as `train.yaml` prepares them, before any damage, each with its weight."""
    parser = ConfigParser()
    parser.read_config(BUNDLE / "configs" / "train.yaml")
    parser.update({"bundle_root": str(BUNDLE), "dataset_dir": options.data_root, "exclude": options.exclude})
    items = parser.get_parsed_content("train::dataset::data")
    steps = parser.get_parsed_content("train::preprocessing").transforms
    pairs = []
    for item in items:
        if not any(group in Path(item["image"]).as_posix() for group in options.groups):
            continue
        pair = dict(item)
        for step in steps:
            if isinstance(step, Randomizable):
                break
            pair = step(pair)
        pairs.append({**pair, "weight": 1.0})
        sys.stdout.write(f"prepared {item['patient']}\n")
    return pairs


def train(pairs: list[dict[str, Any]], minutes: float) -> tuple[UNet, int]:
    """Trains for so many minutes with AdamW and a cosine schedule; returns the network and its steps."""
    network = UNet(**{key: value for key, value in NETWORK.items() if key != "_target_"})
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    cut = RandWindowd(["image", "target", "mask"], [_SIDE] * 3, prob=0.0).set_random_state(7)
    draws = WeightedDraws(pairs, 10**6, seed=7)
    begun, steps = time.monotonic(), 0
    for index, _ in draws:
        done = (time.monotonic() - begun) / (60 * minutes)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 + math.cos(math.pi * done)) / 2
        window = cut({key: pairs[index][key] for key in ("image", "target", "mask")})
        image, target, mask = (window[key][None] for key in ("image", "target", "mask"))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            made = network(image)
        loss = (mask * (made.float() - target).abs()).sum() / mask.sum().clamp_min(1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        steps += 1
        if steps % 50 == 0:
            sys.stdout.write(f"step {steps}, {done:.0%}, L1 {loss.item():.4f}\n")
            sys.stdout.flush()
    return network, steps


def write_bundle(network: UNet, folder: Path) -> None:
    """Writes the bundle with this network in place of the cascade, and windows as in its training."""
    shutil.copytree(BUNDLE, folder, dirs_exist_ok=True)
    weights = folder / "models" / "model.pt"
    torch.save(network.state_dict(), weights)
    inference = folder / "configs" / "inference.yaml"
    config = yaml.safe_load(inference.read_text(encoding="utf-8"))
    config["network_def"] = NETWORK
    config["inferer"].update({"roi_size": [_SIDE] * 3, "overlap": 0.5, "adapt": False, "mirror": None})
    inference.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    metadata = folder / "configs" / "metadata.json"
    facts = json.loads(metadata.read_text(encoding="utf-8"))
    facts["weights_sha256"] = {"models/model.pt": hashlib.sha256(weights.read_bytes()).hexdigest()}
    metadata.write_text(json.dumps(facts, indent=2), encoding="utf-8")


def main() -> None:
    """Prepares, trains and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--groups", nargs="+", default=["ms-mni", "ms-raw", "glioma"], help="parts of the files' paths")
    parser.add_argument("--exclude", nargs="*", default=[], help="patients to leave out")
    options = parser.parse_args()
    set_determinism(7)
    network, steps = train(prepared_pairs(options), options.minutes)
    write_bundle(network, options.output / "bundle")
    sys.stdout.write(f"{steps} steps; try: medgen evaluate {options.output / 'bundle'} --trust --data MANIFEST\n")


if __name__ == "__main__":
    main()
