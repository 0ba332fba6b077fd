"""A head drawn from labels: tissues add up, depths are depths, and the CT shows what the MR shows."""

from dataclasses import replace

import numpy as np
import pytest

from medgen.simulate.head import (
    FIELDS,
    LABELS,
    Person,
    head_fields,
    head_fractions,
    random_ct,
    random_mr,
    shrink_brain,
    signed_depth_mm,
    smooth_noise,
)

SIDE = 48


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """Shells at 2 mm: white matter in grey, fluid, 6 mm of bone, 10 mm of soft tissue; a hole of air in the bone."""
    x, y, z = np.indices((SIDE, SIDE + 2, SIDE + 4)) - np.reshape([24, 25, 26], (3, 1, 1, 1))
    radius = 2.0 * np.sqrt(x**2 + y**2 + z**2)
    found = np.zeros(radius.shape, np.uint8)
    for name, outer in (("soft", 46), ("bone", 36), ("csf", 30), ("grey", 27), ("white", 20)):
        found[radius < outer] = LABELS[name]
    found[(np.abs(x) < 2) & (np.abs(y) < 2) & (found == LABELS["bone"])] = LABELS["air"]
    return found


@pytest.fixture(scope="module")
def fields(labels: np.ndarray) -> np.ndarray:
    return head_fields(labels, 2.0)


def test_depths_are_distances_to_the_surface(fields: np.ndarray) -> None:
    skin = fields[FIELDS.index("skin_mm")]
    assert skin[24, 25, 26] == pytest.approx(45.0, abs=2.0)
    assert skin[0, 0, 0] < -30
    assert ((skin > 0) == (skin >= 0)).all()


def test_a_plate_thinner_than_a_voxel_is_still_there(labels: np.ndarray) -> None:
    thin = np.zeros((8, 8, 8), np.uint8)
    thin[3] = LABELS["bone"]
    depth = head_fields(thin, 0.5, 2)[FIELDS.index("bone_mm")]
    assert depth[1] == pytest.approx(np.zeros((4, 4)))  # half of the voxel is bone
    assert (depth[[0, 2, 3]] <= -0.5).all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_what_is_empty_or_full_is_far_from_a_surface(share: float) -> None:
    depth = signed_depth_mm(np.full((3, 3, 3), share), 1.0)
    assert (np.sign(depth) == (1 if share else -1)).all()


