"""Regions of a brain, and what a map of scores amounts to in them."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medgen.errors import IntensityError
from medgen.infer.regions import (
    REGIONS_KEY,
    SCAN_KEY,
    ScoreRegionsd,
    among_themselves,
    in_own_spreads,
    region_labels,
    score_regions,
    score_scan,
    top_mean,
)

BRAIN = np.zeros((100, 130, 100), dtype=bool)
BRAIN[5:-5, 5:-5, 5:-5] = True


def test_every_voxel_of_the_brain_has_one_region_and_all_are_alike() -> None:
    labels, names = region_labels(BRAIN)
    assert len(names) == len(set(names)) == 40
    assert (labels > 0).tolist() == BRAIN.tolist()
    counts = np.bincount(labels.ravel())[1:]
    assert len(counts) == 40
    assert counts.max() < 1.25 * counts.min()


def test_names_follow_the_patients_directions() -> None:
    labels, names = region_labels(BRAIN)
    at = lambda x, y, z: names[labels[x, y, z] - 1]  # noqa: E731
    assert (at(10, 10, 10), at(90, 120, 90)) == ("left back base", "right front top")
    assert at(30, 65, 40) == "left middle lower"


def test_a_thread_of_tissue_does_not_move_the_regions() -> None:
    brain = BRAIN.copy()
    brain[50, 65, :5] = True  # a cord
    np.testing.assert_array_equal(region_labels(brain)[0][BRAIN], region_labels(BRAIN)[0][BRAIN])


def test_an_image_without_a_brain_is_refused() -> None:
    with pytest.raises(IntensityError, match="expected a brain"):
        region_labels(np.zeros((5, 5, 5), dtype=bool))


def test_a_lesion_of_a_quarter_of_a_percent_is_the_score_of_its_region() -> None:
    heat = np.zeros(BRAIN.shape, np.float32)
    heat[20:25, 106:111, 60:64] = 3.0  # 100 of some 24,000 voxels
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = [-50, -60, -40]
    first, second, *rest = score_regions(heat, BRAIN, affine)
    assert (first.name, first.score, second.score) == ("left front upper", 3.0, 0.0)
    assert first.peak_mm == (-30.0, 46.0, 20.0)
    assert len(rest) == 38
    assert sum(region.volume_ml for region in (first, second, *rest)) == pytest.approx(BRAIN.sum() / 1000)
    assert score_scan(heat, BRAIN) == pytest.approx(300 / round(0.001 * BRAIN.sum()))


def test_one_voxel_is_not_enough() -> None:
    heat = np.zeros(BRAIN.shape, np.float32)
    heat[30, 30, 30] = 3.0
    assert score_regions(heat, BRAIN, np.eye(4))[0].score == pytest.approx(3 / 61, rel=0.05)


def test_a_healthy_region_does_not_score_higher_for_being_larger() -> None:
    rng = np.random.default_rng(0)
    scores = []
    for side in (14, 20, 34):  # of regions in voxels, 3 to 39 ml
        brain = np.ones((2 * side, 5 * side, 4 * side), dtype=bool)
        heat = rng.normal(size=brain.shape).astype(np.float32)
        scores.append(np.mean([region.score for region in score_regions(heat, brain, 1.2 * np.eye(4))]))
    assert np.ptp(scores) < 0.1


def test_what_is_left_out_does_not_count_and_does_not_move_the_regions() -> None:
    heat = np.random.default_rng(0).normal(size=BRAIN.shape).astype(np.float32)
    heat[20:30, 106:116, 58:68] = 50.0
    seen = BRAIN.copy()
    seen[18:32, 104:118, 56:70] = False
    scored = {region.name: region for region in score_regions(heat, BRAIN, np.eye(4), seen=seen)}
    whole = {region.name: region for region in score_regions(heat, BRAIN, np.eye(4))}
    assert whole["left front upper"].score == 50.0
    assert scored["left front upper"].score < 5
    assert scored["right back base"] == whole["right back base"]


def test_regions_of_which_less_than_half_is_left_are_not_scored() -> None:
    seen = BRAIN.copy()
    seen[:, :, 64:] = False  # of the upper quarter of heights, 50 to 72, most is left
    names = {region.name for region in score_regions(np.zeros(BRAIN.shape, np.float32), BRAIN, np.eye(4), seen=seen)}
    assert not any(name.endswith("top") for name in names)
    assert "left middle upper" in names


def test_the_mean_of_the_highest() -> None:
    values = np.array([1.0, 5.0, 3.0, 2.0], dtype=np.float32)
    assert [top_mean(values, share) for share in (0.01, 0.5, 1.0)] == [5.0, 4.0, 2.75]


def test_a_scan_is_measured_in_its_own_spreads_which_bright_lesions_do_not_touch() -> None:
    heat = np.random.default_rng(0).normal(3.0, 0.2, size=BRAIN.shape).astype(np.float32)
    own = in_own_spreads(heat, BRAIN)
    np.testing.assert_allclose(np.percentile(own[BRAIN], [10, 50]), [-1, 0], atol=1e-4)
    np.testing.assert_allclose(in_own_spreads(7 * heat + 2, BRAIN), own, atol=1e-3)
    sick = np.where(heat > np.quantile(heat[BRAIN], 0.8), np.float32(50), heat)
    np.testing.assert_allclose(in_own_spreads(sick, BRAIN)[sick < 50], own[sick < 50], atol=1e-3)


def test_the_transform_ranks_by_the_first_channel_and_keeps_it_and_the_last_is_evidence() -> None:
    rng = np.random.default_rng(0)
    both = rng.normal(7.0, size=(2, *BRAIN.shape)).astype(np.float32)
    made = ScoreRegionsd("pred")({"pred": MetaTensor(torch.from_numpy(both)), "brain": torch.from_numpy(BRAIN)[None]})
    assert made["pred"].shape == (1, *BRAIN.shape)
    own = in_own_spreads(both[1], BRAIN)
    assert torch.equal(made["pred"].as_tensor()[0], torch.from_numpy(both[0]))
    assert made[REGIONS_KEY] == score_regions(both[0], BRAIN, np.eye(4), own)
    by_name = {region.name: region.evidence for region in score_regions(own, BRAIN, np.eye(4))}
    assert {region.name: region.evidence for region in made[REGIONS_KEY]} == by_name
    assert made[SCAN_KEY] == score_scan(in_own_spreads(both[1], BRAIN), BRAIN)


def test_regions_are_compared_with_the_others_of_their_scan_first() -> None:
    scores = np.random.default_rng(0).normal(5, 2, 40)
    among = np.array(among_themselves(scores.tolist()))
    assert np.median(among) == pytest.approx(0)
    assert np.median(np.abs(among)) == pytest.approx(1)
    np.testing.assert_allclose(among_themselves((3 * scores + 7).tolist()), among)
    sick = np.where(np.arange(40) < 3, 99.0, scores)
    assert min(among_themselves(sick.tolist())[:3]) > 20
    assert np.isnan(among_themselves([1.0] * 9)).all()
    assert among_themselves([1.0] * 12) == [0.0] * 12
