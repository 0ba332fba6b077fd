"""A run does every case once, in overlapping stages and bounded memory, and accounts for whatever goes wrong."""

import csv
import errno
import json
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cohort_worker
import numpy as np
import pytest
from cohort_worker import doubling, find, info, run

from medgen.case import Case
from medgen.errors import InputError, MedgenError, NoInputError, OutputError
from medgen.run.publish import Publisher
from medgen.run.records import CaseOutcome
from medgen.run.steps import CohortSummary, Event, Options, Steps


@pytest.fixture
def source(tmp_path: Path) -> Path:
    cohort_worker.make_input(tmp_path / "in", 6)
    return tmp_path / "in"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


def rows(output: Path) -> list[dict[str, str]]:
    with (output / "cases.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def computed(output: Path) -> Counter[str]:
    log = output.parent / "computed.log"
    return Counter(log.read_text(encoding="utf-8").splitlines() if log.exists() else [])


def failing(steps: Steps, stage: str, error: BaseException, number: int = 2) -> Steps:
    """The same steps, but the case `sub-<number>` raises at a stage."""
    inner = getattr(steps, stage)

    def step(case: Case, item: object) -> object:
        if case.name.startswith(f"sub-{number:03d}"):
            raise error
        return inner(case, item)

    return replace(steps, **{stage: step})


def test_every_case_is_done_and_on_record(source: Path, output: Path) -> None:
    summary = run(source, output)
    assert (summary.done, summary.exit_code, summary.settled) == (6, 0, summary.total)
    assert [row["status"] for row in rows(output)] == ["done"] * 6
    for index, row in enumerate(rows(output)):
        halves = [np.frombuffer(path.read_bytes(), np.int16) for path in sorted((output / row["output"]).iterdir())]
        np.testing.assert_array_equal(np.concatenate(halves), np.full(cohort_worker.VOXELS, 2 * index))
        assert float(row["seconds_total"]) >= float(row["seconds_read"])
        assert len(row["output_sha256"]) == 64


def test_the_same_command_again_computes_nothing(source: Path, output: Path) -> None:
    run(source, output)
    before = rows(output)
    summary = run(source, output)
    assert (summary.kept, summary.done, summary.exit_code) == (6, 0, 0)
    assert rows(output) == before
    assert set(computed(output).values()) == {1}


def test_what_is_doubtful_is_said_whether_done_now_or_before(source: Path, output: Path) -> None:
    steps, heard = doubling(output), []

    def write(case: Case, item: object) -> object:
        outcome = steps.write(case, item)
        return replace(outcome, flags=("input-contrast", "regridded")) if case.name.startswith("sub-002") else outcome

    for kind in ("done", "kept"):
        heard.clear()
        summary = run(source, output, steps=replace(steps, write=write), options=Options(on_event=heard.append))
        assert (getattr(summary, kind), summary.flagged, summary.exit_code) == (6, 1, 0)
        reasons = {event.case: event.reason for event in heard if event.kind == kind and event.reason}
        assert [(name[:7], reason) for name, reason in reasons.items()] == [
            ("sub-002", "flagged input-contrast, regridded")
        ]


def test_a_new_version_does_all_again_and_says_so(source: Path, output: Path) -> None:
    run(source, output)
    events: list[Event] = []
    summary = run(source, output, info("0.2.0"), options=Options(on_event=events.append))
    assert summary.done == 6
    assert {event.reason for event in events if event.kind == "redo"} == {"bundle version 0.1.0 -> 0.2.0"}
    (record, *_) = [json.loads(path.read_bytes()) for path in (output / ".medgen" / "records").glob("*.json")]
    assert record["redone"] == "bundle version 0.1.0 -> 0.2.0"


def test_overwrite_does_all_again(source: Path, output: Path) -> None:
    run(source, output)
    assert run(source, output, options=Options(overwrite=True)).done == 6


@pytest.mark.parametrize("stage", ["read", "prepare", "compute", "write"])
@pytest.mark.parametrize("error", [InputError("too few slices"), RuntimeError("boom"), MemoryError()])
def test_a_bad_case_costs_that_case_and_is_tried_again(
    source: Path, output: Path, stage: str, error: Exception
) -> None:
    summary = run(source, output, steps=failing(doubling(output), stage, error))
    assert (summary.done, summary.failed, summary.exit_code) == (5, 1, 1)
    bad = rows(output)[2]
    assert (bad["status"], bad["stage"], bad["output"]) == ("failed", stage, "")
    assert bad["reason"] == (str(error) if isinstance(error, MedgenError) else bad["reason"])
    assert type(error).__name__ in bad["reason"] or isinstance(error, MedgenError)
    again = run(source, output)
    assert (again.done, again.kept, again.exit_code) == (1, 5, 0)
    assert [row["status"] for row in rows(output)] == ["done"] * 6


def test_the_whole_of_an_unexpected_error_is_for_the_owner_alone(source: Path, output: Path) -> None:
    run(source, output, steps=failing(doubling(output), "compute", RuntimeError("Mueller^Hans at /data/Mueller")))
    assert rows(output)[2]["reason"] == "RuntimeError: … at …"
    log = output / ".medgen" / "errors.private.log"
    assert "Mueller^Hans" in log.read_text(encoding="utf-8")
    assert log.stat().st_mode & 0o777 == 0o600


def test_rules_and_refusals_are_accounted_for(source: Path, output: Path) -> None:
    cases = find(source)
    cases[0] = replace(cases[0], excluded="localizer")
    cases[1] = replace(cases[1], refused="expected even gaps, got 3 mm and 6 mm")
    summary = run(source, output, cases=cases)
    assert (summary.skipped, summary.failed, summary.done, summary.exit_code) == (1, 1, 4, 1)
    told = [(row["status"], row["stage"], row["reason"]) for row in rows(output)[:2]]
    assert told == [("skipped", "", "localizer"), ("failed", "read", "expected even gaps, got 3 mm and 6 mm")]


def test_what_a_rule_leaves_out_is_no_failure_but_all_left_out_is_no_success(source: Path, output: Path) -> None:
    cases = [replace(case, excluded="localizer") for case in find(source)]
    assert run(source, output, cases=cases).exit_code == 2
    assert run(source, output, cases=[*cases[:5], replace(cases[5], excluded="")]).exit_code == 0


def test_no_case_at_all_is_no_silent_success(source: Path, output: Path) -> None:
    with pytest.raises(NoInputError):
        run(source, output, cases=[])


def test_exit_codes() -> None:
    assert CohortSummary(usable=1).exit_code == 0
    assert CohortSummary(usable=1, failed=1).exit_code == 1
    assert CohortSummary(usable=1, stopped="the disk is full").exit_code == 1
    assert CohortSummary(usable=0).exit_code == 2
    assert CohortSummary(usable=1, signal=signal.SIGTERM).exit_code == 143
    assert CohortSummary(usable=1, signal=signal.SIGINT).exit_code == 130


def test_fail_fast_stops_at_the_first_failure(source: Path, output: Path) -> None:
    steps = failing(doubling(output), "read", RuntimeError("boom"), number=0)
    summary = run(source, output, steps=steps, options=Options(fail_fast=True))
    assert (summary.failed, summary.exit_code) == (1, 1)
    assert summary.settled < summary.total
    assert not list((output / ".medgen" / "records").glob("*.claim*"))


def test_a_full_disk_ends_the_run_in_order(source: Path, output: Path) -> None:
    full = OutputError("cannot write scan: the disk is full")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    summary = run(source, output, steps=failing(doubling(output), "write", full, number=0))
    assert summary.stopped == "cannot write scan: the disk is full"
    assert (summary.failed, summary.exit_code) == (1, 1)
    assert rows(output)[0]["reason"] == summary.stopped
    assert run(source, output).exit_code == 0


def test_a_table_that_cannot_be_written_at_the_end_is_said_and_made_good(
    source: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OutputError("cannot write run.json: the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Publisher, "close", full)
        summary = run(source, output)
    assert summary.exit_code == 1
    assert summary.stopped.startswith("cannot write run.json: the disk is full; cases.csv")
    assert run(source, output).kept == 6
    assert len(rows(output)) == 6


def test_a_limit_is_kept(source: Path, output: Path) -> None:
    assert run(source, output, options=Options(limit=2)).done == 2
    assert len(rows(output)) == 2


def test_parts_leave_one_coherent_record(source: Path, output: Path) -> None:
    summaries = [run(source, output, info(part=f"{index}/3")) for index in (1, 2, 3)]
    assert sum(summary.done for summary in summaries) == 6
    assert len(rows(output)) == 6
    told = json.loads((output / "run.json").read_bytes())
    assert [entry["part"] for entry in told["runs"]] == ["1/3", "2/3", "3/3"]
    assert told["counts"]["done"] == 6


@pytest.mark.parametrize("jobs", [1, 3])
def test_stages_overlap_and_few_cases_are_in_memory(tmp_path: Path, output: Path, jobs: int) -> None:
    cohort_worker.make_input(tmp_path / "many", 20)
    inner = doubling(output)
    lock, alive, most, busy, together = threading.Lock(), 0, 0, set[str](), set[frozenset[str]]()

    def count(change: int) -> None:
        nonlocal alive, most
        with lock:
            alive += change
            most = max(most, alive)

    def at(stage: str, result: object) -> object:
        with lock:
            busy.add(stage)
            together.add(frozenset(busy))
        time.sleep(0.02)
        with lock:
            busy.discard(stage)
        return result

    def read(case: Case, sha: str) -> object:
        count(1)
        return at("read", inner.read(case, sha))

    def write(case: Case, item: np.ndarray) -> CaseOutcome:
        outcome = inner.write(case, at("write", item))
        count(-1)
        return outcome

    steps = Steps(read, inner.prepare, lambda case, item: at("compute", inner.compute(case, item)), write)
    summary = run(tmp_path / "many", output, steps=steps, options=Options(jobs=jobs))
    assert summary.done == 20
    assert most <= 2 * jobs + 1
    assert frozenset({"read", "compute", "write"}) in together


def test_computing_stays_in_the_calling_thread_and_events_come_one_by_one(source: Path, output: Path) -> None:
    threads, events, inside = set(), [], threading.Lock()
    inner = doubling(output)

    def compute(case: Case, item: np.ndarray) -> object:
        threads.add(threading.current_thread())
        return inner.compute(case, item)

    def listen(event: Event) -> None:
        assert inside.acquire(blocking=False), "two events at once"
        events.append(event)
        inside.release()

    run(source, output, steps=replace(inner, compute=compute), options=Options(jobs=3, on_event=listen))
    assert threads == {threading.current_thread()}
    assert (events[0].kind, events[-1].kind) == ("begin", "end")
    assert [event.settled for event in events if event.kind == "done"] == [1, 2, 3, 4, 5, 6]
    stages = [event.stage for event in events if event.kind == "stage" and event.case == find(source)[0].name]
    assert stages == ["read", "prepare", "compute", "write"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_breaks_off_the_computing_and_the_next_run_goes_on(
    source: Path, output: Path, number: signal.Signals, request: pytest.FixtureRequest
) -> None:
    inner = doubling(output)
    # A job that a shell starts in the background is born deaf to SIGINT, and so are the tests in it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def compute(case: Case, item: np.ndarray) -> object:
        if case.name.startswith("sub-002"):
            os.kill(os.getpid(), number)
            for _ in range(1000):
                time.sleep(0.01)
            pytest.fail("the signal did not get through")
        return inner.compute(case, item)

    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    summary = run(source, output, steps=replace(inner, compute=compute))
    assert (summary.exit_code, summary.stopped) == (128 + number, f"stopped by {number.name}")
    assert summary.failed == 0
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert not list((output / ".medgen" / "records").glob("*.claim*"))
    assert json.loads((output / "run.json").read_bytes())["state"] == f"stopped: stopped by {number.name}"
    assert run(source, output).exit_code == 0
    assert set(computed(output).values()) <= {1, 2}


def test_a_run_started_while_another_is_at_work_shares_cases_and_failures(source: Path, output: Path) -> None:
    steps = failing(doubling(output, 0.05), "compute", RuntimeError("boom"), number=5)
    summaries: list[CohortSummary] = []
    threads = [threading.Thread(target=lambda: summaries.append(run(source, output, steps=steps))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(summary.settled, summary.failed) for summary in summaries] == [(6, 1), (6, 1)]
    assert sum(summary.done for summary in summaries) == 5
    assert sorted(computed(output).values()) == [1] * 5


def test_a_fault_of_ours_in_a_thread_ends_the_run_with_that_error(source: Path, output: Path) -> None:
    def listen(event: Event) -> None:
        if event.kind == "stage" and event.stage == "write":
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(source, output, options=Options(on_event=listen))
