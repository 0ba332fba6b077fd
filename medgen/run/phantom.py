"""Heads of simulated people as files: an MR that a bundle is given, the CT that it should make, and their manifest."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import Compose, LoadImaged, Orientationd

from medgen.errors import NoInputError
from medgen.geometry import Grid
from medgen.prepare.degrade import RandWindowd
from medgen.prepare.draws import FixedDraws
from medgen.prepare.head import HeadFieldsd, RandHeadd, TemplateFieldsd
from medgen.prepare.intensity import unit_to_hu
from medgen.read.manifest import datalist_from_manifest, find_manifest
from medgen.read.reader import VolumeReader
from medgen.run.build import Cohort, gather, write_manifest
from medgen.run.steps import Event
from medgen.write.nifti import write_volume

WHITE_MATTER = 500.0  # what the MR's unit becomes, as in a scanner's hundreds
TEMPLATE_ROLES = ("ct", "csf", "grey", "white")
_AXES = (("L", "R"), ("P", "A"), ("I", "S"))
_VOXEL_MM = 1.0
# Else the surfaces of all people would lie where they lie in the labels: on the borders of voxels.
POSE: dict[str, Any] = {"max_turn": 5.0, "max_scale": 0.05, "max_bend": 4.0}


def write_phantoms(
    manifest: Path,
    output: Path,
    *,
    count: int = 8,
    split: str = "test",
    seed: int = 100,
    variety: float = 0.5,
    data_root: Path | None = None,
    listen: Callable[[Event], None] = lambda event: None,
) -> Cohort:
    """Draws people from every head of a split, as `output/sub-HEAD/ses-N/anat/*_T1w.nii.gz` and `*_CT.nii.gz`.

    People of one head share its shape, but for a pose and a gentle bend, and differ in thicknesses, tissues, scanner
    and sequence. In `output/manifest.json` they are sessions of one patient, so that no statistics count them as more.

    Args:
        manifest: its cases have `head` (labels of one) or `ct`, `csf`, `grey` and `white` (an averaged head).
        output: folder.
        count: people of each head.
        split: of the manifest, and of the new one.
        seed: of the first person; the next ones count on. The bundles' trainings validate on people 0 and 1.
        variety: how widely people are drawn, 0 (typical ones) to 1 (as widely as people can be).
        data_root: what the manifest's paths are relative to.
        listen: told of progress.

    Raises:
        NoInputError: the split has no heads.
        ManifestError: the manifest is not valid.
    """
    items = datalist_from_manifest(find_manifest(manifest), split, data_root)
    heads = [item for item in items if "head" in item or set(TEMPLATE_ROLES) <= item.keys()]
    if not heads or count < 1:
        raise NoInputError(
            f"expected heads (head, or {', '.join(TEMPLATE_ROLES)}) in split {split!r} of {manifest.name}, got none"
        )
    total = count * len(heads)
    listen(Event("begin", total, 0))
    sessions: Counter[str] = Counter()
    for place, head in enumerate(heads):
        people = draw_people(head, count, seed + place * count, variety)
        subject = "sub-" + re.sub(r"[^A-Za-z0-9]", "", head["patient"])
        for number in range(count):
            listen(Event("stage", total, place * count + number, f"{subject} {number + 1}", "simulate"))
            sessions[subject] += 1
            session, person = f"ses-{sessions[subject]:02d}", people[number]
            name, folder = f"{subject}_{session}", output / subject / session / "anat"
            image, target = person["image"][0].numpy(), person["target"][0].numpy()
            grid = _grid(image.shape)
            write_volume(image * WHITE_MATTER, grid, folder / f"{name}_T1w.nii.gz")
            write_volume(unit_to_hu(target), grid, folder / f"{name}_CT.nii.gz")
    cohort = gather([output], {"image": "T1w", "target": "CT"})
    write_manifest(
        cohort, output / "manifest.json", {split: 1.0}, source="simulated", data_license="that of the heads' labels"
    )
    listen(Event("end", total, total))
    return cohort


def draw_people(head: dict[str, str], count: int, seed: int, variety: float) -> FixedDraws:
    """Returns people of one head: `image` with white matter near 1 and `target` as `hu_to_unit` scales it.

    Args:
        head: with `head` (labels), or with the roles of an averaged head; paths.
        count: people.
        seed: of the first.
        variety: 0 to 1.
    """
    roles = ["head"] if "head" in head else list(TEMPLATE_ROLES)
    fields = HeadFieldsd("head", _VOXEL_MM) if "head" in head else TemplateFieldsd(voxel_mm=_VOXEL_MM)
    transforms = [
        LoadImaged(roles, reader=VolumeReader, ensure_channel_first=True),
        Orientationd(roles, axcodes="RAS", labels=_AXES),
        fields,
        RandWindowd(["head"], None, padding="border", **POSE),
        RandHeadd("head", variety=variety),
    ]
    return FixedDraws([head], Compose(transforms), count, seed)


def _grid(shape: tuple[int, ...]) -> Grid:
    """Voxels of 1 mm around the volume's middle."""
    affine = np.diag([_VOXEL_MM] * 3 + [1.0])
    affine[:3, 3] = -_VOXEL_MM * (np.array(shape) - 1) / 2
    return Grid((shape[0], shape[1], shape[2]), affine)
