"""The right series of a study is taken, the others are accounted for, and no study is lost in silence."""

import json
from pathlib import Path, PurePosixPath

import pytest

from medgen.case import Case
from medgen.errors import NoInputError
from medgen.run.select import Filters, SeriesRule, select_cases

RULE = SeriesRule(modality="MR", prefer=(r"\bt1", "mprage"), avoid=(r"\bt2", "flair"), bids_suffix="T1w")


def dicom(name: str, description: str, study: str = "1.2", modality: str = "MR", excluded: str = "") -> Case:
    return Case(
        name=name,
        kind="dicom",
        files=(Path("/x") / name,),
        stem=PurePosixPath(name),
        relative=PurePosixPath(name),
        extension=".dcm",
        modality=modality,
        study=study,
        description=description,
        excluded=excluded,
    )


def nifti(path: str) -> Case:
    stem = PurePosixPath(path.removesuffix(".nii.gz"))
    return Case(path, "nifti", (Path("/x") / path,), stem, PurePosixPath(path), ".nii.gz")


def taken(cases: list[Case], rule: SeriesRule = RULE, filters: Filters | None = None) -> list[str]:
    return [case.name for case in select_cases(cases, rule, filters or Filters()) if not case.excluded]


def test_the_series_that_fits_is_taken_and_the_others_say_why() -> None:
    cases = [
        dicom("a", "ax T2 tse"),
        dicom("b", "sag T1 mprage"),
        dicom("c", "ax FLAIR"),
        dicom("d", "head", modality="CT"),
    ]
    chosen = select_cases(cases, RULE, Filters())
    assert [case.name for case in chosen] == ["a", "b", "c", "d"]
    assert [bool(case.excluded) for case in chosen] == [True, False, True, True]
    assert "MR" in chosen[3].excluded


def test_two_series_that_fit_equally_are_both_taken() -> None:
    assert taken([dicom("a", "T1 pre"), dicom("b", "T1 post"), dicom("c", "T2")]) == ["a", "b"]


def test_a_series_without_a_telling_name_is_taken_before_one_of_another_contrast() -> None:
    assert taken([dicom("a", "ax T2 tse"), dicom("b", "series 4")]) == ["b"]


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_a_study_in_which_nothing_fits_is_tried_all_the_same(modality: str) -> None:
    assert taken([dicom("a", "ax T2", modality=modality)]) == ["a"]


def test_studies_are_judged_apart() -> None:
    assert taken([dicom("a", "T1", study="1"), dicom("b", "T2", study="2")]) == ["a", "b"]


def test_a_rule_of_the_reader_stays() -> None:
    chosen = select_cases([dicom("a", "T1", excluded="localizer"), dicom("b", "T2")], RULE, Filters())
    assert [case.excluded for case in chosen] == ["localizer", ""]


def test_bids_suffixes_of_one_folder_decide() -> None:
    cases = [nifti(f"sub-{name}.nii.gz") for name in ("1/anat/sub-1_T1w", "1/anat/sub-1_T2w", "2/anat/sub-2_T2w")]
    assert taken(cases) == [cases[0].name, cases[2].name]


def test_files_without_bids_names_are_all_taken() -> None:
    assert taken([nifti("p/t1.nii.gz"), nifti("p/t2.nii.gz")]) == ["p/t1.nii.gz", "p/t2.nii.gz"]


def test_all_series_switches_the_choice_off_but_not_the_filters() -> None:
    cases = [dicom("a", "T1"), dicom("b", "T2"), dicom("c", "x", modality="CT")]
    assert taken(cases, filters=Filters(all_series=True)) == ["a", "b", "c"]
    assert taken(cases, filters=Filters(all_series=True, modality="MR")) == ["a", "b"]
    assert taken(cases, filters=Filters(all_series=True, only="t2")) == ["b"]


def test_only_searches_the_path_of_a_file() -> None:
    assert taken([nifti("Köln/a.nii.gz"), nifti("b/a.nii.gz")], filters=Filters(only="köln")) == ["Köln/a.nii.gz"]


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(NoInputError, match="regular expression"):
        select_cases([], RULE, Filters(only="("))


def test_metadata_without_a_rule_takes_everything() -> None:
    assert taken([dicom("a", "T2"), dicom("b", "T1")], SeriesRule.from_metadata({})) == ["a", "b"]


@pytest.mark.parametrize(
    ("description", "fits"),
    [
        ("t1_fl2d_sag, GR, TR 300 ms", True),
        ("anat-T1w_acq-tfl", True),
        ("Sag 3D MPRAGE", True),
        ("AX FSPGR BRAVO", True),
        ("ax T2 tse", False),
        ("t2_tirm_tra_dark-fluid", False),
        ("T1 map", False),
        ("ep2d_diff_3scan_ADC", False),
        ("AX T1 FLAIR", True),
    ],
)
def test_the_brain_bundle_tells_t1_from_other_series_by_description(
    description: str, fits: bool, repository: Path
) -> None:
    metadata = json.loads((repository / "bundles" / "brain_t1_to_t2" / "configs" / "metadata.json").read_text())
    rule = SeriesRule.from_metadata(metadata)
    rival = dicom("b", "series 7") if fits else dicom("b", "T1w")
    assert taken([dicom("a", description), rival], rule) == (["a"] if fits else ["b"])
