"""A watcher takes each study once, when it has stopped arriving; whatever arrives, and however it was ended before."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pacs
import pytest
from incoming import AFFINE, image, push, rows, save_nifti, statuses
from typer.testing import CliRunner

from medgen.cli import app
from medgen.errors import BundleError
from medgen.read.dicomweb import DicomWeb
from medgen.run.request import RunRequest
from medgen.run.select import Filters
from medgen.run.signals import Stop, on_first_signal
from medgen.run.steps import Event
from medgen.run.watch import FolderPlace, Quiet, ServerPlace, Watcher
from medgen.simulate.dicom import write_series

pytestmark = [pytest.mark.filterwarnings("ignore:.*labels.*:FutureWarning"), pytest.mark.usefixtures("soon")]


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


# What has settled.


def test_a_thing_is_taken_once_when_it_has_been_the_same_for_long_enough(clock: Clock) -> None:
    quiet = Quiet(60, clock)
    assert quiet.settled({"a": 1}) == []
    clock.now += 59
    assert quiet.settled({"a": 1, "b": 1}) == []
    clock.now += 1
    assert quiet.settled({"a": 1, "b": 1}) == ["a"]
    clock.now += 30
    assert quiet.settled({"a": 1, "b": 2}) == []  # b has changed
    clock.now += 60
    assert quiet.settled({"a": 1, "b": 2}) == ["b"]
    assert quiet.settled({"a": 2, "b": 2}) == []  # a grows after it was taken
    clock.now += 60
    assert quiet.settled({"a": 2, "b": 2}) == ["a"]
    clock.now += 600
    assert quiet.settled({"a": 2, "b": 2}) == []


def test_what_was_away_for_a_while_is_no_news(clock: Clock) -> None:
    quiet = Quiet(0, clock)
    assert quiet.settled({"a": 1}) == ["a"]
    assert quiet.settled({}) == []
    assert quiet.settled({"a": 1}) == []


def test_what_failed_is_tried_again_with_growing_pauses_until_it_changes(clock: Clock) -> None:
    quiet = Quiet(0, clock)
    quiet.settled({"a": 1})
    tried = []
    quiet.try_again(["a"])
    for _ in range(3 * 3600):
        clock.now += 1
        if quiet.settled({"a": 1}):
            tried.append(clock.now - 1000)
            quiet.try_again(["a"])
    gaps = np.diff([0, *tried])
    assert gaps.tolist()[:7] == [60, 120, 240, 480, 960, 1920, 3600]
    assert quiet.settled({"a": 2}) == ["a"]  # a change is worth a try at once
    quiet.try_again(["a"])
    quiet.succeeded(["a"])
    clock.now += 7200
    assert quiet.settled({"a": 2}) == []


# A watcher.


class Watched:
    """A watcher of which each look is a call."""

    def __init__(
        self, place: Callable[[Quiet, list[str]], object], request: RunRequest, clock: Clock, **how: object
    ) -> None:
        self.said: list[str] = []
        self.quiet, self.stop = Quiet(60, clock), Stop()
        watched = place(self.quiet, self.said)
        self.watcher = Watcher(watched, self.quiet, request, self.stop, listen=self.hear, **how)
        self.clock, self.ran = clock, []

    def hear(self, event: Event) -> None:
        if event.kind == "note" and not event.reason.startswith(("retrieving", "sending")):
            self.said.append(event.reason)
        if event.kind in {"done", "kept", "failed", "skipped"}:
            self.ran.append((event.kind, event.case))

    def look(self, seconds: float = 0.0) -> list[str]:
        self.clock.now += seconds
        self.ran.clear()
        self.watcher.step()
        return sorted(kind for kind, _ in self.ran)


@pytest.fixture
def folder(bundle: Path, tmp_path: Path, clock: Clock) -> Watched:
    (tmp_path / "in").mkdir()
    request = RunRequest(str(bundle), tmp_path / "in", tmp_path / "in" / "results", trust=True, preview=False)
    return Watched(lambda quiet, _: FolderPlace(request, quiet), request, clock)


def test_a_folder_is_worked_on_as_it_fills_and_a_run_over_it_has_nothing_to_do(
    folder: Watched, bundle: Path, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    assert folder.look() == []
    files = push(source / "s1", 1)
    last = files[-1].read_bytes()
    files[-1].unlink()
    assert folder.look() == []
    files[-1].write_bytes(last)  # the other half
    assert folder.look(60) == []
    save_nifti(source / "sub 2" / "T1.nii.gz")
    (source / "broken.nii").write_text("this is no image")
    (source / "notes.txt").write_text("nor this")
    assert folder.look(60) == ["done"]
    assert folder.look(60) == ["done", "failed"]
    assert folder.look(600) == []
    before = rows(source / "results")
    assert len(before) == 3
    assert "sub 2/T1.nii.gz" in before
    words = ["run", bundle, "-i", source, "-o", source / "results", "--trust", "--no-preview", "--json"]
    told = json.loads(CliRunner().invoke(app, [str(word) for word in words]).stdout)
    assert (told["done"], told["kept"], told["failed"]) == (0, 2, 1)
    assert set(rows(source / "results")) == set(before)
    assert json.loads((source / "results" / "run.json").read_text())["counts"]["done"] == 2
    assert all(name in (source / "results" / "report.html").read_text() for name in before)


def test_a_study_that_grows_later_is_done_again(folder: Watched, tmp_path: Path) -> None:
    files = push(tmp_path / "in" / "s1", 1)
    last = files[-1].read_bytes()
    files[-1].unlink()
    assert (folder.look(), folder.look(60)) == ([], ["done"])
    files[-1].write_bytes(last)
    assert (folder.look(), folder.look(60)) == ([], ["done"])
    assert len(list((tmp_path / "in" / "results").glob("*/*.dcm"))) == 6


def test_a_study_of_which_nothing_is_wanted_is_accounted_for(folder: Watched, tmp_path: Path) -> None:
    write_series(tmp_path / "in", image(1), AFFINE, tags={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]})
    assert (folder.look(), folder.look(60)) == ([], ["skipped"])
    assert statuses(tmp_path / "in" / "results") == ["skipped"]


def test_what_is_left_out_by_name_is_accounted_for(bundle: Path, tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "in").mkdir()
    only = Filters(only="^sub-.*T1w")
    request = RunRequest(str(bundle), tmp_path / "in", tmp_path / "out", trust=True, preview=False, filters=only)
    watched = Watched(lambda quiet, _: FolderPlace(request, quiet), request, clock)
    for name in ("sub-01_T1w.nii.gz", "sub-01_T2w.nii.gz", "other_T1w.nii.gz"):
        save_nifti(tmp_path / "in" / name)
    assert (watched.look(), watched.look(60)) == ([], ["done", "skipped", "skipped"])
    reasons = {name: row["reason"] for name, row in rows(tmp_path / "out").items()}
    assert reasons["sub-01_T1w.nii.gz"] == ""
    assert {reasons[name] for name in ("sub-01_T2w.nii.gz", "other_T1w.nii.gz")} == {"does not match --only"}


def test_a_study_that_a_full_disk_stopped_is_tried_again(
    folder: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(tmp_path / "in", 1)
    folder.look()
    with monkeypatch.context() as patch:
        patch.setattr("medgen.run.request.write_result", _raise(OSError(28, "No space left on device")))
        assert folder.look(60) == ["failed"]
    assert folder.look(30) == []
    assert folder.look(30) == ["done"]


def test_a_bug_is_written_down_and_the_next_study_done(
    folder: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(tmp_path / "in" / "1", 1)
    (tmp_path / "in" / "results" / ".medgen").mkdir(parents=True)
    folder.look()
    with monkeypatch.context() as patch:
        patch.setattr("medgen.run.watch.start", _raise(RuntimeError("Doe^Jane 19700101")))
        for _ in range(3):
            folder.look(60)
    assert folder.said == ["RuntimeError: … …"]
    assert "Doe^Jane" in (tmp_path / "in" / "results" / ".medgen" / "errors.private.log").read_text()
    push(tmp_path / "in" / "2", 2)
    folder.look()
    assert folder.look(3600) == ["done", "done"]


def test_a_bundle_that_breaks_ends_it(folder: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(tmp_path / "in", 1)
    folder.look()
    monkeypatch.setattr("medgen.run.watch.start", _raise(BundleError("incomplete")))
    with pytest.raises(BundleError):
        folder.look(60)


def _raise(error: Exception) -> Callable[..., None]:
    def raises(*_: object, **__: object) -> None:
        raise error

    return raises


@pytest.fixture
def server() -> Iterator[pacs.Pacs]:
    with pacs.serve() as one:
        yield one


def at(server: pacs.Pacs, bundle: Path, output: Path, clock: Clock) -> Watched:
    request = RunRequest(str(bundle), Path("server"), output, trust=True, preview=False)
    web = DicomWeb(server.address, patience_s=0.05)
    return Watched(
        lambda quiet, _: ServerPlace(request, quiet, web, "", lambda event: None), request, clock, server=web
    )


def test_a_server_is_worked_on_as_studies_arrive(server: pacs.Pacs, bundle: Path, tmp_path: Path, clock: Clock) -> None:
    push(tmp_path / "1", 1)
    push(tmp_path / "2", 2)
    watched = at(server, bundle, tmp_path / "out", clock)
    assert watched.look() == []
    server.push(tmp_path / "1")
    first = server.files.popitem()
    assert watched.look() == []
    server.files[first[0]] = first[1]
    assert watched.look(60) == []
    server.push(tmp_path / "2")
    assert watched.look(60) == ["done"]
    assert len(server.files) == 18
    assert watched.look(60) == ["done"]
    assert len(server.files) == 24
    posts, gets = server.times("POST"), server.times("GET", "/series/")
    for _ in range(3):
        assert watched.look(600) == []
    again = at(server, bundle, tmp_path / "out", clock)  # as if it had been killed
    again.look()
    assert again.look(60) == ["kept", "kept"]
    assert (server.times("POST"), server.times("GET", "/series/")) == (posts, gets)
    assert statuses(tmp_path / "out") == ["done"] * 2


def test_what_could_not_be_had_or_sent_is_tried_again(
    server: pacs.Pacs, bundle: Path, tmp_path: Path, clock: Clock
) -> None:
    push(tmp_path / "1", 1)
    server.push(tmp_path / "1")
    watched = at(server, bundle, tmp_path / "out", clock)
    watched.look()
    server.cut = 4
    assert watched.look(60) == ["failed"]
    assert watched.look(59) == []
    server.only, server.replies = lambda method, path: method == "POST", [(507, {})]
    assert watched.look(1) == ["done"]
    assert ["could not be stored at the server: it answers 507" in said for said in watched.said] == [True]
    assert statuses(tmp_path / "out") == ["done"]
    assert len(server.files) == 6
    assert (watched.look(30), len(server.files)) == ([], 6)
    assert (watched.look(30), len(server.files)) == ([], 12)


def test_what_a_killed_watcher_left_unsent_is_sent_at_the_first_look(
    server: pacs.Pacs, bundle: Path, tmp_path: Path, clock: Clock
) -> None:
    push(tmp_path / "1", 1)
    server.push(tmp_path / "1")
    words = ["run", bundle, "-i", server.address, "-o", tmp_path / "out", "--trust"]
    assert CliRunner().invoke(app, [str(word) for word in words]).exit_code == 0
    assert len(server.files) == 6
    at(server, bundle, tmp_path / "out", clock).look()
    assert len(server.files) == 12


def test_a_server_that_is_gone_is_said_once_and_looked_for_again(
    server: pacs.Pacs, bundle: Path, tmp_path: Path, clock: Clock
) -> None:
    watched = at(server, bundle, tmp_path / "out", clock)
    server.replies = [(401, {})] * 3
    for _ in range(3):
        watched.look(10)
    assert len(watched.said) == 1
    assert "it answers 401" in watched.said[0]
    push(tmp_path / "1", 1)
    server.push(tmp_path / "1")
    watched.look()
    assert watched.look(60) == ["done"]


# Signals.


def test_a_signal_asks_to_end_and_leaves_handlers_as_they_were() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop, answered = Stop(), []
    with stop.on_signals():
        assert not stop.wait(0.01)
        with on_first_signal(answered.append):
            signal.raise_signal(signal.SIGTERM)
        assert (answered, stop.asked) == ([signal.SIGTERM], False)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.wait(60)
    assert signal.getsignal(signal.SIGTERM) == before


def test_asked_to_end_while_the_bundle_opens_it_works_on_no_case(
    folder: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(tmp_path / "in", 1)
    folder.look()
    monkeypatch.setattr("medgen.run.request.find_cases", _asking(folder.stop))
    assert folder.look(60) == []
    assert folder.stop.asked
    assert rows(tmp_path / "in" / "results") == {}


def _asking(stop: Stop) -> Callable[..., object]:
    from medgen.read.discover import find_cases  # noqa: PLC0415 - the one that is replaced

    def asking(*args: object, **how: object) -> object:
        stop.asked = True
        return find_cases(*args, **how)

    return asking
