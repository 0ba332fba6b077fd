"""Draws depend on the seed and the epoch alone, whoever loads them."""

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, RandGaussianNoised

from medgen.prepare.draws import SeededDataset, WeightedDraws

ITEMS = [{"image": torch.full((1, 4), float(i)), "weight": w} for i, w in enumerate((1.0, 3.0, 0.0))]


def loaded(workers: int, epoch: int, seed: int = 0) -> torch.Tensor:
    dataset = Dataset(ITEMS, Compose([RandGaussianNoised("image", prob=1.0)]))
    sampler = WeightedDraws(ITEMS, 6, seed)
    sampler.set_epoch(epoch)
    loader = DataLoader(SeededDataset(dataset), batch_size=2, sampler=sampler, num_workers=workers)
    return torch.cat([batch["image"].as_subclass(torch.Tensor) for batch in loader])


def test_the_same_epoch_is_the_same_however_it_is_loaded() -> None:
    torch.manual_seed(1)
    first = loaded(0, epoch=3)
    torch.randn(5)
    np.random.rand(5)
    assert torch.equal(first, loaded(0, epoch=3))
    assert torch.equal(first, loaded(2, epoch=3))


@pytest.mark.parametrize(("epoch", "seed"), [(4, 0), (3, 1)])
def test_another_epoch_or_seed_is_another_draw(epoch: int, seed: int) -> None:
    assert not torch.equal(loaded(0, epoch=3), loaded(0, epoch, seed))


def test_items_come_in_proportion_to_their_weight() -> None:
    counts = np.bincount([index for index, _ in WeightedDraws(ITEMS, 4000)], minlength=3)
    assert counts[2] == 0
    assert counts[1] / counts[0] == pytest.approx(3.0, rel=0.15)


def test_nothing_to_draw_from_builds_and_draws_nothing() -> None:
    sampler = WeightedDraws([], 5)
    assert len(sampler) == 1
    assert list(sampler) == []
