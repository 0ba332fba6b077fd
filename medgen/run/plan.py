"""Which cases a process takes, and in which order."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from medgen.case import Case
from medgen.errors import MedgenError, NoInputError


@dataclass(frozen=True)
class Part:
    """Part `index` of `count`, counted from 1.

    A case belongs to a part by the hash of its name alone, so that a folder that grows between two runs moves no case
    to another part, and every machine comes to the same answer without asking the others.
    """

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Returns the part that `"I/N"` names.

        Raises:
            MedgenError: if it names none.

        Example:
            >>> Part.parse("2/8")
            Part(index=2, count=8)
        """
        match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        index, count = (int(number) for number in match.groups()) if match else (0, 0)
        if not 1 <= index <= count:
            raise MedgenError(f"expected a part such as 2/8, got {text!r}; the first of 8 parts is 1/8")
        return cls(index, count)

    def holds(self, name: str) -> bool:
        """Says whether the case of this name belongs to the part."""
        return (
            int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big") % self.count
            == self.index - 1
        )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


WHOLE = Part()


def plan(cases: Iterable[Case], part: Part = WHOLE, limit: int | None = None) -> list[Case]:
    """Returns the cases of a part in the order of their names, at most `limit` of those that no rule leaves out.

    Raises:
        NoInputError: if there is no case at all (an empty part of a cohort is none of its parts' fault, and no error).
        MedgenError: if two cases have one name.
    """
    found = sorted(cases, key=lambda case: case.name)
    if not found:
        raise NoInputError("no case was found: expected NIfTI files or DICOM series at the input")
    shared = sorted(name for name, times in Counter(case.name for case in found).items() if times > 1)
    if shared:
        raise MedgenError(f"expected every case to have its own name, got {len(shared)} shared, such as {shared[0]}")
    mine = [case for case in found if part.holds(case.name)]
    if limit is None:
        return mine
    usable = [case for case in mine if not case.excluded][: max(limit, 0)]
    last = usable[-1].name if usable else ""
    return [case for case in mine if case.name <= last]
