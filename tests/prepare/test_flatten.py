"""B-scans become flat bands, alike whatever tilt, pixel and company; what is marked on a band goes back in place."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd

from medgen.errors import GeometryError, IntensityError
from medgen.prepare.flatten import (
    LEFT_OUT_FLAG,
    RETINA_KEY,
    FlattenRetinad,
    assumed_spacing_um,
    place_of,
    unit_from_grey,
)
from medgen.prepare.retina import find_retina
from medgen.read.reader import flags_of
from medgen.simulate.oct import BScan, simulate_bscan

ROW_UM, COLUMN_UM = 8.7, 23.0
BRUCH_ROW = 64 - 96 / ROW_UM
AXIAL_UM, LATERAL_UM = 1920 / 496, 11.5  # of a simulated B-scan
Band = npt.NDArray[np.float32]


def oct_affine(lateral_um: float = LATERAL_UM, axial_um: float = AXIAL_UM) -> torch.Tensor:
    """Depth runs to the feet, B-scans lie 0.2 mm apart; the first pixel lies somewhere."""
    affine = np.zeros((4, 4))
    affine[0, 0], affine[2, 1], affine[1, 2], affine[3, 3] = lateral_um / 1000, -axial_um / 1000, 0.2, 1.0
    affine[:3, 3] = 3.0, -1.0, 40.0
    return torch.from_numpy(affine)


def item(*scans: BScan, affine: torch.Tensor | None = None) -> dict[Any, Any]:
    volume = torch.from_numpy(np.stack([scan.image for scan in scans], axis=-1)[None])
    known = torch.eye(4, dtype=torch.float64) if affine is None else affine
    return {"image": MetaTensor(volume, affine=known)}


def flattened(*scans: BScan, affine: torch.Tensor | None = None, **settings: Any) -> dict[Any, Any]:
    made: dict[Any, Any] = FlattenRetinad("image", **settings)(item(*scans, affine=affine))
    return made


def band_of(made: dict[Any, Any], z: int = 0) -> Band:
    band: Band = made["image"].as_tensor()[0, ..., z].numpy()
    return band


def test_bruchs_membrane_becomes_one_row() -> None:
    """The steepest fall from bright to dark lies in the row of Bruch's membrane, however far the B-scan bends."""
    for seed in range(3):
        scan = simulate_bscan(seed)
        assert np.ptp(scan.rpe) * AXIAL_UM > 10 * ROW_UM
        band = band_of(flattened(scan))
        rows = range(45, 62)
        fall = np.stack([band[:, r - 2 : r].mean(1) - band[:, r : r + 3].mean(1) for r in rows], axis=1)
        edges = 45 + fall.argmax(axis=1)
        assert abs(np.median(edges) - BRUCH_ROW) < 1.5
        assert np.mean(np.abs(edges - np.median(edges)) <= 1.5) > 0.75
        profile = band.mean(axis=0)
        assert profile[49:52].min() > profile[55:].max() + 0.3


def test_the_vitreous_is_minus_one_and_the_bright_band_about_one() -> None:
    for seed in range(3):
        scan = simulate_bscan(seed)
        band = band_of(flattened(scan))
        assert band.shape == (256, 64)
        assert band.dtype == np.float32
        assert band.min() == -1
        assert band.max() <= 1
        found = find_retina(scan.image, AXIAL_UM, LATERAL_UM)
        surface = BRUCH_ROW - (found.bruch - found.ilm)[::2] * AXIAL_UM / ROW_UM
        above = np.arange(64) < surface[:, None] - 2
        assert above.sum() > 1000
        # A wedge takes its values from the nearest A-scan that was seen, whose retina may be thicker.
        assert np.mean(band[above] == -1) > 0.995
        assert 0.4 < np.percentile(band[:, 49:52], 90) <= 1


