"""How normal a map says that normal tissue is: of the retina alone, its mean and its top."""

import numpy as np
import pytest

from medgen.metrics.normality import score_item

RETINA = np.zeros((20, 16, 2), np.float32)
RETINA[:, 4:14] = 1


def test_a_map_without_anything_abnormal_scores_0() -> None:
    assert score_item(np.zeros_like(RETINA), {"retina": RETINA}) == {"heat": 0.0, "top": 0.0}


def test_only_the_retina_counts() -> None:
    heat = np.random.default_rng(0).random(RETINA.shape, dtype=np.float32)
    elsewhere = np.where(RETINA > 0, heat, np.float32(99))
    found = score_item(heat, {"retina": RETINA})
    assert score_item(elsewhere, {"retina": RETINA}) == found
    assert found["heat"] == pytest.approx(heat[RETINA > 0].mean())


def test_top_is_the_mean_of_the_highest_twentieth_wherever_it_lies() -> None:
    heat = np.zeros_like(RETINA)
    heat[3, 5:15, 0], heat[7, 5:14, 1], heat[9, 6, 1] = 2, 4, 10  # 9, 9 and 1 of 400 pixels of the retina
    found = score_item(heat, {"retina": RETINA})
    assert found["heat"] == pytest.approx((9 * 2 + 9 * 4 + 10) / 400)
    assert found["top"] == pytest.approx((9 * 2 + 9 * 4 + 10) / 20)


def test_a_map_that_finds_more_in_normal_tissue_is_worse() -> None:
    heat = np.random.default_rng(1).random(RETINA.shape, dtype=np.float32)
    lower, higher = (score_item(factor * heat, {"retina": RETINA}) for factor in (np.float32(1), np.float32(2)))
    assert higher == {name: pytest.approx(2 * value) for name, value in lower.items()}
    assert lower["top"] > lower["heat"]


def test_of_a_few_pixels_the_highest_is_the_top() -> None:
    heat = np.arange(RETINA.size, dtype=np.float32).reshape(RETINA.shape)
    few = np.zeros_like(RETINA)
    few[2, 2:5, 0] = 1
    assert score_item(heat, {"retina": few})["top"] == heat[2, 4, 0]
