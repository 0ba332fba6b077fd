"""`medgen watch` as a process: killed, started again, ended; and what it refuses before it begins."""

import shutil
import signal
from pathlib import Path

import pytest
from incoming import command, push, said, statuses, until
from typer.testing import CliRunner

from medgen.cli import app

pytestmark = pytest.mark.filterwarnings("ignore:.*labels.*:FutureWarning")


def test_killed_in_the_middle_and_started_again_it_does_everything_once(bundle: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    for seed in range(4):
        push(source / str(seed), seed)
    words = ["watch", bundle, source, "-o", output, "--settle", "0.3", "--every", "0.1"]
    process = command(*words, home=tmp_path)
    until(lambda: list((output / ".medgen" / "records").glob("*.json")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.read_bytes() for path in (output / ".medgen" / "records").glob("[!.]*.json")}
    process = command(*words, home=tmp_path)
    until(lambda: (output / "cases.csv").is_file() and statuses(output) == ["done"] * 4)
    push(source / "late", 9)
    until(lambda: statuses(output) == ["done"] * 5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0, said(tmp_path)
    for path, content in before.items():
        assert path.read_bytes() == content  # what was done was not done again
    assert "Traceback" not in said(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "expected a folder to watch"),
        (["."], "got one with results"),
        (["in", "--only", "("], "takes a regular expression"),
        (["in", "--backend", "tensorrt"], "tensorrt"),
        (["in", "--store"], "beside --query and --store"),
        (["in", "--query", "PatientID=4711"], "beside --query and --store"),
        (["dicomweb+http://127.0.0.1:1", "--query", "Patient=4711"], "expected --query"),
        (["dicomweb+http://127.0.0.1:1", "--store", "--format", "nifti"], "which no server takes"),
    ],
)
def test_what_cannot_be_watched_is_said(
    bundle: Path, tmp_path: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    output = "." if words == ["."] else "out"
    result = CliRunner().invoke(app, ["watch", str(bundle), *words, "-o", output, "--trust"])
    assert result.exit_code == 2
    assert message in result.stderr
    assert "4711" not in result.output


def test_a_bundle_that_nobody_trusts_is_refused_before_a_study_arrives(bundle: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["watch", str(bundle), str(tmp_path), "-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "say --trust" in result.stderr
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
