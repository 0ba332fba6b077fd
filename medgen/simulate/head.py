"""A whole head as MR and CT at once: pairs that no scanner gives, from the labels of one head.

Labels know six tissues; a scanner sees more. The scalp is split into skin, fat and muscle, bone into its tables and
the marrow between them, cavities get a mucosa, and soft tissue of face and neck is interleaved with fat. Where the
borders run is drawn anew for every person, so that no network can learn one head's thicknesses by heart.

Fields, not labels, are what is deformed: signed depths stay smooth, and partial volume follows from them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import distance_transform_edt

from medgen.simulate.signal import AIR_HU, RELAXATION, Tissue, gradient_echo, inversion_recovery, spin_echo

Array = npt.NDArray[np.float32]

LABELS: Mapping[str, int] = {"white": 1, "grey": 2, "csf": 3, "bone": 4, "soft": 5, "air": 6}
FIELDS = ("white", "grey", "csf", "skin_mm", "bone_mm", "cavity_mm")
_FARTHEST_MM = 60.0
_BRIGHTEST_FAT = 3.0  # of white matter
_CLOSED = 9.0  # no smooth field of unit variance ever reaches it

# Besides the tissues of `RELAXATION`. Marrow: red and yellow in equal parts. Skin and mucosa: times near muscle, with
# more water. Vessels are left out: their signal is a matter of flow.
_MORE: Mapping[str, Tissue] = {
    "cortex": Tissue(1.0, 0.1, 0.02, 1300.0),
    "marrow": Tissue(450.0, 60.0, 0.85, 250.0),
    "skin": Tissue(750.0, 35.0, 0.9, 60.0),
    "mucosa": Tissue(1000.0, 80.0, 1.0, 45.0),
    "dura": Tissue(900.0, 30.0, 0.7, 60.0),
}


def head_fields(labels: npt.ArrayLike, spacing_mm: float, factor: int = 1) -> Array:
    """Turns labels `(X, Y, Z)` into `FIELDS` `(6, X / factor, Y / factor, Z / factor)`: fractions and depths.

    Args:
        labels: as in `LABELS`, 0 outside; isotropic. What does not fill a whole block at the far ends is cut off.
        spacing_mm: of their voxels.
        factor: blocks of so many voxels along each axis become one.

    Returns:
        fractions of brain tissue, and signed depths `[mm]`, positive inside, cut at 60 mm: below the skin, within bone,
        within air cavities.
    """
    volume = np.asarray(labels)
    fractions = [_share(volume == LABELS[name], factor) for name in FIELDS[:3]]
    inside = [volume > 0, volume == LABELS["bone"], volume == LABELS["air"]]
    depths = [signed_depth_mm(_share(mask, factor), spacing_mm * factor) for mask in inside]
    return np.stack([*fractions, *depths]).astype(np.float32)


def _share(mask: npt.NDArray[np.bool_], factor: int) -> Array:
    """The share of each block of voxels that a mask fills."""
    x, y, z = [n // factor for n in mask.shape]
    blocks = mask[: x * factor, : y * factor, : z * factor].reshape(x, factor, y, factor, z, factor)
    return np.asarray(blocks.mean(axis=(1, 3, 5), dtype=np.float32))


def shell_labels(shape: tuple[int, int, int], seed: int = 0) -> npt.NDArray[np.uint8]:
    """Returns labels `(X, Y, Z)` of the simplest head: ellipsoids within ellipsoids, and one cavity.

    It shows that a training runs; nothing can be learnt from it about people.
    """
    rng = np.random.default_rng(seed)
    places = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    radius = np.sqrt(sum((p / rng.uniform(0.85, 0.95)) ** 2 for p in places))
    labels = np.zeros(shape, dtype=np.uint8)
    for limit, name in ((1.0, "soft"), (0.88, "bone"), (0.78, "csf"), (0.74, "grey"), (0.6, "white")):
        labels[radius < limit] = LABELS[name]
    hollow = sum((p - c) ** 2 for p, c in zip(places, (0.0, 0.6, -0.6), strict=True)) < 0.04
    labels[hollow & (radius < 0.9)] = LABELS["air"]
    return labels


def signed_depth_mm(share: npt.ArrayLike, spacing_mm: float) -> Array:
    """Returns the distance to the surface of what fills a share of each voxel `[mm]`: positive inside, cut at 60 mm.

    In voxels that are filled in part, the share itself tells the depth: thinner than a voxel, a plate is still there.

    Example:
        >>> signed_depth_mm(np.reshape([0.0, 0.0, 0.25, 1.0, 1.0], (5, 1, 1)), 2.0).ravel().tolist()
        [-5.0, -3.0, -0.5, 1.0, 3.0]
    """
    filled = np.asarray(share, dtype=np.float32)
    inside = filled >= 0.5
    if not inside.any():
        depth = np.full(inside.shape, -_FARTHEST_MM)
    else:
        within, without = (distance_transform_edt(m, spacing_mm) - 0.5 * spacing_mm for m in (inside, ~inside))
        depth = np.where(inside, within, -without)
    partial = (filled > 0) & (filled < 1)
    depth = np.where(partial, (filled - 0.5) * spacing_mm, depth)
    return np.asarray(np.clip(depth, -_FARTHEST_MM, _FARTHEST_MM), dtype=np.float32)


@dataclass(frozen=True)
class Person:
    """What differs from one head to the next besides its shape.

    Attributes:
        skin_mm: thickness of the skin.
        fat_mm: of the fat below it, on average; it varies smoothly over the head.
        table_mm: of the skull's tables; what lies deeper is marrow.
        thicker_mm: added to bone on all sides.
        uneven_mm: standard deviation of what is added to bone from place to place; thin bone can vanish.
        open_from: level of a smooth field of unit variance above which bone is missing, as after surgery: it teaches
            that bone is where an image shows it, not wherever heads have it.
        marrow: share of marrow where it is not table.
        mottled: share of fat in deep soft tissue.
        mucosa_mm: thickness of the lining of cavities.
        filled: share of the cavities' depth that is fluid or swollen mucosa.
        pockets: how much of the deep soft tissue is fluid: eyes, glands, slow vessels.
    """

    skin_mm: float = 1.8
    fat_mm: float = 3.0
    table_mm: float = 1.8
    thicker_mm: float = 0.0
    uneven_mm: float = 0.4
    open_from: float = _CLOSED
    marrow: float = 0.8
    mottled: float = 0.3
    mucosa_mm: float = 1.0
    filled: float = 0.0
    pockets: float = 0.0

    @classmethod
    def draw(cls, rng: np.random.Generator, variety: float = 1.0) -> "Person":
        """Returns a random person.

        Args:
            rng: of the draw.
            variety: 1 for ranges that are wide on purpose, to learn from; towards 0, people come ever closer to the
                typical one, and ever fewer have open skulls, swollen sinuses and pockets of fluid.
        """
        typical = cls()

        def near(usual: float, low: float, high: float) -> float:
            return usual + variety * (rng.uniform(low, high) - usual)

        def rarely(share: float, low: float, high: float) -> float:
            return float(rng.uniform(0, 1) < variety * share) * rng.uniform(low, high)

        return cls(
            skin_mm=near(typical.skin_mm, 1.0, 2.5),
            fat_mm=near(typical.fat_mm, 0.5, 7.0),
            table_mm=near(typical.table_mm, 1.2, 2.6),
            thicker_mm=near(typical.thicker_mm, -1.0, 2.0),
            uneven_mm=near(typical.uneven_mm, 0.2, 1.8),
            open_from=rng.uniform(0.5, 1.5) if rng.uniform() < 0.3 * variety else _CLOSED,
            marrow=near(typical.marrow, 0.3, 1.0),
            mottled=near(typical.mottled, 0.1, 0.5),
            mucosa_mm=near(typical.mucosa_mm, 0.3, 2.5),
            filled=rarely(0.2, 0.2, 1.0),
            pockets=rarely(0.5, 0.1, 0.6),
        )


def head_fractions(
    fields: npt.ArrayLike, person: Person, rng: np.random.Generator, voxel_mm: float = 1.0
) -> dict[str, Array]:
    """Returns the fraction of each tissue `(X, Y, Z)`, adding up to at most 1; the rest is air.

    Args:
        fields: as `head_fields` makes them, deformed or not, `(6, X, Y, Z)`.
        person: thicknesses.
        rng: for where they vary.
        voxel_mm: size of a voxel, over which a border is blurred.
    """
    white, grey, csf, skin, bone, cavity = np.asarray(fields, dtype=np.float32)
    shape = white.shape

    def below(depth: npt.NDArray[Any]) -> Array:
        return np.asarray(np.clip(0.5 + depth / voxel_mm, 0, 1), dtype=np.float32)

    wobble = smooth_noise(shape, 40.0 / voxel_mm, rng)
    skull = _skull(bone, person, rng, voxel_mm)
    head, solid, hollow = below(skin), below(skull), below(cavity)
    brain = np.clip(white + grey + csf, 0, 1)
    marrow = person.marrow * below(skull - person.table_mm - 0.5 * smooth_noise(shape, 8.0 / voxel_mm, rng))
    fat_depth = np.maximum(person.fat_mm * (1 + 0.35 * wobble), 0.3)
    outer, deep = below(skin - person.skin_mm), below(skin - person.skin_mm - fat_depth)
    # Fat lies in sheets between muscles, and in pads: near the zeros of one smooth field, above a level of another.
    sheets = below(1.5 * person.mottled - 4 * np.abs(smooth_noise(shape, 14.0 / voxel_mm, rng)))
    pads = below(4 * (smooth_noise(shape, 18.0 / voxel_mm, rng) + 2 * (person.mottled - 0.7)))
    patches = np.maximum(sheets, pads) * rng.uniform(0.6, 1.0)
    lining = below(cavity + person.mucosa_mm)
    pockets = below(5 * (smooth_noise(shape, 11.0 / voxel_mm, rng) + 1.2 * (person.pockets - 1.6))) * deep
    dura = below(1.2 - np.abs(skull + 1.0)) * np.clip(csf, 0, 1)

    left = head.copy()
    parts: dict[str, Array] = {}

    def take(name: str, share: Array) -> None:
        nonlocal left
        part = np.minimum(left, left * share)
        parts[name] = parts.get(name, np.zeros(shape, np.float32)) + part
        left = left - part

    open_air = hollow * (1 - person.filled * below(cavity + 3.0 * smooth_noise(shape, 12.0 / voxel_mm, rng)))
    take("air", open_air)
    # Bone may have grown over the brain's fluid, never over the brain.
    take("white", np.clip(white, 0, 1))
    take("grey", np.clip(grey / np.maximum(1 - white, 1e-3), 0, 1))
    skull_share = solid * np.clip(1 - (white + grey), 0, 1)
    take("marrow", skull_share * marrow)
    take("cortex", np.clip(skull_share * (1 - marrow) / np.maximum(1 - skull_share * marrow, 1e-3), 0, 1))
    take("dura", dura * 0.6)
    take("csf", np.where(brain > 0, np.clip(csf / np.maximum(1 - white - grey, 1e-3), 0, 1), 0))
    take("mucosa", lining)
    take("skin", 1 - outer)
    if person.pockets > 0:
        take("csf", pockets)
    take("fat", np.clip(1 - deep + deep * patches, 0, 1))
    take("muscle", np.ones(shape, np.float32))
    parts.pop("air")
    return parts


def shrink_brain(
    fields: npt.ArrayLike, gap_mm: float, rng: np.random.Generator, voxel_mm: float = 1.0, uneven: float = 0.5
) -> Array:
    """Returns fields `(6, X, Y, Z)` of the same head with less brain: next to bone, fluid takes its place.

    The space between brain and skull is wide in the old and nearly absent in the young; a labelled head has one width.

    Args:
        fields: as `head_fields` makes them.
        gap_mm: how far from bone there is no brain, on average.
        rng: for where the gap is wider or narrower.
        voxel_mm: size of a voxel, over which a border is blurred.
        uneven: standard deviation of the gap over its mean; it changes over some 30 mm.
    """
    changed = np.array(fields, dtype=np.float32)
    white, grey, csf, bone = (FIELDS.index(name) for name in ("white", "grey", "csf", "bone_mm"))
    gap = gap_mm * (1 + uneven * smooth_noise(changed.shape[1:], 30.0 / voxel_mm, rng))
    fluid = np.clip(0.5 + (gap + changed[bone]) / voxel_mm, 0, 1) * (gap > 0)
    changed[csf] += fluid * (changed[white] + changed[grey])
    changed[[white, grey]] *= 1 - fluid
    return changed


def _skull(bone: Array, person: Person, rng: np.random.Generator, voxel_mm: float) -> Array:
    """The depth within a person's own bone `[mm]`: thicker here, thinner there, and missing where it is open."""
    skull = bone + person.thicker_mm + person.uneven_mm * smooth_noise(bone.shape, 25.0 / voxel_mm, rng)
    if person.open_from < _CLOSED:
        opening = smooth_noise(bone.shape, 35.0 / voxel_mm, rng) - person.open_from
        skull -= 20.0 * np.clip(0.5 + 8 * opening / voxel_mm, 0, 1)
    return np.asarray(skull, dtype=np.float32)


