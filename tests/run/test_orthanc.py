"""Against a real DICOM server: found, retrieved, computed and sent back once, whoever is killed in the middle."""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orthanc
import pydicom
import pytest
from incoming import AFFINE, command, said, statuses, until
from typer.testing import CliRunner, Result

from medgen.cli import app
from medgen.read.dicomweb import DicomWeb, parse_query
from medgen.simulate.dicom import write_series

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*labels.*:FutureWarning"),
    pytest.mark.skipif(not orthanc.available(), reason="Orthanc with its DICOMweb plugin, or storescu, is missing"),
]

SLICES = 4
_NEW = "</(0008,001c)>"  # SyntheticData, which dciodvfy does not know yet
# What a scanner never says, and medgen must not change: found in instances that came back.
KEPT = ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "StudyDate")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[orthanc.Orthanc]:
    one = orthanc.Orthanc(tmp_path / "orthanc")
    one.start()
    yield one
    one.end(signal.SIGKILL)


def write_studies(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for seed in range(count):
        write_series(folder / f"{seed:02}", rng.integers(1, 900, (16, 14, SLICES)), AFFINE, seed=seed)


def run(server: orthanc.Orthanc, bundle: Path, output: Path, *more: object) -> subprocess.Popen[bytes]:
    words = ["run", bundle, "-i", server.address, "-o", output, "--store", "--no-preview", *more]
    return command(*words, home=output.parent)


def run_here(server: orthanc.Orthanc, bundle: Path, output: Path, *more: object) -> Result:
    """As `run`, in this process, which need not begin first."""
    words = ["run", bundle, "-i", server.address, "-o", output, "--store", "--no-preview", "--trust", *more]
    return CliRunner().invoke(app, [str(word) for word in words])


def retrieved(output: Path) -> int:
    return len(list((output / ".medgen" / "retrieved").glob("*/.series.json")))


@pytest.mark.real_data
def test_real_series_go_there_and_come_back_beside_their_source(
    server: orthanc.Orthanc, bundle: Path, real_data: Path, tmp_path: Path
) -> None:
    web = pytest.importorskip("dicomweb_client")  # someone else's client, to ask for what came back
    server.push(real_data / "dicom" / "siemens-t1-supine")
    server.post(*sorted((real_data / "dicom" / "siemens-t1-jpeg2000").iterdir()))
    before = server.count()
    assert before == 35 + 96
    output = tmp_path / "out"
    first = run_here(server, bundle, output, "--query", "Modality=MR")
    assert first.exit_code == 0, first.output
    assert server.count() == 2 * before
    client = web.DICOMwebClient(f"{server.url}/dicom-web")
    for study in client.search_for_studies():
        uid = study["0020000D"]["Value"][0]
        series = [one["0020000E"]["Value"][0] for one in client.search_for_series(uid)]
        instances = {one: client.retrieve_series(uid, one, media_types=(("application/dicom", "*"),)) for one in series}
        ours, theirs = sorted(instances.values(), key=lambda some: some[0].Manufacturer != "medgen")
        assert len(ours) == len(theirs)
        for keyword in KEPT:
            assert {str(one.get(keyword)) for one in ours} == {str(one.get(keyword)) for one in theirs}
        if shutil.which("dciodvfy"):
            assert errors(ours[2], tmp_path) <= errors(theirs[2], tmp_path)
    changes = server.get("changes?last")["Last"]
    again = run_here(server, bundle, output, "--query", "Modality=MR")
    assert again.exit_code == 0, again.output
    assert server.get("changes?last")["Last"] == changes
    assert "0 sent to the server, 2 sent before" in again.output
    assert statuses(output) == ["done"] * 2


def errors(instance: pydicom.Dataset, folder: Path) -> set[str]:
    """What dciodvfy calls an error, but that it does not know what DICOM has had since."""
    instance.save_as(folder / "one.dcm", enforce_file_format=True)
    found = subprocess.run(["dciodvfy", "-new", folder / "one.dcm"], capture_output=True, text=True, check=False).stderr
    return {line for line in found.splitlines() if line.startswith("Error") and _NEW not in line}


def test_fifty_studies_three_of_them_broken(
    server: orthanc.Orthanc, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medgen.read.patience._FIRST_PAUSE_S", 0.02)
    write_studies(tmp_path / "in", 50)
    cut = sorted((tmp_path / "in" / "07").iterdir())[3]
    half = pydicom.dcmread(cut)
    half.PixelData = half.PixelData[:200]
    half.save_as(cut)
    server.post(*sorted((tmp_path / "in").rglob("*.dcm")))
    uids = [[pydicom.dcmread(f).SOPInstanceUID.encode() for f in (tmp_path / "in" / n).iterdir()] for n in ("12", "31")]
    server.lose(uids[0][3])
    for uid in uids[1]:  # Orthanc fails at every listing in which this study is
        server.lose(uid)
    before, output = server.count(), tmp_path / "out"
    first = run_here(server, bundle, output)
    assert first.exit_code == 1, first.output
    assert statuses(output) == ["done"] * 47 + ["failed"] * 3, first.output
    assert "cannot be listed: it answers 500" in (output / "cases.csv").read_text()
    assert server.count() == before + 47 * SLICES
    last = server.get("changes?last")["Last"]
    again = run_here(server, bundle, output)
    assert again.exit_code == 1
    assert server.get("changes?last")["Last"] == last
    assert "0 sent to the server, 47 sent before" in again.output


@pytest.mark.parametrize("when", ["retrieving", pytest.param("sending", marks=pytest.mark.slow)])
def test_a_server_that_is_killed_and_comes_back(
    server: orthanc.Orthanc, bundle: Path, tmp_path: Path, when: str
) -> None:
    write_studies(tmp_path / "in", 12)
    server.post(*sorted((tmp_path / "in").rglob("*.dcm")))
    output = tmp_path / "out"
    process = run(server, bundle, output)
    if when == "retrieving":
        until(lambda: retrieved(output) >= 2)
    else:
        until(lambda: list((output / ".medgen" / "stored").glob("[!.]*.json")))
    server.end(signal.SIGKILL)
    assert process.poll() is None, "it came too late"
    time.sleep(0.5)
    server.start()
    assert process.wait(timeout=120) == 0, said(tmp_path)
    assert statuses(output) == ["done"] * 12
    assert server.count() == 2 * 12 * SLICES
    assert len(server.derived()) == 12


@pytest.mark.slow
def test_several_at_once_share_the_work(server: orthanc.Orthanc, bundle: Path, tmp_path: Path) -> None:
    write_studies(tmp_path / "in", 8)
    server.post(*sorted((tmp_path / "in").rglob("*.dcm")))
    output = tmp_path / "out"
    both = [run(server, bundle, output, "--part", f"{part}/2") for part in (1, 2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0], said(tmp_path)
    assert statuses(output) == ["done"] * 8
    assert server.count() == 2 * 8 * SLICES
    assert json.loads((output / "run.json").read_text())["counts"] == {"done": 8, "failed": 0, "skipped": 0}
    # Who finished last has sent what the other one had not.
    last = run(server, bundle, output)
    assert last.wait(timeout=120) == 0
    assert "0 sent to the server, 8 sent before" in said(tmp_path)


@pytest.mark.slow
def test_a_watcher_waits_for_the_other_half_and_survives_a_kill(
    server: orthanc.Orthanc, bundle: Path, tmp_path: Path
) -> None:
    write_studies(tmp_path / "in", 3)
    output = tmp_path / "out"
    words = ["watch", bundle, server.address, "-o", output, "--store", "--settle", "2", "--every", "0.2"]
    process = command(*words, home=tmp_path)
    until(lambda: "watching" in said(tmp_path))
    halves = sorted((tmp_path / "in" / "00").iterdir())
    server.post(*halves[:2])
    time.sleep(1.0)
    server.post(*halves[2:])
    time.sleep(1.0)
    assert not retrieved(output)  # it has been there for two seconds, but not unchanged
    until(lambda: server.count() == 2 * SLICES)
    server.post(*(tmp_path / "in" / "01").iterdir(), *(tmp_path / "in" / "02").iterdir())
    until(lambda: retrieved(output) >= 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = command(*words, home=tmp_path)
    until(lambda: server.count() == 2 * 3 * SLICES and statuses(output) == ["done"] * 3)
    server.end(signal.SIGKILL)
    time.sleep(0.5)  # a look or two in vain
    server.start()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0, said(tmp_path)
    assert "Traceback" not in said(tmp_path)
    assert len(server.derived()) == 3
    assert server.count() == 2 * 3 * SLICES


@pytest.mark.parametrize("query", ["", "ModalitiesInStudy=MR", "PatientID=PHANTOM-*"])
def test_a_listing_of_many_pages_is_whole(
    server: orthanc.Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    monkeypatch.setattr("medgen.read.dicomweb._PAGE", 3)
    write_studies(tmp_path / "in", 9)
    server.post(*sorted((tmp_path / "in").rglob("*.dcm")))
    assert len(DicomWeb(server.address).find(parse_query(query))) == 9


def test_a_second_client_finds_no_inputs_among_results(server: orthanc.Orthanc, bundle: Path, tmp_path: Path) -> None:
    write_studies(tmp_path / "in", 2)
    server.post(*sorted((tmp_path / "in").rglob("*.dcm")))
    assert run_here(server, bundle, tmp_path / "out").exit_code == 0
    assert len(DicomWeb(server.address).find({"Modality": "MR"})) == 4
    assert run_here(server, bundle, tmp_path / "other").exit_code == 0
    assert statuses(tmp_path / "other") == ["done"] * 2 + ["skipped"] * 2
    assert len(server.derived()) == 2  # the same inputs and bundle make the same series, and it is there
