"""Which planes make one volume: series, directions, echoes, repetitions; copies dropped, conflicts named."""

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

from medgen.errors import GeometryError, InputError
from medgen.geometry import Grid
from medgen.read.headers import Plane
from medgen.read.lattice import (
    SLICE_TOLERANCE_MM,
    are_parallel,
    build_lattice,
    irregularity,
    regular_grid,
    sort_along_normal,
)
from medgen.read.pixels import pixels_sha256
from medgen.read.regrid import target_grid

# Fewer slices than this that point another way than the rest of a series are no volume of their own.
_FEWEST_SLICES = 3
# Scouts in several directions have few slices in each.
_MOST_SCOUT_SLICES = 15


@dataclass(frozen=True, eq=False)
class Stack:
    """The planes of one volume, in order along the normal.

    Attributes:
        planes: at least one.
        key: what tells it from the other volumes of its series, `"echo=4.9"`; empty when it is the only one.
        excluded: the rule that leaves it out, else "".
        flags: what was done to make it one volume, such as `"duplicates-dropped"`.
        conflict: why the planes cannot be one volume, else "".
    """

    planes: tuple[Plane, ...]
    key: str = ""
    excluded: str = ""
    flags: tuple[str, ...] = ()
    conflict: str = ""

    def grid(self, *, allow_irregular: bool = False) -> Grid:
        """Returns the grid that the volume will have.

        Raises:
            InputError: it has none, or its values cannot be used; the message holds the numbers.
        """
        if self.conflict:
            raise GeometryError(self.conflict)
        problem = next((p.coding.problem for p in self.planes if p.coding.problem), "")
        if problem:
            raise InputError(problem)
        lattice = build_lattice(self.planes)
        return target_grid(lattice) if allow_irregular and irregularity(lattice) else regular_grid(lattice)


def build_stacks(planes: Iterable[Plane]) -> list[Stack]:
    """Cuts planes of any number of series into volumes, in a stable order."""
    series: dict[Hashable, list[Plane]] = defaultdict(list)
    for plane in planes:
        series[plane.study_uid, plane.series_uid, plane.excluded].append(plane)
    stacks: list[Stack] = []
    for key in sorted(series, key=str):
        ordered = sort_along_normal(series[key])
        excluded = ordered[0].excluded
        stacks += [Stack(tuple(ordered), excluded=excluded)] if excluded else _split_series(ordered)
    return stacks


def _split_series(planes: list[Plane]) -> list[Stack]:
    planes, flags, conflict = _drop_copies(planes, lambda p: (p.sop_uid, p.frame) if p.sop_uid else (p.file, p.frame))
    if conflict:
        return [Stack(tuple(planes), conflict=f"{conflict} with the same SOPInstanceUID")]
    if any(p.position is None or p.orientation is None for p in planes):
        return [Stack(tuple(planes), flags=flags)]
    directions = _by_direction(planes)
    if len(directions) > 1:
        if len(planes) <= _MOST_SCOUT_SLICES:
            return [Stack(tuple(planes), excluded=f"localizer ({len(directions)} orientations of few slices)")]
        if min(len(part) for part in directions) < _FEWEST_SLICES:
            return [Stack(tuple(planes), flags=flags)]  # the geometry gate says by how much they differ
    stacks = []
    for number, part in enumerate(directions, 1):
        key = f"direction={number}" if len(directions) > 1 else ""
        stacks += [replace(s, flags=(*flags, *s.flags)) for s in _split_repeats(part, key)]
    return stacks


def _by_direction(planes: Sequence[Plane]) -> list[list[Plane]]:
    """Groups planes by direction and matrix."""
    groups: list[list[Plane]] = []
    for plane in planes:
        for group in groups:
            if are_parallel(group[0], plane) and (group[0].rows, group[0].columns) == (plane.rows, plane.columns):
                group.append(plane)
                break
        else:
            groups.append([plane])
    return groups


