"""Detection of lesions, voxel by voxel."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from medgen.errors import IntensityError
from medgen.metrics.detection import best_brightness, brightnesses, dice, score_detection, score_item
from medgen.run.protocol import find_protocol

RNG = np.random.default_rng(0)
BRAIN = np.zeros((20, 22, 18), dtype=bool)
BRAIN[2:-2, 2:-2, 2:-2] = True
LESION = np.zeros_like(BRAIN)
LESION[8:12, 8:12, 8:11] = True
HEAT = (RNG.normal(size=BRAIN.shape) + 1.5 * LESION).astype(np.float32)


def test_a_map_that_is_the_truth_is_perfect() -> None:
    score = score_detection(LESION, LESION, BRAIN, threshold=0.5)
    assert (score.auroc, score.auprc, score.best_dice, score.dice) == (1.0, 1.0, 1.0, 1.0)


def test_it_equals_scikit_learn_in_the_brain() -> None:
    score = score_detection(HEAT, LESION, BRAIN, threshold=1.0)
    truth, values = LESION[BRAIN], HEAT[BRAIN]
    assert score.auroc == roc_auc_score(truth, values)
    assert score.auprc == average_precision_score(truth, values)
    assert score.dice == pytest.approx(f1_score(truth, values > 1.0))
    assert score.best_dice == pytest.approx(f1_score(truth, values >= score.best_threshold))
    assert score.best_dice >= max(f1_score(truth, values > t) for t in np.linspace(-2, 4, 60))
    assert score.lesion_share == truth.mean()
    assert score.voxels == BRAIN.sum()


def test_what_lies_outside_of_the_brain_does_not_count() -> None:
    other = np.where(BRAIN, HEAT, 99.0)
    assert score_detection(other, LESION | ~BRAIN, BRAIN, 1.0) == score_detection(HEAT, LESION, BRAIN, 1.0)


def test_chance_is_the_share_of_lesions() -> None:
    score = score_detection(RNG.normal(size=BRAIN.shape), LESION, BRAIN)
    assert score.auroc == pytest.approx(0.5, abs=0.1)
    assert score.auprc == pytest.approx(score.lesion_share, abs=0.02)


def test_without_lesions_or_with_nothing_else_there_is_no_score() -> None:
    for truth in (np.zeros_like(BRAIN), np.ones_like(BRAIN)):
        with pytest.raises(IntensityError, match="got one kind"):
            score_detection(HEAT, truth, BRAIN)
        scores = score_item(HEAT, {"target": truth, "brain": BRAIN})
        assert all(np.isnan(value) for value in scores.values())
    with pytest.raises(IntensityError, match="one grid"):
        score_detection(HEAT[1:], LESION, BRAIN)


def test_brightness_is_smoothed_where_that_helps() -> None:
    clean = 1.0 + LESION
    np.testing.assert_array_equal(best_brightness(clean, LESION, BRAIN), clean.astype(np.float32))
    smooth = best_brightness(HEAT, LESION, BRAIN)
    assert score_detection(smooth, LESION, BRAIN).auprc > score_detection(HEAT, LESION, BRAIN).auprc


def test_the_protocol_scores_the_map_beside_brightness() -> None:
    protocol = find_protocol("detection")
    source = np.where(BRAIN, 1 + HEAT - HEAT.min(), 0).astype(np.float32)
    score = protocol.score(HEAT, LESION.astype(np.float32), source, None)
    simple = protocol.score(protocol.simple(source, LESION.astype(np.float32), None), LESION, source, None)
    assert set(protocol.metrics) <= set(score)
    assert simple["auprc"] >= score["auprc"]  # here the map is the image
    assert dice(np.zeros(3), np.zeros(3)) == 1.0


def test_the_operating_point_is_the_maps_own() -> None:
    truth, source = LESION.astype(np.float32), np.where(BRAIN, 1.0, 0).astype(np.float32)
    protocol = find_protocol("detection", threshold=1.0)
    assert protocol.score(HEAT, truth, source, None)["dice"] == score_detection(HEAT, LESION, BRAIN, 1.0).dice
    assert np.isnan(find_protocol("detection").score(HEAT, truth, source, None)["dice"])
    simple = protocol.score_simple(HEAT, truth, source, None)
    assert np.isnan([simple["dice"], simple["best_threshold"]]).all()
    assert simple["auroc"] == score_detection(HEAT, LESION, BRAIN).auroc


def test_brightness_loses_its_edge_where_asked() -> None:
    found = brightnesses(np.ones(BRAIN.shape), BRAIN)
    assert len(found) == 6
    assert found["brightness, sigma 0"].min() == 1
    eroded = found["brightness, sigma 0, edge of 2 voxels off"]
    assert 0 < eroded.sum() < BRAIN.sum()
    assert (eroded[~BRAIN] == 0).all()
