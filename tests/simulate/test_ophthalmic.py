"""Simulated Ophthalmic Tomography is valid DICOM."""

import shutil
import subprocess
from pathlib import Path

import pydicom
import pytest

from medgen.simulate.ophthalmic import as_photograph, write_opt
from tests.read.eyes import volume


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize("edit", [None, as_photograph])
@pytest.mark.parametrize("highest", [255, 4095])
def test_dciodvfy_finds_no_error(tmp_path: Path, edit: object, highest: int) -> None:
    if edit and highest > 255:
        pytest.skip("photographs of 8 bits alone are simulated")
    path = write_opt(tmp_path / "a.dcm", volume(highest=highest), edit=edit)
    done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
    # One module asks for the numbers of a concatenation in every file, another forbids them where there is none.
    said = [line for line in (done.stdout + done.stderr).splitlines() if "oncatenation" not in line]
    assert [line for line in said if line.startswith("Error")] == []


def test_the_same_call_gives_the_same_file(tmp_path: Path) -> None:
    one, two = (write_opt(tmp_path / name, volume()) for name in ("1.dcm", "2.dcm"))
    assert one.read_bytes() == two.read_bytes()
    other = pydicom.dcmread(write_opt(tmp_path / "3.dcm", volume(), laterality="L"))
    assert other.SOPInstanceUID != pydicom.dcmread(one).SOPInstanceUID
    assert other.StudyInstanceUID == pydicom.dcmread(one).StudyInstanceUID
