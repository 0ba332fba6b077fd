"""A volume that would not fit costs that case, not the run; limits of a job scheduler count."""

from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest

from medgen.errors import TooLargeError
from medgen.read import memory
from medgen.read.memory import PEAK_BYTES_PER_VOXEL, available_bytes, require_memory
from medgen.read.nifti import read_nifti


def test_what_is_free_is_positive_and_no_more_than_the_machine_has() -> None:
    assert 0 < available_bytes() <= psutil.virtual_memory().total


def test_a_volume_is_refused_just_above_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000 * PEAK_BYTES_PER_VOXEL)
    require_memory((10, 10, 10), "a.nii")
    with pytest.raises(TooLargeError, match=r"a\.nii: expected .* GB for 10x10x11 voxels"):
        require_memory((10, 10, 11), "a.nii")


def test_a_file_of_two_gigabytes_is_refused_from_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "large.nii"
    image = nib.Nifti1Image(np.zeros((1, 1, 1), np.int16), np.eye(4))
    image.header.set_data_shape((1024, 1024, 1024))
    header = image.header.copy()
    header.set_sform(np.eye(4), code=1)
    with file.open("wb") as stream:  # sparse: 2 GB to read, a few bytes on disk
        stream.write(header.binaryblock)
        stream.truncate(352 + 2 * 1024**3)
    monkeypatch.setattr(memory, "available_bytes", lambda: 8 * 10**9)
    with pytest.raises(
        TooLargeError, match=r"large\.nii: expected 66\.6 GB for 1024x1024x1024 voxels, 8\.0 GB are free"
    ):
        read_nifti(file)


@pytest.mark.parametrize(
    ("groups", "limit", "use", "files", "line"),
    [
        ("", "memory.max", "memory.current", "inactive_file", "0::/job/step"),
        (
            *("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
            *("total_inactive_file", "4:memory:/job/step"),
        ),
    ],
    ids=["version-2", "version-1"],
)
def test_the_tightest_limit_on_the_way_up_counts(
    groups: str, limit: str, use: str, files: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = tmp_path / groups / "job" / "step"
    step.mkdir(parents=True)
    (step / limit).write_text("max\n" if not groups else f"{2**62}\n")
    (step / use).write_text("100\n")
    (step.parent / limit).write_text("5000\n")
    (step.parent / use).write_text("1800\n")
    own = tmp_path / "cgroup"
    own.write_text(f"9:cpu:/x\n{line}\n")
    monkeypatch.setattr(memory, "_CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN_GROUPS", own)
    assert available_bytes() == 3200
    (step.parent / "memory.stat").write_text(f"anon 7\n{files} 300\nactive_file 9\n")
    assert available_bytes() == 3500  # files that the kernel may forget take no room
