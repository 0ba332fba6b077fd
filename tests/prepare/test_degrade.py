"""Random damage: exact where it is exact, the same for both of a pair, repeatable, and never an inversion."""

import numpy as np
import pytest
import torch
from torch import Tensor

from medgen.prepare.degrade import (
    RandContrastd,
    RandThickSlicesd,
    RandWindowd,
    monotone_curve,
    sample,
    sampling_grid,
    smooth_field,
    thick_slices,
)


def volume(seed: int = 0, shape: tuple[int, int, int] = (20, 26, 22)) -> Tensor:
    torch.manual_seed(seed)
    result = torch.rand(1, *shape) + 0.2
    result[:, :3] = 0
    return result


def test_a_straight_curve_changes_nothing_up_to_its_top() -> None:
    x = torch.linspace(0, 3, 50)
    torch.testing.assert_close(monotone_curve(x, torch.linspace(0, 2, 9)), x)


def test_a_curve_goes_through_its_knots_and_rises() -> None:
    knots = torch.tensor([0.0, 0.1, 0.9, 2.0])
    torch.testing.assert_close(monotone_curve(torch.linspace(0, 2, 4), knots), knots)
    assert (monotone_curve(torch.linspace(-1, 5, 200), knots).diff() >= 0).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("thickness", "offset"), [(1, 0), (2, 1), (3, 2), (5, 0)])
def test_thick_slices_keep_the_shape_and_the_mean_of_a_slope(axis: int, thickness: int, offset: int) -> None:
    shape = [15, 12, 17]
    ramp = torch.arange(shape[axis], dtype=torch.float32)
    sizes = [1, 1, 1, 1]
    sizes[axis + 1] = -1
    x = ramp.reshape(sizes).expand(1, *shape)
    thick = thick_slices(x, axis, thickness, offset)
    assert thick.shape == x.shape
    inner = [slice(None)] * 4
    inner[axis + 1] = slice(thickness + 2, -thickness - 2)
    torch.testing.assert_close(thick[tuple(inner)], x[tuple(inner)])  # a slope survives averaging and interpolation


def test_thick_slices_blur_along_their_axis_only() -> None:
    x = torch.zeros(1, 12, 12, 12)
    x[0, 6, 6, 6] = 1
    thick = thick_slices(x, 2, 4)
    assert thick[0, 6, 6].count_nonzero() > 1
    assert thick.sum(dim=3).count_nonzero() == 1


def test_sampling_at_the_voxels_is_the_identity() -> None:
    x = volume()
    centre = (torch.tensor(x.shape[1:], dtype=torch.float32) - 1) / 2
    torch.testing.assert_close(sample(x, sampling_grid(torch.eye(3), centre, x.shape[1:])), x, atol=1e-4, rtol=0)


def test_a_mirrored_window_is_the_mirrored_volume() -> None:
    x = volume()
    centre = (torch.tensor(x.shape[1:], dtype=torch.float32) - 1) / 2
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
    torch.testing.assert_close(sample(x, sampling_grid(mirror, centre, x.shape[1:])), x.flip(1), atol=1e-4, rtol=0)


def test_a_smooth_field_meets_its_control_points() -> None:
    control = torch.rand(2, 3, 3, 3)
    field = smooth_field(control, (9, 7, 5))
    torch.testing.assert_close(field[:, ::4, ::3, ::2], control)


def test_a_window_treats_all_keys_alike() -> None:
    x = volume()
    cut = RandWindowd(["image", "target"], (12, 16, 8)).set_random_state(3)
    window = cut({"image": x, "target": 3 * x})
    assert window["image"].shape == (1, 12, 16, 8)
    torch.testing.assert_close(3 * window["image"], window["target"], atol=1e-4, rtol=1e-4)


def test_a_window_without_a_size_is_the_volume_posed_anew() -> None:
    posed = RandWindowd(["image"], None, max_turn=5.0, prob=1.0, padding="border").set_random_state(2)
    image = volume()
    moved = posed({"image": image})["image"]
    assert moved.shape == image.shape
    assert not torch.equal(moved, image)


def test_what_has_none_of_the_keys_passes_as_it_is() -> None:
    assert RandWindowd(["head"], None, allow_missing_keys=True)({"image": 1}) == {"image": 1}


def test_a_window_larger_than_the_volume_is_filled_with_zeros() -> None:
    window = RandWindowd(["image"], (40, 30, 28), prob=0.0).set_random_state(0)({"image": volume() + 1})["image"]
    assert window.shape == (1, 40, 30, 28)
    assert window[:, 0].abs().max() == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandWindowd(["image", "target"], (12, 16, 8)),
        lambda: RandThickSlicesd(["image", "target"], prob=1.0),
        lambda: RandContrastd(["image", "target"], prob=1.0),
    ],
    ids=["window", "thick", "contrast"],
)
def test_the_same_seed_does_the_same(make) -> None:  # noqa: ANN001
    def drawn(seed: int) -> Tensor:
        transform = make().set_random_state(seed)
        return torch.cat([transform({"image": volume(), "target": volume(1)})["image"] for _ in range(4)])

    assert torch.equal(drawn(5), drawn(5))
    assert not torch.equal(drawn(5), drawn(6))


def test_thick_slices_come_to_both_of_a_pair_along_one_axis() -> None:
    thick = RandThickSlicesd(["image", "target"], (4, 4), prob=1.0)
    for seed in range(6):
        pair = thick.set_random_state(seed)({"image": volume(), "target": volume(1)})
        rough = [[(v.diff(dim=d).abs().mean()).item() for d in (1, 2, 3)] for v in (pair["image"], pair["target"])]
        assert np.argmin(rough[0]) == np.argmin(rough[1])


def test_aligned_slices_are_the_same_slabs_of_both() -> None:
    def alike(aligned: bool) -> list[bool]:
        thick = RandThickSlicesd(["image", "target"], (4, 4), prob=1.0, aligned=aligned)
        pairs = [thick.set_random_state(seed)({"image": volume(), "target": volume()}) for seed in range(6)]
        return [torch.equal(pair["image"], pair["target"]) for pair in pairs]

    assert all(alike(aligned=True))
    assert not all(alike(aligned=False))


def test_contrast_never_inverts_and_keeps_the_background() -> None:
    x = torch.linspace(0, 1.5, 8000).reshape(1, 20, 20, 20)
    x[:, :2] = 0
    bend = RandContrastd("image", bias=0.0, noise=0.0, prob=1.0)
    for seed in range(10):
        y = bend.set_random_state(seed)({"image": x})["image"]
        assert (y[x == 0] == 0).all()
        assert (y.flatten().diff() >= -1e-5).all()


def test_noise_of_level_zero_and_no_luck_changes_only_the_scale() -> None:
    x = volume()
    y = RandContrastd("image", prob=0.0).set_random_state(1)({"image": x})["image"]
    ratio = y[x > 0] / x[x > 0]
    assert ratio.std() < 1e-5
    assert 0.88 <= ratio.mean() <= 1.12