def random_mr(
    fractions: Mapping[str, Array], rng: np.random.Generator, variety: float = 1.0, voxel_mm: float = 1.0
) -> Array:
    """Returns a T1-weighted magnitude image of a random scanner, white matter near 1.

    Sequence, fat suppression, chemical shift, coil falloff, texture and display curve are drawn; noise and thick slices
    come after it. Fat suppression and display curves, unusual on T1 of the head, are the rarer and the milder the
    smaller the `variety`. Shift, falloff and texture are drawn in millimetres: voxels of `voxel_mm` show the same head
    less finely, not another one.
    """
    tissues = {**RELAXATION[float(rng.choice([1.5, 3.0]))], **_MORE}
    signal = _random_sequence(tissues, rng)
    # Fat is weakened by saturation pulses, water excitation and out-of-phase echoes.
    fat_gain = rng.uniform(0.2, 1.1) if rng.uniform() < 0.6 * variety else 1.0
    gains = {"fat": fat_gain, "marrow": 0.4 + 0.6 * fat_gain}
    shape = next(iter(fractions.values())).shape
    water, fat = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    for name, fraction in fractions.items():
        level = signal(jittered(tissues[name], rng)) * gains.get(name, 1.0)
        texture = 1 + rng.uniform(0.02, 0.12) * smooth_noise(shape, rng.uniform(2.0, 6.0) / voxel_mm, rng)
        image = fat if name == "fat" else water
        image += np.float32(level) * fraction * texture
    image = water + _shifted(fat, rng, voxel_mm)
    falloff = np.exp(rng.uniform(0.0, 0.35) * smooth_noise(shape, rng.uniform(50.0, 120.0) / voxel_mm, rng))
    unit = np.maximum(image * falloff / signal(tissues["white"]), 0.0)
    return np.asarray(unit ** (1 + variety * (rng.uniform(0.75, 1.3) - 1)), dtype=np.float32)


