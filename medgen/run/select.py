"""Which of the cases found are for this bundle: the user's filters, and the choice among the series of one study.

A hospital's study holds a dozen series of which one is wanted. Within a study, series that fit the bundle's declared
input are taken and the others are left out by rule, with the reason; where none fits, all are tried, since silence
would lose the study, and the input check flags them. NIfTI files have no study; there BIDS suffixes of one folder
decide in the same way.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medgen.case import Case
from medgen.errors import NoInputError

# Suffixes of the BIDS specification 1.10 for volumes that a structural bundle could meet.
_BIDS_SUFFIX = re.compile(
    r"_(T1w|T2w|PDw|T2starw|FLAIR|inplaneT1|inplaneT2|PDT2|angio|T1map|T2map|bold|sbref|dwi|epi|asl|m0scan|ct|CT|mask|dseg)$"
)


@dataclass(frozen=True)
class SeriesRule:
    """The series that a bundle takes, as its metadata declares under `input_series`.

    Attributes:
        modality: DICOM modality, "" for any.
        prefer: regular expressions; a series whose description matches one is taken before all others.
        avoid: regular expressions; a series whose description matches one is taken only when the study has nothing
            else.
        bids_suffix: of the files wanted, such as `"T1w"`, "" for any.
    """

    modality: str = ""
    prefer: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
    bids_suffix: str = ""

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], changes: Sequence[str] = ()) -> "SeriesRule":
        """Reads the rule from a bundle's `metadata.json`; one without `input_series` takes every series.

        A bundle that takes several contrasts may have a rule for each, `input_series_T2w`, which holds where a change
        of the config, `contrast=T2w`, declares that one.
        """
        contrast = next((c.partition("=")[2] for c in reversed(changes) if c.startswith("contrast=")), "")
        declared = metadata.get(f"input_series_{contrast}", metadata.get("input_series", {}))
        return cls(
            modality=declared.get("modality", ""),
            prefer=tuple(declared.get("prefer", ())),
            avoid=tuple(declared.get("avoid", ())),
            bids_suffix=declared.get("bids_suffix", ""),
        )


@dataclass(frozen=True)
class Filters:
    """What the user asked for on the command line.

    Attributes:
        only: regular expression, searched (ignoring case) in a DICOM series' description and in a file's relative path.
        modality: take only this DICOM modality; other files are kept.
        all_series: take every series of a study, whatever the bundle declares.
    """

    only: str = ""
    modality: str = ""
    all_series: bool = False


def select_cases(cases: Sequence[Case], rule: SeriesRule, filters: Filters) -> list[Case]:
    """Returns the same cases in the same order, with the reason in `excluded` of those that are left out.

    Raises:
        NoInputError: `filters.only` is not a regular expression.
    """
    kept = _apply_filters(cases, filters)
    if filters.all_series:
        return kept
    groups: dict[tuple[str, ...], list[Case]] = defaultdict(list)
    for case in kept:
        if not case.excluded:
            groups[_group(case)].append(case)
    reasons: dict[str, str] = {}
    for group in groups.values():
        reasons |= _left_out(group, rule)
    return [replace(case, excluded=reasons[case.name]) if case.name in reasons else case for case in kept]


def _apply_filters(cases: Sequence[Case], filters: Filters) -> list[Case]:
    only = pattern_of(filters)

    def reason(case: Case) -> str:
        text = case.description if case.kind == "dicom" else str(case.relative)
        if filters.only and not only.search(text):
            return "does not match --only"
        if filters.modality and case.modality and case.modality != filters.modality:
            return f"modality {case.modality}, asked for {filters.modality}"
        return ""

    return [case if case.excluded else replace(case, excluded=reason(case)) for case in cases]


def pattern_of(filters: Filters) -> re.Pattern[str]:
    """Returns what `filters.only` is looked for with.

    Raises:
        NoInputError: it is not a regular expression.
    """
    try:
        return re.compile(filters.only, re.IGNORECASE)
    except re.error as error:
        raise NoInputError(f"--only takes a regular expression; {filters.only!r} is none ({error})") from error


def _group(case: Case) -> tuple[str, ...]:
    return ("study", case.study) if case.study else ("folder", str(case.relative.parent), case.kind)


def _left_out(group: Iterable[Case], rule: SeriesRule) -> dict[str, str]:
    """Says for each case of one study (or folder) that is left out why, by name."""
    members = list(group)
    reasons: dict[str, str] = {}
    if members[0].kind == "dicom":
        if not members[0].study:
            return {}
        for fits, why in _dicom_criteria(rule):
            members = _narrow(members, fits, why, reasons)
    elif rule.bids_suffix:
        _narrow(
            members,
            lambda case: _bids_fits(case, rule.bids_suffix),
            f"another file of the folder is {rule.bids_suffix}",
            reasons,
        )
    return reasons


def _dicom_criteria(rule: SeriesRule) -> list[tuple[Callable[[Case], bool], str]]:
    def says(patterns: tuple[str, ...], case: Case) -> bool:
        return any(re.search(pattern, case.description, re.IGNORECASE) for pattern in patterns)

    return [
        (
            lambda case: not rule.modality or case.modality == rule.modality,
            f"another series of the study is {rule.modality}",
        ),
        (
            lambda case: not says(rule.avoid, case),
            "its description names another contrast, and another series of the study does not",
        ),
        (lambda case: says(rule.prefer, case), "the description of another series of the study fits better"),
    ]


def _bids_fits(case: Case, suffix: str) -> bool:
    found = _BIDS_SUFFIX.search(case.stem.name)
    return found is None or found.group(1) == suffix


def _narrow(members: list[Case], fits: Callable[[Case], bool], why: str, reasons: dict[str, str]) -> list[Case]:
    """Keeps the members that fit, if there are any; notes `why` for the others."""
    chosen = [case for case in members if fits(case)]
    if not chosen:
        return members
    reasons |= {case.name: why for case in members if not fits(case)}
    return chosen
