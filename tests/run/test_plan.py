"""Every case belongs to exactly one part, for ever."""

from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from medgen.case import Case
from medgen.errors import MedgenError, NoInputError
from medgen.run.plan import Part, plan


def named(name: str, excluded: str = "") -> Case:
    path = PurePosixPath(name)
    return Case(name, "nifti", (Path("/x") / name,), path, path, ".nii", excluded=excluded)


CASES = [named(f"sub-{index:03d}.nii") for index in range(400)]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_parts_cover_all_cases_once_and_evenly_enough(count: int) -> None:
    parts = [plan(CASES, Part(index + 1, count)) for index in range(count)]
    names = [case.name for part in parts for case in part]
    assert sorted(names) == sorted(case.name for case in CASES)
    assert all(0.5 * len(CASES) / count < len(part) < 1.5 * len(CASES) / count for part in parts)


def test_a_growing_folder_moves_no_case_to_another_part() -> None:
    before = {case.name for case in plan(CASES[::2], Part(2, 5))}
    after = {case.name for case in plan(CASES, Part(2, 5))}
    assert before == after & {case.name for case in CASES[::2]}


@pytest.mark.parametrize("text", ["", "0/4", "5/4", "1/0", "1-4", "-1/4", "1/4/5", "one/two"])
def test_what_names_no_part_is_refused(text: str) -> None:
    with pytest.raises(MedgenError, match="2/8"):
        Part.parse(text)


def test_a_part_reads_as_it_is_written() -> None:
    assert str(Part.parse(" 3 / 8 ")) == "3/8"


def test_no_case_at_all_is_an_error_and_an_empty_part_is_none() -> None:
    with pytest.raises(NoInputError):
        plan([])
    assert [len(plan(CASES[:1], Part(index, 2))) for index in (1, 2)] in ([0, 1], [1, 0])


def test_the_order_is_that_of_the_names() -> None:
    assert plan(list(reversed(CASES))) == CASES


def test_a_limit_counts_usable_cases_only() -> None:
    cases = [replace(case, excluded="localizer") if index % 2 == 0 else case for index, case in enumerate(CASES)]
    assert [case.name for case in plan(cases, limit=2)] == [f"sub-00{n}.nii" for n in range(4)]
    assert plan(cases, limit=0) == []


def test_two_cases_of_one_name_are_refused() -> None:
    with pytest.raises(MedgenError, match=r"a\.nii"):
        plan([named("a.nii"), named("a.nii")])
