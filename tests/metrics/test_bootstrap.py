"""Intervals: patients count, not scans; an interval holds the mean, narrows with patients, covers what it promises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgen.metrics.bootstrap import spread


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=12))
def test_the_interval_holds_the_mean_and_stays_within_the_values(values: list[float]) -> None:
    found = spread(values, [str(n) for n in range(len(values))], draws=500)
    assert found.interval is not None
    low, high = found.interval
    assert min(values) - 1e-9 <= low <= found.mean + 1e-9
    assert found.mean - 1e-9 <= high <= max(values) + 1e-9


def test_many_scans_of_one_patient_count_once() -> None:
    once = spread([1.0, 5.0], ["a", "b"])
    often = spread([1.0, *[5.0] * 30], ["a", *["b"] * 30])
    assert once == often


def test_a_single_patient_has_no_interval() -> None:
    found = spread([1.0, 2.0], ["a", "a"])
    assert (found.patients, found.mean, found.interval) == (1, 1.5, None)


def test_more_patients_make_it_narrower_and_95_percent_of_them_hold_the_truth() -> None:
    rng = np.random.default_rng(4)
    widths, held = [], []
    for count in (10, 60):
        found = [spread(rng.normal(20, 2, count), [str(n) for n in range(count)], draws=400) for _ in range(200)]
        intervals = np.array([one.interval for one in found])
        widths.append(np.diff(intervals).mean())
        held.append(np.mean((intervals[:, 0] < 20) & (intervals[:, 1] > 20)))
    assert widths[1] < widths[0] / 2
    assert 0.85 < held[0] <= 1
    assert 0.90 < held[1] <= 1


def test_the_same_input_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).normal(size=9)
    names = [str(n) for n in range(9)]
    assert spread(values, names) == spread(values, names)


@pytest.mark.parametrize(("values", "patients"), [([], []), ([1.0, 2.0], ["a"]), ([[1.0], [2.0]], ["a", "b"])])
def test_values_without_patients_are_refused(values: list[float], patients: list[str]) -> None:
    with pytest.raises(ValueError, match="one patient for each"):
        spread(values, patients)
