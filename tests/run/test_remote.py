"""A run over a DICOMweb server, from the command line to what the server has then, accidents included."""

import json
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pacs
import pytest
from incoming import AFFINE, image, rows, statuses
from pydicom import Dataset
from typer.testing import CliRunner, Result
from zoo_like import write_bundle

from medgen.cli import app
from medgen.read.dicomweb import DicomWeb, uids_of
from medgen.run.remote import store_results
from medgen.simulate.dicom import write_series

pytestmark = [pytest.mark.filterwarnings("ignore:.*labels.*:FutureWarning"), pytest.mark.usefixtures("soon")]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[pacs.Pacs]:
    for seed in range(3):
        write_series(tmp_path / "in" / str(seed), image(seed), AFFINE, seed=seed)
    with pacs.serve() as one:
        one.push(tmp_path / "in")
        yield one


def medgen(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def run(server: pacs.Pacs, bundle: Path, output: Path, *more: object) -> Result:
    return medgen("run", bundle, "-i", server.address, "-o", output, "--trust", "--no-preview", *more)


def test_what_is_derived_goes_back_once_and_never_comes_again(server: pacs.Pacs, bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = run(server, bundle, output, "--store")
    assert first.exit_code == 0, first.output
    assert "3 sent to the server" in first.output
    assert "retrieving series 3 of 3" in first.output
    assert len(server.files) == 2 * 3 * 6
    asked = server.times("POST"), server.times("GET")
    again = run(server, bundle, output, "--store", "--json")
    assert "retrieving" not in again.stderr
    told = json.loads(again.stdout)
    assert (told["kept"], told["done"], told["stored"]) == (3, 0, {"sent": 0, "kept": 3, "failed": {}})
    assert server.times("POST") == asked[0]
    assert not [path for method, path, _ in server.asked[sum(asked) :] if path.count("/") > 5]  # only searches
    assert statuses(output) == ["done"] * 3


def test_nothing_that_is_written_or_said_names_a_patient(
    server: pacs.Pacs, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    query = "PatientID=PHANTOM-1,PatientName=Phantom*"
    words = ["run", "double", "-i", server.address, "-o", str(output), "--query", query, f"--query={query}"]
    monkeypatch.setattr("sys.argv", ["medgen", *words])
    result = run(server, bundle, output, "--store", "--query", query)
    assert result.exit_code == 0, result.output
    told = json.loads((output / "run.json").read_text())["command"]
    assert told[-3:] == ["--query", "PatientID,PatientName", "--query=PatientID,PatientName"]
    uids = {uid for key in server.files for uid in key if uid.startswith("1.2.826")}
    for file in [*output.glob("[!.]*.*"), *(output / ".medgen" / "runs").iterdir()]:
        text = file.read_text()
        assert not [secret for secret in ("PHANTOM", "Phantom*", *uids) if secret in text], file.name
    assert "PHANTOM" not in result.output
    assert not [uid for uid in uids if uid in result.output]
    assert not [path for path in output.rglob("*") if any(uid in path.name for uid in uids)]
    for name in ("retrieved", "stored"):
        assert stat.S_IMODE((output / ".medgen" / name).stat().st_mode) == 0o700


def test_what_another_output_folder_sent_is_no_input(server: pacs.Pacs, bundle: Path, tmp_path: Path) -> None:
    run(server, bundle, tmp_path / "one", "--store")
    result = run(server, bundle, tmp_path / "two")
    assert result.exit_code == 0, result.output
    assert statuses(tmp_path / "two") == ["done"] * 3 + ["skipped"] * 3
    assert {row["reason"] for row in rows(tmp_path / "two").values()} == {"", "derived by medgen"}


def test_what_was_sent_before_it_could_be_noted_is_no_input(server: pacs.Pacs, bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(server, bundle, output, "--store")
    posts = server.times("POST")
    for mark in (output / ".medgen" / "stored").glob("*.json"):  # as they are while it is sending
        mark.write_text(json.dumps({**json.loads(mark.read_text()), "sent": False}))
    result = run(server, bundle, output, "--store")
    assert "3 kept" in result.output
    assert "3 sent to the server" in result.output  # it asked, and there they were
    assert server.times("POST") == posts
    assert statuses(output) == ["done"] * 3


def test_a_result_made_again_is_sent_again_and_the_old_one_still_no_input(
    server: pacs.Pacs, bundle: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    other = write_bundle(
        tmp_path / "other" / "double", metadata={**json.loads(metadata_of(bundle)), "version": "0.2.0"}
    )
    run(server, bundle, output, "--store")
    assert "3 sent" in run(server, other, output, "--store").output
    assert len({series for _, series, _ in server.files}) == 9
    assert "0 sent to the server, 3 sent before" in run(server, other, output, "--store").output
    assert statuses(output) == ["done"] * 3


def metadata_of(bundle: Path) -> str:
    return (bundle / "configs" / "metadata.json").read_text()


def test_a_series_that_cannot_be_had_costs_itself_and_is_done_when_it_can(
    server: pacs.Pacs, bundle: Path, tmp_path: Path
) -> None:
    output, uid = tmp_path / "out", sorted(server.files)[0][1]
    server.replies = [(500, {})] * 4
    server.only = lambda method, path: path.endswith(f"/series/{uid}")
    result = run(server, bundle, output, "--store")
    assert result.exit_code == 1, result.output
    assert statuses(output) == ["done", "done", "failed"]
    reasons = {row["reason"] for row in rows(output).values() if row["status"] == "failed"}
    assert reasons == {"could not be retrieved from the server: it answers 500"}
    assert "2 sent" in result.output
    result = run(server, bundle, output, "--store")
    assert result.exit_code == 0, result.output
    assert statuses(output) == ["done"] * 3


def test_a_lost_series_that_turns_out_to_be_left_out_by_rule_leaves_no_ghost(
    server: pacs.Pacs, bundle: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    write_series(tmp_path / "loc", image(7), AFFINE, seed=7, tags={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]})
    server.files.clear()
    server.push(tmp_path / "loc")
    server.push(tmp_path / "in" / "0")
    uid = uids_of(next((tmp_path / "loc").iterdir()))[1]
    server.replies = [(500, {})] * 4
    server.only = lambda method, path: path.endswith(f"/series/{uid}")
    run(server, bundle, output)
    assert statuses(output) == ["done", "failed"]
    assert run(server, bundle, output).exit_code == 0
    assert statuses(output) == ["done", "skipped"]


def test_a_series_that_two_studies_claim_is_two_even_if_one_is_lost(
    server: pacs.Pacs, bundle: Path, tmp_path: Path
) -> None:
    (study, series), *_ = sorted({key[:2] for key in server.files})
    write_series(tmp_path / "twin", image(9), AFFINE, seed=9, tags={"SeriesInstanceUID": series})
    server.push(tmp_path / "twin")
    server.replies = [(500, {})] * 4
    server.only = lambda method, path: path.endswith(f"{study}/series/{series}")
    result = run(server, bundle, tmp_path / "out")
    assert result.exit_code == 1, result.exception
    assert statuses(tmp_path / "out") == ["done"] * 3 + ["failed"]
    assert run(server, bundle, tmp_path / "out").exit_code == 0
    assert statuses(tmp_path / "out").count("failed") == 0


def test_what_the_server_does_not_take_is_said_and_sent_the_next_time(
    server: pacs.Pacs, bundle: Path, tmp_path: Path
) -> None:
    server.only = lambda method, path: method == "POST"
    server.replies = [(507, {})]
    result = run(server, bundle, tmp_path / "out", "--store")
    assert result.exit_code == 1
    assert "2 sent to the server, 0 sent before, 1 not taken" in result.output
    assert "could not be stored at the server: it answers 507" in result.output
    result = run(server, bundle, tmp_path / "out", "--store")
    assert (result.exit_code, "1 sent to the server, 2 sent before" in result.output) == (0, True)


def test_a_result_that_was_changed_is_not_sent(server: pacs.Pacs, bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(server, bundle, output)
    file = next(output.glob("*/*.dcm"))
    file.write_bytes(file.read_bytes() + b"\0\0")
    stored = store_results(output, DicomWeb(server.address))
    assert (stored.sent, len(stored.failed)) == (2, 1)
    assert "has changed since it was made" in next(iter(stored.failed.values()))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--query", "PatientID=nobody"], "that match in Modality, PatientID, found none"),
        (["--query", "Patient=x"], "expected --query with keywords"),
        (["--store", "--format", "nifti"], "got nifti, which no server takes"),
    ],
)
def test_what_cannot_start_says_so_in_one_line(
    server: pacs.Pacs, bundle: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    result = run(server, bundle, tmp_path / "out", *words)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert said in result.stderr
    assert "nobody" not in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("status", [401, 403])
def test_a_server_that_refuses_says_which_credentials_to_check(
    server: pacs.Pacs, bundle: Path, tmp_path: Path, status: int
) -> None:
    server.replies = [(status, {})]
    result = run(server, bundle, tmp_path / "out")
    assert result.exit_code == 2
    assert f"it answers {status}; check $MEDGEN_DICOMWEB_TOKEN" in result.stderr


def test_an_address_that_is_not_said_to_be_of_dicomweb_is_pointed_out(bundle: Path, tmp_path: Path) -> None:
    result = medgen("run", bundle, "-i", "http://127.0.0.1:1/dicom-web", "-o", tmp_path / "out", "--trust")
    assert result.exit_code == 2
    assert "expected dicomweb+https://..." in result.stderr


def test_a_dry_run_only_looks(server: pacs.Pacs, bundle: Path, tmp_path: Path) -> None:
    assert "3 studies, 3 series, 18 instances" in run(server, bundle, tmp_path / "out", "--dry-run").output
    told = json.loads(run(server, bundle, tmp_path / "out", "--dry-run", "--json").stdout)
    assert told == {"studies": 3, "series": 3, "instances": 18}
    assert not (tmp_path / "out").exists()


def test_parts_share_what_is_retrieved(server: pacs.Pacs, bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for part in (1, 2, 3):
        assert run(server, bundle, output, "--part", f"{part}/3").exit_code == 0
    assert statuses(output) == ["done"] * 3
    series = [path for method, path, _ in server.asked if "/series/" in path]
    assert len(series) == len(set(series)) == 3


def test_a_folder_lost_from_the_store_is_retrieved_again(server: pacs.Pacs, bundle: Path, tmp_path: Path) -> None:
    run(server, bundle, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / ".medgen" / "retrieved")
    assert "3 kept" in run(server, bundle, tmp_path / "out").output


def test_parts_leave_the_failures_of_others_on_record(server: pacs.Pacs, bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    (output / ".medgen").mkdir(parents=True)
    (output / ".medgen" / "salt").write_bytes(bytes(32))  # which part a case is in follows from it
    for seed in range(20, 26):
        write_series(tmp_path / "odd", image(seed), AFFINE, seed=seed, edit=_without_place)
        server.push(tmp_path / "odd")
    for part in (1, 2, 1, 2):
        run(server, bundle, output, "--part", f"{part}/2")
        assert run(server, bundle, output, "--part", f"{part}/2").exit_code == 1
    assert statuses(output) == ["done"] * 3 + ["failed"] * 6
    server.replies = [(500, {})] * 4 * 9
    server.only = lambda method, path: "/series/" in path
    shutil.rmtree(output / ".medgen" / "retrieved")
    run(server, bundle, output, "--part", "1/2")
    lost = sum(row["reason"].startswith("could not be retrieved") for row in rows(output).values())
    assert lost > 0
    run(server, bundle, output, "--part", "2/2")
    assert sum(row["reason"].startswith("could not be retrieved") for row in rows(output).values()) == lost
    assert len(rows(output)) == 9


def _without_place(dataset: Dataset, _index: int) -> None:
    del dataset.ImagePositionPatient
