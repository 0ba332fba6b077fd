"""Screening: whole scans told from normal ones, class by class, with intervals over patients."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from medgen.metrics import screening
from medgen.metrics.screening import Screening, screen, table

KINDS = ["normal"] * 12 + ["fluid"] * 6 + ["drusen"] * 6
TWO = ["normal"] * 12 + ["fluid"] * 12
PEOPLE = [f"p{n}" for n in range(len(KINDS))]
NORMAL = np.array([kind == "normal" for kind in KINDS])


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screening, "_DRAWS", 4)  # of the 2,000, which take seconds


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch, _few_draws: None) -> None:
    """Enough of them for an interval."""
    monkeypatch.setattr(screening, "_DRAWS", 120)


def scores_of(kinds: list[str], seed: int = 0) -> npt.NDArray[np.float64]:
    """Scores that overlap: other scans lie higher by one standard deviation."""
    random = np.random.default_rng(seed)
    return random.normal(size=len(kinds)) + np.array([kind != "normal" for kind in kinds])


def width(one: Screening) -> float:
    return one.auroc_interval[1] - one.auroc_interval[0]


def test_areas_are_scikit_learns_of_each_class_against_all_that_is_normal() -> None:
    scores = scores_of(KINDS)
    for one in screen(scores, KINDS, PEOPLE):
        chosen = np.array([k != "normal" if one.kind == "all" else k == one.kind for k in KINDS])
        used = chosen | NORMAL
        assert one.auroc == pytest.approx(roc_auc_score(chosen[used], scores[used]))
        assert one.auprc == pytest.approx(average_precision_score(chosen[used], scores[used]))
        assert (one.scans, one.patients, one.normal) == (chosen.sum(), chosen.sum(), 12)


def test_classes_stand_in_order_and_all_last() -> None:
    assert [one.kind for one in screen(scores_of(KINDS), KINDS, PEOPLE)] == ["drusen", "fluid", "all"]
    turned = screen(scores_of(KINDS)[::-1], KINDS[::-1], PEOPLE[::-1])
    assert [one.kind for one in turned] == ["drusen", "fluid", "all"]


def test_a_score_that_separates_is_perfect_and_its_negative_is_all_wrong() -> None:
    apart = np.arange(len(KINDS), dtype=float) + 100 * ~NORMAL
    perfect, reversed_ = screen(apart, KINDS, PEOPLE)[-1], screen(-apart, KINDS, PEOPLE)[-1]
    assert (perfect.auroc, *perfect.auroc_interval) == pytest.approx((1.0, 1.0, 1.0))
    assert (perfect.auprc, *perfect.auprc_interval) == pytest.approx((1.0, 1.0, 1.0))
    assert (reversed_.auroc, *reversed_.auroc_interval) == pytest.approx((0.0, 0.0, 0.0))
    assert reversed_.auprc < (~NORMAL).mean()


def test_a_score_that_is_the_same_of_all_tells_nothing() -> None:
    for one in screen(np.ones(len(KINDS)), KINDS, PEOPLE):
        assert one.auroc == 0.5
        assert one.auprc == one.scans / (one.scans + one.normal)


@pytest.mark.parametrize("kind", ["normal", "fluid"])
def test_a_scan_without_a_score_counts_as_scored_wrongly(kind: str) -> None:
    scores = np.arange(len(KINDS), dtype=float) + 100 * ~NORMAL
    number = KINDS.index(kind)
    missing, worst = scores.copy(), scores.copy()
    missing[number] = math.nan
    worst[number] = 1e6 if kind == "normal" else -1e6
    found, expected = screen(missing, KINDS, PEOPLE), screen(worst, KINDS, PEOPLE)
    assert found == expected
    # One of 12 normal scans, or of 12 others, is behind all of the other side.
    assert found[-1].auroc == pytest.approx(11 / 12)
    assert (found[-1].scans, found[-1].normal) == (12, 12)


def test_without_any_score_all_is_wrong() -> None:
    found = screen(np.full(len(KINDS), math.nan), KINDS, PEOPLE)
    assert [one.auroc for one in found] == [0.0] * 3
    assert all(math.isfinite(one.auprc) for one in found)


@pytest.mark.usefixtures("draws")
def test_intervals_contain_the_value_and_are_the_same_again() -> None:
    found = screen(scores_of(KINDS), KINDS, PEOPLE)
    for one in found:
        assert 0 <= one.auroc_interval[0] < one.auroc < one.auroc_interval[1] <= 1
        assert 0 < one.auprc_interval[0] < one.auprc < one.auprc_interval[1] <= 1
    assert screen(scores_of(KINDS), KINDS, PEOPLE) == found


@pytest.mark.usefixtures("draws")
def test_fewer_patients_leave_more_unknown() -> None:
    many = [kind for kind in TWO for _ in range(8)]
    few = screen(scores_of(TWO), TWO, PEOPLE)[-1]
    lots = screen(scores_of(many), many, [f"p{n}" for n in range(len(many))])[-1]
    assert width(few) > 1.8 * width(lots)


@pytest.mark.usefixtures("draws")
def test_many_scans_of_a_patient_do_not_narrow_an_interval() -> None:
    times = 6
    scores, kinds = np.repeat(scores_of(TWO), times), [kind for kind in TWO for _ in range(times)]
    once = screen(scores_of(TWO), TWO, PEOPLE)[-1]
    grouped = screen(scores, kinds, [person for person in PEOPLE for _ in range(times)])[-1]
    taken_apart = screen(scores, kinds, [f"p{n}" for n in range(len(kinds))])[-1]
    assert (grouped.scans, grouped.patients) == (72, 12)
    assert grouped.auroc == once.auroc
    assert grouped.auroc_interval == once.auroc_interval
    assert width(taken_apart) < 0.6 * width(grouped)


@pytest.mark.usefixtures("draws")
def test_a_patient_with_scans_of_both_kinds_is_one_patient_drawn_with_both() -> None:
    kinds = ["normal", "fluid"] * 6
    scores = np.array([n + (kind == "fluid") * 0.5 for n, kind in zip(np.repeat(range(6), 2), kinds, strict=True)])
    people = [f"p{n // 2}" for n in range(12)]
    paired = screen(scores, kinds, people)[-1]
    assert paired.patients == 6
    # Each patient's own pair is in the right order: drawn together, that stays so, and less is left to chance.
    assert width(paired) < width(screen(scores, kinds, [f"p{n}" for n in range(12)])[-1])


@pytest.mark.parametrize("kinds", [["normal"] * 3, ["fluid", "drusen", "fluid"]])
def test_normal_scans_and_others_are_needed(kinds: list[str]) -> None:
    with pytest.raises(ValueError, match="scans that are normal, and others"):
        screen([0.1, 0.2, 0.3], kinds, ["a", "b", "c"])


def test_the_table_names_every_score_and_class_with_its_numbers() -> None:
    found = {"score": screen(scores_of(KINDS), KINDS, PEOPLE), "thickness": screen(scores_of(KINDS, 1), KINDS, PEOPLE)}
    lines = table(found).splitlines()
    assert len(lines) == 4
    assert all(head in lines[0] for head in ("drusen (6 of 6)", "fluid (6 of 6)", "all (12 of 12)"))
    for line, (name, row) in zip(lines[1:3], found.items(), strict=True):
        assert line.startswith(name)
        assert [f"{one.auroc:.3f}" in line for one in row] == [True] * 3
    assert lines[3] == f"AUPRC, all: score {found['score'][-1].auprc:.3f}, thickness {found['thickness'][-1].auprc:.3f}"
