"""Patients fall into splits by the hash of their code: the same seed gives the same split, whatever the order."""

import hashlib
import math
from collections.abc import Iterable, Mapping

from medgen.errors import NoInputError
from medgen.read.manifest import SPLITS


def parse_split(text: str) -> dict[str, float]:
    """Reads fractions; what is zero or not named gets no patient.

    Raises:
        NoInputError: a name is unknown, or the fractions do not add up to 1.

    Example:
        >>> parse_split("train=0.8,validation=0.2,test=0")
        {'train': 0.8, 'validation': 0.2}
    """
    expected = f"expected a split such as train=0.8,validation=0.1,test=0.1 that adds up to 1, got {text}"
    try:
        fractions = {name.strip(): float(value) for name, _, value in (part.partition("=") for part in text.split(","))}
    except ValueError as error:
        raise NoInputError(expected) from error
    in_range = all(0 <= fraction <= 1 for fraction in fractions.values())
    if set(fractions) - set(SPLITS) or not in_range or not math.isclose(sum(fractions.values()), 1):
        raise NoInputError(expected)
    return {name: fraction for name, fraction in fractions.items() if fraction}


def split_patients(patients: Iterable[str], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Gives every patient a split; each split gets one at least, where there are as many patients as splits.

    More patients can move others to another split: keep the manifest that a model was trained with.

    Args:
        patients: their codes.
        fractions: by split, adding up to 1.
        seed: another gives another split.
    """
    ranked = sorted(set(patients), key=lambda patient: hashlib.sha256(f"{seed} {patient}".encode()).digest())
    splits = [split for split, count in _counts(len(ranked), fractions).items() for _ in range(count)]
    return dict(zip(ranked, splits, strict=True))


def _counts(total: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """Shares out `total` by the largest remainders, then gives an empty split one from the fullest."""
    counts = {split: int(total * fraction) for split, fraction in fractions.items()}
    remainders = sorted(fractions, key=lambda split: counts[split] - total * fractions[split])
    for split in remainders[: total - sum(counts.values())]:
        counts[split] += 1
    while total >= len(counts) and 0 in counts.values():
        empty = next(split for split, count in counts.items() if not count)
        counts[max(counts, key=lambda split: counts[split])] -= 1
        counts[empty] += 1
    return counts
