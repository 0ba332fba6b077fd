"""Nobody is in two splits, the order of patients does not matter, and small cohorts fill every split."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgen.errors import NoInputError
from medgen.read.split import parse_split, split_patients

THIRDS = {"train": 0.8, "validation": 0.1, "test": 0.1}


@given(st.sets(st.text(min_size=1, max_size=6), max_size=40), st.integers(0, 5))
def test_everybody_has_one_split_whatever_the_order(patients: set[str], seed: int) -> None:
    split = split_patients(sorted(patients), THIRDS, seed)
    assert split == split_patients(sorted(patients, reverse=True), THIRDS, seed)
    assert set(split) == patients
    assert len(patients) < 3 or set(split.values()) == set(THIRDS)


@pytest.mark.parametrize(("total", "counts"), [(3, [1, 1, 1]), (5, [3, 1, 1]), (10, [8, 1, 1]), (27, [21, 3, 3])])
def test_the_fractions_are_met(total: int, counts: list[int]) -> None:
    found = list(split_patients(map(str, range(total)), THIRDS, 0).values())
    assert [found.count(split) for split in THIRDS] == counts


def test_another_seed_is_another_split() -> None:
    patients = [str(n) for n in range(30)]
    assert split_patients(patients, THIRDS, 0) != split_patients(patients, THIRDS, 1)


def test_a_split_of_zero_is_left_out() -> None:
    assert parse_split("train=0.75, validation=0.25,test=0") == {"train": 0.75, "validation": 0.25}


@pytest.mark.parametrize(
    "text", ["", "train", "train=x", "train=0.8", "train=0.5,valid=0.5", "train=2,test=-1", "train=nan"]
)
def test_fractions_that_make_no_whole_are_refused(text: str) -> None:
    with pytest.raises(NoInputError, match="expected a split such as"):
        parse_split(text)
