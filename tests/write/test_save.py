"""`SaveResultd` in a MONAI pipeline: the prediction lies on its input's grid, under the name of `medgen run`."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.transforms import (
    Compose,
    CopyItemsd,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
    SaveImaged,
    Spacingd,
)

from medgen.errors import OutputError
from medgen.geometry import Grid
from medgen.read.discover import datalist
from medgen.read.reader import VolumeReader
from medgen.simulate.sample import head_grid
from medgen.write.save import SaveResultd
from write.conftest import Make, nifti_case

# MONAI tries every reader that it knows; this one misses an optional package.
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")


def run_pipeline(dataset_dir: Path, output_dir: Path, *, stems: bool = True) -> list[dict]:
    """Preprocess, take the image for the prediction, invert, save: what a bundle's evaluator does with one item."""
    before = Compose(
        [
            LoadImaged(keys="image", reader=VolumeReader),
            EnsureChannelFirstd(keys="image"),
            Orientationd(keys="image", axcodes="RAS", labels=None),
            Spacingd(keys="image", pixdim=(1.0, 1.0, 1.0), mode="bilinear"),
        ]
    )
    after = Compose(
        [
            CopyItemsd(keys="image", names="pred"),
            Invertd(keys="pred", transform=before, orig_keys="image", nearest_interp=False, to_tensor=True),
            SaveResultd(keys="pred", output_dir=str(output_dir), suffix="T2w", dataset_dir=str(dataset_dir)),
        ]
    )
    items = []
    for entry in datalist(str(dataset_dir)):
        item = {key: value for key, value in entry.items() if stems or key != "stem"}
        items += [after(one) for one in decollate_batch(list_data_collate([before(item)]))]
    return items


@pytest.mark.parametrize("stems", [True, False])
def test_a_pipeline_writes_on_the_input_grid(tmp_path: Path, stems: bool) -> None:
    grid = head_grid((21, 19, 9), (1.3, 0.9, 3.1), tilt_degrees=13.0)
    (tmp_path / "in" / "sub-01").mkdir(parents=True)
    case = nifti_case(tmp_path / "in" / "sub-01" / "sub-01_T1w.nii", grid)
    (item,) = run_pipeline(tmp_path / "in", tmp_path / "out", stems=stems)
    target = tmp_path / "out" / "sub-01" / "sub-01_desc-synthFromT1w_T2w.nii"
    source, written = nib.load(case.files[0]), nib.load(target)
    assert written.shape == source.shape
    np.testing.assert_array_equal(written.affine, source.affine)
    assert written.get_data_dtype() == np.int16
    assert Path(item["pred"].meta["saved_to"]) == target


@pytest.mark.parametrize("stems", [True, False])
def test_a_dicom_series_becomes_nifti_without_its_folders_name(tmp_path: Path, from_dicom: Make, stems: bool) -> None:
    grid = from_dicom().grid
    (tmp_path / "in").mkdir()
    (tmp_path / "series").rename(tmp_path / "in" / "Doe^Jane")
    run_pipeline(tmp_path / "in", tmp_path / "out", stems=stems)
    (written,) = (tmp_path / "out").iterdir()
    assert written.name.startswith("dicom-")
    assert written.name.endswith("_desc-synth_T2w.nii.gz")
    image = nib.load(written)
    assert Grid(image.shape, image.affine).differs_from(grid) == ""


def test_monai_label_and_medgen_know_it_for_a_saver() -> None:
    assert isinstance(SaveResultd(keys="pred", output_dir=".", suffix="CT", unit="HU"), SaveImaged)


def test_what_is_no_single_channel_volume_is_refused(tmp_path: Path) -> None:
    save = SaveResultd(keys="pred", output_dir=str(tmp_path), suffix="T2w")
    with pytest.raises(OutputError, match=r"expected a MetaTensor \(1, X, Y, Z\)"):
        save({"pred": MetaTensor(torch.zeros(2, 4, 5, 6))})
    with pytest.raises(OutputError, match="can no longer be read"):
        save({"pred": MetaTensor(torch.zeros(1, 4, 5, 6), meta={"filename_or_obj": "a/b.nii"})})
