"""Labels in, a pair of MR and CT out: seeded, on one grid, in the units that the network is given."""

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from medgen.prepare.degrade import RandWindowd
from medgen.prepare.head import HeadFieldsd, RandGuessd, RandHeadd, RandShrunkBraind, TemplateFieldsd
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
    corners = [float(head({"fields": fields})["image"][0, 0, 0, 0]) for _ in range(40)]
    assert 24 <= sum(corner > 0 for corner in corners) < 40


def test_an_item_without_labels_passes_with_a_mask() -> None:
    image = torch.rand(1, 30, 30, 30)
    chain = Compose(
        [
            HeadFieldsd("head", allow_missing_keys=True),
            RandWindowd(["head", "image", "target"], [24, 24, 24], allow_missing_keys=True),
            RandHeadd("head", allow_missing_keys=True),
        ]
    )
    pair = chain({"image": image, "target": 2 * image})
    assert torch.allclose(2 * pair["image"], pair["target"], atol=1e-6)
    assert torch.equal(pair["mask"], torch.ones(1, 24, 24, 24))


def test_an_averaged_head_becomes_fields_at_half_its_spacing() -> None:
    radius = np.sqrt(sum((axis - 15.5) ** 2 for axis in np.indices((32, 32, 32))))
    cormack = np.select([radius < 9, radius < 11, radius < 14], [2300.0, 3600.0, 2300.0], 0.0)
    affine = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))
    zero = np.zeros_like(radius)
    maps = {"white": (radius < 5) * 1.0, "grey": ((radius >= 5) & (radius < 8)) * 1.0, "csf": zero}
    volumes = {"ct": cormack, **maps}
    item = {k: MetaTensor(torch.from_numpy(v.astype(np.float32))[None], affine=affine) for k, v in volumes.items()}
    fields = TemplateFieldsd()(item)["head"]
    assert fields.shape == (6, 63, 63, 63)
    centre = fields[:, 31, 31].float()
    assert centre[0, 31] == 1  # white matter in the middle
    assert centre[4, 31] < 0 < centre[4, 31 + 20]  # and bone around it
    assert centre[3, 0] < 0 < centre[3, 31]  # skin: outside is negative


def test_people_of_little_variety_have_bones_more_alike() -> None:
    fields = HeadFieldsd("fields")({"fields": labels()})["fields"]

    def bone_shares(variety: float) -> np.ndarray:
        head = RandHeadd("fields", variety=variety).set_random_state(seed=0)
        return np.array([float((head({"fields": fields})["target"] > 0.25).float().mean()) for _ in range(8)])

    alike, unlike = bone_shares(0.0), bone_shares(1.0)
    assert alike.std() < 0.7 * unlike.std()


def test_some_brains_are_shrunken_as_the_seed_says() -> None:
    fields = HeadFieldsd("fields")({"fields": labels()})["fields"]
    shrink = RandShrunkBraind("fields", prob=0.5).set_random_state(seed=0)
    fluid = torch.stack([shrink({"fields": fields})["fields"][2].float().sum() for _ in range(20)])
    changed = fluid > fields[2].float().sum() + 1
    assert 4 <= int(changed.sum()) <= 16
    assert len(fluid[changed].unique()) == int(changed.sum())
    again = RandShrunkBraind("fields", prob=0.5).set_random_state(seed=0)
    assert torch.equal(fluid, torch.stack([again({"fields": fields})["fields"][2].float().sum() for _ in range(20)]))
    always = RandShrunkBraind("fields", prob=1.0, allow_missing_keys=True)
    assert always({"image": fields}).keys() == {"image"}


def test_a_guess_lies_beside_each_ct_and_hangs_on_the_seed() -> None:
    ct = torch.full((1, 12, 12, 12), 0.03)
    ct[:, 6:] = 1.3
    first, again, other = (RandGuessd("target").set_random_state(seed=s)({"target": ct}) for s in (1, 1, 2))
    assert torch.equal(first["guess"], again["guess"])
    assert not torch.equal(first["guess"], other["guess"])
    assert torch.equal(first["target"], ct)
    assert first["guess"][:, :4].mean() > 2 * first["guess"][:, 8:].mean()
    assert RandGuessd("target", allow_missing_keys=True)({"image": ct}).keys() == {"image"}
