"""Windows at a random lower dose: what is random, what stays, and that the noise is that of the whole chain."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, RandSpatialCropd

from medgen.errors import GeometryError, IntensityError
from medgen.metrics.ct_noise import noise_power, noise_power_distance
from medgen.prepare.dose import (
    DoseFieldsd,
    RandLowDosed,
    pixel_side_mm,
    seen_through,
    sharpened,
    softened,
)
from medgen.prepare.slabs import RandPiecesd, RandSlabsd
from medgen.run.dose import OwnNoise
from medgen.simulate.dose import CtScanner, noise_fields

_PIXEL_MM = 1.2


def _scan(side: int = 128, slices: int = 2, sides_mm: tuple[float, float] = (_PIXEL_MM, _PIXEL_MM)) -> MetaTensor:
    places = (np.arange(side) - (side - 1) / 2) * _PIXEL_MM
    water = np.where(np.hypot(*np.meshgrid(places, places, indexing="ij")) < 0.45 * side * _PIXEL_MM, 0.0, -1000.0)
    volume = np.repeat(water[None, ..., None], slices, axis=3).astype(np.float32)
    return MetaTensor(torch.from_numpy(volume), affine=np.diag([*sides_mm, 3.0, 1.0]))


def _fields(scan: MetaTensor, **settings: Any) -> dict[Any, Any]:
    own = {name: settings.pop(name) for name in ("fit", "across", "seed") if name in settings}
    return DoseFieldsd("target", scanner=CtScanner(views=180, **settings), **own)({"target": scan})


def _known(kernel: float, photons: float = 1.5e6) -> Callable[[Any, float], OwnNoise]:
    return lambda volume, pixel_mm: OwnNoise(photons, kernel, 1)


def test_the_noise_of_a_scan_is_the_same_at_every_call_and_differs_from_slice_to_slice() -> None:
    scan = _scan(64)
    first, second, other = _fields(scan), _fields(scan), _fields(scan, seed=1)
    assert first["noise"].shape == (4, 64, 64, 2)
    assert torch.equal(first["noise"], second["noise"])
    assert not torch.equal(first["noise"], other["noise"])
    assert not torch.equal(first["noise"][..., 0], first["noise"][..., 1])
    assert torch.equal(first["target"], scan)
    assert torch.equal(first["noise"][2:], first["noise"][:2].flip(1))
    brighter = _fields(scan + 1)  # another scan of as many slices
    assert abs(np.corrcoef(first["noise"][0].ravel(), brighter["noise"][0].ravel())[0, 1]) < 0.1


def test_noise_of_neighbouring_slices_is_as_like_as_asked_and_no_stronger() -> None:
    scan = _scan(64, 24)
    alone, alike = (_fields(scan, across=across)["noise"][0] for across in (0.0, 0.3))
    flat = [noise[20:44, 20:44].reshape(-1, 24).numpy() for noise in (alone, alike)]
    for noise, wanted in zip(flat, (0.0, 0.3), strict=True):
        assert np.mean([np.corrcoef(noise[:, z], noise[:, z + 1])[0, 1] for z in range(23)]) == pytest.approx(
            wanted, abs=0.04
        )
    assert flat[1].std(axis=0) == pytest.approx(flat[0].std(), rel=0.15)
    with pytest.raises(IntensityError, match=r"0 to 0\.7"):
        DoseFieldsd("target", across=0.9)


def test_a_window_gets_its_own_part_of_the_noise_and_the_target_none() -> None:
    item = _fields(_scan(96))
    chain = Compose(
        [RandSpatialCropd(["target", "noise"], (48, 48, 1), random_size=False), RandLowDosed("target", flux=(1.0, 1.0))]
    )
    chain.set_random_state(3)
    one, two = chain(item), chain(item)
    assert set(one) == {"target", "image"}
    assert one["image"].shape == one["target"].shape == (1, 48, 48, 1)
    assert set(np.unique(one["target"])) <= {0.0, -1000.0}
    assert not torch.equal(one["image"], two["image"])
    chain.set_random_state(3)
    assert torch.equal(chain(item)["image"], one["image"])


def test_dose_and_flux_set_how_much_noise_there_is() -> None:
    item = _fields(_scan(96, 1))

    def deviation(fraction: float, flux: float) -> float:
        chosen = RandLowDosed("target", fraction=(fraction,) * 2, flux=(flux,) * 2, cutoff_per_mm=(0.4, 0.4))
        made = chosen(dict(item))
        return float((made["image"] - made["target"])[0, 32:64, 32:64].std())

    assert deviation(1.0, 1.0) == 0.0
    assert deviation(0.2, 1.0) == pytest.approx(2 * deviation(0.5, 1.0), rel=0.03)
    assert deviation(0.5, 0.25) == pytest.approx(2 * deviation(0.5, 1.0), rel=0.03)


def test_with_fewer_photons_the_routine_dose_is_noisier_too_by_noise_of_its_own() -> None:
    scan = _scan(96, 1)
    chosen = RandLowDosed("target", fraction=(0.25, 0.25), flux=(0.5, 0.5), cutoff_per_mm=(0.4, 0.4))
    made = chosen(_fields(scan, electronic=0.0))
    middle = (0, slice(32, 64), slice(32, 64))
    routine, missing = (made["target"] - scan)[middle], (made["image"] - made["target"])[middle]
    # Variances: 1 / 0.5 - 1 of that of the scan, and (1 / 0.25 - 1) / 0.5.
    assert float(missing.std() / routine.std()) == pytest.approx(6**0.5, rel=0.15)
    assert abs(float(torch.corrcoef(torch.stack([routine.flatten(), missing.flatten()]))[0, 1])) < 0.15
    more = RandLowDosed("target", flux=(2.0, 2.0))(_fields(scan))
    assert torch.equal(more["target"], scan)


def test_padding_stays_padding() -> None:
    scan = _scan(64, 1)
    scan[:, :6] = -2048.0
    made = RandLowDosed("target")(_fields(scan))
    assert (made["image"][:, :6] == -2048.0).all()
    assert (made["image"][:, 20:40] != scan[:, 20:40]).any()


def test_a_kernel_that_comes_later_gives_the_noise_of_one_in_the_projections() -> None:
    scan, scanner, rng = _scan(128, 1), CtScanner(views=360), np.random.default_rng(1)
    plane, cutoff = scan[0, ..., 0].numpy(), 0.35
    middle = (slice(32, 96), slice(32, 96))
    early = [noise_fields(plane, _PIXEL_MM, rng, kernel=cutoff, scanner=scanner)[0][middle] for _ in range(6)]
    bare = [noise_fields(plane, _PIXEL_MM, rng, kernel=np.inf, scanner=scanner)[0] for _ in range(6)]
    late = [
        seen_through(torch.from_numpy(b)[None, ..., None], _PIXEL_MM, cutoff)[0, ..., 0].numpy()[middle] for b in bare
    ]
    powers = [noise_power(stack, _PIXEL_MM) for stack in (late, early, [b[middle] for b in bare])]
    assert np.std(late) == pytest.approx(np.std(early), rel=0.08)
    assert noise_power_distance(powers[0], powers[1]) < 0.25
    assert noise_power_distance(powers[2], powers[1]) > 1.0


def test_pixels_that_are_not_square_or_not_known_are_refused() -> None:
    with pytest.raises(GeometryError, match=r"1\.2 x 2 mm"):
        _fields(_scan(32, sides_mm=(1.2, 2.0)))
    with pytest.raises(GeometryError, match="LoadImaged"):
        pixel_side_mm(torch.zeros(1, 4, 4, 4))


def _noise_of(seed: int, slices: int = 12) -> MetaTensor:
    values = np.random.default_rng(seed).normal(size=(1, 64, 64, slices)).astype(np.float32)
    return MetaTensor(torch.from_numpy(values), affine=np.diag([_PIXEL_MM, _PIXEL_MM, 2.0, 1.0]))


@pytest.mark.parametrize("thick", [2, 3, 4])
def test_slabs_are_means_of_their_slices_at_their_place(thick: int) -> None:
    scan = _noise_of(0)
    for seed in range(5):
        slabs = RandSlabsd(["scan", "copy"], [thick]).set_random_state(seed)({"scan": scan, "copy": scan.clone()})
        made = slabs["scan"]
        assert torch.equal(made, slabs["copy"])
        first = round(float(made.affine[2, 3]) / 2.0 - (thick - 1) / 2)
        assert 0 <= first < thick
        torch.testing.assert_close(
            made[..., 1].as_tensor(), scan[..., first + thick : first + 2 * thick].mean(dim=-1).as_tensor()
        )
        assert made.pixdim[2] == pytest.approx(2.0 * thick)
        assert float(made.std()) == pytest.approx(thick**-0.5, rel=0.03)


def test_one_slice_stays_one_slice() -> None:
    scan = _noise_of(1, slices=1)
    for seed in range(4):
        assert torch.equal(RandSlabsd("scan", [1, 2, 5]).set_random_state(seed)({"scan": scan})["scan"], scan)


def test_slabs_are_no_thicker_than_asked_and_keep_what_is_known_of_the_kernel() -> None:
    scan = _noise_of(1)  # slices of 2 mm
    scan.meta["own_cutoff_per_mm"] = 1.3
    made = [
        RandSlabsd("scan", [1, 2, 4], most_mm=5.0).set_random_state(seed)({"scan": scan})["scan"] for seed in range(12)
    ]
    assert {round(float(one.pixdim[2])) for one in made} == {2, 4}
    assert all(one.meta["own_cutoff_per_mm"] == 1.3 for one in made)


def test_a_part_of_a_scan_can_be_kept_from_training() -> None:
    scan = _noise_of(1)
    item = {"scan": scan, "copy": scan.clone(), "slices": [[0, 3], [7, 12]]}
    lengths = []
    for seed in range(30):
        made = RandPiecesd(["scan", "copy"]).set_random_state(seed)(item)
        first = round(float(made["scan"].affine[2, 3]) / 2.0)
        count = made["scan"].shape[-1]
        assert (first, first + count) in {(0, 3), (7, 12)}
        assert torch.equal(made["scan"], made["copy"])
        torch.testing.assert_close(made["scan"].as_tensor(), scan.as_tensor()[..., first : first + count])
        lengths.append(count)
    assert 8 <= lengths.count(5) <= 28
    assert torch.equal(RandPiecesd("scan")({"scan": scan})["scan"], scan)
    with pytest.raises(GeometryError, match=r"within the 12 .* got 9 to 20"):
        RandPiecesd("scan")({"scan": scan, "slices": [[9, 20]]})


def test_flux_and_kernel_can_be_told_from_the_scan() -> None:
    scan = _scan(64, 1)
    plain, dark = (_fields(scan, fit=_known(0.8, photons))["noise"] for photons in (1.5e6, 1.5e4))
    assert dark.meta["own_cutoff_per_mm"] == 0.8
    assert float(dark[0].std()) == pytest.approx(10 * float(plain[0].std()), rel=0.02)
    unknown = _fields(scan, fit=lambda volume, pixel_mm: None)["noise"]
    assert torch.equal(unknown, plain)
    assert "own_cutoff_per_mm" not in unknown.meta


@pytest.mark.parametrize("gain", [0.6, 2.0])
def test_sharpening_moves_the_finest_detail_by_its_gain_and_the_mean_by_nothing(gain: float) -> None:
    scan = 40 + 10 * _noise_of(2)
    other = sharpened(scan, _PIXEL_MM, gain)
    assert float(other.mean()) == pytest.approx(float(scan.mean()), abs=0.05)
    before, after = (
        torch.fft.rfft2(volume[0].movedim(-1, 0).as_tensor()).abs() for volume in (scan, MetaTensor(other))
    )
    ratio = (after / before).median(dim=0).values
    assert float(ratio[32, 32]) == pytest.approx(gain, rel=0.1)
    assert float(ratio[:4, 1:4].mean()) == pytest.approx(1.0, abs=0.02)


def test_a_sharper_kernel_is_learnt_with_the_scan_and_its_padding_stays() -> None:
    scan = 40 + 10 * _noise_of(3)
    scan[..., :5, :] = -2000.0
    item = {"target": scan, "noise": MetaTensor(torch.zeros(4, 64, 64, 12), affine=scan.affine)}
    made = RandLowDosed("target", sharpness=(2.0, 2.0)).set_random_state(0)(item)
    assert (made["target"][..., :5, :] == -2000.0).all()
    assert float(made["target"][..., 20:, :].std()) > 1.2 * float(scan[..., 20:, :].std())
    torch.testing.assert_close(made["image"].as_tensor(), made["target"].as_tensor())
    assert float(scan[..., 20:, :].std()) == pytest.approx(10.0, rel=0.05)


def test_a_softer_kernel_leaves_of_a_scan_what_it_would_have_made_of_it() -> None:
    grain = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 96, 96, 1)).astype(np.float32))
    own = seen_through(grain, _PIXEL_MM, 0.9)
    torch.testing.assert_close(
        softened(own, _PIXEL_MM, 0.9, 0.4), seen_through(grain, _PIXEL_MM, 0.4), atol=0.02, rtol=0
    )
    torch.testing.assert_close(softened(own, _PIXEL_MM, 0.9, 1.2), own, atol=1e-4, rtol=0)


def test_half_of_the_scans_share_the_kernel_of_their_noise() -> None:
    scan = _scan(96, 1)
    scan += torch.from_numpy(np.random.default_rng(0).normal(scale=20.0, size=scan.shape).astype(np.float32))
    scan[:, :6] = -2048.0
    item = _fields(scan, fit=_known(1.2))
    chosen = RandLowDosed("target", cutoff_per_mm=(0.3, 0.3))
    chosen.set_random_state(0)
    spread = [float(chosen(dict(item))["target"][0, 32:64, 32:64].std()) for _ in range(20)]
    soft = [value < 12 for value in spread]
    assert 4 <= sum(soft) <= 16
    assert all(value == pytest.approx(20, rel=0.1) for value, low in zip(spread, soft, strict=True) if not low)
    made = chosen(dict(item))
    assert (made["target"][:, :6] == -2048.0).all()


def test_noise_that_shares_the_kernel_is_as_sharp_as_the_scan() -> None:
    item = _fields(_scan(96, 1), fit=_known(0.9))

    def deviations(sharpness: float) -> set[float]:
        chosen = RandLowDosed(
            "target",
            fraction=(0.2, 0.2),
            flux=(1.0, 1.0),
            cutoff_per_mm=(0.9, 0.9),
            sharpness=(sharpness,) * 2,
        ).set_random_state(0)
        made = [chosen(dict(item)) for _ in range(8)]
        return {round(float((one["image"] - one["target"])[0, 32:64, 32:64].std()), 1) for one in made}

    [plain] = deviations(1.0)
    low, high = sorted(deviations(1.8))  # half of the time as it was, half of the time sharper
    assert low == plain
    assert high > 1.2 * plain


def test_a_pair_of_two_doses_passes_as_it_is() -> None:
    pair = {"image": _noise_of(4), "target": _noise_of(5)}
    chain = Compose([DoseFieldsd("target"), RandLowDosed("target", flux=(1.0, 1.0))])
    made = chain(dict(pair))
    assert made.keys() == pair.keys()
    assert all(torch.equal(made[key], pair[key]) for key in pair)


def test_noise_comes_with_either_sign() -> None:
    item = _fields(_scan(64, 1))
    chosen = RandLowDosed("target", fraction=(0.3, 0.3), flux=(1.0, 1.0), cutoff_per_mm=(0.4, 0.4))
    noises = []
    for seed in range(8):
        made = chosen.set_random_state(seed)(dict(item))
        noises.append((made["image"] - made["target"])[0, 20:44, 20:44].flatten().as_tensor())
    signs = {round(float(torch.corrcoef(torch.stack([noises[0], noise]))[0, 1])) for noise in noises}
    assert signs == {1, -1}
