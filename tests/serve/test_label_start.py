"""What stops a server before it starts, and what stands in for what is not installed."""

import importlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from label_server import free_port, needs_server
from typer.testing import CliRunner
from zoo_like import write_bundle

from medgen.cli import app
from medgen.serve import stand_ins


def refused(*words: str) -> str:
    """Runs a command that cannot start, and returns what it said."""
    result = CliRunner().invoke(app, ["serve", *words])
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


@needs_server
def test_what_cannot_be_served_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    folder = ("--folder", str(tmp_path / "app"))
    here = ("--studies", str(tmp_path), *folder)
    assert "did you mean brain_t1_to_t2" in refused("brain_t1_to_t3", *here)
    assert "expected a folder of studies, or a DICOMweb URL" in refused("--studies", str(tmp_path / "none"), *folder)
    assert "then say --trust" in refused(str(write_bundle(tmp_path / "theirs")), *here)
    broken = write_bundle(tmp_path / "broken")
    (broken / "models" / "model.pt").unlink()
    assert "weights at models/model.pt" in refused(str(broken), "--trust", *here)
    again = write_bundle(tmp_path / "b" / "theirs")
    assert "got theirs twice" in refused(str(tmp_path / "theirs"), str(again), "--trust", *here)
    assert not (tmp_path / "app").exists()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"127.0.0.1:{port}" in refused("brain_t1_to_t2", "--port", port, *here)


@needs_server
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    port = str(free_port())
    words = ("brain_t1_to_t2", "--studies", str(tmp_path), "--port", port, "--folder", str(tmp_path))
    assert "expected an empty folder, or one of an earlier server" in refused(*words)
    assert not (tmp_path / "main.py").exists()
    assert not (tmp_path / "sitecustomize.py").exists()


def test_without_monai_label_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "`make label` installs it" in refused("--studies", str(tmp_path))


@needs_server
def test_a_host_that_others_can_reach_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medgen.serve.server.serve", lambda *args, **kwargs: None)
    result = CliRunner().invoke(app, ["serve", "--studies", str(tmp_path), "--host", "0.0.0.0"])
    assert "anyone who reaches 0.0.0.0" in " ".join(result.output.split())
    result = CliRunner().invoke(app, ["serve", "--studies", str(tmp_path)])
    assert "anyone" not in result.output


def test_a_stand_in_says_what_is_missing_and_is_not_taken_for_the_package() -> None:
    code = """
import sys
sys.modules["numpymaxflow"] = real = type(sys)("numpymaxflow")
from medgen.serve.stand_ins import install
install()
assert sys.modules["numpymaxflow"] is real
import itk, pydicom_seg, torchvision.utils
from torchvision.utils import make_grid
from monai.data import ITKReader
from monai.utils import OptionalImportError
try:
    ITKReader()
except OptionalImportError:
    print("absent")
for call in (make_grid, itk.imwrite, lambda: pydicom_seg.MultiClassWriter()):
    try:
        call()
    except RuntimeError as error:
        print(error)
"""
    if any(importlib.util.find_spec(name) for name in ("itk", "pydicom_seg", "torchvision")):
        pytest.skip("one of the packages is installed")
    told = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines()[0] == "absent"
    assert told.stdout.count("is not installed beside medgen") == 3
    assert set(stand_ins._TAKEN) >= {"itk", "pydicom_seg", "torchvision", "numpymaxflow"}
