"""Scaling: any unit, whole head or bare brain, and a background that stays exactly 0."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from scipy.ndimage import binary_fill_holes

from medgen.errors import IntensityError
from medgen.geometry import spacing_mm
from medgen.prepare.intensity import (
    BlendSourced,
    MaskBackgroundd,
    NormalisePaird,
    NormaliseSourced,
    UnitToMagnituded,
    foreground,
    head_mask,
    source_to_unit,
    target_to_unit,
)
from medgen.simulate.sample import head_grid, simulate_t1

GRID = head_grid((44, 52, 33), (3.9, 4.2, 5.0), tilt_degrees=11.0)
BRAIN = simulate_t1(GRID, seed=1, head=False)
HEAD = simulate_t1(GRID, seed=1, head=True)


@settings(max_examples=10, deadline=None)
@given(unit=st.floats(1e-4, 1e5))
def test_the_unit_of_a_source_does_not_matter(unit: float) -> None:
    np.testing.assert_allclose(source_to_unit((BRAIN * unit).astype(np.float32)), source_to_unit(BRAIN), rtol=1e-4)


def test_a_source_is_zero_where_it_was_and_never_negative() -> None:
    spoiled = BRAIN - 20 * (np.random.default_rng(0).random(BRAIN.shape) < 0.01)
    unit = source_to_unit(spoiled.astype(np.float32))
    assert np.all(unit[spoiled <= 0] == 0)
    assert np.percentile(unit[foreground(spoiled)], 75) == pytest.approx(1, rel=1e-3)


def test_a_brain_is_scaled_alike_with_and_without_its_skull() -> None:
    inside = BRAIN > 0
    ratio = np.median(source_to_unit(HEAD)[inside]) / np.median(source_to_unit(BRAIN)[inside])
    assert 0.6 < ratio < 1.6  # the contrast augmentation of the training covers this


def test_an_image_without_positive_voxels_is_refused() -> None:
    with pytest.raises(IntensityError, match="positive"):
        source_to_unit(np.zeros((4, 5, 6), np.float32))


def test_targets_are_anchored_at_tissue_and_fluid() -> None:
    rng = np.random.default_rng(1)
    volume = rng.gamma(2.0, 100.0, (20, 21, 22)).astype(np.float32)
    mask = rng.random(volume.shape) < 0.5
    unit = target_to_unit(volume, mask)
    assert np.median(unit[mask]) == pytest.approx(0.3, abs=1e-3)
    assert unit.max() == 1
    np.testing.assert_allclose(target_to_unit(volume * 7 + 3, mask), unit, atol=1e-4)


def test_the_pair_brings_its_mask() -> None:
    source = BRAIN.copy()
    target = np.where(source > 0, 400 - source, 0).astype(np.float32)
    target[:20] = -1
    item = {
        key: MetaTensor(torch.from_numpy(v)[None], affine=GRID.affine)
        for key, v in (("image", source), ("target", target))
    }
    pair = NormalisePaird()(item)
    mask = pair["mask"][0].numpy() > 0
    assert mask[foreground(source) & (target > 0)].all()
    assert not mask[target <= 0].any()
    assert pair["target"][0].numpy()[(source <= 0) & ~mask].max() == 0
    assert torch.equal(pair["image"].affine, item["image"].affine)


def test_fluid_that_is_black_on_the_source_is_still_learnt() -> None:
    source, target = BRAIN.copy(), np.where(BRAIN > 0, 100.0, 0.0).astype(np.float32)
    centre = tuple(slice(n // 2 - 2, n // 2 + 2) for n in source.shape)
    source[centre], target[centre] = 0, 900
    pair = NormalisePaird()(
        {
            key: MetaTensor(torch.from_numpy(v)[None], affine=GRID.affine)
            for key, v in (("image", source), ("target", target))
        }
    )
    assert (pair["mask"][0][centre] == 1).all()
    assert (pair["target"][0][centre] == 1).all()


def test_normalising_keeps_the_grid_and_the_history() -> None:
    image = MetaTensor(torch.from_numpy(HEAD)[None], affine=GRID.affine, applied_operations=[{"class": "x"}])
    result = NormaliseSourced(keys="image")({"image": image})["image"]
    assert torch.equal(result.affine, image.affine)
    assert result.applied_operations == image.applied_operations


def test_a_level_scales_what_was_normalised_after_its_ceiling() -> None:
    image = MetaTensor(torch.from_numpy(np.random.default_rng(0).uniform(0, 9, (1, 6, 6, 6)).astype(np.float32)))
    plain, brighter = (NormaliseSourced("image", level=level)({"image": image})["image"] for level in (1.0, 1.3))
    assert torch.allclose(brighter, 1.3 * plain)
    assert torch.equal(plain, NormaliseSourced("image")({"image": image})["image"])


def test_the_background_of_a_stripped_brain_is_exactly_zero() -> None:
    mask = head_mask(BRAIN, spacing_mm(GRID.affine))
    outside = BRAIN == 0
    assert not mask[outside & ~_enclosed(BRAIN)].any()
    assert mask[foreground(BRAIN)].all()


def test_a_noisy_background_is_not_head() -> None:
    noisy = HEAD + np.random.default_rng(2).gamma(1.0, 1.0, HEAD.shape).astype(np.float32)
    mask = head_mask(noisy, spacing_mm(GRID.affine))
    assert not mask[:2].any()
    assert mask[tuple(n // 2 for n in mask.shape)]


def test_dark_fluid_inside_the_head_stays() -> None:
    ball = np.linalg.norm(np.indices((30, 32, 34)) - np.array([15, 16, 17])[:, None, None, None], axis=0)
    volume = np.where(ball < 12, 100.0, 0.0).astype(np.float32)
    volume[ball < 4] = 0
    assert head_mask(volume, (1.1, 0.9, 1.3))[ball < 11].all()


def test_masking_and_scaling_a_prediction() -> None:
    pred = MetaTensor(torch.full((1, *GRID.shape), 0.5), affine=GRID.affine)
    pred[0, 20, 20, 15] = -0.2
    source = MetaTensor(torch.from_numpy(BRAIN)[None], affine=GRID.affine)
    item = UnitToMagnituded(keys="pred", scale=1000.0)({"pred": pred, "source": source})
    result = MaskBackgroundd(keys="pred")(item)["pred"]
    assert set(np.unique(result.numpy())) <= {0.0, 500.0}
    assert torch.equal(result.affine, source.affine)
    assert result[0, 20, 20, 15] == 0


def _enclosed(volume: np.ndarray) -> np.ndarray:
    return binary_fill_holes(volume > 0) & (volume <= 0)


def _denoised(scan: torch.Tensor) -> dict[str, MetaTensor]:
    affine = np.diag([0.8, 0.8, 2.0, 1.0])
    pred = scan * 0.5 + torch.linspace(0, 1, scan.numel()).reshape(scan.shape)
    return {"source": MetaTensor(scan.clone(), affine=affine), "pred": MetaTensor(pred, affine=affine)}


def _random_scan() -> torch.Tensor:
    scan = torch.from_numpy(np.random.default_rng(0).uniform(-1024, 3071, (1, 6, 5, 4)).astype(np.float32))
    scan[0, 0] = -3024.0
    scan[0, 1] = -2000.3
    scan[0, 2, 0] = 30000.7
    return scan


def test_strength_goes_from_the_input_to_the_result_in_a_straight_line() -> None:
    scan = _random_scan()
    steps = [BlendSourced("pred", strength=s)(_denoised(scan))["pred"] for s in (0.0, 0.25, 0.5, 1.0)]
    assert torch.equal(steps[0].as_tensor(), scan)
    seen = scan[0, 3:]
    torch.testing.assert_close(steps[3][0, 3:].as_tensor(), _denoised(scan)["pred"][0, 3:].as_tensor())
    torch.testing.assert_close(steps[2][0, 3:].as_tensor(), (seen + steps[3][0, 3:].as_tensor()) / 2)
    distances = torch.stack([(step[0, 3:].as_tensor() - seen).abs() for step in steps])
    assert (distances.diff(dim=0) >= 0).all()
    assert np.array_equal(steps[1].affine, steps[3].affine)


def test_padding_and_metal_stay_bit_for_bit() -> None:
    scan = _random_scan()
    for strength in (0.3, 1.0):
        pred = BlendSourced("pred", strength=strength)(_denoised(scan))["pred"]
        assert torch.equal(pred[0, :2].as_tensor(), scan[0, :2])
        assert torch.equal(pred[0, 2, 0].as_tensor(), scan[0, 2, 0])
        assert not torch.equal(pred[0, 2, 1:].as_tensor(), scan[0, 2, 1:])


def test_air_below_what_the_network_is_given_gets_the_change_of_what_it_was_given() -> None:
    scan = torch.full((1, 2, 2, 1), -1100.0)
    pred = MetaTensor(torch.full((1, 2, 2, 1), -1010.0), affine=np.eye(4))  # 14 HU above -1024
    made = BlendSourced("pred", strength=0.5)({"source": scan, "pred": pred})["pred"]
    assert torch.equal(made.as_tensor(), torch.full((1, 2, 2, 1), -1093.0))


def test_a_strength_beyond_the_result_is_refused() -> None:
    with pytest.raises(IntensityError, match=r"from 0 .* to 1"):
        BlendSourced("pred", strength=1.2)
