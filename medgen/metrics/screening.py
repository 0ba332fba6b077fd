"""How well a score of whole scans tells those that are not normal, by class, with intervals over patients.

AUROC and AUPRC (average precision) are as scikit-learn defines them. A scan without a score counts as scored wrongly:
below every other if it is not normal, above every other if it is. Intervals are percentiles over draws of patients,
normal ones and others apart, with all scans of each; patients who have scans of both kinds are drawn with both.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13, for the intervals.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NORMAL = "normal"
ALL = "all"
_DRAWS = 2000


@dataclass(frozen=True)
class Screening:
    """How one class is told from normal.

    Attributes:
        kind: the class, or `"all"` that are not normal.
        scans: of the class.
        patients: of the class.
        normal: scans that are normal.
        auroc: the share of pairs of one of each in the right order.
        auroc_interval: 95 %.
        auprc: average precision; by chance it is the share of the class.
        auprc_interval: 95 %.
    """

    kind: str
    scans: int
    patients: int
    normal: int
    auroc: float
    auroc_interval: tuple[float, float]
    auprc: float
    auprc_interval: tuple[float, float]


def screen(scores: npt.ArrayLike, kinds: Sequence[str], patients: Sequence[str]) -> list[Screening]:
    """Returns how well scores tell each class from normal, and all of them together, which comes last.

    Args:
        scores: of the scans, larger is less normal; NaN where there is none.
        kinds: class of each, `"normal"` or another.
        patients: whose each is.

    Raises:
        ValueError: there are no normal scans, or no others.

    Example:
        >>> screen([0.1, 0.2, 0.3, 0.15], ["normal", "normal", "drusen", "drusen"], ["a", "b", "c", "d"])[-1].auroc
        0.75
    """
    names, who = np.asarray(kinds), np.asarray(patients)
    normal = names == NORMAL
    if not normal.any() or normal.all() or ALL in kinds:
        raise ValueError(f"expected scans that are normal, and others, none of a class called {ALL!r}")
    known = _wrong_where_missing(np.asarray(scores, dtype=np.float64), normal)
    groups = {kind: names == kind for kind in sorted(set(kinds) - {NORMAL})} | {ALL: ~normal}
    return [_told(kind, known, normal, chosen, who) for kind, chosen in groups.items()]


def _wrong_where_missing(scores: npt.NDArray[np.float64], normal: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    missing = np.isnan(scores)
    low, high = (float(np.min(scores[~missing])), float(np.max(scores[~missing]))) if (~missing).any() else (0.0, 0.0)
    return np.where(missing, np.where(normal, high + 1, low - 1), scores)


def _told(
    kind: str,
    scores: npt.NDArray[np.float64],
    normal: npt.NDArray[np.bool_],
    chosen: npt.NDArray[np.bool_],
    who: npt.NDArray[np.str_],
) -> Screening:
    used = np.flatnonzero(normal | chosen)
    values, truth, owners = scores[used], chosen[used], who[used]
    random = np.random.default_rng(0)
    strata = [sorted(set(owners[~truth])), sorted(set(owners[truth]) - set(owners[~truth]))]
    scans_of = {owner: np.flatnonzero(owners == owner) for owner in set(owners)}
    drawn: list[tuple[float, float]] = []
    for _ in range(_DRAWS):
        people = [name for group in strata if group for name in random.choice(group, len(group))]
        some = np.concatenate([scans_of[name] for name in people])
        if truth[some].any() and not truth[some].all():
            drawn.append(_areas(truth[some], values[some]))
    auroc, auprc = _areas(truth, values)
    low, high = np.percentile(np.array(drawn or [(math.nan, math.nan)]), [2.5, 97.5], axis=0)
    return Screening(
        kind,
        int(truth.sum()),
        len(set(owners[truth])),
        int((~truth).sum()),
        auroc,
        (float(low[0]), float(high[0])),
        auprc,
        (float(low[1]), float(high[1])),
    )


def _areas(truth: npt.NDArray[np.bool_], values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """AUROC and average precision from one sorting: what scikit-learn gives, without its checks, for many draws."""
    order = np.argsort(-values, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)  # ties are one step
    hits = np.concatenate([[0], np.cumsum(truth[order])[ends]])
    alarms = np.concatenate([[0], ends + 1]) - hits
    auroc = np.trapezoid(hits, alarms) / (hits[-1] * alarms[-1])
    return float(auroc), float(np.sum(np.diff(hits) * hits[1:] / (hits[1:] + alarms[1:])) / hits[-1])


def table(found: dict[str, list[Screening]]) -> str:
    """Returns what several scores tell as lines of text: a score a line, a class a column."""
    first = next(iter(found.values()))
    heads = "".join(f"{one.kind} ({one.scans} of {one.patients})".rjust(26) for one in first)
    lines = [f"{'AUROC [95 %]':34}{heads}", *(_line(name, row) for name, row in found.items())]
    lines.append("AUPRC, all: " + ", ".join(f"{name} {row[-1].auprc:.3f}" for name, row in found.items()))
    return "\n".join(lines)


def _line(name: str, row: list[Screening]) -> str:
    return f"{name:34}" + "".join(
        f"{one.auroc:.3f} [{one.auroc_interval[0]:.3f}, {one.auroc_interval[1]:.3f}]".rjust(26) for one in row
    )