def test_the_mask_reaches_from_the_surface_to_the_choroid() -> None:
    scan = simulate_bscan(1, wedges=False)
    made = flattened(scan)
    retina = made[RETINA_KEY][0, ..., 0].numpy()
    assert made[RETINA_KEY].shape == made["image"].shape
    assert set(np.unique(retina)) == {0.0, 1.0}
    thick = retina.sum(axis=1) * ROW_UM - 18 + 26
    found = find_retina(scan.image, AXIAL_UM, LATERAL_UM)
    expected = (found.bruch - found.ilm)[::2] * AXIAL_UM
    assert np.median(np.abs(thick - expected)[2:-2]) < ROW_UM
    seen = retina.any(axis=1)
    assert not seen[:1].any()  # the frame
    assert seen[2:-2].all()
    last = 63 - retina[seen][:, ::-1].argmax(axis=1)
    assert set(last) == {int(BRUCH_ROW + 18 / ROW_UM - 0.5)}
    assert np.all(np.abs(np.diff(retina[seen], axis=1)).sum(axis=1) == 2)  # one piece, with an end on either side


def test_wedges_are_filled_and_not_counted() -> None:
    scan, whole = simulate_bscan(3), simulate_bscan(3, wedges=False)
    seen = find_retina(scan.image, AXIAL_UM, LATERAL_UM).seen
    covered = scan.image.copy()
    covered[180:240] = 255  # a white bar as broad as 30 columns, over the whole depth
    wedged = BScan(covered, scan.ilm, scan.rpe, scan.lesion, seen)
    band, retina = band_of(flattened(wedged)), flattened(wedged)[RETINA_KEY][0, ..., 0].numpy()
    assert not retina[90:120].any()
    assert retina[:85].any()
    inside = band[90:120]
    assert np.all((inside == band[86:89].mean()) | (inside < 1))
    assert any(np.array_equal(inside[0], band[column]) for column in range(85, 90))
    assert any(np.array_equal(inside[-1], band[column]) for column in range(120, 125))
    untouched = band_of(flattened(whole))
    assert abs(band[:80].mean() - untouched[:80].mean()) < 0.1


def test_the_map_of_a_marked_pixel_goes_back_to_where_place_of_says() -> None:
    for affine in (None, oct_affine()):
        preprocessing = Compose([FlattenRetinad("image")])
        given = item(simulate_bscan(0), simulate_bscan(2), affine=affine)
        made = preprocessing(given)
        marks = [(20, 30, 0), (200, 50, 1), (128, 40, 1)]
        heat = torch.zeros_like(made["image"].as_tensor())
        for column, row, z in marks:
            heat[0, column, row, z] = 1
        made["pred"] = MetaTensor(heat, meta=made["image"].meta)
        places = [place_of(made["image"], *mark) for mark in marks]
        back = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True)(made)["pred"]
        assert back.shape == given["image"].shape
        torch.testing.assert_close(back.affine, given["image"].affine)
        to_index = np.linalg.inv(np.asarray(given["image"].affine))
        for place in places:
            x, y, z = (to_index @ [*place, 1.0])[:3]
            plane = back[0, ..., round(z)].as_tensor().numpy()
            near = np.zeros(plane.shape, np.bool_)
            near[round(x) - 4 : round(x) + 5, round(y) - 8 : round(y) + 9] = True
            weights = np.where(near, plane, 0)
            centre = [
                float((weights.sum(axis=1 - axis) * np.arange(n)).sum() / weights.sum())
                for axis, n in enumerate(plane.shape)
            ]
            assert weights.max() > 0.6
            assert centre == pytest.approx([x, y], abs=0.4)
            assert abs(z - round(z)) < 1e-3
        assert float(back.as_tensor().sum()) < 3 * 16  # three spots, and no more


def test_the_inverse_is_zero_outside_of_the_band_and_what_was_there_inside() -> None:
    scan = simulate_bscan(2, wedges=False)
    flatten = FlattenRetinad("image")
    made = flatten(item(scan))
    bruch = find_retina(scan.image, AXIAL_UM, LATERAL_UM).bruch[:, None]
    ones = MetaTensor(torch.ones(made["image"].shape), applied_operations=made["image"].applied_operations)
    back = flatten.inverse({"image": ones})["image"].as_tensor()[0, ..., 0].numpy()
    depth_um = (np.arange(496) - bruch) * AXIAL_UM
    inside = (depth_um < 96) & (depth_um > 96 - 64 * ROW_UM)  # the band is 64 rows high, 96 um lie below Bruch's
    assert 0.2 < inside.mean() < 0.4
    assert np.array_equal(back, inside)


