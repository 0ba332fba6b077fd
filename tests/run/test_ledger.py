"""A case counts as done only while everything it was made from, and everything it made, is the same."""

import csv
import json
import os
import stat
from dataclasses import replace
from pathlib import Path, PurePosixPath

import cohort_worker
import pytest

from medgen.case import Case
from medgen.errors import InputError, OutputError
from medgen.run import ledger as ledger_module
from medgen.run.ledger import Ledger, Verdict
from medgen.run.private import make_salt, peek_salt, write_paths
from medgen.run.publish import RunInfo
from medgen.run.records import CaseOutcome, case_id


@pytest.fixture
def case(tmp_path: Path) -> Case:
    cohort_worker.make_input(tmp_path / "in", 1)
    return cohort_worker.find(tmp_path / "in")[0]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


def do(output: Path, case: Case, info: RunInfo | None = None, files: tuple[str, ...] = ("a.raw", "a.json")) -> None:
    """Does a case as a run would."""
    with Ledger(output, info or cohort_worker.info()) as ledger:
        for name in files:
            (output / name).parent.mkdir(exist_ok=True)
            (output / name).write_bytes(b"result")
        paths = tuple(PurePosixPath(name) for name in files)
        ledger.record_done(case, ledger.input_of(case), CaseOutcome(paths[0], paths, "0" * 64), seconds={})


def look(output: Path, case: Case, info: RunInfo | None = None, *, overwrite: bool = False) -> Verdict:
    with Ledger(output, info or cohort_worker.info()) as ledger:
        known = ledger.find(case)
        return ledger.verdict(known, ledger.input_of(case, known), overwrite=overwrite)


def test_what_was_never_done_is_to_be_done(output: Path, case: Case) -> None:
    assert look(output, case) == Verdict(stands=False)


def test_what_was_done_stands(output: Path, case: Case) -> None:
    do(output, case)
    assert look(output, case) == Verdict(stands=True)


@pytest.mark.parametrize(
    ("info", "why"),
    [
        (cohort_worker.info("0.2.0"), "bundle version 0.1.0 -> 0.2.0"),
        (cohort_worker.info(overlap=0.25), "overlap None -> 0.25"),
    ],
)
def test_another_recipe_does_it_again_and_says_why(output: Path, case: Case, info: RunInfo, why: str) -> None:
    do(output, case)
    assert look(output, case, info) == Verdict(stands=False, why=why)