@pytest.mark.parametrize("seed", range(4))
def test_fractions_add_up_to_at_most_one(fields: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    total = sum(head_fractions(fields, Person.draw(rng), rng, 2.0).values())
    assert isinstance(total, np.ndarray)
    assert total.max() <= 1 + 1e-5
    assert total[24, 25, 26] == pytest.approx(1.0)
    assert total[0, 0, 0] == 0


def test_brain_is_where_the_labels_say(labels: np.ndarray, fields: np.ndarray) -> None:
    fractions = head_fractions(fields, Person(), np.random.default_rng(0), 2.0)
    for name in ("white", "grey"):
        assert fractions[name][labels == LABELS[name]].mean() > 0.9
    bone = fractions["cortex"] + fractions["marrow"]
    assert bone[labels == LABELS["bone"]].mean() > 0.75
    assert bone[np.isin(labels, [LABELS["white"], LABELS["grey"]])].max() < 0.05


def test_a_thicker_skull_has_more_bone_and_no_less_brain(fields: np.ndarray) -> None:
    thin, thick = (
        head_fractions(fields, replace(Person(), thicker_mm=mm), np.random.default_rng(1), 2.0) for mm in (-1.0, 1.0)
    )
    assert sum(thick[n].sum() for n in ("cortex", "marrow")) > 1.2 * sum(thin[n].sum() for n in ("cortex", "marrow"))
    assert thick["white"].sum() == pytest.approx(thin["white"].sum(), rel=1e-4)


def test_a_shrunken_brain_leaves_fluid_beside_the_bone_and_nothing_else_changes(
    labels: np.ndarray, fields: np.ndarray
) -> None:
    shrunken = shrink_brain(fields, 8.0, np.random.default_rng(0), 2.0, uneven=0.0)
    brain, fluid = fields[:2].sum(axis=0), fields[2]
    assert shrunken[:3].sum(axis=0) == pytest.approx(brain + fluid, abs=1e-5)
    assert np.array_equal(shrunken[3:], fields[3:])
    from_bone = -fields[FIELDS.index("bone_mm")]
    inside = np.isin(labels, [LABELS[name] for name in ("white", "grey", "csf")])
    assert shrunken[2][inside & (from_bone < 6)].min() > 0.99
    assert np.array_equal(shrunken[:, inside & (from_bone > 10)], fields[:, inside & (from_bone > 10)])


def test_a_gap_varies_over_the_head_and_none_is_none(fields: np.ndarray) -> None:
    assert np.array_equal(shrink_brain(fields, 0.0, np.random.default_rng(0), 2.0), fields)
    even, uneven = (shrink_brain(fields, 6.0, np.random.default_rng(3), 2.0, uneven=u) for u in (0.0, 0.5))
    assert (even[2] > uneven[2] + 0.5).any()
    assert (uneven[2] > even[2] + 0.5).any()


@pytest.mark.parametrize("seed", range(6))
def test_ct_tells_bone_air_and_fat_and_mr_has_white_above_grey(
    labels: np.ndarray, fields: np.ndarray, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    fractions = head_fractions(fields, Person(), rng, 2.0)
    mr, ct = random_mr(fractions, rng), random_ct(fractions, rng)
    assert np.median(ct[fractions["cortex"] > 0.9]) > 500
    assert np.median(ct[fractions["fat"] > 0.9]) < -40
    assert np.median(ct[labels == LABELS["white"]]) == pytest.approx(30, abs=15)
    assert (ct[labels == 0] < -900).mean() > 0.9
    core = {name: np.median(mr[labels == LABELS[name]]) for name in ("white", "grey", "csf")}
    assert core["white"] > 0.9 * core["grey"]  # T1 weighting, if only just
    assert 0.3 < core["white"] < 3.5  # 1 but for the falloff of coils
    assert mr.min() >= 0
    assert np.median(mr[fractions["cortex"] > 0.9]) < 0.35 * core["white"]


def test_fat_is_shifted_by_millimetres_whatever_the_voxels() -> None:
    fat = np.zeros((24, 24, 24), np.float32)
    fat[10:14, 10:14, 10:14] = 1

    def shift(seed: int, voxel_mm: float) -> float:
        image = random_mr({"fat": fat}, np.random.default_rng(seed), 0.0, voxel_mm)
        return max(abs(float((image * axis).sum() / image.sum()) - 11.5) for axis in np.indices(fat.shape))

    fine, coarse = (np.array([shift(seed, mm) for seed in range(16)]) for mm in (1.0, 2.0))
    assert 1.2 < fine.max() < 2.2
    assert coarse.max() < 1.2
    assert (fine < 0.2).any()  # not all scanners shift


def test_another_draw_is_another_person(fields: np.ndarray) -> None:
    first, second = (
        random_ct(head_fractions(fields, Person.draw(r), r, 2.0), r) for r in map(np.random.default_rng, (1, 2))
    )
    assert np.abs(first - second).mean() > 20


def test_noise_is_standard_and_smooth() -> None:
    noise = smooth_noise((60, 60, 60), 5.0, np.random.default_rng(0))
    assert abs(noise.mean()) < 0.15
    assert noise.std() == pytest.approx(1.0, abs=0.2)
    assert np.abs(np.diff(noise, axis=0)).mean() < 0.35


def test_an_open_skull_lacks_bone_and_keeps_its_brain(fields: np.ndarray) -> None:
    bone = {}
    for level in (9.0, 0.0):
        people = [
            head_fractions(fields, replace(Person(), open_from=level), np.random.default_rng(s), 2.0) for s in range(6)
        ]
        bone[level] = sum(person[name].sum() for person in people for name in ("cortex", "marrow"))
        assert people[0]["white"].sum() == pytest.approx(fields[0].sum(), rel=1e-3)
        assert sum(people[0].values()).max() <= 1 + 1e-4
    assert 0.25 * bone[9.0] < bone[0.0] < 0.75 * bone[9.0]  # half of a field is above its mean


def test_every_mr_is_t1_weighted() -> None:
    """Whatever the scanner: fluid below grey below white matter, and fat not beyond all measure."""
    names = ("csf", "grey", "white", "fat")
    slabs = {name: np.zeros((32, 12, 12), np.float32) for name in names}
    for n, name in enumerate(names):
        slabs[name][8 * n : 8 * n + 8] = 1
    for seed in range(12):
        images = [random_mr(slabs, np.random.default_rng(1000 * seed + k), variety=0.0) for k in range(6)]
        fluid, grey, white, fat = (
            float(np.median([image[8 * n + 2 : 8 * n + 6].mean() for image in images])) for n in range(len(names))
        )
        assert fluid < white
        assert grey < 1.1 * white
        assert fat < 4.5 * white
