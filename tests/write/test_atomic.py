"""Nothing half-written is ever found under its final name: not after an error, a full disk, or a kill."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from medgen.errors import OutputError
from medgen.write.atomic import PREFIX, atomic_folder, atomic_text, atomic_write, remove_leftovers

WRITE_FOREVER = """
import sys, pathlib
from medgen.write.atomic import atomic_write, atomic_folder
folder = pathlib.Path(sys.argv[1])
for turn in range(10**9):
    with atomic_write(folder / "file") as part:
        part.write_bytes(bytes([turn % 256]) * 300_000)
    with atomic_folder(folder / "series") as part:
        for number in range(5):
            (part / f"{number}.dcm").write_bytes(bytes([turn % 256]) * 50_000)
    print(turn, flush=True)
"""


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(PREFIX)]


def test_a_file_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "a" / "mit Umlaut ä.txt"
    atomic_text(target, "old")
    with atomic_write(target) as part:
        part.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert leftovers(tmp_path) == []


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    for names in (["1", "2", "3"], ["4"]):
        with atomic_folder(tmp_path / "series") as part:
            for name in names:
                (part / name).write_text(name)
        assert sorted(path.name for path in (tmp_path / "series").iterdir()) == names
    assert [path.name for path in tmp_path.iterdir()] == ["series"]


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    atomic_text(tmp_path / "file", "old")

    def fail_file() -> None:
        with atomic_write(tmp_path / "file") as part:
            part.write_text("half")
            raise KeyError

    def fail_folder() -> None:
        with atomic_folder(tmp_path / "series") as part:
            (part / "1.dcm").write_text("half")
            raise KeyError

    for fail in (fail_file, fail_folder):
        with pytest.raises(KeyError):
            fail()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("extension", [".nii.gz", ".nii", ".png", ""])
def test_the_part_has_the_extension_that_tells_the_format(tmp_path: Path, extension: str) -> None:
    with atomic_write(tmp_path / f"sub-01.v2_T1w{extension}") as part:
        part.write_text("")
        assert part.name.endswith(extension)
        assert part.name.startswith(PREFIX)


def test_what_the_system_refuses_is_said_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write x\.nii: .*(file, not a folder|File exists)"):
        atomic_text(tmp_path / "file" / "x.nii", "")
    with pytest.raises(OutputError, match=r"name is too long.*shorter path"):
        atomic_text(tmp_path / ("n" * 300) / "x.nii", "")


def test_a_folder_without_permission_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(OutputError, match="permission denied; choose a folder"):
            atomic_text(tmp_path / "x", "")
    finally:
        tmp_path.chmod(0o700)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_said_and_leaves_the_old_file(full_disk: Path) -> None:
    atomic_text(full_disk / "result", "old")
    with (
        pytest.raises(OutputError, match="cannot write result: the disk is full; free some space"),
        atomic_write(full_disk / "result") as part,
    ):
        part.write_bytes(bytes(10**6))

    def fill() -> None:
        with atomic_folder(full_disk / "series") as part:
            for number in range(10):
                (part / str(number)).write_bytes(bytes(10**5))

    with pytest.raises(OutputError, match="disk is full"):
        fill()
    assert [path.name for path in full_disk.iterdir()] == ["result"]
    assert (full_disk / "result").read_text() == "old"


def test_a_kill_at_any_instant_leaves_whole_files_only(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for wait in (0.0, 0.003, 0.011):
        process = subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, str(folder)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        content = (folder / "file").read_bytes()
        assert len(content) == 300_000
        assert len(set(content)) == 1
        if (folder / "series").exists():  # between the two renames of a replacement there is none
            series = [path.read_bytes() for path in (folder / "series").iterdir()]
            assert len(series) == 5
            assert len(set(b"".join(series))) == 1
        remove_leftovers(tmp_path)
        assert leftovers(tmp_path) == []


def test_leftovers_of_the_living_and_of_other_machines_stay(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "alive") as mine:
        mine.write_text("")
        elsewhere = tmp_path / f"{PREFIX}0badcafe-1-00000000-11111111"
        elsewhere.write_text("")
        assert remove_leftovers(tmp_path) == 0
        two_days_ago = time.time() - 2 * 86400
        os.utime(elsewhere, (two_days_ago, two_days_ago))
        assert remove_leftovers(tmp_path) == 1
    assert (tmp_path / "alive").exists()


def test_a_dead_process_with_this_process_id_is_known_to_be_dead(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "x") as mine:
        mine.write_text("")
        host, pid, _run, token = mine.name.removeprefix(PREFIX).split("-")
        (tmp_path / f"{PREFIX}{host}-{pid}-deadbeef-{token}").mkdir()
        assert remove_leftovers(tmp_path) == 1
