"""Files as scanners write them: order, affine and values as dcm2niix has them; the tilted one refused or resampled."""

import itertools
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from medgen.errors import GeometryError
from medgen.geometry import Grid
from medgen.read.discover import find_cases
from medgen.read.reader import flags_of, read_image, read_volume

REGULAR = {
    "dicom/siemens-t1-supine": (256, 256, 35),
    "dicom/siemens-t1-jpeg2000": (128, 128, 96),
    "dicom/siemens-xa30-enhanced": (128, 128, 96),
    "ct/crlm-1004": (512, 512, 41),
}


@pytest.mark.real_data
@pytest.mark.parametrize("folder", REGULAR)
def test_as_dcm2niix_reads_it(real_data: Path, tmp_path: Path, folder: str) -> None:
    volume = read_volume([real_data / folder])
    assert volume.grid.shape == REGULAR[folder]
    if shutil.which("dcm2niix") is None:
        pytest.skip("dcm2niix is not installed")
    plain = _without_compression(real_data / folder, tmp_path / "plain")
    command = ["dcm2niix", "-b", "n", "-z", "n", "-f", "x", "-o", str(tmp_path), str(plain)]
    subprocess.run(command, check=True, capture_output=True)
    (file,) = tmp_path.glob("*.nii")
    other = nib.load(file)
    # dcm2niix flips rows: bring its image to our axes before comparing.
    change = nib.orientations.ornt_transform(nib.io_orientation(other.affine), nib.io_orientation(volume.grid.affine))
    turned = other.as_reoriented(change)
    assert volume.grid.differs_from(Grid(turned.shape[:3], turned.affine)) == ""
    assert np.abs(volume.image - turned.get_fdata(dtype=np.float32)).max() < 1e-3


def _without_compression(folder: Path, target: Path) -> Path:
    """Returns the folder, or a decompressed copy: Debian's dcm2niix has no JPEG 2000."""
    datasets = [pydicom.dcmread(f) for f in sorted(folder.iterdir())]
    if not datasets[0].file_meta.TransferSyntaxUID.is_compressed:
        return folder
    target.mkdir()
    for number, dataset in enumerate(datasets):
        dataset.decompress()
        dataset.save_as(target / f"{number}.dcm")
    return target


@pytest.mark.real_data
def test_the_tilted_head_is_refused_with_its_numbers(real_data: Path) -> None:
    with pytest.raises(GeometryError, match=r"28 slices lie 1.08 to 7 mm apart; gantry tilt: .* 18.5 degrees"):
        read_volume([real_data / "dicom/ge-head-ct-tilted"])


@pytest.mark.real_data
def test_the_tilted_head_resampled(real_data: Path) -> None:
    (case,) = find_cases(real_data / "dicom/ge-head-ct-tilted", salt=b"", allow_irregular=True)
    image = read_image(case, allow_irregular=True)
    assert flags_of(image) == ("regridded",)
    assert case.grid is not None
    assert case.grid.differs_from(Grid(tuple(image.shape[1:]), image.affine.numpy())) == ""
    directions = case.grid.affine[:3, :3] / case.grid.spacing_mm
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-6)
    # Neighbouring slices of a head resemble each other, wherever they are in their right order and place.
    slices = np.clip(image[0].numpy(), -1000, 1000).reshape(-1, image.shape[-1]).T
    correlation = [np.corrcoef(a, b)[0, 1] for a, b in itertools.pairwise(slices)]
    assert min(correlation) > 0.8


@pytest.mark.real_data
def test_every_real_series_is_found(real_data: Path) -> None:
    cases = find_cases(real_data / "dicom", salt=b"")
    assert len(cases) == 4
    assert sum(bool(c.refused) for c in cases) == 1
    assert not any(c.excluded for c in cases)
    assert {c.modality for c in cases} == {"MR", "CT"}
