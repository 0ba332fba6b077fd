"""P-values of eyes and of parts of a retina against those of normal people, as `medgen calibrate` wrote them."""

import math
from pathlib import Path

import numpy as np
import pytest

from medgen.case import RegionScore
from medgen.errors import BundleError
from medgen.infer.normal_scans import NormalScans
from medgen.infer.reference import FOREIGN, Healthy
from medgen.run.calibrate import save

SCANS = (0.30, 0.25, 0.41, 0.37)
PARTS = ((0.1, 0.2), (0.15, 0.12), (0.3, 0.05), (0.22, 0.18))


def normal(scans: tuple[float | None, ...] = SCANS) -> NormalScans:
    people = tuple(
        Healthy(f"eye-{n}", parts, scan, f"without-{n}")
        for n, (parts, scan) in enumerate(zip(PARTS, scans, strict=True))
    )
    return NormalScans("abc", "finder=encoder", "", (0.0039, 0.0039), (1.0, 1.0), False, people, ())


def part(score: float) -> RegionScore:
    return RegionScore("left, inner retina", score, math.nan, (1.0, 0.0, 0.0), score)


TWO = [part(0.1), part(0.2)]  # as many parts as the normal scans have


@pytest.mark.parametrize("score", [0.0, 0.25, 0.26, 0.37, 0.5])
def test_a_scans_p_is_one_more_than_the_number_as_high_over_one_more_than_all(score: float) -> None:
    found = normal().judge(TWO, score)
    assert found.score == score
    assert found.p_scan == (1 + sum(known >= score for known in SCANS)) / (len(SCANS) + 1)


@pytest.mark.parametrize("score", [0.0, 0.15, 0.21, 1.0])
def test_a_parts_p_is_against_all_parts_of_normal_people(score: float) -> None:
    all_parts = [value for person in PARTS for value in person]
    judged, _ = normal().judge([part(score), part(0.0)], 0.3).regions
    assert judged.p == (1 + sum(known >= score for known in all_parts)) / (len(all_parts) + 1)
    assert judged.name == part(score).name
    assert judged.peak_mm == part(score).peak_mm


def test_a_higher_score_never_has_a_higher_p_and_none_is_zero() -> None:
    p_values = [normal().judge(TWO, score).p_scan for score in np.linspace(0, 1, 50)]
    assert p_values == sorted(p_values, key=lambda p: -float(p or 0))
    assert p_values[0] == 1
    assert p_values[-1] == 1 / 5


def test_a_person_whose_scan_was_not_scored_counts_with_his_parts_alone() -> None:
    reference = normal((0.3, None, 0.4, 0.5))
    np.testing.assert_array_equal(reference.scans, [0.3, 0.4, 0.5])
    assert reference.judge(TWO, 0.9).p_scan == 1 / 4
    assert reference.regions.size == 8


def test_what_calibration_wrote_is_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "normal_scans.json"
    save(normal(), path)
    loaded = NormalScans.load(str(path))
    assert isinstance(loaded, NormalScans)
    assert loaded == normal()
    assert loaded.sha256 == normal().sha256
    assert loaded.judge([part(0.2)], 0.3) == normal().judge([part(0.2)], 0.3)


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"schema": "something-else"}')
    with pytest.raises(BundleError, match="expected schema"):
        NormalScans.load(str(tmp_path / "other.json"))
    with pytest.raises(BundleError, match=r"none\.json: expected a healthy reference"):
        NormalScans.load(str(tmp_path / "none.json"))


def test_no_resolution_is_foreign_as_all_are_brought_to_one() -> None:
    for spacing in ((0.004, 0.011, 0.2), (1.0, 1.0, 1.0), (9.0, 9.0, 9.0)):
        assert normal().flags_of(spacing) == ()
    flagged = normal().judge([part(0.2)], 0.3, sorted(FOREIGN))
    assert flagged == normal().judge([part(0.2)], 0.3)


def test_it_says_what_its_p_values_rest_on() -> None:
    told = normal().judge(TWO, 0.3).reference
    assert told == normal().describe()
    assert "4 normal ones of 4 people, smallest p 0.2" in told
    assert "8 of theirs, smallest p 0.11" in told
    assert "weights that had not seen them" in told


def test_a_volume_has_no_p_value_against_single_scans() -> None:
    parts = [RegionScore(f"B-scan {n}", 0.2, 1.0, (0, 0, 0), 0.2) for n in range(18)]
    found = normal().judge(parts, 9.0)
    assert found.p_scan is None
    assert "none has about as many B-scans" in found.reference
    assert found.regions[0].p is not None
    assert not normal().is_above(found)


def test_a_scan_above_every_normal_one_is_told() -> None:
    reference = normal()
    count = len(reference.patients[0].regions)
    parts = [RegionScore(str(n), 0.2, 1.0, (0, 0, 0), 0.2) for n in range(count)]
    highest = max(reference.scans)
    assert reference.is_above(reference.judge(parts, highest + 0.01))
    assert not reference.is_above(reference.judge(parts, highest))
