"""Which item is drawn when, and with which random damage: a function of the seed and the epoch, and of nothing else.

Data loaders seed their workers by chance, so a resumed training would see other images than one that never stopped.
Here a sampler hands out (index, seed) pairs, and the dataset seeds its transforms by them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset
from monai.data import Dataset as MonaiDataset
from monai.transforms import Compose
from torch import distributed
from torch.utils.data import Dataset, Sampler

from medgen.errors import NoInputError

Draw = tuple[int, int]

_MADE_OF = {"image": {"image", "head"}, "target": {"target", "label", "head"}}  # MONAI Label says `label`


class WeightedDraws(Sampler[Draw]):
    """Draws items in proportion to their weight, with replacement, and a seed with each.

    Over the processes of `torchrun` each takes its share of the same draws, every n-th, so that n processes with a
    batch of one see in a step what one process with a batch of n does.

    Args:
        items: to draw from; their `weight` counts, 1 where there is none.
        draws: in an epoch, over all processes; where there is nothing to draw from, nothing is drawn.
        seed: of the draws.
    """

    def __init__(self, items: Sequence[Mapping[str, Any]], draws: int, seed: int = 0) -> None:
        weights = np.asarray([float(item.get("weight", 1.0)) for item in items])
        self.shares = weights / weights.sum() if len(items) > 0 else weights
        self.draws, self.seed, self.epoch = draws, seed, 1

    def set_epoch(self, epoch: int) -> None:
        """Chooses the draws of this epoch; trainers call it."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Returns how many this process draws; 1 where there is nothing, as loaders do not build on nothing."""
        return -(-self.draws // _ranks()[1]) if len(self.shares) > 0 else 1

    def __iter__(self) -> Iterator[Draw]:
        """Yields this epoch's draws of this process."""
        if len(self.shares) == 0:
            return
        rank, count = _ranks()
        random = np.random.default_rng([self.seed, self.epoch])
        total = len(self) * count
        chosen = random.choice(len(self.shares), total, p=self.shares)
        seeds = random.integers(2**31, size=total)
        yield from zip(chosen[rank::count].tolist(), seeds[rank::count].tolist(), strict=True)


class SeededDataset(Dataset[Any]):
    """Seeds the transforms of a MONAI dataset by each draw; also torch's global state, which some transforms use.

    Args:
        dataset: with a `transform` whose `set_random_state` reaches all of its random parts (`Compose`).
    """

    def __init__(self, dataset: MonaiDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Returns the number of items, not of draws."""
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Any:  # noqa: ANN401  # whatever the transforms make
        """Returns the item of the draw, damaged as its seed says."""
        index, seed = draw
        self.dataset.transform.set_random_state(seed=seed)
        torch.manual_seed(seed)
        return self.dataset[index]


class FixedDraws(Dataset[Any]):
    """The same few draws each time: what random transforms make of some items, for a validation that stays the same.

    What comes before the first random transform is computed once.

    Args:
        data: items.
        transform: its `set_random_state` reaches all of its random parts.
        count: draws, over all items in turn, each at least once; 0 for none.
        seed: of the first; the next ones count on.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], transform: Compose, count: int, seed: int = 0) -> None:
        self.draws = SeededDataset(CacheDataset(data, transform, progress=False, num_workers=0))
        self.count, self.seed = max(count, len(data)) if count and len(data) > 0 else 0, seed

    def __len__(self) -> int:
        """Returns the number of draws."""
        return self.count

    def __getitem__(self, number: int) -> Any:  # noqa: ANN401  # whatever the transforms make
        """Returns one draw."""
        if not 0 <= number < self.count:
            raise IndexError(number)
        return self.draws[number % len(self.draws), self.seed + number]


class UnpairedDataset(Dataset[Any]):
    """Puts an image of one item beside a target of another, as CycleGAN wants them: what they show is not the same.

    The item of the draw gives what it has; the other side comes from an item drawn at random among those that have it,
    with a seed of its own. An item with `head` has both, since a simulation makes them, but never gives both at once.

    Args:
        dataset: of items with `image`, `target` (or `label`) or `head`; its transform makes `image` or `target` of
            them, or both, and passes over what is missing. A `guess` that it makes of a target comes along.
        sides: which of the two to give; what learns from guesses alone needs no image, and need not wait for one.
    """

    def __init__(self, dataset: MonaiDataset, sides: Sequence[str] = ("image", "target")) -> None:
        self.draws, self.sides = SeededDataset(dataset), tuple(sides)
        self.having = {
            role: [n for n, item in enumerate(dataset.data) if _MADE_OF[role] & item.keys()] for role in self.sides
        }

    def __len__(self) -> int:
        """Returns the number of items, not of draws."""
        return len(self.draws)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """Returns `image` and `target` of two draws, as far as they are asked for.

        Raises:
            NoInputError: no item has an image, or none a target.
        """
        index, seed = draw
        for role, places in self.having.items():
            if not places:
                raise NoInputError(f"expected unpaired training data with images and targets, got no {role}")
        random = np.random.default_rng([seed, 1])
        pair: dict[str, Any] = {}
        free = True  # the item of the draw gives one side, and no more
        for role, places in self.having.items():
            if free and index in places:
                item, free = self.draws[index, seed], False
            else:
                item = self.draws[places[int(random.integers(len(places)))], int(random.integers(2**31))]
            pair |= {name: item[name] for name in (role, *(["guess"] if role == "target" else [])) if name in item}
        return pair


def _ranks() -> tuple[int, int]:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