def _shifted(fat: Array, rng: np.random.Generator, voxel_mm: float) -> Array:
    """Moves what fat signals along the frequency axis, as low bandwidth does, by up to two millimetres."""
    if rng.uniform() < 0.5:
        return fat
    axis, distance = int(rng.integers(3)), float(rng.uniform(-2.0, 2.0)) / voxel_mm
    whole = int(np.floor(distance))
    near, far = np.roll(fat, whole, axis), np.roll(fat, whole + 1, axis)
    return np.asarray(near + np.float32(distance - whole) * (far - near), dtype=np.float32)


def random_ct(fractions: Mapping[str, Array], rng: np.random.Generator, voxel_mm: float = 1.0) -> Array:
    """Returns CT numbers `[HU]` of a random person: tissues vary by place and person, bone most."""
    tissues = {**RELAXATION[1.5], **_MORE}
    # HU, one standard deviation: from person to person, and from place to place.
    persons = {"cortex": 100.0, "marrow": 80.0, "fat": 10.0}
    places = {"cortex": 120.0, "marrow": 100.0, "fat": 10.0}
    shape = next(iter(fractions.values())).shape
    image = np.full(shape, AIR_HU, dtype=np.float32)
    for name, fraction in fractions.items():
        person = tissues[name].hu + persons.get(name, 3.0) * rng.normal()
        hu = person + places.get(name, 5.0) * smooth_noise(shape, rng.uniform(4.0, 15.0) / voxel_mm, rng)
        image += fraction * (hu - AIR_HU).astype(np.float32)
    return image


