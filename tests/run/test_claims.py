"""At most one of all living processes holds a case; the dead hold nothing for long."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from medgen.run import claims
from medgen.run.claims import STALE_SECONDS, Identity, Owner, claim_path, create_once


@pytest.fixture(params=["hard links", "no hard links"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "no hard links":

        def refused(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refused)
    (tmp_path / "owners").mkdir()
    return tmp_path


@pytest.fixture
def owners(folder: Path) -> Iterator[tuple[Owner, Owner]]:
    first, second = Owner(folder / "owners"), Owner(folder / "owners")
    yield first, second
    first.close()
    second.close()


def dead_process() -> Identity:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started = psutil.Process(process.pid).create_time()
        process.communicate()
    return Identity("dead", Identity.mine().machine, process.pid, started)


def leave_claim(base: Path, identity: Identity | None, age: float = 0.0) -> Path:
    path = claim_path(base, 0)
    path.write_text(json.dumps(asdict(identity)) if identity else "", encoding="utf-8")
    touched = path.stat().st_mtime - age
    os.utime(path, (touched, touched))
    return path


def test_a_claim_excludes_until_it_is_released(folder: Path, owners: tuple[Owner, Owner]) -> None:
    first, second = owners
    claim = first.try_claim(folder / "case")
    assert claim
    assert first.holds(claim)
    assert first.try_claim(folder / "case") is None
    assert second.try_claim(folder / "case") is None
    first.release(claim, recorded=False)
    assert second.try_claim(folder / "case")


def test_of_many_that_try_at_once_one_gets_it(folder: Path) -> None:
    crowd = [Owner(folder / "owners") for _ in range(8)]
    got: list[object] = []
    start = threading.Barrier(len(crowd))

    def grab(owner: Owner) -> None:
        for number in range(20):
            start.wait()
            if owner.try_claim(folder / f"case{number}"):
                got.append(number)

    threads = [threading.Thread(target=grab, args=(owner,)) for owner in crowd]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(20))
    for owner in crowd:
        owner.close()


def test_a_dead_process_on_this_machine_is_outbid_at_once(folder: Path, owners: tuple[Owner, Owner]) -> None:
    first, second = owners
    dead = leave_claim(folder / "case", dead_process())
    claim = first.try_claim(folder / "case")
    assert claim
    assert claim.generation == 1
    assert second.try_claim(folder / "case") is None
    first.release(claim, recorded=False)
    assert dead.exists(), "deleting a dead claim unrecorded would let two processes in"
    again = second.try_claim(folder / "case")
    assert again
    second.release(again, recorded=True)
    assert not dead.exists()


def test_another_machine_is_believed_while_its_heart_beats(folder: Path, owners: tuple[Owner, Owner]) -> None:
    elsewhere = replace(dead_process(), machine="another")
    leave_claim(folder / "fresh", elsewhere, age=STALE_SECONDS / 2)
    leave_claim(folder / "stale", elsewhere, age=STALE_SECONDS * 2)
    assert owners[0].try_claim(folder / "fresh") is None
    assert owners[0].try_claim(folder / "stale")


def test_a_claim_without_a_name_counts_until_it_is_old(folder: Path, owners: tuple[Owner, Owner]) -> None:
    leave_claim(folder / "fresh", None)
    leave_claim(folder / "stale", None, age=STALE_SECONDS * 2)
    assert owners[0].try_claim(folder / "fresh") is None
    assert owners[0].try_claim(folder / "stale")


def test_a_later_process_with_the_same_number_is_not_taken_for_the_dead_one() -> None:
    mine = Identity.mine()
    parent = psutil.Process(os.getppid())
    living = Identity("x", mine.machine, parent.pid, parent.create_time())
    assert living.is_running() is True
    assert replace(living, started=living.started - 100).is_running() is False
    assert replace(mine, id="an earlier process of a restarted container").is_running() is False
    assert replace(living, machine="another").is_running() is None


def test_who_was_outbid_while_asleep_notices(folder: Path, owners: tuple[Owner, Owner]) -> None:
    first, _ = owners
    claim = first.try_claim(folder / "case")
    assert claim
    claim_path(folder / "case", 1).write_text("{}", encoding="utf-8")
    assert not first.holds(claim)


def test_the_heart_beats_for_every_claim(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.01)
    owner = Owner(folder / "owners")
    claim = owner.try_claim(folder / "case")
    assert claim
    os.utime(claim.path, (0, 0))
    for _ in range(500):
        if claim.path.stat().st_mtime > 0:
            break
        threading.Event().wait(0.01)
    assert claim.path.stat().st_mtime > 0
    owner.close()


def test_leaving_gives_everything_back(folder: Path, owners: tuple[Owner, Owner]) -> None:
    first, second = owners
    assert first.try_claim(folder / "case")
    assert second.living_others() == [first.identity.id]
    first.close()
    assert second.living_others() == []
    assert second.try_claim(folder / "case")


def test_the_dead_are_forgotten(folder: Path, owners: tuple[Owner, Owner]) -> None:
    left = folder / "owners" / "dead.json"
    left.write_text(json.dumps(asdict(dead_process())), encoding="utf-8")
    assert "dead" not in owners[0].living_others()
    assert not left.exists()


def test_who_has_left_still_sees_who_works_on_another_machine(folder: Path) -> None:
    for name, age in (("fresh", 0.0), ("stale", STALE_SECONDS * 2)):
        file = folder / "owners" / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(asdict(replace(dead_process(), machine="another"))), encoding="utf-8")
        os.utime(file, (time.time() - age, time.time() - age))
    owner = Owner(folder / "owners")
    owner.close()
    assert owner.living_others() == ["fresh"]
    assert [path.name for path in (folder / "owners").iterdir()] == ["fresh.json"]


def test_what_exists_is_not_made_again(folder: Path) -> None:
    source, target = folder / "source", folder / "target"
    source.write_text("whole", encoding="utf-8")
    assert create_once(source, target)
    assert target.read_text(encoding="utf-8") == "whole"
    other = folder / "other"
    other.write_text("other", encoding="utf-8")
    assert not create_once(other, target)
    assert target.read_text(encoding="utf-8") == "whole"
