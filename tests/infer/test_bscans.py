"""Scores of B-scans, eyes and parts of a retina: the highest of what is retina, in one place each."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from monai.data import MetaTensor

from medgen.errors import IntensityError
from medgen.infer.bscans import SIDE_COLUMNS, ScoreBScansd, retina_parts, score_bscan, score_volume
from medgen.infer.regions import REGIONS_KEY, SCAN_KEY
from medgen.prepare.flatten import RETINA_KEY, FlattenRetinad, place_of
from medgen.simulate.oct import simulate_bscan

Mask = npt.NDArray[np.bool_]


def retina(columns: int = 120) -> Mask:
    """Rows 20 to 57 of a band, thicker in the middle."""
    top = 22 - np.rint(6 * np.exp(-(((np.arange(columns) - columns / 2) / 20) ** 2)))
    rows = np.arange(64)
    return np.asarray((rows >= top[:, None]) & (rows < 58))


def heat_map(columns: int = 120, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).random((columns, 64), dtype=np.float32)


def item(*seeds: int) -> dict[Any, Any]:
    """Flattened B-scans and a map on them."""
    volume = np.stack([simulate_bscan(seed, (256, 496)).image for seed in seeds], axis=-1)[None]
    affine = torch.diag(torch.tensor([0.0115, -1.92 / 496, 0.2, 1.0], dtype=torch.float64))
    made: dict[Any, Any] = FlattenRetinad("image")({"image": MetaTensor(torch.from_numpy(volume), affine=affine)})
    made["pred"] = MetaTensor(0.1 * torch.rand(made["image"].shape), meta=made["image"].meta)
    return made


def test_a_bscans_score_is_the_mean_of_its_highest_twentieth() -> None:
    heat, inside = np.zeros((120, 64), np.float32), np.ones((120, 64), np.bool_)
    counted = (120 - 2 * SIDE_COLUMNS) * 64
    highest = round(0.05 * counted)
    heat[10:110].ravel()[:highest] = 2.0
    assert score_bscan(heat, inside) == pytest.approx(2.0)
    heat[10:110].ravel()[highest : 2 * highest] = 1.0
    assert score_bscan(heat, inside) == pytest.approx(2.0)
    heat[10:110].ravel()[: highest // 2] = 1.0
    assert score_bscan(heat, inside) == pytest.approx(1.0 + (highest - highest // 2) / highest, abs=1e-3)


def test_only_what_is_retina_counts_and_not_the_picture_s_sides() -> None:
    heat, inside = heat_map(), retina()
    expected = score_bscan(heat, inside)
    loud = heat.copy()
    loud[~inside] = 9.0
    loud[:SIDE_COLUMNS] = loud[-SIDE_COLUMNS:] = 9.0
    assert score_bscan(loud, inside) == expected
    loud[60, 30] = 9.0
    assert score_bscan(loud, inside) > expected


def test_a_score_grows_with_the_map_and_does_not_change_the_mask() -> None:
    heat, inside = heat_map(), retina()
    before = inside.copy()
    assert score_bscan(2 * heat, inside) == pytest.approx(2 * score_bscan(heat, inside), rel=1e-6)
    assert score_bscan(heat[::-1], inside[::-1]) == pytest.approx(score_bscan(heat, inside), rel=1e-6)
    assert np.array_equal(inside, before)


def test_what_shows_too_little_retina_has_no_score() -> None:
    inside = np.zeros((120, 64), np.bool_)
    inside[50, :39] = True
    assert math.isnan(score_bscan(heat_map(), inside))
    inside[51, :1] = True
    assert score_bscan(heat_map(), inside) > 0


def test_a_map_on_another_grid_is_refused() -> None:
    with pytest.raises(IntensityError, match=r"got \(120, 64\) and \(100, 64\)"):
        score_bscan(heat_map(), retina(100))


def test_an_eye_is_as_abnormal_as_its_worst_tenth() -> None:
    bscans = np.linspace(0, 1, 40)
    assert score_volume(bscans) == pytest.approx(bscans[-4:].mean())
    assert score_volume(np.random.default_rng(0).permutation(bscans)) == pytest.approx(bscans[-4:].mean())
    assert score_volume([0.3]) == pytest.approx(0.3)
    assert score_volume([math.nan, 0.3, math.nan, 0.1]) == pytest.approx(0.3)
    with pytest.raises(IntensityError, match="is it all wedge"):
        score_volume([math.nan, math.nan])
    with pytest.raises(IntensityError, match="got none"):
        score_volume([])


def test_parts_share_the_retina_without_its_sides_among_them() -> None:
    inside = retina()
    parts = retina_parts(inside)
    assert list(parts) == [f"{s}, {d} retina" for s in ("left", "middle", "right") for d in ("inner", "outer")]
    total = np.sum(list(parts.values()), axis=0)
    expected = inside.copy()
    expected[:SIDE_COLUMNS] = expected[-SIDE_COLUMNS:] = False
    assert np.array_equal(total, expected.astype(int))


def test_inner_lies_above_outer_and_both_are_halves_of_every_column() -> None:
    parts = retina_parts(retina())
    for n, side in enumerate(("left", "middle", "right")):
        inner, outer = parts[f"{side}, inner retina"], parts[f"{side}, outer retina"]
        columns = np.flatnonzero(inner.any(axis=1))
        assert set(columns) <= set(range(40 * n, 40 * (n + 1)))
        for column in columns:
            assert np.flatnonzero(inner[column]).max() < np.flatnonzero(outer[column]).min()
            assert abs(int(inner[column].sum()) - int(outer[column].sum())) <= 1


def test_an_item_gets_scores_and_its_map_is_cut_to_the_retina() -> None:
    made = item(0)
    heat, inside = made["pred"][0, ..., 0].as_tensor().numpy(), made[RETINA_KEY][0, ..., 0].numpy() > 0
    scored = ScoreBScansd("pred")(made)
    assert scored[SCAN_KEY] == pytest.approx(score_bscan(heat, inside))
    cut = scored["pred"][0, ..., 0].as_tensor().numpy()
    assert np.array_equal(cut, np.where(inside, heat, 0))
    assert isinstance(scored["pred"], MetaTensor)
    assert {region.name for region in scored[REGIONS_KEY]} == set(retina_parts(inside))
    assert np.array_equal(made["pred"][0, ..., 0].as_tensor().numpy(), heat)  # what was given stays as it was


def test_the_part_with_the_lesion_comes_first_and_its_peak_lies_where_it_was_marked() -> None:
    made = item(0, 1)
    inside = made[RETINA_KEY][0, ..., 1].numpy() > 0
    column = 100
    row = int(np.flatnonzero(inside[column])[-5])  # close to the choroid
    heat = made["pred"].as_tensor()
    heat[0, column - 3 : column + 4, row - 3 : row + 4, 1] = 1.0
    heat[0, column, row, 1] = 1.5
    scored = ScoreBScansd("pred")(made)
    worst = scored[REGIONS_KEY][0]
    assert worst.name == "B-scan 1, right, outer retina"
    assert worst.peak_mm == place_of(made["image"], column, row, 1)
    assert worst.peak_mm[0] == pytest.approx((column + 0.5) * 0.023, abs=0.01)
    assert worst.peak_mm[2] == pytest.approx(0.2)
    assert worst.evidence == worst.score
    assert worst.p is None
    values = [region.score for region in scored[REGIONS_KEY]]
    assert values == sorted(values, reverse=True)
    assert len(values) == 12
    assert scored[SCAN_KEY] > 0.2


def test_parts_that_are_hidden_are_left_out() -> None:
    made = item(0)
    made[RETINA_KEY][:, :42] = 0  # a wedge over the left third
    scored = ScoreBScansd("pred")(made)
    sides = {region.name.split(",")[0] for region in scored[REGIONS_KEY]}
    assert sides == {"middle", "right"}
    made[RETINA_KEY][:] = 0
    with pytest.raises(IntensityError, match="is it all wedge"):
        ScoreBScansd("pred")(made)
