"""A guess at an MR: what physics knows of each tissue holds, and no more is promised."""

import numpy as np
import pytest

from medgen.simulate.guess import HU_NODES, guess_mr, random_signals

SLABS_HU = {"air": -1000.0, "fat": -100.0, "fluid": 8.0, "white": 28.0, "grey": 37.0, "cortex": 1300.0}


def slabs() -> np.ndarray:
    """Eight voxels of each tissue along x."""
    return np.repeat(np.array(list(SLABS_HU.values()), np.float32), 8)[:, None, None] * np.ones((1, 20, 20), np.float32)


def levels(seed: int) -> dict[str, float]:
    guess = guess_mr(slabs(), np.random.default_rng(seed))
    return {name: float(guess[8 * n + 3 : 8 * n + 5].mean()) for n, name in enumerate(SLABS_HU)}


@pytest.mark.parametrize("seed", range(8))
def test_bone_and_air_are_dark_and_fluid_is_darker_than_brain(seed: int) -> None:
    level = levels(seed)
    assert max(level["air"], level["cortex"]) < 0.5 * level["white"]
    assert level["fluid"] < 0.75 * level["white"]
    assert level["fluid"] < level["grey"]


def test_fat_is_bright_mostly_and_sometimes_suppressed() -> None:
    ratios = [level["fat"] / level["white"] for level in map(levels, range(24))]
    assert 0 < sum(ratio < 0.9 for ratio in ratios) < sum(ratio > 1.0 for ratio in ratios)


def test_it_is_a_magnitude_and_hangs_on_its_seed_alone() -> None:
    first, same, other = (guess_mr(slabs(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    assert (first >= 0).all()
    assert first.dtype == np.float32
    assert first.shape == slabs().shape


def test_each_node_has_a_signal_and_nodes_rise() -> None:
    assert len(random_signals(np.random.default_rng(0))) == len(HU_NODES)
    assert (np.diff(HU_NODES) > 0).all()