def _split_repeats(planes: list[Plane], key: str) -> list[Stack]:
    """Splits planes that lie at the same place by what their headers say differs, coarsest first."""
    planes = sort_along_normal(planes)
    if not _must_split(planes):
        return [Stack(tuple(planes), key)]
    names = [name for name, _ in planes[0].labels]
    for name in names:
        parts = _by_label(planes, name)
        if (
            len(parts) > 1
            and min(map(len, parts.values())) >= _FEWEST_SLICES
            and _separates(planes, list(parts.values()))
        ):
            return [
                stack
                for value, part in sorted(parts.items())
                for stack in _split_repeats(part, ";".join(filter(None, (key, f"{name}={value}"))))
            ]
    return _split_unlabelled(planes, key)


def _by_label(planes: Sequence[Plane], name: str) -> dict[str, list[Plane]]:
    parts: dict[str, list[Plane]] = defaultdict(list)
    for plane in planes:
        parts[dict(plane.labels).get(name, "")].append(plane)
    return parts


def _must_split(planes: Sequence[Plane]) -> bool:
    return _most_repeats(planes) > 1


def _most_repeats(planes: Sequence[Plane]) -> int:
    """How many planes lie at the most crowded place."""
    return max(Counter(_places(planes)).values())


def _places(planes: Sequence[Plane]) -> list[int]:
    """Numbers the distinct positions along the normal; planes sorted along it."""
    try:
        heights = build_lattice(planes).heights
    except GeometryError:
        return list(range(len(planes)))
    places, place = [0], 0
    for step in heights[1:] - heights[:-1]:
        place += int(step > SLICE_TOLERANCE_MM)
        places.append(place)
    return places


def _separates(planes: Sequence[Plane], parts: Sequence[Sequence[Plane]]) -> bool:
    """Says whether a split makes the most crowded place less crowded in every part."""
    return max(map(_most_repeats, parts)) < _most_repeats(planes)


def _split_unlabelled(planes: list[Plane], key: str) -> list[Stack]:
    """Copies are dropped; repetitions that only the instance number tells apart become volumes in its order."""
    places = _places(planes)
    numbered = dict(zip(map(id, planes), places, strict=True))
    kept, flags, _ = _drop_copies(planes, lambda p: numbered[id(p)])
    if not _must_split(kept):
        return [Stack(tuple(kept), key, flags=flags)]
    counts = Counter(_places(kept))
    repeats = set(counts.values())
    if len(repeats) > 1 or len(counts) < _FEWEST_SLICES or len({p.instance for p in kept}) < len(kept):
        crowded = sum(n > 1 for n in counts.values())
        message = (
            f"{crowded} of {len(counts)} slice positions hold several different images that no header field tells apart"
        )
        return [Stack(tuple(planes), key, flags=flags, conflict=message)]
    volumes: dict[int, list[Plane]] = defaultdict(list)
    seen: Counter[int] = Counter()
    for plane, place in sorted(zip(kept, _places(kept), strict=True), key=lambda pair: pair[0].instance):
        volumes[seen[place]].append(plane)
        seen[place] += 1
    prefix = f"{key};" if key else ""
    return [
        Stack(tuple(sort_along_normal(part)), f"{prefix}repetition={n + 1}", flags=flags) for n, part in volumes.items()
    ]


def _drop_copies(
    planes: Sequence[Plane], identity: Callable[[Plane], Hashable]
) -> tuple[list[Plane], tuple[str, ...], str]:
    """Keeps one of each set of planes with the same identity and the same pixels.

    Returns:
        the planes kept, the flags, and what conflicts: the same identity but different pixels.
    """
    groups: dict[Hashable, list[Plane]] = defaultdict(list)
    for plane in planes:
        groups[identity(plane)].append(plane)
    kept: list[Plane] = []
    conflicts = 0
    for group in groups.values():
        different = {pixels_sha256(p): p for p in reversed(group)} if len(group) > 1 else {"": group[0]}
        conflicts += len(different) > 1
        kept += sorted(different.values(), key=planes.index)
    flags = ("duplicates-dropped",) if len(kept) < len(planes) else ()
    return sort_along_normal(kept), flags, f"{conflicts} slices exist in different versions" if conflicts else ""
