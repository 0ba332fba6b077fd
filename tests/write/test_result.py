"""What a result is called, what lies beside it, and that nobody's name does."""

import json
from pathlib import Path, PurePosixPath

import nibabel as nib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medgen.errors import OutputError
from medgen.geometry import Grid
from medgen.provenance import file_sha256, files_sha256
from medgen.write.result import Formats, output_stem, write_result
from write.conftest import CT, DENOISED, T2, Make, nifti_case, result_of

WORDS = st.sampled_from(
    ["sub-01", "T1w", "T2w", "CT", "desc-synth", "desc-brain", "desc-synthFromT1w", "desc-sSynthFromT1w", "res-2", "x"]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(WORDS, min_size=1, max_size=5).map("_".join), min_size=2, max_size=2, unique=True))
def test_two_inputs_never_share_an_output(stems: list[str]) -> None:
    first, second = (output_stem(PurePosixPath(stem), T2) for stem in stems)
    assert first != second


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("sub-01/anat/sub-01_T1w", "sub-01/anat/sub-01_desc-synthFromT1w_T2w"),
        ("sub-01_ses-2_desc-n4_T1w", "sub-01_ses-2_desc-n4SynthFromT1w_T2w"),
        ("sub-01_desc-n4_res-1_T1w", "sub-01_desc-n4SynthFromT1w_res-1_T2w"),
        ("dicom-0a1b2c", "dicom-0a1b2c_desc-synth_T2w"),
        ("T1w", "T1w_desc-synth_T2w"),
        ("Müller's scan.v2", "Müller's scan.v2_desc-synth_T2w"),
    ],
)
def test_names_follow_the_bids_derivative_convention(stem: str, expected: str) -> None:
    assert output_stem(PurePosixPath(stem), T2).as_posix() == expected
    processed = output_stem(PurePosixPath(stem), DENOISED).as_posix()
    assert processed == expected.replace("synth", "denoised").replace("Synth", "Denoised").replace("T2w", "CT")


@pytest.mark.parametrize(
    ("formats", "main", "count"),
    [("same", ".nii.gz", 1), ("nifti", ".nii.gz", 1), ("dicom", "_dicom", 11), ("both", ".nii.gz", 12)],
)
def test_files_of_a_nifti_case(tmp_path: Path, from_nifti: Make, formats: Formats, main: str, count: int) -> None:
    written = write_result(from_nifti(T2), tmp_path / "out", formats)
    assert written.output.as_posix() == f"sub-01/anat/sub-01_desc-synthFromT1w_T2w{main}"
    assert len(written.files) == count + 2
    on_disk = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert on_disk == {Path(path) for path in written.files}


def test_a_dicom_case_gives_a_folder_and_its_hash(tmp_path: Path, from_dicom: Make) -> None:
    result = from_dicom(T2)
    written = write_result(result, tmp_path, "both", preview=False)
    assert written.output.name == f"{result.case.name}_desc-synth_T2w_dicom"
    assert written.sha256 == files_sha256((tmp_path / written.output).iterdir())
    assert not any(path.suffix == ".png" for path in written.files)


@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_the_extension_of_the_input_is_kept(tmp_path: Path, oblique: Grid, extension: str) -> None:
    case = nifti_case(tmp_path / f"in{extension}", oblique, name="a b/ä")
    written = write_result(result_of(case, oblique), tmp_path / "out", preview=False)
    assert written.output.as_posix() == f"a b/ä_desc-synth_T2w{extension}"
    assert nib.load(tmp_path / "out" / written.output).shape == oblique.shape
    assert written.sha256 == file_sha256(tmp_path / "out" / written.output)


def test_the_sidecar_vouches_for_the_outputs(tmp_path: Path, from_nifti: Make) -> None:
    result = from_nifti(CT, flags=["input-contrast"])
    written = write_result(result, tmp_path, "both")
    sidecar = json.loads((tmp_path / written.files[-1]).read_text())
    assert sidecar["Synthetic"] is True
    assert sidecar["Units"] == "HU"
    assert sidecar["Sources"] == [result.case.name]
    assert sidecar["Flags"] == ["input-contrast"]
    assert sidecar["Grid"]["Shape"] == list(result.grid.shape)
    assert sidecar["Outputs"][written.output.name] == written.sha256
    assert len(sidecar["Outputs"]) == 2
    assert sidecar["Provenance"]["weights_sha256"] == result.provenance.weights_sha256
    assert sidecar["Provenance"]["settings"] == {"window": [96, 96, 96]}


def test_no_file_beside_the_series_holds_the_patient(tmp_path: Path, from_dicom: Make) -> None:
    result = from_dicom(T2, tags={"PatientName": "Doe^Jane", "PatientID": "JD1975", "PatientBirthDate": "19750203"})
    written = write_result(result, tmp_path / "out", "both")
    for path in written.files:
        if path.suffix != ".dcm":
            content = (tmp_path / "out" / path).read_bytes()
            assert not any(word in content for word in (b"Doe", b"JD1975", b"19750203"))
        assert "Doe" not in str(path)


def test_writing_again_gives_the_same(tmp_path: Path, from_dicom: Make) -> None:
    result = from_dicom(T2)
    first = write_result(result, tmp_path, "both")
    contents = {path: (tmp_path / path).read_bytes() for path in first.files}
    again = write_result(result, tmp_path, "both")
    assert again == first
    assert all((tmp_path / path).read_bytes() == content for path, content in contents.items())


def test_a_place_that_cannot_be_written_to_is_an_output_error(tmp_path: Path, from_nifti: Make) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="cannot write"):
        write_result(from_nifti(T2), tmp_path / "out")
