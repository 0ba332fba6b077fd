"""Which planes make one volume: series, directions, echoes, repetitions; copies dropped, conflicts named."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medgen.errors import GeometryError, UnreadableError
from medgen.geometry import Grid
from medgen.read.headers import Plane
from medgen.read.lattice import (
    SLICE_TOLERANCE_MM,
    angle_degrees,
    are_parallel,
    build_lattice,
    irregularity,
    regular_grid,
    sort_along_normal,
)
from medgen.read.pixels import pixels_sha256
from medgen.read.regrid import target_grid

# Fewer planes than this that differ from the rest of a series are no volume of their own.
_FEWEST_SLICES = 3
# A scout has few slices in each of its directions, and these are far apart.
_MOST_SCOUT_SLICES = 5
_SCOUT_DEGREES = 45.0
# Directions nearer than this are not meant: the patient moved, or a header is wrong.
_DISTINCT_DEGREES = 5.0


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
            raise UnreadableError(problem)
        lattice = build_lattice(self.planes)
        return target_grid(lattice) if allow_irregular and irregularity(lattice) else regular_grid(lattice)


def build_stacks(planes: Iterable[Plane]) -> list[Stack]:
    """Cuts planes of any number of series into volumes, in a stable order."""
    series: dict[tuple[str, str, str], list[Plane]] = defaultdict(list)
    for plane in planes:
        series[plane.study_uid, plane.series_uid, plane.excluded].append(plane)
    stacks: list[Stack] = []
    for (_, _, excluded), members in sorted(series.items()):
        ordered = sort_along_normal(members)
        stacks += [Stack(tuple(ordered), excluded=excluded)] if excluded else _split_series(ordered)
    return stacks


def _split_series(planes: list[Plane]) -> list[Stack]:
    """Drops copies, then splits by direction and by what repeats."""
    kept, conflicts = _drop_copies(planes, lambda p: (p.sop_uid or str(p.file), p.frame))
    flags = ("duplicates-dropped",) if len(kept) < len(planes) else ()
    if conflicts:
        return [Stack(tuple(kept), conflict=f"{conflicts} slices exist in different versions of one SOPInstanceUID")]
    if any(p.position is None or p.orientation is None for p in kept):
        return [Stack(tuple(kept), flags=flags)]
    directions = _by_direction(kept)
    if len(directions) > 1:
        counts, apart = [len(part) for part in directions], _least_angle(directions)
        if max(counts) <= _MOST_SCOUT_SLICES and apart > _SCOUT_DEGREES:
            return [Stack(tuple(kept), excluded=f"localizer ({len(counts)} directions of few slices)")]
        if min(counts) < _FEWEST_SLICES or 0 < apart < _DISTINCT_DEGREES:
            return [Stack(tuple(kept), flags=flags)]  # the geometry gate says by how much they differ
    names = [f"direction={n}" if len(directions) > 1 else "" for n in range(1, len(directions) + 1)]
    stacks = [s for part, name in zip(directions, names, strict=True) for s in _split_repeats(part, name)]
    return [replace(s, flags=tuple(dict.fromkeys((*flags, *s.flags)))) for s in stacks]


def _by_direction(planes: Sequence[Plane]) -> list[list[Plane]]:
    """Groups planes by direction and matrix."""
    groups: list[list[Plane]] = []
    for plane in planes:
        size = (plane.rows, plane.columns)
        fits = (g for g in groups if (g[0].rows, g[0].columns) == size and are_parallel(g[0], plane))
        group = next(fits, None)
        if group is None:
            groups.append([plane])
        else:
            group.append(plane)
    return groups


def _least_angle(groups: Sequence[Sequence[Plane]]) -> float:
    """Returns the smallest angle between the groups' directions `[degrees]`; 0 when only their matrices differ."""
    angles = [angle_degrees(a[0], b[0]) for a, b in itertools.combinations(groups, 2) if not are_parallel(a[0], b[0])]
    return min(angles, default=0.0)


