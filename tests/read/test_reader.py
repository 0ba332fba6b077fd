"""The reader is at home in MONAI: values and grid as MONAI's own where those are right, and no silent second try."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.data import (
    DataLoader,
    Dataset,
    MetaTensor,
    NibabelReader,
    PydicomReader,
    decollate_batch,
    list_data_collate,
)
from monai.transforms import Compose, EnsureChannelFirstd, LoadImage, LoadImaged

from medgen.errors import GeometryError, UnreadableError
from medgen.geometry import Grid
from medgen.read.discover import datalist, find_cases
from medgen.read.reader import VolumeReader, flags_of, read_image
from medgen.simulate.dicom import write_series
from tests.read.series import SHAPE, oblique_affine, voxels, write, write_enhanced


def nifti(path: Path) -> Path:
    nib.Nifti1Image(voxels().astype(np.int16), oblique_affine()).to_filename(path)
    return path


def same(first: MetaTensor, second: MetaTensor) -> None:
    np.testing.assert_array_equal(first.numpy(), second.numpy())
    np.testing.assert_allclose(first.affine, second.affine, atol=1e-4)
    assert first.dtype == second.dtype
    for key in ("space", "spatial_shape", "filename_or_obj"):
        assert np.all(first.meta[key] == second.meta[key]), key


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")
def test_as_monai_reads_nifti(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii.gz")
    same(LoadImage(reader=VolumeReader)(path), LoadImage(reader=NibabelReader)(path))


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")
@pytest.mark.parametrize("as_list", [False, True])
def test_as_monai_reads_a_clean_series(tmp_path: Path, as_list: bool) -> None:
    affine = np.diag([-0.7, -1.1, 2.3, 1.0])  # PydicomReader takes the slice distance from z alone
    files = write_series(tmp_path, voxels(), affine, "CT")
    ours = LoadImage(reader=VolumeReader)(files if as_list else tmp_path)
    monai = LoadImage(reader=PydicomReader)(tmp_path)
    np.testing.assert_array_equal(ours.numpy(), monai.numpy())
    np.testing.assert_allclose(ours.affine, monai.affine, atol=1e-4)


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")
def test_no_other_reader_is_tried(tmp_path: Path) -> None:
    """MONAI answers an error in `read` with its next reader, and every one of those reads a series with a gap."""
    files = write(tmp_path)
    files[2].unlink()
    with pytest.raises(GeometryError, match="1 slices missing"):
        LoadImage(reader=VolumeReader)(tmp_path)


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")
def test_irregular_when_allowed(tmp_path: Path) -> None:
    write(tmp_path)[2].unlink()
    image = LoadImaged("image", reader=VolumeReader, allow_irregular=True)({"image": str(tmp_path)})["image"]
    assert image.shape == SHAPE
    assert flags_of(image) == ("regridded",)


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")
def test_flagged_and_unflagged_volumes_collate_to_one_batch(tmp_path: Path) -> None:
    write(tmp_path / "whole")
    write(tmp_path / "gap")[2].unlink()
    load = LoadImaged("image", reader=VolumeReader, allow_irregular=True)
    items = [load({"image": str(tmp_path / name)}) for name in ("whole", "gap")]
    batch = list_data_collate(items)["image"]
    assert batch.shape == (2, *SHAPE)
    assert [flags_of(image) for image in decollate_batch(batch)] == [(), ("regridded",)]


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")
def test_a_bundle_dataset_through_a_loader(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii.gz")
    write(tmp_path / "series")
    write_enhanced(tmp_path / "e.dcm", {4.9: voxels(seed=1), 9.8: voxels(seed=2)}, oblique_affine())
    chain = Compose([LoadImaged("image", reader=VolumeReader), EnsureChannelFirstd("image")])
    batches = list(DataLoader(Dataset(datalist(str(tmp_path)), chain), batch_size=1, num_workers=0))
    assert [tuple(b["image"].shape) for b in batches] == [(1, 1, *SHAPE)] * 4
    means = sorted(float(b["image"].mean()) for b in batches)
    expected = [voxels().mean()] * 2 + [voxels(seed=1).mean() * 1.5 - 3, voxels(seed=2).mean() * 2 - 3]
    np.testing.assert_allclose(means, sorted(expected), rtol=1e-5)


def test_read_image_is_ready_for_a_chain_without_its_loader(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii.gz")
    write(tmp_path / "series")
    for case in find_cases(tmp_path, salt=b"s"):
        image = read_image(case)
        assert image.shape == (1, *SHAPE)
        assert image.meta["modality"] == case.modality
        assert image.meta["filename_or_obj"] == str(case.files[0])
        assert case.grid is not None
        assert not Grid(SHAPE, image.affine.numpy()).differs_from(case.grid)
        # Bundles have EnsureChannelFirstd or leave it to LoadImaged; both must see one channel.
        assert EnsureChannelFirstd("image")({"image": image})["image"].shape == (1, *SHAPE)


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(UnreadableError, match="got none"):
        VolumeReader().get_data([tmp_path])
    with pytest.raises(UnreadableError, match=r"gone.nii: expected a NIfTI file or DICOM files, got nothing"):
        VolumeReader().get_data([tmp_path / "gone.nii"])
