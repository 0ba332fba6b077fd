"""What is checked before a training's first step, so that nobody learns of it after the night."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medgen.errors import MedgenError
from medgen.geometry import Grid
from medgen.read.discover import find_cases
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
        roles = {role: item[role] for role in ROLES if isinstance(item.get(role), str)}
        gone = [Check(_name(path), "is not there", wrong=True) for path in roles.values() if not Path(path).exists()]
        checks += gone
        if gone or not roles:
            continue
        try:
            grids = {role: _grid(Path(path)) for role, path in roles.items()}
            if number in read:
                checks += [_value_check(path, (ranges or {}).get(role)) for role, path in roles.items()]
        except MedgenError as error:
            checks.append(Check(_name(next(iter(roles.values()))), str(error), wrong=True))
            continue
        if paired and {"image", "target"} <= grids.keys():
            checks += _grid_checks(_name(roles["target"]), grids, registers=registers)
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


def _name(path: str) -> str:
    return "/".join(Path(path).parts[-2:])


def _grid(path: Path) -> Grid:
    if path.suffix == ".zip":  # found by its path alone
        return read_volume([path]).grid
    found = [case for case in find_cases(path, salt=b"training") if not case.excluded]
    if len(found) != 1 or found[0].grid is None:
        raise MedgenError(f"expected one volume at {_name(str(path))}, got {len(found)}; see `medgen inspect`")
    return found[0].grid


def _grid_checks(name: str, grids: Mapping[str, Grid], *, registers: bool) -> list[Check]:
    difference = grids["target"].differs_from(grids["image"])
    if not difference:
        return []
    if registers:
        return [Check(name, f"lies on another grid and is brought onto that of its image: {difference}")]
    return [Check(name, f"lies on another grid than its image: {difference}; register it first", wrong=True)]


def _value_check(path: str, reaches: Sequence[float] | None) -> Check:
    values = _voxels(Path(path))
    low, high = np.percentile(values[..., ::2, ::2, ::2], [1, 99])
    found = f"values {low:.4g} to {high:.4g} (1st and 99th percentile)"
    if reaches is not None and not (low < reaches[0] and high > reaches[1]):
        asked = (
            f"expected values from below {reaches[0]:g} to above {reaches[1]:g}; is it what its role says, and in HU?"
        )
        return Check(_name(path), f"{found}, {asked}", wrong=True)
    return Check(_name(path), found, wrong=float(values.min()) == float(values.max()))


def _voxels(path: Path) -> npt.NDArray[np.float32]:
    if path.suffix == ".zip":
        return read_volume([path]).image
    case = next(case for case in find_cases(path, salt=b"training") if not case.excluded)
    return np.asarray(read_image(case).as_tensor())