def _split_repeats(planes: list[Plane], key: str) -> list[Stack]:
    """Splits planes that lie at the same place, or between each other, by what their headers say differs."""
    planes = sort_along_normal(planes)
    crowd = _most_at_one_place(planes)
    if crowd == 1 and _is_regular(planes):
        return [Stack(tuple(planes), key)]
    for name, _ in planes[0].labels:
        parts: dict[str, list[Plane]] = defaultdict(list)
        for plane in planes:
            parts[dict(plane.labels).get(name, "")].append(plane)
        if _separates(list(parts.values()), crowd):
            keys = {value: ";".join(filter(None, (key, f"{name}={value}"))) for value in sorted(parts)}
            return [stack for value in keys for stack in _split_repeats(parts[value], keys[value])]
    return _split_unlabelled(planes, key) if crowd > 1 else [Stack(tuple(planes), key)]


def _places(planes: Sequence[Plane]) -> list[int]:
    """Numbers the distinct positions along the normal, for planes sorted along it."""
    try:
        steps = build_lattice(planes).steps
    except GeometryError:
        return list(range(len(planes)))  # not comparable; the geometry gate says why
    return [0, *np.cumsum(steps > SLICE_TOLERANCE_MM).tolist()]


def _most_at_one_place(planes: Sequence[Plane]) -> int:
    return max(Counter(_places(planes)).values())


def _is_regular(planes: Sequence[Plane]) -> bool:
    try:
        return not irregularity(build_lattice(planes))
    except GeometryError:
        return False


def _separates(parts: Sequence[Sequence[Plane]], crowd: int) -> bool:
    """Says whether a split into parts makes sense.

    Where planes share places, it must leave fewer at the most crowded one. Where they do not, each part must be regular
    and reach into another: parts that follow each other are one stack, however uneven.
    """
    if len(parts) < 2 or min(map(len, parts)) < _FEWEST_SLICES:
        return False
    if crowd > 1:
        return max(map(_most_at_one_place, parts)) < crowd
    return all(map(_is_regular, parts)) and any(_overlap(a, b) for a, b in itertools.combinations(parts, 2))


def _overlap(first: Sequence[Plane], second: Sequence[Plane]) -> bool:
    normal = build_lattice(first).normal
    ends = [[float(np.dot(p.position or (), normal)) for p in (part[0], part[-1])] for part in (first, second)]
    return max(ends[0][0], ends[1][0]) < min(ends[0][1], ends[1][1])


def _split_unlabelled(planes: list[Plane], key: str) -> list[Stack]:
    """Drops copies; repetitions that only the instance number tells apart become volumes in its order."""
    place_of = dict(zip(map(id, planes), _places(planes), strict=True))
    kept, _ = _drop_copies(planes, lambda p: place_of[id(p)])
    flags = ("duplicates-dropped",) if len(kept) < len(planes) else ()
    counts = Counter(place_of[id(p)] for p in kept)
    if max(counts.values()) == 1:
        return [Stack(tuple(kept), key, flags=flags)]
    if len(set(counts.values())) > 1 or len(counts) < _FEWEST_SLICES or len({p.instance for p in kept}) < len(kept):
        crowded = sum(n > 1 for n in counts.values())
        conflict = f"{crowded} of {len(counts)} slice positions hold different images that no header field tells apart"
        return [Stack(tuple(planes), key, conflict=conflict)]
    repetitions: dict[int, list[Plane]] = defaultdict(list)
    seen: Counter[int] = Counter()
    for plane in sorted(kept, key=lambda p: p.instance):
        seen[place_of[id(plane)]] += 1
        repetitions[seen[place_of[id(plane)]]].append(plane)
    names = {n: ";".join(filter(None, (key, f"repetition={n}"))) for n in repetitions}
    return [Stack(tuple(sort_along_normal(part)), names[n], flags=flags) for n, part in repetitions.items()]


def _drop_copies(planes: Sequence[Plane], identity: Callable[[Plane], Hashable]) -> tuple[list[Plane], int]:
    """Keeps one of the planes that have the same identity and the same pixels.

    Returns:
        the planes kept, and how many identities have different pixels.
    """
    groups: dict[Hashable, list[Plane]] = defaultdict(list)
    for plane in planes:
        groups[identity(plane)].append(plane)
    kept: list[Plane] = []
    conflicts = 0
    for group in groups.values():
        different = {pixels_sha256(p): p for p in reversed(group)} if len(group) > 1 else {"": group[0]}
        conflicts += len(different) > 1
        kept += different.values()
    return sort_along_normal(kept), conflicts
