"""A reason tells what went wrong and gives nobody away."""

import errno

import pytest

from medgen.errors import GeometryError, OutputError
from medgen.run.reasons import is_disk_full, reason_of

SECRETS = ["Mueller", "Hans", "19650412", "123456", "1965-04-12", "data"]


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory", "/data/Mueller Hans/scan.nii"),
        ValueError("cannot read /data/Mueller_Hans/scan.nii: bad magic"),
        KeyError("Mueller^Hans"),
        RuntimeError("patient Mueller^Hans born 19650412"),
        RuntimeError("ID 123456789 born 1965-04-12"),
        RuntimeError("in <Dataset Mueller> at C:\\data\\Hans.dcm"),
    ],
)
def test_an_unexpected_error_is_named_without_paths_names_and_numbers(error: Exception) -> None:
    reason = reason_of(error)
    assert reason.startswith(type(error).__name__)
    assert not any(secret in reason for secret in SECRETS)


def test_an_error_of_ours_speaks_for_itself_through_what_wraps_it() -> None:
    error = RuntimeError("applying transform <object at 0x7f>")
    error.__cause__ = GeometryError("expected even gaps,\n got 3 mm and 6 mm")
    assert reason_of(error) == "expected even gaps, got 3 mm and 6 mm"


def test_an_error_without_a_message_has_a_name() -> None:
    assert reason_of(MemoryError()) == "MemoryError"


def test_a_long_message_is_cut() -> None:
    assert len(reason_of(RuntimeError("word " * 1000))) <= 320


@pytest.mark.parametrize(("code", "full"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EACCES, False)])
def test_a_full_disk_is_known_behind_our_own_error(code: int, full: bool) -> None:
    error = OutputError("cannot write a.nii")
    error.__cause__ = OSError(code, "x")
    assert is_disk_full(error) is full


def test_errors_that_cause_each_other_end() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert reason_of(first) == "ValueError: b"
