"""What a bundle's `train.yaml` trains on, and how it starts: pairs from the manifests that come with medgen."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.handlers import CheckpointLoader

from medgen.errors import BundleError, NoInputError
from medgen.geometry import Grid
from medgen.infer.memory import kept_memory
from medgen.read.manifest import datalist_from_manifest
from medgen.run.checkpoint import CheckpointKeeper
from medgen.run.evaluate import Evaluation
from medgen.run.judge import judge
from medgen.run.screen import Screened
from medgen.simulate.brain import simulate_brain
from medgen.simulate.head import shell_labels
from medgen.simulate.oct import simulate_bscan
from medgen.simulate.retina import AXIAL_UM, LATERAL_UM
from medgen.simulate.sample import head_grid
from medgen.simulate.signal import t1_weighted, t2_weighted
from medgen.simulate.trunk import trunk_hu

_log = logging.getLogger(__name__)

_GROUP_KEYS = {"manifest", "weight", "strip", "roles", "also", "slices", "contrast"}
# Beside the package in a checkout, inside it in a wheel.
_MANIFEST_PLACES = (Path(__file__).parents[2] / "data_manifests", Path(__file__).parents[1] / "data_manifests")


def training_items(
    groups: Sequence[Mapping[str, Any]],
    dataset_dir: str,
    manifest_dir: str | None = None,
    split: str = "train",
    exclude: Sequence[str] = (),
    only: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Joins groups of pairs to one list, in which every item knows its weight and whether it is to be stripped.

    Args:
        groups: each with `manifest` (a file name), `weight` (how often each of its pairs is drawn, relative; 1 if
            absent), `strip` (whether whole heads shall be stripped; false if absent), `roles` (which files of each case
            to take, leaving out cases that lack one; all if absent; a mapping says under which key: `{image: target}`
            for scans that are to be learnt), `also` (those to take where a case has them), `slices` (runs of slices
            to learn from, see `medgen.prepare.slabs.RandPiecesd`) and `contrast` (what its images are, for transforms
            that ask). A manifest may stand in two groups, stripped and whole.
        dataset_dir: the folder that the manifests' paths are relative to.
        manifest_dir: where the manifests are; by default, those that come with medgen.
        split: of the manifests.
        exclude: patients to leave out, so that a model can be tried on them.
        only: patients to take, to try it on them; all if None.

    Returns:
        items with `image`, `target`, `patient`, `weight` and `strip`; none where `dataset_dir` is missing or empty,
        because MONAI builds the dataset of a bundle whose data are elsewhere. `start` refuses to train on nothing.

    Raises:
        ManifestError: a manifest is not valid.
        BundleError: a group says something that no group can say.
    """
    for group in groups:
        if not {"manifest"} <= set(group) <= _GROUP_KEYS:
            raise BundleError(
                f"expected groups of a manifest and {', '.join(sorted(_GROUP_KEYS - {'manifest'}))}, got {dict(group)}"
            )
    if not Path(dataset_dir).is_dir() or not any(Path(dataset_dir).iterdir()):
        return []
    folder = Path(manifest_dir) if manifest_dir else _manifest_dir()
    items: list[dict[str, Any]] = []
    for group in groups:
        added: dict[str, Any] = {"weight": float(group.get("weight", 1.0)), "strip": bool(group.get("strip", False))}
        added |= {key: group[key] for key in ("slices", "contrast") if key in group}
        pairs = datalist_from_manifest(folder / group["manifest"], split, Path(dataset_dir))
        for pair in pairs:
            roles = group.get("roles", pair.keys())
            keys: dict[str, str] = dict(roles) if isinstance(roles, Mapping) else {role: role for role in roles}
            wanted = pair["patient"] not in exclude and (only is None or pair["patient"] in only)
            if wanted and keys.keys() <= pair.keys():
                keys |= {role: role for role in group.get("also", ()) if role in pair}
                items.append({**{key: pair[role] for role, key in keys.items()}, "patient": pair["patient"], **added})
    return items


def simulated_items(
    count: int,
    shape: tuple[int, int, int] = (40, 48, 44),
    spacing: tuple[float, float, float] = (4.0, 4.2, 4.1),
    first_seed: int = 0,
) -> list[dict[str, Any]]:
    """Makes pairs by formula, T1-weighted `image` and T2-weighted `target`, for a training that shows that it runs.

    Args:
        count: simulated people, each with a brain alone.
        shape: of the volumes `[voxels]`.
        spacing: of their voxels `[mm]`.
        first_seed: of the first; people of different seeds are different people.
    """
    grid = head_grid((shape[0], shape[1], shape[2]), (spacing[0], spacing[1], spacing[2]))
    return [_simulated_item(grid, seed) for seed in range(first_seed, first_seed + count)]


def _simulated_item(grid: Grid, seed: int) -> dict[str, Any]:
    fractions = simulate_brain(grid, seed=seed, head=False)
    inside = np.asarray(sum(fractions.values())) > 0.5
    affine = torch.from_numpy(grid.affine)
    images = {"image": t1_weighted(fractions) * inside, "target": t2_weighted(fractions) * inside}
    volumes = {
        key: MetaTensor(torch.from_numpy(v.astype(np.float32))[None], affine=affine) for key, v in images.items()
    }
    return {**volumes, "weight": 1.0, "strip": False, "patient": f"simulated-{seed}"}


