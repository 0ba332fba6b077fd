"""Normal tissue, lesions put in, the declared contrast, and what is done to a finished map."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from medgen.errors import IntensityError
from medgen.prepare.lesion import CleanHeatd, DeclareContrastd, NormalTissued, RandBrainMrd, RandLesionsd

SHAPE = (1, 24, 28, 24)


def brain() -> torch.Tensor:
    inside = torch.zeros(SHAPE)
    inside[:, 3:-3, 3:-3, 3:-3] = 1
    return inside


def item() -> dict[str, object]:
    return {"image": brain().clone(), "brain": brain(), "mask": brain().clone(), "contrast": "FLAIR"}


def test_the_contrast_is_a_second_channel() -> None:
    for declared, number in (("FLAIR", 0.0), ("T2w", 1.0)):
        made = DeclareContrastd("image", declared)({"image": torch.rand(SHAPE)})["image"]
        assert made.shape == (2, *SHAPE[1:])
        assert made[1].unique().tolist() == [number]
    assert DeclareContrastd("image")({"image": torch.rand(SHAPE), "contrast": "T2w"})["image"][1].max() == 1


@pytest.mark.parametrize("contrast", ["T1w", "flair"])
def test_an_unknown_contrast_is_refused(contrast: str) -> None:
    with pytest.raises(IntensityError, match="FLAIR or T2w"):
        DeclareContrastd("image", contrast)
    with pytest.raises(IntensityError, match="FLAIR or T2w"):
        DeclareContrastd("image")({"image": torch.rand(SHAPE), "contrast": contrast})


def test_lesions_and_their_margin_weigh_nothing_and_the_background_little() -> None:
    lesion = torch.zeros(SHAPE)
    lesion[0, 12, 14, 12] = 1
    made = NormalTissued("lesion", margin_mm=2.0)({"brain": brain(), "lesion": lesion})
    weight = made["mask"][0]
    assert "lesion" not in made
    assert (weight[12, 14, 12], weight[14, 14, 12], weight[15, 14, 12]) == (0, 0, 1)
    assert weight[0, 0, 0] == pytest.approx(0.1)


def test_without_a_lesion_mask_all_of_the_brain_is_normal() -> None:
    assert torch.equal(NormalTissued("lesion")({"brain": brain()})["mask"] == 1, brain() == 1)


def test_a_pair_for_a_denoising_autoencoder_has_its_damage_on_the_input_alone() -> None:
    """The denoising option: lesions and noise on the image; the target is the image as it was."""
    before = item()
    clean = torch.as_tensor(before["image"]).clone()
    step = RandLesionsd("image", prob=1.0, noise=0.1)
    step.set_random_state(1)
    made = step(before)
    assert torch.equal(made["target"], clean)
    assert not torch.equal(made["image"], clean)
    assert torch.equal(made["image"][brain() == 0], clean[brain() == 0])
    assert made["mask"].max() > 1.5  # lesions weigh more
    assert made["mask"][brain() == 0].max() == 0


def test_with_neither_lesions_nor_noise_the_target_is_the_image() -> None:
    step = RandLesionsd("image", prob=0.0, noise=0.0)
    made = step(item())
    assert torch.equal(made["image"], made["target"])


def test_damage_follows_the_seed() -> None:
    made = []
    for _ in range(2):
        step = RandLesionsd("image")
        step.set_random_state(5)
        made.append(step(item())["image"])
    assert torch.equal(*made)


def test_tissue_fractions_become_a_scan_of_the_items_contrast_or_of_a_drawn_one() -> None:
    tissues = torch.zeros(3, 20, 20, 20)
    tissues[0, 4:8, 4:16, 4:16], tissues[1, 8:12, 4:16, 4:16], tissues[2, 12:16, 4:16, 4:16] = 1, 1, 1
    seen = set()
    for seed in range(12):
        step = RandBrainMrd("tissues")
        step.set_random_state(seed)
        made = step({"tissues": tissues})
        seen.add(made["contrast"])
        bright = made["image"][0, 4:8].sum() > made["image"][0, 8:12].sum()
        assert bool(bright) == (made["contrast"] == "T2w")
        assert torch.equal(made["brain"][0] == 1, tissues.sum(0) > 0.3)
    assert seen == {"FLAIR", "T2w"}
    assert Compose([RandBrainMrd("tissues")])({"tissues": tissues, "contrast": "T2w"})["contrast"] == "T2w"


def test_the_edge_is_eroded_in_millimetres_and_set_to_nothing() -> None:
    heat = MetaTensor(torch.ones(SHAPE), affine=torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0], dtype=torch.float64)))
    made = CleanHeatd("pred", erode_mm=2.0)({"pred": heat, "brain": brain()})
    kept = np.argwhere(np.asarray(made["pred"][0]) > 0)
    assert kept.min(axis=0).tolist() == [4, 5, 5]
    assert torch.equal(torch.as_tensor(made["pred"] > 0), torch.as_tensor(made["brain"] > 0))


def test_specks_above_the_threshold_are_taken_off() -> None:
    heat = torch.zeros(SHAPE)
    heat[0, 5, 5, 5] = 9.0
    heat[0, 10:14, 10:14, 10:14] = 5.0
    made = CleanHeatd("pred", threshold=1.0, least_ml=0.01)({"pred": heat, "brain": brain()})["pred"]
    assert made[0, 5, 5, 5] == 1.0
    assert made[0, 11, 11, 11] == 5.0


def test_a_median_removes_single_voxels() -> None:
    heat = torch.zeros(SHAPE)
    heat[0, 12, 12, 12] = 9.0
    assert CleanHeatd("pred", median=3)({"pred": heat, "brain": brain()})["pred"].max() == 0
