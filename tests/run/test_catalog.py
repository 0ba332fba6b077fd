"""The catalog tells what is installed, fast, and never mistakes a foreign bundle for one that came with medgen."""

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
from zoo_like import METADATA, write_bundle

from medgen.errors import BundleError
from medgen.run.catalog import BundleSummary, find_bundle, list_bundles


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("MEDGEN_BUNDLES", str(folder))
    return folder


def _summary(name: str) -> BundleSummary:
    return next(line for line in list_bundles() if line.name == name)


def test_summary_holds_what_the_metadata_declares(shelf: Path) -> None:
    metadata = deepcopy(METADATA) | {
        "input_contrast": "T1w",
        "output_suffix": "T2w",
        "headline": {"metric": "PSNR", "value": 21.5, "unit": "dB", "test_set": "one patient"},
    }
    write_bundle(shelf / "a_to_b", metadata=metadata, own=True)
    line = _summary("a_to_b")
    assert (line.version, line.modality, line.input, line.output) == ("0.1.0", "MR", "T1w", "T2w")
    assert line.weights == "verified"
    assert line.headline == "PSNR 21.5 dB on one patient"
    assert json.loads(json.dumps(line.to_json()))["name"] == "a_to_b"


def test_weights_are_judged_by_content(shelf: Path) -> None:
    folder = write_bundle(shelf / "a", own=True)
    weights = folder / "models" / "model.pt"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert _summary("a").weights == "wrong"
    weights.unlink()
    assert _summary("a").weights == "missing"
    write_bundle(shelf / "b")
    assert _summary("b").weights == "unlisted"


def test_modality_of_the_input_is_told_where_it_differs(shelf: Path) -> None:
    metadata = deepcopy(METADATA)
    metadata["network_data_format"]["outputs"]["pred"]["format"] = "hounsfield"
    write_bundle(shelf / "mr_to_ct", metadata=metadata)
    assert _summary("mr_to_ct").modality == "MR to CT"


def test_bundle_is_found_by_name_and_by_path(shelf: Path) -> None:
    folder = write_bundle(shelf / "inside", own=True)
    assert find_bundle("inside") == find_bundle(folder)
    assert find_bundle("inside").own


def test_bundle_elsewhere_is_foreign_even_under_the_same_name(shelf: Path, tmp_path: Path) -> None:
    write_bundle(shelf / "inside", own=True)
    assert not find_bundle(write_bundle(tmp_path / "inside")).own


def test_link_on_the_shelf_to_a_foreign_bundle_stays_foreign(shelf: Path, tmp_path: Path) -> None:
    foreign = write_bundle(tmp_path / "elsewhere")
    (shelf / "elsewhere").symlink_to(foreign)
    assert "elsewhere" not in [line.name for line in list_bundles()]
    assert not find_bundle(shelf / "elsewhere").own


def test_name_of_an_installed_bundle_wins_over_a_folder_here(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle(shelf / "mine", own=True)
    write_bundle(tmp_path / "work" / "mine")
    monkeypatch.chdir(tmp_path / "work")
    assert find_bundle("mine").folder == shelf / "mine"


def test_wrong_name_is_answered_with_the_nearest(shelf: Path) -> None:
    write_bundle(shelf / "brain_t1_to_flair", own=True)
    with pytest.raises(BundleError, match="brain_t1_to_flair"):
        find_bundle("brain_t1_to_fliar")


def test_unreadable_metadata_is_named(shelf: Path) -> None:
    (shelf / "broken" / "configs").mkdir(parents=True)
    (shelf / "broken" / "configs" / "metadata.json").write_text("{,")
    with pytest.raises(BundleError, match=r"broken/configs/metadata\.json"):
        list_bundles()


def test_listing_loads_neither_torch_nor_monai() -> None:
    code = "import sys, medgen.run.catalog as c; c.list_bundles(); print({'torch', 'monai'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