def test_changed_content_of_the_same_size_and_date_does_it_again(output: Path, case: Case) -> None:
    do(output, case)
    path = case.files[0]
    before = path.stat()
    path.write_bytes(path.read_bytes()[::-1].replace(b"\x00", b"\x01"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert look(output, case) == Verdict(stands=False, why="input changed")


def test_a_moved_input_does_it_again(output: Path, case: Case) -> None:
    do(output, case)
    moved = replace(case, relative=PurePosixPath("elsewhere/scan.raw"))
    assert look(output, moved) == Verdict(stands=False, why="input moved")


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_lost_or_cut_output_does_it_again(output: Path, case: Case, damage: object) -> None:
    do(output, case)
    damage(output / "a.json")  # type: ignore[operator]
    assert look(output, case) == Verdict(stands=False, why="output a.json is missing or changed")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"case": 1}'])
def test_a_damaged_record_does_it_again(output: Path, case: Case, content: bytes) -> None:
    do(output, case)
    (output / ".medgen" / "records" / f"{case_id(case.name)}.json").write_bytes(content)
    assert look(output, case) == Verdict(stands=False)


def test_overwrite_does_everything_again(output: Path, case: Case) -> None:
    do(output, case)
    assert look(output, case, overwrite=True) == Verdict(stands=False, why="asked to overwrite")


def test_what_another_process_did_since_stands_even_failed_or_overwriting(output: Path, case: Case) -> None:
    with Ledger(output, cohort_worker.info()) as mine, Ledger(output, cohort_worker.info()) as other:
        found = mine.input_of(case)
        mine.owner.began_ns -= 1_000_000_000
        other.record_failed(case, "read", "broken", found=found)
        assert mine.verdict(mine.find(case), found, overwrite=True).stands
    assert not look(output, case).stands, "the next run tries a failed case again"


def test_an_unchanged_input_is_hashed_once(output: Path, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_YOUNG_SECONDS", -1.0)
    do(output, case)
    monkeypatch.setattr(ledger_module, "input_sha256", lambda _: pytest.fail("hashed again"))
    assert look(output, case).stands


def test_a_young_input_is_hashed_again_since_its_date_proves_nothing(output: Path, case: Case) -> None:
    do(output, case)
    with Ledger(output, cohort_worker.info()) as ledger:
        assert ledger.input_of(case).stat == ""


def test_an_input_that_changes_while_it_is_read_is_refused(
    output: Path, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "_YOUNG_SECONDS", -1.0)
    with Ledger(output, cohort_worker.info()) as ledger:
        found = ledger.input_of(case)
        ledger.require_unchanged(case, found)
        case.files[0].write_bytes(b"more")
        with pytest.raises(InputError, match="changed while"):
            ledger.require_unchanged(case, found)


def test_a_new_version_leaves_no_file_of_the_old_one_behind(output: Path, case: Case) -> None:
    do(output, case, files=("a.raw", "dicom/0001.dcm", "keep.json"))
    with Ledger(output, cohort_worker.info("0.2.0")) as ledger:
        ledger.record_failed(case, "compute", "no memory")
    assert (output / "a.raw").exists()
    do(output, case, cohort_worker.info("0.3.0"), files=("b.raw", "keep.json"))
    left = {path.name for path in output.iterdir() if not path.name.startswith(".")}
    assert left == {"b.raw", "keep.json"}


def test_a_result_that_is_not_there_is_not_recorded(output: Path, case: Case) -> None:
    with Ledger(output, cohort_worker.info()) as ledger:
        outcome = CaseOutcome(PurePosixPath("no"), (PurePosixPath("no"),), "0" * 64)
        with pytest.raises(OutputError):
            ledger.record_done(case, ledger.input_of(case), outcome, seconds={})
        assert ledger.find(case) is None


def test_an_output_that_cannot_be_a_folder_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(OutputError, match="file"):
        Ledger(tmp_path / "file" / "out", cohort_worker.info())


def test_every_process_gets_the_same_salt_and_nobody_else_reads_it(output: Path) -> None:
    salt = make_salt(output)
    assert len(salt) == 32
    assert make_salt(output) == salt == peek_salt(output)
    assert stat.S_IMODE((output / ".medgen" / "salt").stat().st_mode) == 0o600
    assert [path.name for path in (output / ".medgen").iterdir()] == ["salt"]


def test_looking_leaves_no_trace(output: Path) -> None:
    assert len(peek_salt(output)) == 32
    assert not output.exists()


def test_the_map_to_paths_is_for_its_owner_and_grows(output: Path, case: Case) -> None:
    other = replace(case, name="dicom-1234", files=(case.files[0], case.files[0].with_name("2")))
    write_paths(output, [case])
    write_paths(output, [other])
    path = output / ".medgen" / "paths.private.csv"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open(encoding="utf-8", newline="") as stream:
        rows = {row["case"]: row["path"] for row in csv.DictReader(stream)}
    assert rows == {case.name: str(case.files[0]), "dicom-1234": str(case.files[0].parent)}


def test_no_record_tells_where_a_case_came_from(output: Path, case: Case) -> None:
    secret = replace(case, name="dicom-1234", relative=PurePosixPath("Mueller^Hans/1"))
    do(output, secret)
    with Ledger(output, cohort_worker.info()) as ledger:
        ledger.publisher.publish({})
    written = [path.read_bytes() for path in output.rglob("*") if path.is_file() and "private" not in path.name]
    assert written
    assert not any(b"Mueller" in content or b"sub-00" in content for content in written)


def test_run_json_has_an_entry_for_every_process_and_tells_the_killed(output: Path, case: Case) -> None:
    do(output, case)
    with Ledger(output, cohort_worker.info()) as killed:
        killed.publisher.note({})
    with Ledger(output, cohort_worker.info("0.2.0")) as ledger:
        ledger.publisher.close("finished", {"counts": {"done": 0}})
    told = json.loads((output / "run.json").read_bytes())
    assert [run["state"] for run in told["runs"]] == ["killed", "finished"]
    assert told["bundle_version"] == "0.2.0"
    assert told["counts"] == {"done": 1, "failed": 0, "skipped": 0}
    assert {"command", "versions", "weights_sha256", "device", "settings", "started", "ended", "seconds"} <= set(told)
