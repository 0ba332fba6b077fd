"""The cache of converted networks: made once, by one process, whole or not at all, and gone when told."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from medgen.infer import conversions
from medgen.infer.conversions import cache_folder, clear, entries, kept, network_sha256

_SLOW_MAKER = """
import sys, time
from pathlib import Path
from medgen.infer.conversions import kept
def make(folder):
    with open(sys.argv[1], "a") as log:
        log.write("made\\n")
    (folder / "half.bin").write_bytes(b"half")
    print("began", flush=True)
    time.sleep(float(sys.argv[2]))
    (folder / "whole.bin").write_bytes(b"whole")
print(kept("openvino", {"n": 1}, make, about="slow"), flush=True)
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDGEN_CACHE", str(tmp_path / "cache"))


def _write(folder: Path) -> None:
    (folder / "network.bin").write_bytes(bytes(1000))


def _never(folder: Path) -> None:
    raise AssertionError("made again")


def test_made_once_and_found_afterwards() -> None:
    first = kept("openvino", {"weights": "a"}, _write, about="a network")
    assert kept("openvino", {"weights": "a"}, _never, about="a network") == first
    assert kept("openvino", {"weights": "b"}, _write, about="another") != first
    assert sorted(entry.about for entry in entries()) == ["a network", "another"]
    assert all(entry.size_bytes > 1000 for entry in entries())


@pytest.mark.parametrize("damage", ["truncated", "changed", "removed", "listing"])
def test_what_was_damaged_is_made_again(damage: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = kept("openvino", {}, _write, about="a network")
    file = folder / ("content.json" if damage == "listing" else "network.bin")
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(bytes(999) if damage == "truncated" else b"\x01" * 1000)
    assert kept("openvino", {}, _write, about="a network") == folder
    assert (folder / "network.bin").read_bytes() == bytes(1000)
    assert kept("openvino", {}, _never, about="a network") == folder


def test_what_fails_leaves_nothing() -> None:
    def fail(folder: Path) -> None:
        _write(folder)
        raise RuntimeError("no such operation")

    with pytest.raises(RuntimeError, match="no such"):
        kept("openvino", {}, fail, about="a network")
    assert entries() == []
    assert not list((cache_folder() / "openvino").glob("*/*"))


def _process(log: Path, seconds: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", _SLOW_MAKER, str(log), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))


def test_killed_half_way_it_is_made_again(tmp_path: Path) -> None:
    process = _process(tmp_path / "log", 60)
    assert process.stdout is not None
    assert process.stdout.readline() == "began\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert entries() == []
    second = _process(tmp_path / "log", 0)
    out, _ = second.communicate(timeout=60)
    folder = Path(out.splitlines()[-1])
    assert sorted(file.name for file in folder.iterdir()) == ["content.json", "half.bin", "whole.bin"]


def test_of_two_processes_one_makes_it_and_the_other_waits(tmp_path: Path) -> None:
    log = tmp_path / "log"
    first = _process(log, 2)
    assert first.stdout is not None
    first.stdout.readline()
    second = _process(log, 2)
    places = [process.communicate(timeout=60)[0].splitlines()[-1] for process in (first, second)]
    assert places[0] == places[1]
    assert log.read_text() == "made\n"


def test_threads_wait_for_each_other_too() -> None:
    made = []

    def slow(folder: Path) -> None:
        made.append(folder)
        time.sleep(0.2)
        _write(folder)

    threads = [threading.Thread(target=kept, args=("onnx", {}, slow), kwargs={"about": "x"}) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_clear_removes_what_medgen_made_and_nothing_else() -> None:
    kept("openvino", {}, _write, about="a network")
    foreign = cache_folder() / "thesis.tex"
    foreign.write_text("years of work")
    assert clear() > 1000
    assert entries() == []
    assert foreign.read_text() == "years of work"
    assert clear() == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_costs_only_the_keeping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    monkeypatch.setenv("MEDGEN_CACHE", str(closed))
    folder = kept("openvino", {}, _write, about="a network")
    assert (folder / "network.bin").exists()
    assert "for this run alone" in caplog.text


def test_a_cache_that_is_a_file_costs_only_the_keeping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("MEDGEN_CACHE", str(file))
    folder = kept("openvino", {}, _write, about="a network")
    assert (folder / "network.bin").exists()
    assert "for this run alone" in caplog.text


def test_the_hash_follows_weights_layers_and_settings() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.LeakyReLU(0.1))
    same = nn.Sequential(nn.Conv3d(1, 2, 3), nn.LeakyReLU(0.1))
    same.load_state_dict(network.state_dict())
    assert network_sha256(network) == network_sha256(same)
    same[1] = nn.LeakyReLU(0.2)
    assert network_sha256(network) != network_sha256(same)
    same[1] = nn.LeakyReLU(0.1)
    with torch.no_grad():
        same[0].weight[0, 0, 0, 0, 0] += 1e-6  # type: ignore[index]
    assert network_sha256(network) != network_sha256(same)


def test_the_listing_says_what_lies_there() -> None:
    folder = kept("openvino", {}, _write, about="a network")
    listing = json.loads((folder / "content.json").read_text())
    assert listing["about"] == "a network"
    assert set(listing["sha256"]) == {"network.bin"}
    assert conversions.KINDS
