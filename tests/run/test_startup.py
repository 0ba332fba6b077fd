"""`medgen --help` and `medgen list` answer at once, because they import nothing that takes its time."""

import subprocess
import sys

import pytest

HEAVY = {
    *("torch", "monai", "ignite", "tensorboard", "mlflow", "onnxruntime", "openvino"),
    *("scipy", "skimage", "sklearn", "pandas", "matplotlib", "PIL"),
    *("nibabel", "pydicom", "highdicom", "SimpleITK"),
    *("jsonschema", "requests", "pooch"),
}
COMMANDS = [
    *(["--help"], ["--version"]),
    *([command, "--help"] for command in ("run", "train", "evaluate", "inspect", "calibrate", "demo", "manifest")),
]


def imported(*arguments: str) -> set[str]:
    """The top packages in memory when a command has ended, in a process of its own."""
    code = f"""
import atexit, sys
atexit.register(lambda: print("imported:", *{{name.partition(".")[0] for name in sys.modules}}))
sys.argv = {["medgen", *arguments]!r}
from medgen.cli import main
main()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = ended.stdout.rpartition("imported:")[2].split()
    assert {"medgen", "typer"} <= set(names)
    return set(names)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_help_imports_no_arrays(arguments: list[str]) -> None:
    assert not imported(*arguments) & (HEAVY | {"numpy"})


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"]], ids=" ".join)
def test_list_imports_nothing_heavy(arguments: list[str]) -> None:
    assert not imported(*arguments) & HEAVY
