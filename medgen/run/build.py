"""A folder of scans becomes a manifest: files put together, hashed, and every patient given a split."""

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgen.errors import InputError, NoInputError, OutputError, UnreadableError
from medgen.read.cohort_files import find_cohort
from medgen.read.manifest import content_bytes, content_sha256, lies_below, require_form
from medgen.read.split import split_patients
from medgen.run.steps import Event
from medgen.write.atomic import atomic_text

NOT_STATED = "not stated"

Case = dict[str, Any]


@dataclass(frozen=True)
class Cohort:
    """What was found in some folders.

    Attributes:
        root: folder that all paths are relative to.
        cases: entries of a manifest, still without a split.
        left_out: what is not among them, and why, one line each.
    """

    root: Path
    cases: list[Case]
    left_out: list[str]


def gather(
    folders: Sequence[Path],
    patterns: Mapping[str, str],
    *,
    unpaired: bool = False,
    listen: Callable[[Event], None] = lambda event: None,
) -> Cohort:
    """Finds and hashes the cases below some folders, as `find_cohort` says; no content comes twice in one role.

    Raises:
        NoInputError: a folder or a pattern cannot be used.
    """
    places = [Path(os.path.normpath(folder.absolute())) for folder in folders]
    found, left_out = find_cohort(dict.fromkeys(places), patterns, unpaired=unpaired)
    root = Path(os.path.commonpath(places))
    seen: dict[tuple[str, str], str] = {}
    cases: list[Case] = []
    listen(Event("begin", len(found), 0))
    for number, case in enumerate(found):
        listen(Event("stage", len(found), number, case.name, "hash"))
        try:
            files = {role: _entry(path, root) for role, path in case.files.items()}
            _require_new(files, seen)
        except InputError as error:
            left_out.append(f"{case.name}: {error}")
            continue
        seen |= {(role, file["sha256"]): file["path"] for role, file in files.items()}
        session = {"session": case.session} if case.session else {}
        cases.append({"patient": case.patient, **session, "files": files})
    listen(Event("end", len(found), len(found)))
    return Cohort(root, cases, left_out)


def write_manifest(
    cohort: Cohort,
    output: Path,
    fractions: Mapping[str, float],
    seed: int = 0,
    *,
    data_license: str = NOT_STATED,
    source: str = NOT_STATED,
) -> Counter[str]:
    """Splits a cohort by patient and writes its manifest, called by the file's stem.

    Returns:
        how many patients each split has.

    Raises:
        NoInputError: there is no case, or a split would have no patient with some role.
        OutputError: it cannot be written.
    """
    if not cohort.cases:
        raise NoInputError(
            f"expected cases in {cohort.root.name}, found none and left out {len(cohort.left_out)};"
            " compare --image and --target with the files' names"
        )
    split = _split(cohort.cases, fractions, seed)
    shares = ",".join(f"{name}={fraction:g}" for name, fraction in fractions.items())
    manifest = {
        "schema": "medgen-manifest-1",
        "name": re.sub(r"[^a-z0-9]+", "-", output.stem.lower()).strip("-") or "cohort",
        "description": f"{len(cohort.cases)} cases of {len(split)} patients, split {shares} with seed {seed}",
        "license": data_license,
        "source": source,
        "cases": [{**case, "split": split[case["patient"]]} for case in cohort.cases],
    }
    require_form(manifest, output.name)
    atomic_text(output, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return Counter(split.values())


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Keeps a file that is there from being replaced, before any work is done.

    Raises:
        OutputError: it is there and `overwrite` is false.
    """
    if path.exists() and not overwrite:
        raise OutputError(f"expected a new file, got {path.name}, which exists; try --overwrite")


def _entry(path: Path, root: Path) -> dict[str, Any]:
    relative = path.relative_to(root).as_posix()
    if not (lies_below(relative) and relative.isprintable()):
        raise UnreadableError(f"{relative!r} has a character that a manifest's path cannot have")
    try:
        entry = {"path": relative, "sha256": content_sha256(path), "size_bytes": content_bytes(path)}
    except OSError as error:
        raise UnreadableError(f"{relative} cannot be read: {error.strerror}") from error
    if not entry["size_bytes"]:
        raise UnreadableError(f"{relative} is empty")
    return entry


def _require_new(files: Mapping[str, Mapping[str, Any]], seen: Mapping[tuple[str, str], str]) -> None:
    for role, file in files.items():
        if (role, file["sha256"]) in seen:
            raise InputError(f"its {role} has the content of {seen[role, file['sha256']]}")


def _split(cases: Iterable[Case], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Splits patients with the same roles among themselves, so that unpaired images and targets are in every split."""
    roles: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        roles[case["patient"]] |= set(case["files"])
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for patient, names in roles.items():
        alike[tuple(sorted(names))].append(patient)
    split = {p: s for patients in alike.values() for p, s in split_patients(patients, fractions, seed).items()}
    for role in sorted(set().union(*roles.values())):
        having = [patient for patient in split if role in roles[patient]]
        if {split[patient] for patient in having} != set(fractions):
            raise NoInputError(
                f"expected a patient with {role} for each of {', '.join(fractions)}, got {len(having)} such patients;"
                " try fewer splits, such as --split train=1"
            )
    return split
