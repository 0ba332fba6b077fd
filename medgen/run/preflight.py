"""What is checked before a training's first step, so that nobody learns of it after the night."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from medgen.case import Case
from medgen.errors import MedgenError
from medgen.geometry import Grid
from medgen.read.bscan_cases import picture_case
from medgen.read.discover import find_cases
from medgen.read.manifest import Listed
from medgen.read.oct import is_picture
from medgen.read.reader import read_image, read_volume

ROLES = ("image", "target", "head", "mask", "brain", "body", "ct", "csf", "grey", "white")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        what: of which item.
        finding: what was found.
        wrong: it would spoil the training.
    """

    what: str
    finding: str
    wrong: bool = False


def check_items(
    items: Sequence[Mapping[str, Any]],
    *,
    registers: bool,
    paired: bool = True,
    voxels: int = 8,
    ranges: Mapping[str, Sequence[float]] | None = None,
) -> list[Check]:
    """Checks that the files of a datalist exist, that pairs lie on one grid, and that values are usable.

    Args:
        items: with paths by role; volumes that a config makes itself are taken as they are.
        registers: the preprocessing registers pairs itself, so that grids may differ.
        paired: `target` belongs to the same item's `image`; unpaired lists need no common grid.
        voxels: items, spread over the list, whose voxels are read too; grids of all are read from headers.
        ranges: by role, two values that an image reaches on both sides (1st and 99th percentile), else it is wrong: a
            CT that is not in HU.
    """
    checks = [Check("items", f"{len(items)}, of {len(_patients(items))} patients")]
    if not items:
        told = "expected some to train on, got none; --data-root (or MEDGEN_DATA) is where the manifests' paths begin"
        checks = [Check("items", told, wrong=True)]
    read = set(np.linspace(0, len(items) - 1, min(voxels, len(items))).astype(int).tolist())
    if 0 < len(read) < len(items):
        checks.append(Check("values", f"read of {len(read)} of the {len(items)} items"))
    for number, item in enumerate(items):
        roles = {role: Listed.parse(item[role]) for role in ROLES if isinstance(item.get(role), str | list)}
        files = [file for image in roles.values() for file in image.paths]
        gone = [Check(_name(file), "is not there", wrong=True) for file in files if not file.exists()]
        checks += gone
        if gone or not roles:
            continue
        try:
            grids = {role: _grid(image) for role, image in roles.items()}
            if number in read:
                checks += [_value_check(image, (ranges or {}).get(role)) for role, image in roles.items()]
        except MedgenError as error:
            checks.append(Check(_name(files[0]), str(error), wrong=True))
            continue
        if paired and {"image", "target"} <= grids.keys():
            checks += _grid_checks(_name(roles["target"].paths[0]), grids, registers=registers)
    return checks


def leaks(train: Iterable[Mapping[str, Any]], validation: Iterable[Mapping[str, Any]]) -> list[Check]:
    """Finds patients that a model would be trained and measured on."""
    both = sorted(_patients(train) & _patients(validation))
    return [
        Check(patient, "is in training and in validation; a patient belongs to one split", wrong=True)
        for patient in both
    ]


def registers_pairs(config: object) -> bool:
    """Says whether preprocessing brings pairs onto one grid, by registering them or by what their headers say."""
    return any(name in str(config) for name in ("RegisterToSourced", "ResampleToMatchd"))


def _patients(items: Iterable[Mapping[str, Any]]) -> set[str]:
    return {str(item["patient"]) for item in items if "patient" in item}


def _name(path: Path) -> str:
    return "/".join(path.parts[-2:])


def _case(image: Listed) -> Case:
    """The one volume that is listed: pictures, or whatever is found there, images of eyes too."""
    path = image.paths[0]
    if len(image.paths) > 1 or is_picture(path):
        return picture_case(image, PurePosixPath(path.name))
    found = [case for case in find_cases(path, salt=b"training") if not case.excluded]
    if not found:
        eyes = find_cases(path, salt=b"training", modality="OPT")
        found = [case for case in eyes if not (case.excluded or case.refused)]
    if len(found) != 1:
        raise MedgenError(f"expected one volume at {_name(path)}, got {len(found)}; see `medgen inspect`")
    return found[0]


def _grid(image: Listed) -> Grid:
    if image.paths[0].suffix == ".zip":  # found by its path alone
        return read_volume(image.paths).grid
    case = _case(image)
    if case.grid is None:
        raise MedgenError(case.refused)
    return case.grid


def _grid_checks(name: str, grids: Mapping[str, Grid], *, registers: bool) -> list[Check]:
    difference = grids["target"].differs_from(grids["image"])
    if not difference:
        return []
    if registers:
        return [Check(name, f"lies on another grid and is brought onto that of its image: {difference}")]
    return [Check(name, f"lies on another grid than its image: {difference}; register it first", wrong=True)]


def _value_check(image: Listed, reaches: Sequence[float] | None) -> Check:
    values, path = _voxels(image), image.paths[0]
    low, high = np.percentile(values[..., ::2, ::2, ::2], [1, 99])
    found = f"values {low:.4g} to {high:.4g} (1st and 99th percentile)"
    if reaches is not None and not (low < reaches[0] and high > reaches[1]):
        asked = (
            f"expected values from below {reaches[0]:g} to above {reaches[1]:g}; is it what its role says, and in HU?"
        )
        return Check(_name(path), f"{found}, {asked}", wrong=True)
    return Check(_name(path), found, wrong=float(values.min()) == float(values.max()))


def _voxels(image: Listed) -> npt.NDArray[np.float32]:
    if image.paths[0].suffix == ".zip":
        return read_volume(image.paths).image
    return np.asarray(read_image(_case(image)).as_tensor())
