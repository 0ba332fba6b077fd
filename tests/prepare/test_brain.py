"""The brain in heads with and without skull."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from scipy.ndimage import binary_fill_holes

from medgen.errors import IntensityError
from medgen.prepare.brain import FindBraind, _filled, find_brain
from medgen.simulate.brain import simulate_brain
from medgen.simulate.sample import head_grid
from medgen.simulate.signal import inversion_recovery, mr_image, spin_echo

GRID = head_grid((80, 100, 84), (2.0, 2.0, 2.0))


def flair(head: bool) -> tuple[np.ndarray, np.ndarray]:
    parts = simulate_brain(GRID, seed=1, head=head)
    image = mr_image(parts, lambda tissue: inversion_recovery(tissue, tr_ms=9000, ti_ms=1750, te_ms=120))
    return 1000 * image, np.asarray(parts["grey"] + parts["white"]) > 0.5


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def test_a_stripped_brain_is_taken_as_it_is() -> None:
    image, _ = flair(head=False)
    found = find_brain(image.astype(np.float32), GRID.spacing_mm)
    assert found[image > 0].all()


def test_in_a_head_it_is_set_apart_from_the_scalp() -> None:
    image, tissue = flair(head=True)
    noisy = np.abs(image + np.random.default_rng(0).normal(0, 8, image.shape)).astype(np.float32)
    found = find_brain(noisy, GRID.spacing_mm)
    assert found[tissue].mean() > 0.95
    assert dice(found, tissue) > 0.85


def test_on_t2_fluid_around_the_brain_may_come_along_but_no_scalp() -> None:
    parts = simulate_brain(GRID, seed=2, head=True)
    image = 1000 * mr_image(parts, lambda tissue: spin_echo(tissue, tr_ms=4000, te_ms=100))
    found = find_brain(image.astype(np.float32), GRID.spacing_mm)
    assert found[np.asarray(parts["grey"] + parts["white"]) > 0.5].mean() > 0.95
    assert found[np.asarray(parts["fat"] + parts["muscle"]) > 0.9].mean() < 0.05


def test_what_holds_no_brain_is_refused() -> None:
    with pytest.raises(IntensityError, match="expected a brain of"):
        find_brain(np.pad(np.ones((4, 4, 4), np.float32), 10), (1.0, 1.0, 1.0))
    with pytest.raises(IntensityError, match="positive voxels, got none"):
        find_brain(np.zeros((20, 20, 20), np.float32), (1.0, 1.0, 1.0))


def test_the_transform_empties_the_surroundings_and_keeps_the_grid() -> None:
    image, _ = flair(head=True)
    given = MetaTensor(torch.from_numpy(image.astype(np.float32))[None], affine=torch.from_numpy(GRID.affine))
    made = FindBraind("image")({"image": given})
    assert made["brain"].shape == made["image"].shape
    assert torch.all(made["image"][made["brain"] == 0] == 0)
    torch.testing.assert_close(made["brain"].affine, given.affine)
    assert FindBraind("image", allow_missing_keys=True)({"tissues": 1}) == {"tissues": 1}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), share=st.sampled_from([0.3, 0.6, 0.9]))
def test_holes_are_filled_as_scipy_does(seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((9, 8, 7)) < share
    assert (_filled(mask) == binary_fill_holes(mask)).all()
