"""Fluid added or darkened: where it should be, in both images, the same for the same seed."""

import pytest
import torch
from torch import Tensor

from medgen.prepare.fluid import RandCavityd, RandDarkFluidd, dark_fluid


def volume(seed: int = 0) -> Tensor:
    return torch.rand((1, 12, 14, 10), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("make", [RandDarkFluidd, lambda prob: RandCavityd(mask_key="target", prob=prob)])
def test_the_same_seed_does_the_same(make) -> None:  # noqa: ANN001
    def drawn(seed: int) -> Tensor:
        transform = make(prob=1.0).set_random_state(seed)
        return torch.cat([transform({"image": volume(), "target": volume(1)})["image"] for _ in range(4)])

    assert torch.equal(drawn(5), drawn(5))
    assert not torch.equal(drawn(5), drawn(6))


def test_dark_fluid_takes_its_share_off_fluid_alone() -> None:
    source, fluid = torch.full((1, 4, 4, 4), 0.4), torch.full((1, 4, 4, 4), 0.3)
    fluid[..., 2:] = 1.0
    black = dark_fluid(source, fluid, share=1.0, level=0.5)
    assert torch.equal(black[..., :2], source[..., :2])
    assert (black[..., 2:] == 0).all()
    torch.testing.assert_close(dark_fluid(source, fluid, share=0.25, level=0.5)[..., 2:], 0.75 * source[..., 2:])


def test_dark_fluid_never_brightens_and_leaves_the_target_alone() -> None:
    pair = {"image": volume(), "target": volume(1)}
    for seed in range(5):
        after = RandDarkFluidd(prob=1.0).set_random_state(seed)(pair)
        assert (after["image"] <= pair["image"]).all()
        assert after["target"] is pair["target"]


def test_a_cavity_fills_its_share_of_the_mask_with_fluid_on_both() -> None:
    size = (1, 40, 40, 40)
    mask = torch.zeros(size)
    mask[:, 5:35, 5:35, 5:35] = 1
    pair = {"image": torch.full(size, 0.9), "target": torch.full(size, 0.3), "mask": mask}
    for seed in range(6):
        made = RandCavityd(volume_range=(0.1, 0.1), prob=1.0).set_random_state(seed)(pair)
        pocket = made["target"] > 0.6
        assert not (made["image"] != 0.9)[mask == 0].any()
        assert 0.02 < pocket[mask > 0].float().mean() < 0.12
        assert made["image"][pocket].max() < 0.75
        assert torch.equal(made["mask"], mask)
