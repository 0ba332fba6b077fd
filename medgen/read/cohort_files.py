"""Whose file is it, and what for? Files below a folder are told by BIDS suffix or by a pattern, and put together."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medgen.errors import NoInputError
from medgen.read.files import Found, walk
from medgen.read.manifest import lies_below

_BIDS = re.compile(r"[A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)*")
_BIDS_FILE = r"(?P<patient>sub-[^/_]+)/(?:(?P<session>ses-[^/_]+)/)?anat/(?P=patient)_(?:[^/]*_)?{ending}\.nii(?:\.gz)?"
_TOKENS = re.compile(r"(\*\*/|\*|\{[^{}]*\})")
# As few characters as fit: what is left over belongs to the rest of the name, so that one patient never becomes two.
_WILD = {"**/": "(?:[^/]+/)*?", "*": "[^/]*?"}


@dataclass(frozen=True)
class CohortCase:
    """Files that belong together.

    Attributes:
        patient: whose, as the file names say.
        session: which of the patient's; empty where the names say none.
        files: by role.
    """

    patient: str
    session: str
    files: Mapping[str, Path]

    @property
    def name(self) -> str:
        """How a message calls it."""
        return f"{self.patient} {self.session}".strip()


def find_cohort(
    folders: Iterable[Path], patterns: Mapping[str, str], *, unpaired: bool = False
) -> tuple[list[CohortCase], list[str]]:
    """Finds the cases below some folders, reading no file.

    A patient's code counts across folders, so that nobody lands in two splits; files are put together within a folder.

    Args:
        folders: each is searched to the bottom, hidden names and outputs of medgen left out.
        patterns: by role, see `compile_pattern`.
        unpaired: makes every file a case of its own, as one role alone does.

    Returns:
        the cases, in a stable order, and what is left out, with the reason, one line each.

    Raises:
        NoInputError: a folder or a pattern cannot be used.
    """
    compiled = {role: compile_pattern(pattern) for role, pattern in patterns.items()}
    if len({"session" in pattern.groupindex for pattern in compiled.values()}) > 1 and not unpaired:
        raise NoInputError("expected {session} in all patterns or in none; files of unlike sessions make no pair")
    cases: list[CohortCase] = []
    left_out: list[str] = []
    for folder in folders:
        if not folder.is_dir():
            raise NoInputError(f"expected a folder, got none at {folder.name}")
        found = Found(folder)
        for (patient, session), files in sorted(_by_case(folder, found, compiled).items()):
            if unpaired or len(patterns) == 1:
                cases += [CohortCase(patient, session, {role: path}) for role in files for path in files[role]]
            elif reasons := "; ".join(_why_not(files, patterns, folder)):
                left_out.append(f"{patient} {session}".strip() + f": {reasons}")
            else:
                cases.append(CohortCase(patient, session, {role: files[role][0] for role in patterns}))
        left_out += [f"{_relative(path, folder)}: {reason}" for path, reason in found.broken]
    return cases, left_out


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Turns a BIDS suffix, or a pattern, into an expression for paths relative to the folder searched.

    A suffix such as `T1w`, or an ending such as `acq-mprage_T1w`, means `sub-*/[ses-*]/anat/sub-*_T1w.nii[.gz]`. In a
    pattern `{patient}` and `{session}` stand for the part of a name that is the same in all files of a patient or
    session, `*` for anything within a name, `**/` for folders; each takes as few characters as fit.

    Raises:
        NoInputError: it is neither.

    Example:
        >>> compile_pattern("{patient}-*-T1.nii.gz").fullmatch("IXI012-HH-1211-T1.nii.gz")["patient"]
        'IXI012'
        >>> compile_pattern("T1w").fullmatch("sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz")["session"]
        'ses-2'
    """
    if _BIDS.fullmatch(pattern):
        return re.compile(_BIDS_FILE.format(ending=re.escape(pattern)))
    places = [token for token in _TOKENS.findall(pattern) if token.startswith("{")]
    if "{patient}" not in places or set(places) - {"{patient}", "{session}"} or not lies_below(pattern):
        raise NoInputError(
            f"expected a BIDS suffix such as T1w, or a pattern such as {{patient}}/t1.nii.gz, got {pattern!r}"
        )
    known: set[str] = set()
    return re.compile("".join(_expression(token, known) for token in _TOKENS.split(PurePosixPath(pattern).as_posix())))


def _expression(token: str, known: set[str]) -> str:
    if not token.startswith("{"):
        return _WILD.get(token, re.escape(token))
    name = token[1:-1]
    repeated = name in known
    known.add(name)
    return f"(?P={name})" if repeated else f"(?P<{name}>[^/]+?)"


def _by_case(
    folder: Path, found: Found, patterns: Mapping[str, re.Pattern[str]]
) -> dict[tuple[str, str], dict[str, list[Path]]]:
    by_case: dict[tuple[str, str], dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in _files_and_folders(folder, found):
        for role, pattern in patterns.items():
            match = pattern.fullmatch(_relative(path, folder))
            if match:
                by_case[match["patient"], match.groupdict().get("session") or ""][role].append(path)
    return by_case


def _files_and_folders(folder: Path, found: Found) -> Iterator[Path]:
    """Yields every file and every folder with something in it (a DICOM series is one), each once."""
    seen: set[Path] = {folder}
    for file in walk(folder, found, set()):
        for parent in reversed(file.relative_to(folder).parents):
            if folder / parent not in seen:
                seen.add(folder / parent)
                yield folder / parent
        yield file


def _why_not(files: Mapping[str, list[Path]], roles: Iterable[str], folder: Path) -> Iterator[str]:
    for role in roles:
        paths = files.get(role, [])
        if not paths:
            yield f"no {role}"
        elif len(paths) > 1:
            yield f"{len(paths)} candidates for {role} ({', '.join(_relative(path, folder) for path in paths)})"
    if len({path for paths in files.values() for path in paths}) < sum(map(len, files.values())):
        yield "one file in two roles"


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
