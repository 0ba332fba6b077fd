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
from medgen.infer.trust import SCHEMA, InputCheck, distance_from, likeness_from, to_json
from medgen.infer.trust_fit import Example, damage, fit, fit_distance, invert, reference, table
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
    """A reference learnt from one simulated brain, as found and damaged in four ways, as three patients."""
    rng = np.random.default_rng(0)
    shown = []
    for number in range(15):
        for contrast, image in {**brains, "inverted": invert(brains["t1"])}.items():
            view = view_of(image if number < 3 else damage(image, rng), GRID.affine)
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
    assert "input-contrast" in check(_scan(brains["t2"])).flags
    assert "input-contrast" in check(_scan(invert(brains["t1"]))).flags


def test_scores_say_what_it_looks_like_instead(check: InputCheck, brains: dict[str, Volume]) -> None:
    scores = check(_scan(brains["t2"])).scores
    likenesses = {name: value for name, value in scores.items() if name.startswith("like_")}
    assert max(likenesses, key=lambda name: likenesses[name]) in {"like_t2", "like_inverted"}  # near each other
    assert sum(likenesses.values()) == pytest.approx(1, abs=1e-3)


def test_flags_what_size_spacing_and_modality_say(check: InputCheck, brains: dict[str, Volume]) -> None:
    small = GRID.affine @ np.diag([0.2, 0.2, 0.2, 1.0])
    assert "input-body-part" in check(_scan(brains["t1"], small)).flags
    assert "input-body-part" in check(_scan(brains["t1"], GRID.affine @ np.diag([2.1, 2.1, 1.9, 1.0]))).flags
    assert "input-resolution" in check(_scan(brains["t1"][:, :, ::4], GRID.affine @ np.diag([1, 1, 4.0, 1]))).flags
    assert "input-modality" in check(_scan(brains["t1"], modality="CT")).flags
    assert "input-modality" in check(_scan(brains["t1"] - 1000)).flags


def test_an_empty_image_is_flagged_and_no_error(check: InputCheck) -> None:
    verdict = check(_scan(np.zeros((12, 11, 10), dtype=np.float32)))
    assert "input-body-part" in verdict.flags


def test_what_was_learnt_survives_the_file(content: dict[str, Any]) -> None:
    stored = json.loads(json.dumps(content))
    assert to_json(likeness_from(stored["likeness"])) == content["likeness"]
    assert to_json(distance_from(stored["distance"])) == content["distance"]


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


def test_distance_is_about_one_for_its_own_and_grows_with_the_difference() -> None:
    rng = np.random.default_rng(5)
    own = [
        Example(str(n), "t1", {"a": float(rng.normal(3, 2)), "b": float(rng.normal())}, {}, True) for n in range(200)
    ]
    distance = fit_distance(own)
    mean_square = np.mean([distance(one.numbers) ** 2 for one in own])
    assert mean_square == pytest.approx(1, abs=0.1)
    assert distance({"a": 3.0, "b": 0.0}) < 0.3
    assert distance({"a": 15.0, "b": 0.0}) > 4


def test_the_table_counts_what_is_flagged() -> None:
    def one(contrast: str, original: bool) -> Example:
        return Example("p", contrast, {}, {}, original)

    marked = [(one("t1", True), False), (one("t2", True), True), (one("t2", True), False), (one("t2", False), True)]
    text = table(marked)
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


@pytest.fixture(scope="module")
def bundled(repository: Path) -> InputCheck:
    return InputCheck(str(repository / "bundles" / "brain_t1_to_t2" / "models" / "input_reference.json"))


def _read(path: Path) -> MetaTensor:
    volume = read_volume([path], allow_irregular=True)
    return _scan(volume.image, volume.grid.affine, volume.modality or "MR")


@pytest.mark.real_data
@pytest.mark.parametrize("place", ["glioma-fg6692", "glioma-fg6692-native"])
def test_on_the_validation_patient_whom_the_reference_never_saw(
    real_data: Path, bundled: InputCheck, place: str
) -> None:
    flags = {c: bundled(_read(real_data / "t1_t2" / place / f"{c}.nii.gz")).flags for c in ("t1", "t2", "flair")}
    assert flags["t1"] == ()
    assert flags["t2"]
    assert flags["flair"]


@pytest.mark.real_data
@pytest.mark.parametrize("path", ["ct/crlm-1004", "dicom/ge-head-ct-tilted", "dicom/siemens-t1-jpeg2000"])
def test_flags_ct_and_a_phantom(real_data: Path, bundled: InputCheck, path: str) -> None:
    assert bundled(_read(real_data / path)).flags
