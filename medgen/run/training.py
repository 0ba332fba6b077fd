"""What a bundle's `train.yaml` trains on: pairs from the manifests that come with medgen, each with its weight."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medgen.read.manifest import datalist_from_manifest

# Beside the package in a checkout, inside it in a wheel.
_MANIFEST_PLACES = (Path(__file__).parents[2] / "data_manifests", Path(__file__).parents[1] / "data_manifests")


def training_items(
    groups: Sequence[Mapping[str, Any]], dataset_dir: str, manifest_dir: str | None = None, split: str = "train"
) -> list[dict[str, Any]]:
    """Joins groups of pairs to one list, in which every item knows its weight and whether it is to be stripped.

    Args:
        groups: each with `manifest` (a file name), `weight` (how often each of its pairs is drawn, relative; 1 if
            absent) and `strip` (whether whole heads shall be stripped; false if absent). A manifest may stand in two
            groups, stripped and whole.
        dataset_dir: the folder that the manifests' paths are relative to.
        manifest_dir: where the manifests are; by default, those that come with medgen.
        split: of the manifests.

    Raises:
        ManifestError: a manifest is not valid.
    """
    folder = Path(manifest_dir) if manifest_dir else next(p for p in _MANIFEST_PLACES if p.is_dir())
    items: list[dict[str, Any]] = []
    for group in groups:
        added = {"weight": float(group.get("weight", 1.0)), "strip": bool(group.get("strip", False))}
        pairs = datalist_from_manifest(folder / group["manifest"], split, Path(dataset_dir))
        items += [{**pair, **added} for pair in pairs]
    return items
