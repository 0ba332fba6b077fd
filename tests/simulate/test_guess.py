"""A guess at an MR from a CT: tissues lie where the CT shows them, and look as physics has it."""

import numpy as np
import pytest

from medgen.simulate.guess import guess_fractions, guess_mr
from medgen.simulate.head import FIELDS, Person, head_fields, head_fractions, random_ct, shell_labels

SLABS_HU = {"air": -1000.0, "fat": -100.0, "fluid": 8.0, "white": 28.0, "grey": 37.0, "cortex": 1500.0}


def slabs() -> np.ndarray:
    """Twelve voxels of each tissue along x."""
    levels = np.repeat(np.array(list(SLABS_HU.values()), np.float32), 12)
    return levels[:, None, None] * np.ones((1, 20, 20), np.float32)


def middles(volume: np.ndarray) -> dict[str, float]:
    return {name: float(volume[12 * n + 5 : 12 * n + 7].mean()) for n, name in enumerate(SLABS_HU)}


def levels(seed: int) -> dict[str, float]:
    return middles(guess_mr(slabs(), np.random.default_rng(seed)))


@pytest.mark.parametrize("seed", range(8))
def test_bone_and_air_are_dark_and_fluid_is_darker_than_brain(seed: int) -> None:
    level = levels(seed)
    assert max(level["air"], level["cortex"]) < 0.5 * level["white"]
    assert level["fluid"] < 0.8 * level["white"]
    assert level["fluid"] < level["grey"]


def test_fat_is_bright_mostly_and_sometimes_suppressed() -> None:
    ratios = [level["fat"] / level["white"] for level in map(levels, range(24))]
    assert 0 < sum(ratio < 0.9 for ratio in ratios) < sum(ratio > 1.0 for ratio in ratios)


@pytest.mark.parametrize("seed", range(4))
def test_pure_tissues_are_told_by_their_hu(seed: int) -> None:
    parts = guess_fractions(slabs(), np.random.default_rng(seed))
    for tissue, slab in (("fat", "fat"), ("csf", "fluid"), ("white", "white"), ("grey", "grey"), ("cortex", "cortex")):
        assert middles(parts[tissue])[slab] > 0.9
    total = sum(parts.values())
    assert np.max(total) <= 1.0001
    assert middles(total)["air"] == 0


def plate(edge_hu: float, middle_hu: float) -> np.ndarray:
    """Flesh, one voxel of an edge, tables around a middle of five voxels, an edge, flesh."""
    line = [50.0] * 8 + [edge_hu, 1200.0, *[middle_hu] * 5, 1200.0, edge_hu] + [50.0] * 8
    return np.array(line, np.float32)[:, None, None] * np.ones((1, 12, 12), np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_the_same_hu_is_marrow_within_bone_and_an_edge_at_its_rim(seed: int) -> None:
    parts = guess_fractions(plate(500.0, 500.0), np.random.default_rng(seed))
    marrow = parts["marrow"][:, 6, 6]
    assert (marrow[10:15] > 0.45).all()
    assert marrow[8] == marrow[16] == 0
    assert 0.2 < parts["cortex"][8, 6, 6] < 0.6
    assert parts["muscle"][8, 6, 6] + parts["grey"][8, 6, 6] > 0.35


def test_between_air_and_bone_there_is_a_lining_or_none() -> None:
    line = np.array([-1000.0] * 8 + [-200.0] + [1200.0] * 3 + [50.0] * 8, np.float32)
    ct = line[:, None, None] * np.ones((1, 12, 12), np.float32)
    flesh = [float(guess_fractions(ct, np.random.default_rng(seed))["muscle"][8, 6, 6]) for seed in range(12)]
    assert {round(value, 2) for value in flesh} == {0.0, 0.76}


@pytest.mark.parametrize("seed", range(4))
def test_flesh_at_air_is_skin_however_little_of_the_voxel_it_fills(seed: int) -> None:
    line = np.array([-1000.0] * 6 + [-475.0] + [-95.0] * 12, np.float32)
    parts = guess_fractions(line[:, None, None] * np.ones((1, 12, 12), np.float32), np.random.default_rng(seed))
    assert parts["muscle"][6, 6, 6] == pytest.approx(0.5, abs=0.01)
    assert parts["fat"][6, 6, 6] == 0
    assert parts["fat"][8:, 6, 6].min() > 0.95


@pytest.mark.parametrize("seed", range(4))
def test_no_brighter_tissue_stands_at_the_edges_of_fluid(seed: int) -> None:
    """Between fluid and bone, or fluid and grey matter, every CT number in between occurs, white matter's too."""
    line = np.array([37.0] * 7 + [27.0] + [8.0] * 5 + [28.0] + [1200.0] * 4, np.float32)
    parts = guess_fractions(line[:, None, None] * np.ones((1, 12, 12), np.float32), np.random.default_rng(seed))
    assert parts["white"].max() < 0.2
    csf = parts["csf"][:, 6, 6]
    assert csf[6] == 0 < csf[7] < csf[8] == csf[12] == 1
    assert csf[13] == pytest.approx(1 - parts["cortex"][13, 6, 6], abs=1e-5)
    assert 0 < parts["cortex"][13, 6, 6] < 0.05


def test_flesh_with_fat_in_it_is_not_taken_for_fluid() -> None:
    ct = np.tile(np.array([-30.0, 5.0, 50.0, 15.0], np.float32), 5)[:, None, None] * np.ones((1, 20, 20), np.float32)
    parts = guess_fractions(ct, np.random.default_rng(0))
    assert parts["csf"].max() == 0
    assert parts["fat"][8, 10, 10] > parts["fat"][9, 10, 10] > parts["fat"][10, 10, 10]


def test_what_was_drawn_is_found_again() -> None:
    fields = head_fields(shell_labels((48, 48, 48)), 1.0)
    rng = np.random.default_rng(3)
    truth = head_fractions(fields, Person(uneven_mm=0.0), rng)
    found = guess_fractions(random_ct(truth, rng), rng)
    inside = fields[FIELDS.index("skin_mm")] > 2
    for name, limit in (("cortex", 0.03), ("marrow", 0.03), ("fat", 0.08)):
        assert np.abs(found[name] - truth[name])[inside].mean() < limit


def test_it_is_a_magnitude_and_hangs_on_its_seed_alone() -> None:
    first, same, other = (guess_mr(slabs(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    assert (first >= 0).all()
    assert first.dtype == np.float32
    assert first.shape == slabs().shape