def smooth_noise(shape: tuple[int, ...], length: float, rng: np.random.Generator) -> Array:
    """Returns a random field `(X, Y, Z)` of mean 0 and variance near 1 that changes over `length` voxels.

    Cubic B-splines of normal numbers on a lattice: as smooth across it as along it.
    """
    spacing = 0.65 * length  # a cubic spline reaches two nodes far
    nodes = [int(np.ceil(n / spacing)) + 4 for n in shape]
    field = torch.from_numpy(rng.normal(size=nodes).astype(np.float32))
    # One matrix an axis; torch's product keeps to one thread in a loader's worker, numpy's does not.
    along_x, along_y, along_z = (_spline(n, k, spacing, rng.uniform()) for n, k in zip(shape, nodes, strict=True))
    field = along_y @ (field @ along_z.T)
    field = along_x @ field.reshape(nodes[0], -1)
    return np.asarray(field.reshape(shape).numpy())


def _spline(count: int, nodes: int, spacing: float, start: float) -> torch.Tensor:
    """The weights `(count, nodes)` of nodes in voxels, whose mean square sum over places is 1."""
    away = np.abs(np.arange(count)[:, None] / spacing + start + 1 - np.arange(nodes))
    near, far = 2 / 3 - away**2 + away**3 / 2, np.clip(2 - away, 0, None) ** 3 / 6
    weights = np.where(away < 1, near, far) / np.sqrt(151 / 315)
    return torch.from_numpy(weights.astype(np.float32))


