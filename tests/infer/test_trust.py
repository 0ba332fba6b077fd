"""Input check: size, spacing and modality by rule, contrast by likeness; and on real scans, what must be flagged is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from monai.data import MetaTensor

from medgen.errors import BundleError
from medgen.geometry import Grid
from medgen.infer.appearance import appearance, size_of, view_of
from medgen.infer.trust import SCHEMA, InputCheck, likeness_from, likeness_to_json
from medgen.infer.trust_fit import Example, damage, fit, invert, reference, table
from medgen.read.manifest import load_manifest
from medgen.read.reader import read_volume
from medgen.simulate.brain import simulate_brain
from medgen.simulate.signal import t1_weighted, t2_weighted

Volume = npt.NDArray[np.float32]
GRID = Grid((54, 62, 52), np.array([[3.0, 0, 0, -80], [0, 3.0, 0, -92], [0, 0, 3.0, -72], [0, 0, 0, 1.0]]))


@pytest.fixture(scope="module")
def brains() -> dict[str, Volume]:
    fractions = simulate_brain(GRID, seed=1, head=False)
    return {"t1": t1_weighted(fractions), "t2": t2_weighted(fractions)}


@pytest.fixture(scope="module")
def content(brains: dict[str, Volume]) -> dict[str, Any]:
    """A reference learnt from one simulated brain, shown damaged in five ways as three patients."""
    rng = np.random.default_rng(0)
    shown = []
    for number in range(15):
        for contrast, image in {**brains, "inverted": invert(brains["t1"])}.items():
            view = view_of(damage(image, rng), GRID.affine)
            patient, original = f"p{number % 3}", number < 3
            shown.append(Example(patient, contrast, appearance(view), size_of(view), original))
    found, text = reference(shown, "t1", (0.5, 6.0))
    assert "t2" in text
    return found


@pytest.fixture(scope="module")
def check(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> InputCheck:
    path = tmp_path_factory.mktemp("reference") / "input_reference.json"
    path.write_text(json.dumps(content))
    return InputCheck(str(path))


def _scan(image: Volume, affine: npt.NDArray[np.float64] = GRID.affine, modality: str = "MR") -> MetaTensor:
    return MetaTensor(
        torch.from_numpy(image.copy())[None], affine=torch.from_numpy(affine), meta={"modality": modality}
    )


def test_tells_contrasts_apart(check: InputCheck, brains: dict[str, Volume]) -> None:
    assert check(_scan(brains["t1"])).flags == ()
    assert check(_scan(brains["t2"])).flags == ("input-contrast",)
    assert check(_scan(invert(brains["t1"]))).flags == ("input-contrast",)


def test_scores_say_what_it_looks_like_instead(check: InputCheck, brains: dict[str, Volume]) -> None:
    scores = check(_scan(brains["t2"])).scores
    likenesses = {name: value for name, value in scores.items() if name.startswith("like_")}
    assert max(likenesses, key=lambda name: likenesses[name]) in {"like_t2", "like_inverted"}  # near each other
    assert sum(likenesses.values()) == pytest.approx(1, abs=1e-3)


def test_flags_what_size_spacing_and_modality_say(check: InputCheck, brains: dict[str, Volume]) -> None:
    small = GRID.affine @ np.diag([0.2, 0.2, 0.2, 1.0])
    assert {"input-body-part", "input-contrast"} & set(check(_scan(brains["t1"], small)).flags)
    assert "input-body-part" in check(_scan(brains["t1"], GRID.affine @ np.diag([2.1, 2.1, 1.9, 1.0]))).flags
    assert "input-resolution" in check(_scan(brains["t1"][:, :, ::4], GRID.affine @ np.diag([1, 1, 4.0, 1]))).flags
    assert "input-modality" in check(_scan(brains["t1"], modality="CT")).flags
    assert "input-modality" in check(_scan(brains["t1"] - 1000)).flags


def test_an_empty_image_is_flagged_and_no_error(check: InputCheck) -> None:
    verdict = check(_scan(np.zeros((12, 11, 10), dtype=np.float32)))
    assert {"input-contrast", "input-body-part"} <= set(verdict.flags)


def test_a_discriminant_survives_the_file(content: dict[str, Any]) -> None:
    stored = content["likeness"]
    assert likeness_to_json(likeness_from(json.loads(json.dumps(stored)))) == stored


def test_a_fit_puts_every_class_where_it_lies() -> None:
    rng = np.random.default_rng(2)
    shown = [
        Example(str(n), name, {"a": float(place + rng.normal()), "b": float(rng.normal())}, {}, original=True)
        for n in range(40)
        for name, place in (("x", 0.0), ("y", 6.0))
    ]
    likeness = fit(shown)
    right = [max(likeness(one.numbers), key=likeness(one.numbers).__getitem__) == one.contrast for one in shown]
    assert np.mean(right) > 0.98


def test_the_table_counts_what_the_threshold_flags() -> None:
    def one(contrast: str, original: bool) -> Example:
        return Example("p", contrast, {}, {}, original)

    text = table([(one("t1", True), 0.9), (one("t2", True), 0.1), (one("t2", True), 0.6), (one("t2", False), 0.0)], 0.5)
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[1:]}
    assert rows["t1"] == ["0", "of", "1", "0", "of", "0"]
    assert rows["t2"] == ["1", "of", "2", "1", "of", "1"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content.pop("likeness"),
        lambda content: content.update(schema="another"),
        lambda content: content["likeness"]["offsets"].append(0.0),
        lambda content: content.update(size=3),
    ],
)
def test_a_broken_reference_is_named(spoil: Any, content: dict[str, Any], tmp_path: Path) -> None:
    broken = json.loads(json.dumps(content))
    assert broken["schema"] == SCHEMA
    spoil(broken)
    path = tmp_path / "input_reference.json"
    path.write_text(json.dumps(broken))
    with pytest.raises(BundleError, match=r"input_reference\.json"):
        InputCheck(str(path))
    with pytest.raises(BundleError, match="absent"):
        InputCheck(str(tmp_path / "absent.json"))


@pytest.mark.real_data
def test_on_the_validation_patient_whom_the_reference_never_saw(real_data: Path, repository: Path) -> None:
    check = InputCheck(str(repository / "bundles" / "brain_t1_to_t2" / "models" / "input_reference.json"))
    cases = load_manifest(repository / "data_manifests" / "input-reference.json")["cases"]
    flagged = {}
    for case in cases:
        for contrast, file in case["files"].items() if case["split"] == "validation" else ():
            volume = read_volume([real_data / file["path"]])
            flagged[file["path"]] = contrast, check(_scan(volume.image, volume.grid.affine)).flags
    wrong = {p: f for p, (c, f) in flagged.items() if ("input-contrast" in f) == (c in {"t1"}) and c != "t1c"}
    assert len(flagged) == 7
    assert wrong == {}
