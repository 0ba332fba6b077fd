"""What a training is given: weighted pairs from manifests, pairs by formula, and a refusal of nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from medgen.errors import BundleError, NoInputError
from medgen.run.training import simulated_bscans, simulated_items, start, training_items, trunk_slabs


def write_manifest(folder: Path, name: str, patients: list[str]) -> None:
    files = {"path": "a.nii.gz", "sha256": "0" * 64}
    cases = [
        {
            "patient": p,
            "session": "1",
            "split": "train",
            "files": {"image": {**files, "path": f"{p}.nii.gz"}, "target": files},
        }
        for p in patients
    ]
    fields = {
        "schema": "medgen-manifest-1",
        "name": name,
        "description": "d",
        "license": "l",
        "source": "s",
        "cases": cases,
    }
    (folder / f"{name}.json").write_text(json.dumps(fields))


@pytest.mark.parametrize("group", [{"manifest": "one.json", "wieght": 3}, {"weight": 1}])
def test_a_group_that_says_what_no_group_can_say_is_refused(group: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"groups of a manifest.*weight.*got"):
        training_items([group], str(tmp_path), str(tmp_path))


def test_groups_are_joined_with_their_weights(tmp_path: Path) -> None:
    write_manifest(tmp_path, "one", ["p1"])
    write_manifest(tmp_path, "two", ["p2", "p3"])
    groups = [{"manifest": "one.json", "weight": 3}, {"manifest": "two.json", "strip": True}, {"manifest": "one.json"}]
    items = training_items(groups, str(tmp_path), str(tmp_path))
    assert [(i["patient"], i["weight"], i["strip"]) for i in items] == [
        ("p1", 3.0, False),
        ("p2", 1.0, True),
        ("p3", 1.0, True),
        ("p1", 1.0, False),
    ]
    assert items[0]["image"] == str(tmp_path / "p1.nii.gz")


def test_a_patient_left_out_is_in_no_group(tmp_path: Path) -> None:
    write_manifest(tmp_path, "one", ["p1", "p2"])
    groups = [{"manifest": "one.json"}, {"manifest": "one.json", "strip": True}]
    items = training_items(groups, str(tmp_path), str(tmp_path), exclude=["p1"])
    assert [i["patient"] for i in items] == ["p2", "p2"]


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_that_is_missing_or_empty_gives_no_items(tmp_path: Path, made: bool) -> None:
    folder = tmp_path / "data"
    if made:
        folder.mkdir()
    assert training_items([{"manifest": "ms-mni.json"}], str(folder)) == []


def test_training_on_nothing_is_refused() -> None:
    with pytest.raises(NoInputError, match="found none"):
        start(None, [], {}, ".")  # type: ignore[arg-type]


def test_pairs_by_formula_show_one_anatomy_in_two_contrasts() -> None:
    first, second = simulated_items(2)
    head = first["image"] > 0
    assert torch.equal(head, first["target"] > 0)
    joined = torch.stack([first["image"][head].as_tensor(), first["target"][head].as_tensor()])
    assert torch.corrcoef(joined)[0, 1] < -0.5  # what is bright on T1 is dark on T2
    assert not torch.equal(first["image"], second["image"])


def test_a_group_takes_the_roles_that_it_names(tmp_path: Path) -> None:
    write_manifest(tmp_path, "one", ["p1", "p2"])
    items = training_items([{"manifest": "one.json", "roles": ["image"]}], str(tmp_path), str(tmp_path))
    assert items
    assert all({"image", "patient"} <= item.keys() and "target" not in item for item in items)


def test_a_group_may_say_what_a_role_is_to_be(tmp_path: Path) -> None:
    write_manifest(tmp_path, "one", ["p1"])
    items = training_items([{"manifest": "one.json", "roles": {"image": "target"}}], str(tmp_path), str(tmp_path))
    assert [item["target"] for item in items] == [str(tmp_path / "p1.nii.gz")]
    assert "image" not in items[0]
    assert items[0]["patient"] == "p1"


def test_a_group_may_say_which_slices_to_learn_from(tmp_path: Path) -> None:
    write_manifest(tmp_path, "one", ["p1"])
    for group, wanted in (({"slices": [[0, 3], [5, 9]]}, [[0, 3], [5, 9]]), ({}, None)):
        [item] = training_items([{"manifest": "one.json", **group}], str(tmp_path), str(tmp_path))
        assert item.get("slices") == wanted


def test_trunks_by_formula_are_ct_of_different_people() -> None:
    first, second = trunk_slabs(2, shape=(32, 24, 2), spacing=(12.0, 12.0, 5.0))
    assert first["target"].shape == (1, 32, 24, 2)
    assert first["target"].min() == -1000
    assert ((first["target"] > 0) & (first["target"] < 200)).float().mean() > 0.1
    assert not torch.equal(first["target"], second["target"])
    assert first["patient"] != second["patient"]
    assert first["target"].pixdim.tolist() == [12.0, 12.0, 5.0]
    [named] = trunk_slabs(1, shape=(32, 24, 2), spacing=(12.0, 12.0, 5.0), key="trunk")
    assert torch.equal(named["trunk"], first["target"])
    assert "target" not in named


def test_masks_are_taken_where_a_case_has_them(tmp_path: Path) -> None:
    write_manifest(tmp_path, "m", ["a", "b"])
    content = json.loads((tmp_path / "m.json").read_text())
    content["cases"][0]["files"]["mask"] = {"path": "mask.nii.gz", "sha256": "0" * 64}
    (tmp_path / "m.json").write_text(json.dumps(content))
    group = {"manifest": "m.json", "roles": ["image", "target"], "also": ["mask"]}
    items = training_items([group], str(tmp_path), str(tmp_path))
    assert ["mask" in item for item in items] == [True, False]
    assert all({"image", "target"} <= item.keys() for item in items)


def test_no_bscans_are_made_where_none_are_asked_for() -> None:
    assert simulated_bscans(0) == []


def test_bscans_by_formula_are_people_of_their_own_with_the_pixels_of_a_spectralis() -> None:
    items = simulated_bscans(2, weight=0.05, first_seed=3, shape=(40, 210))
    assert [(item["patient"], item["weight"]) for item in items] == [("simulated-3", 0.05), ("simulated-4", 0.05)]
    for item in items:
        assert set(item) == {"drawn", "patient", "weight"}
        assert tuple(item["drawn"].shape) == (1, 40, 210, 1)
        spacing = np.linalg.norm(item["drawn"].affine.numpy()[:3, :3], axis=0)
        assert spacing == pytest.approx([0.0115, 0.00387, 1.0])
    assert not torch.equal(items[0]["drawn"], items[1]["drawn"])


def test_bscans_of_a_seed_are_the_same_in_any_number_of_them() -> None:
    (alone,) = simulated_bscans(1, first_seed=4, shape=(40, 210))
    again = simulated_bscans(3, first_seed=3, shape=(40, 210))[1]
    assert alone["patient"] == again["patient"]
    assert torch.equal(alone["drawn"], again["drawn"])
