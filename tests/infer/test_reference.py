"""The healthy reference: p-values that keep their word, and a reference that knows what it is of."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, kstest

from medgen.case import RegionScore
from medgen.errors import BundleError
from medgen.infer.reference import Healthy, HealthyReference, p_value, require_reference_of
from medgen.run.calibrate import save, uniformities

RNG = np.random.default_rng(0)
REFERENCE = HealthyReference(
    "a" * 64,
    "score=residual-signed smoothing=1.0",
    "FLAIR",
    (1.0, 1.0),
    (1.0, 1.0),
    False,
    tuple(Healthy(f"p{n}", tuple(RNG.normal(size=40).tolist())) for n in range(5)),
    tuple(Healthy(f"simulated-{n}", tuple(RNG.normal(size=40).tolist()), float(RNG.normal())) for n in range(24)),
)
REGIONS = [
    RegionScore("left front top", 0.3, 30.0, (1.0, 2.0, 3.0), 9.0),
    RegionScore("right back base", 0.2, 30.0, (0.0,) * 3, -9.0),
]


def test_p_is_the_share_of_scores_as_large_counting_the_new_one() -> None:
    assert p_value(2.0, [1.0, 2.0, 3.0]) == 3 / 4
    assert p_value(9.0, [1.0, 2.0, 3.0]) == 1 / 4
    assert p_value(0.0, [1.0, 2.0, 3.0]) == 1.0
    assert p_value(1.0, []) == 1.0


def test_p_values_of_health_are_uniform_and_alarms_within_their_binomial_interval() -> None:
    rng = np.random.default_rng(1)
    known = rng.gamma(2.0, size=400)
    values = np.array([p_value(score, known) for score in rng.gamma(2.0, size=300)])
    assert kstest(values, "uniform").pvalue > 0.05
    low, high = binom.interval(0.95, 300, 0.05)
    assert low <= (values <= 0.05).sum() <= high


def test_p_values_of_the_sick_are_small() -> None:
    findings = REFERENCE.judge(REGIONS, 9.0)
    assert [region.p for region in findings.regions] == [1 / 201, 1.0]
    assert findings.score == 9.0
    assert findings.p_scan == 1 / 25


def test_it_says_what_it_rests_on() -> None:
    said = REFERENCE.judge(REGIONS, 0.0).reference
    assert "FLAIR: 200 regions of healthy tissue of 5 patients, smallest p 0.005" in said
    assert "24 simulated ones, smallest p 0.04" in said


@pytest.mark.parametrize("flag", ["input-contrast", "input-resolution", "input-unfamiliar", "input-body-part"])
def test_a_scan_outside_of_the_reference_is_not_scored_as_sick(flag: str) -> None:
    findings = REFERENCE.judge(REGIONS, 9.0, ["regridded", flag])
    assert findings.score is None
    assert findings.p_scan is None
    assert [region.p for region in findings.regions] == [None, None]
    assert flag in findings.reference
    assert REFERENCE.judge(REGIONS, 9.0, ["regridded"]).score == 9.0


def test_a_scan_prepared_in_another_way_or_of_other_voxels_is_not_compared() -> None:
    assert REFERENCE.judge(REGIONS, 9.0, ["brain-found"]).score is None
    assert dataclasses.replace(REFERENCE, heads=True).judge(REGIONS, 9.0, ["brain-found"]).score == 9.0
    thick = dataclasses.replace(REFERENCE, finest_mm=(0.4, 0.5), coarsest_mm=(4.0, 6.0))
    assert REFERENCE.flags_of((1.0, 1.0, 1.2)) == ()
    assert thick.flags_of((0.45, 0.45, 5.0)) == ()
    assert thick.flags_of((1.0, 1.0, 1.0)) == REFERENCE.flags_of((0.45, 0.45, 5.0)) == ("reference-resolution",)
    assert thick.judge(REGIONS, 9.0).p_scan is None  # simulated scans are of 1 mm


def test_a_scan_with_too_few_regions_has_no_p() -> None:
    few = [dataclasses.replace(region, evidence=float("nan")) for region in REGIONS]
    assert [region.p for region in REFERENCE.judge(few, 0.0).regions] == [None, None]


def test_it_says_whether_its_patients_had_been_seen() -> None:
    assert "5 of them scored by these very weights" in REFERENCE.describe()
    strangers = tuple(dataclasses.replace(one, weights_sha256="b" * 64) for one in REFERENCE.patients)
    assert "had not seen them" in dataclasses.replace(REFERENCE, patients=strangers).describe()


def test_written_and_read_it_is_the_same(tmp_path: Path) -> None:
    save(REFERENCE, tmp_path / "reference.json")
    read = HealthyReference.load(str(tmp_path / "reference.json"))
    assert (read.weights_sha256, read.score, read.contrast) == ("a" * 64, REFERENCE.score, "FLAIR")
    np.testing.assert_allclose(read.regions, REFERENCE.regions, rtol=1e-4)
    np.testing.assert_allclose(read.scans, REFERENCE.scans, rtol=1e-4)
    assert [one.patient for one in read.patients] == [one.patient for one in REFERENCE.patients]


@pytest.mark.parametrize("content", ["", "{}", '{"schema": "other"}', '{"schema": "medgen-healthy-reference-1"}'])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "reference.json").write_text(content)
    with pytest.raises(BundleError, match=r"reference\.json: expected"):
        HealthyReference.load(str(tmp_path / "reference.json"))
    with pytest.raises(BundleError, match="FileNotFoundError"):
        HealthyReference.load(str(tmp_path / "missing.json"))


def test_a_reference_of_another_model_is_refused() -> None:
    require_reference_of(REFERENCE, "a" * 64)
    with pytest.raises(BundleError, match=r"of these weights \(bbbbbbbbbbbb\), got one of aaaaaaaaaaaa"):
        require_reference_of(REFERENCE, "b" * 64)


def test_each_patient_is_held_against_the_others_alone() -> None:
    high = Healthy("high", (100.0, 101.0))
    reference = dataclasses.replace(REFERENCE, patients=(*REFERENCE.patients, high))
    held = reference.held_out()
    assert held["high"].tolist() == [1 / 201, 1 / 201]  # his own other score does not count
    assert len(held) == 6


def test_the_test_of_uniformity_passes_health_and_fails_a_patient_apart() -> None:
    by_name = {one.who: one for one in uniformities(REFERENCE)}
    assert by_name["all patients"].ks_p > 0.05
    assert by_name["all patients"].interval[0] <= by_name["all patients"].alarms <= by_name["all patients"].interval[1]
    assert by_name["scans, simulated"].regions == 24
    apart = Healthy("apart", tuple((RNG.normal(size=40) + 3).tolist()))
    found = {
        one.who: one for one in uniformities(dataclasses.replace(REFERENCE, patients=(*REFERENCE.patients, apart)))
    }
    assert found["apart"].ks_p < 1e-6
    assert found["apart"].alarms > found["apart"].interval[1]


def test_the_file_is_plain_json(tmp_path: Path) -> None:
    save(REFERENCE, tmp_path / "reference.json")
    assert json.loads((tmp_path / "reference.json").read_text())["schema"] == "medgen-healthy-reference-1"


def test_voxels_unlike_those_of_the_healthy_scans_are_outside() -> None:
    assert REFERENCE.flags_of((1.0, 0.9, 1.2)) == ()
    assert REFERENCE.flags_of((0.9, 0.9, 3.0)) == ("reference-resolution",)
    assert REFERENCE.judge(REGIONS, 9.0, ["reference-resolution"]).score is None


def test_without_simulated_scans_a_scan_has_no_p_value() -> None:
    findings = dataclasses.replace(REFERENCE, simulated=()).judge(REGIONS, 9.0)
    assert findings.p_scan is None
    assert "scans not" in findings.reference


def test_another_reference_has_another_hash() -> None:
    assert REFERENCE.sha256 == dataclasses.replace(REFERENCE).sha256
    assert REFERENCE.sha256 != dataclasses.replace(REFERENCE, patients=REFERENCE.patients[1:]).sha256