def test_flattening_and_back_shows_the_retina_where_it_was() -> None:
    scan = simulate_bscan(1, wedges=False)
    flatten = FlattenRetinad("image")
    back = flatten.inverse(flatten(item(scan)))["image"].as_tensor()[0, ..., 0].numpy()
    depth = (np.arange(496) - scan.rpe[:, None]) * AXIAL_UM
    retina = (np.arange(496) > scan.ilm[:, None] + 2) & (depth < 40)
    assert np.corrcoef(back[retina], scan.image[retina])[0, 1] > 0.85


def test_several_bscans_at_once_are_as_each_alone() -> None:
    scans = [simulate_bscan(seed) for seed in (0, 4, 2)]
    together = flattened(*scans)
    assert together["image"].shape == (1, 256, 64, 3)
    for z, scan in enumerate(scans):
        alone = flattened(scan)
        for key in ("image", RETINA_KEY):
            assert torch.equal(torch.as_tensor(together[key])[..., z], torch.as_tensor(alone[key])[..., 0])


def test_spacing_is_what_the_file_says_else_the_user_else_a_spectralis() -> None:
    scan = simulate_bscan(0)
    said = flattened(scan, affine=oct_affine(), lateral_um=99.0, axial_um=99.0)
    guessed = flattened(scan)
    user = flattened(scan, lateral_um=LATERAL_UM, axial_um=AXIAL_UM)
    assert torch.equal(said["image"].as_tensor(), guessed["image"].as_tensor())
    assert torch.equal(user["image"].as_tensor(), guessed["image"].as_tensor())
    wider = flattened(scan, affine=oct_affine(lateral_um=14.0))
    assert wider["image"].shape[1] == int(512 * 14 / COLUMN_UM)
    assert flattened(scan, lateral_um=14.0)["image"].shape == wider["image"].shape


def test_a_picture_of_many_ascans_is_taken_for_one_at_high_resolution() -> None:
    assert assumed_spacing_um((1536, 496))[0] == assumed_spacing_um((768, 496))[0] / 2
    assert assumed_spacing_um((768, 248))[1] == 2 * assumed_spacing_um((768, 496))[1]


def test_grey_is_scaled_in_order_and_cut_off_at_both_ends() -> None:
    grey = np.array([-1.0, 0.0, 0.5, 1.0, 1.25, 3.0], np.float32)
    np.testing.assert_allclose(unit_from_grey(grey), [-1, -1, -0.2, 0.6, 1, 1], atol=1e-6)


def test_a_picture_too_narrow_for_a_patch_is_refused_before_it_is_searched() -> None:
    narrow = simulate_bscan(0, (120, 496))
    with pytest.raises(GeometryError, match=r"at least 1\.5 mm, got 120 A-scans at 11\.5 um"):
        flattened(narrow)
    assert flattened(narrow, least_columns=32)["image"].shape == (1, 60, 64, 1)


def test_a_bscan_of_a_volume_without_a_retina_is_left_out_and_said() -> None:
    scan = simulate_bscan(1, wedges=False)
    blink = np.random.default_rng(0).normal(40, 12, scan.image.shape).astype(np.float32)
    volume = torch.from_numpy(np.stack([scan.image, blink], axis=-1))[None]
    flatten = FlattenRetinad("image")
    made = flatten({"image": MetaTensor(volume, affine=oct_affine())})
    assert flags_of(made[RETINA_KEY]) == (LEFT_OUT_FLAG,)
    assert not made[RETINA_KEY][..., 1].any()
    alone = FlattenRetinad("image")({"image": MetaTensor(volume[..., :1], affine=oct_affine())})
    assert flags_of(alone[RETINA_KEY]) == ()
    torch.testing.assert_close(made["image"][..., 0].as_tensor(), alone["image"][..., 0].as_tensor())
    back = flatten.inverse({"image": made["image"]})["image"]
    assert back.shape == volume.shape
    with pytest.raises(IntensityError, match="the first of 2 B-scans"):
        FlattenRetinad("image")({"image": MetaTensor(torch.cat([volume[..., 1:]] * 2, dim=-1), affine=oct_affine())})
