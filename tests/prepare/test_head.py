"""Labels in, a pair of MR and CT out: seeded, on one grid, in the units that the network is given."""

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from medgen.prepare.degrade import RandWindowd
from medgen.prepare.head import HeadFieldsd, RandHeadd
from medgen.simulate.head import LABELS


def labels() -> MetaTensor:
    x, y, z = np.indices((64, 60, 56)) - np.reshape([32, 30, 28], (3, 1, 1, 1))
    radius = np.sqrt(x**2 + y**2 + z**2)
    found = np.zeros(radius.shape, np.float32)
    for name, outer in (("soft", 27), ("bone", 22), ("csf", 18), ("grey", 16), ("white", 11)):
        found[radius < outer] = LABELS[name]
    return MetaTensor(torch.from_numpy(found)[None], affine=torch.diag(torch.tensor([0.5, 0.5, 0.5, 1.0])))


def pipeline() -> Compose:
    return Compose(
        [HeadFieldsd("fields"), RandWindowd(["fields"], [24, 24, 24], padding="border"), RandHeadd("fields")]
    )


def test_finer_labels_become_partial_volumes() -> None:
    fields = HeadFieldsd("fields")({"fields": labels()})["fields"]
    assert fields.shape == (6, 32, 30, 28)
    assert fields.dtype == torch.float16
    assert 0 < ((fields[0] > 0) & (fields[0] < 1)).float().mean() < 0.3


def test_a_pair_is_drawn() -> None:
    pair = pipeline().set_random_state(seed=3)({"fields": labels()})
    assert set(pair) == {"image", "target", "mask"}
    assert all(pair[key].shape == (1, 24, 24, 24) and pair[key].dtype == torch.float32 for key in pair)
    assert pair["target"].min() >= -1.024
    assert pair["target"].max() > 0.3  # bone
    assert pair["mask"].min() == 1


def test_the_seed_decides() -> None:
    first, again, other = (pipeline().set_random_state(seed=s)({"fields": labels()})["image"] for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_noise_reaches_the_background_most_of_the_time() -> None:
    head = RandHeadd("fields").set_random_state(seed=0)
    fields = HeadFieldsd("fields")({"fields": labels()})["fields"]
    corners = [float(head({"fields": fields})["image"][0, 0, 0, 0]) for _ in range(12)]
    assert 6 <= sum(corner > 0 for corner in corners) < 12