def simulated_tissues(
    count: int,
    shape: tuple[int, int, int] = (48, 56, 48),
    spacing: tuple[float, float, float] = (3.0, 3.0, 3.0),
    first_seed: int = 0,
) -> list[dict[str, Any]]:
    """Makes brains by formula, `tissues` (fractions of csf, grey and white matter, `(3, X, Y, Z)`) each.

    Args:
        count: simulated people.
        shape: of the volumes `[voxels]`.
        spacing: of their voxels `[mm]`.
        first_seed: of the first; people of different seeds are different people.
    """
    grid = head_grid((shape[0], shape[1], shape[2]), (spacing[0], spacing[1], spacing[2]))
    items: list[dict[str, Any]] = []
    for seed in range(first_seed, first_seed + count):
        fractions = simulate_brain(grid, seed=seed, head=False)
        parts = np.stack([fractions[name] for name in ("csf", "grey", "white")]).astype(np.float32)
        tissues = MetaTensor(torch.from_numpy(parts), affine=torch.from_numpy(grid.affine))
        items.append({"tissues": tissues, "patient": f"simulated-{seed}"})
    return items


def trunk_slabs(
    count: int,
    shape: tuple[int, int, int] = (64, 64, 4),
    spacing: tuple[float, float, float] = (6.0, 6.0, 5.0),
    first_seed: int = 0,
    key: str = "target",
) -> list[dict[str, Any]]:
    """Makes CT of trunks by formula, one an item, for a training that shows that it runs.

    Args:
        count: simulated people.
        shape: of the volumes `[voxels]`.
        spacing: of their voxels `[mm]`.
        first_seed: of the first; people of different seeds have different organs.
        key: where the CT goes: another than `target` where files of that key are loaded.
    """
    affine = np.diag([*spacing, 1.0])
    grid = Grid((shape[0], shape[1], shape[2]), affine)
    return [
        {
            key: MetaTensor(torch.from_numpy(trunk_hu(grid, seed))[None], affine=torch.from_numpy(affine)),
            "patient": f"simulated-{seed}",
        }
        for seed in range(first_seed, first_seed + count)
    ]


def shell_heads(
    count: int, shape: tuple[int, int, int] = (48, 52, 50), spacing_mm: float = 4.0, first_seed: int = 0
) -> list[dict[str, Any]]:
    """Makes heads of shells, `head` each, for a training that shows that it runs.

    Args:
        count: heads.
        shape: of their labels `[voxels]`.
        spacing_mm: of their voxels.
        first_seed: of the first; heads of different seeds differ.
    """
    affine = np.diag([spacing_mm] * 3 + [1.0])
    return [
        {
            "head": MetaTensor(
                shell_labels((shape[0], shape[1], shape[2]), seed)[None].astype(np.float32), affine=affine
            ),
            "patient": f"simulated-{seed}",
        }
        for seed in range(first_seed, first_seed + count)
    ]


def simulated_bscans(
    count: int, weight: float = 1.0, first_seed: int = 0, shape: tuple[int, int] = (512, 496)
) -> list[dict[str, Any]]:
    """Makes B-scans of healthy retinas by formula, `drawn` each.

    Args:
        count: simulated people.
        weight: how often each is drawn, relative.
        first_seed: of the first; people of different seeds are different people.
        shape: of the B-scans [pixels].
    """
    affine = torch.diag(torch.tensor([-LATERAL_UM / 1000, -AXIAL_UM / 1000, 1.0, 1.0], dtype=torch.float64))
    return [
        {
            "drawn": MetaTensor(
                torch.from_numpy(simulate_bscan(seed, (shape[0], shape[1])).image)[None, ..., None], affine=affine
            ),
            "patient": f"simulated-{seed}",
            "weight": weight,
        }
        for seed in range(first_seed, first_seed + count)
    ]


def start(
    trainer: Engine,
    items: Sequence[Any],
    checkpoint: Mapping[str, Any],
    output_dir: str,
    resume_from: str = "",
    watchers: Mapping[str, Any] | None = None,
) -> None:
    """Trains, writing a checkpoint every few epochs from which a later call continues as if it had not stopped.

    Args:
        trainer: to run.
        items: what it trains on.
        checkpoint: everything with a state: networks, optimizers, schedule, average.
        output_dir: where `checkpoint_epoch=N.pt` goes.
        resume_from: a checkpoint to continue from; empty to begin.
        watchers: handlers with a state that goes into the checkpoint: the validator and the health monitor.

    Raises:
        NoInputError: there is nothing to train on.
    """
    if len(items) == 0:
        raise NoInputError("expected training pairs in the data folder, found none; check dataset_dir")
    for watcher in (watchers or {}).values():
        watcher.attach(trainer)
    states = {**checkpoint, **(watchers or {}), "trainer": trainer}
    CheckpointKeeper(Path(output_dir), states).attach(trainer)
    if resume_from:
        CheckpointLoader(resume_from, states).attach(trainer)
    with kept_memory(getattr(trainer.state, "device", "cpu")):
        trainer.run()


def evaluate_split(
    bundle: str, manifest: str, dataset_dir: str, output_dir: str, split: str = "validation", device: str = "auto"
) -> Evaluation | Screened:
    """Runs a bundle on one split of a manifest that comes with medgen, as `medgen evaluate` does.

    Args:
        bundle: its name, or its folder, whose code is trusted: a config in it asked for this.
        manifest: a path, or the file name of one that comes with medgen.
        dataset_dir: the folder that the manifest's paths are relative to; empty for the manifest's own.
        output_dir: where `metrics.csv`, the summary and pictures go.
        split: of the manifest.
        device: `"auto"`, `"cpu"` or `"cuda"`.

    Raises:
        MedgenError: the evaluation could not start.
    """
    path = Path(manifest) if Path(manifest).is_file() else _manifest_dir() / manifest
    root = Path(dataset_dir) if dataset_dir else None
    found = judge(bundle, path, Path(output_dir), split=split, data_root=root, device=device, trust=True)
    _log.info("%s", found.table())
    return found


def _manifest_dir() -> Path:
    return next(place for place in _MANIFEST_PLACES if place.is_dir())
