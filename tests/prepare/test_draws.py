"""Draws depend on the seed and the epoch alone, whoever loads them."""

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, CopyItemsd, RandGaussianNoised, Randomizable, Transform

from medgen.errors import NoInputError
from medgen.prepare.draws import FixedDraws, SeededDataset, UnpairedDataset, WeightedDraws

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


def noisy(items: list[dict[str, torch.Tensor]]) -> Compose:
    return Compose([RandGaussianNoised(["image", "target"], prob=1.0, allow_missing_keys=True)])


def test_fixed_draws_stay_the_same_and_differ_from_each_other() -> None:
    draws = FixedDraws(ITEMS[:2], noisy(ITEMS), count=4, seed=5)
    first = [draws[n]["image"] for n in range(len(draws))]
    torch.randn(3)
    assert all(torch.equal(draws[n]["image"], image) for n, image in enumerate(first))
    assert [round(float(image.mean())) for image in first] == [0, 1, 0, 1]
    assert not torch.equal(first[0], first[2])
    assert len(FixedDraws([], noisy([]), count=4)) == 0
    assert len(FixedDraws(ITEMS, noisy(ITEMS), count=1)) == len(ITEMS)  # nobody is left out
    assert len(FixedDraws(ITEMS, noisy(ITEMS), count=0)) == 0
    with pytest.raises(IndexError):
        draws[4]


class _Simulation(Randomizable, Transform):
    """A head makes an image and a target that tell which draw they are of."""

    def __call__(self, item: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict.fromkeys(("image", "target"), item["head"] + self.R.uniform())


def test_unpaired_sides_never_come_from_one_draw() -> None:
    dataset = Dataset([{"head": torch.zeros(1)}], _Simulation())
    pairs = [UnpairedDataset(dataset)[0, seed] for seed in range(20)]
    assert all(set(pair) == {"image", "target"} for pair in pairs)
    assert all(pair["image"] != pair["target"] for pair in pairs)


def test_the_item_drawn_gives_what_it_has_and_the_other_side_is_found() -> None:
    items = [{"image": torch.tensor([1.0])}, {"image": torch.tensor([2.0])}, {"target": torch.tensor([3.0])}]
    unpaired = UnpairedDataset(
        Dataset(items, Compose([RandGaussianNoised(["image"], prob=0.0, allow_missing_keys=True)]))
    )
    assert [float(unpaired[1, seed]["image"]) for seed in range(3)] == [2, 2, 2]
    assert {float(unpaired[2, seed]["image"]) for seed in range(20)} == {1, 2}
    assert float(unpaired[2, 0]["target"]) == 3
    assert len(unpaired) == 3


def test_a_target_may_come_as_label() -> None:
    item = {"image": torch.zeros(1), "label": torch.ones(1)}
    dataset = Dataset([item], Compose([CopyItemsd("label", names="target")]))
    assert float(UnpairedDataset(dataset)[0, 0]["target"]) == 1


def test_one_side_alone_is_refused() -> None:
    lonely = UnpairedDataset(Dataset([{"image": torch.zeros(1)}], Compose([])))
    with pytest.raises(NoInputError, match="no target"):
        lonely[0, 0]


def test_a_guess_comes_with_the_target_that_it_was_made_of() -> None:
    def guess(item: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**item, "guess": 2 * item["target"]} if "target" in item else item

    items = [{"image": torch.zeros(1)}, {"target": torch.ones(1)}, {"target": torch.full((1,), 5.0)}]
    unpaired = UnpairedDataset(Dataset(items, Compose([guess])))
    pairs = [unpaired[n, seed] for n in range(3) for seed in range(5)]
    assert all(pair["guess"] == 2 * pair["target"] for pair in pairs)
    assert {float(pair["target"]) for pair in pairs} == {1.0, 5.0}


def test_the_targets_side_alone_comes_from_items_that_have_one() -> None:
    items = [{"image": torch.zeros(1)}, {"target": torch.ones(1)}, {"target": torch.full((1,), 5.0)}]
    unpaired = UnpairedDataset(Dataset(items, Compose([])), sides=["target"])
    assert all(set(unpaired[n, seed]) == {"target"} for n in range(3) for seed in range(3))
    assert [float(unpaired[n, 0]["target"]) for n in (1, 2)] == [1.0, 5.0]
    assert {float(unpaired[0, seed]["target"]) for seed in range(20)} == {1.0, 5.0}