def _random_sequence(tissues: Mapping[str, Tissue], rng: np.random.Generator) -> Callable[[Tissue], float]:
    """A T1-weighted sequence of one of three families, its times drawn from what hospitals use.

    Drawn again until it is T1-weighted: fluid below grey matter below white matter, and fat not beyond all measure.
    """
    while True:
        signal = _sequence(rng)
        fluid, grey, white, fat = (signal(tissues[name]) for name in ("csf", "grey", "white", "fat"))
        if fluid < grey < white and fat < _BRIGHTEST_FAT * white:
            return signal


def _sequence(rng: np.random.Generator) -> Callable[[Tissue], float]:
    kind = rng.integers(3)
    if kind == 0:
        tr, te, flip = rng.uniform(6, 30), rng.uniform(2, 6), rng.uniform(8, 40)
        return lambda tissue: gradient_echo(tissue, tr_ms=tr, te_ms=te, flip_degrees=flip)
    if kind == 1:
        tr, te = rng.uniform(350, 750), rng.uniform(8, 20)
        return lambda tissue: spin_echo(tissue, tr_ms=tr, te_ms=te)
    ti, te = rng.uniform(750, 1500), rng.uniform(2, 5)
    return lambda tissue: inversion_recovery(tissue, tr_ms=2300, ti_ms=ti, te_ms=te)


def jittered(tissue: Tissue, rng: np.random.Generator) -> Tissue:
    """Returns a tissue of another person: relaxation times and density some 15 % more or less."""
    t1, t2, density = rng.uniform(0.85, 1.18, size=3)
    return Tissue(tissue.t1_ms * t1, tissue.t2_ms * t2, tissue.density * density, tissue.hu)
