"""A DICOMweb server that is slow, busy, partial, strict or gone is waited for, asked again or named; secrets never."""

import logging
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pacs
import pytest
import requests

from medgen.errors import NoInputError, OutputError, UnreadableError
from medgen.read.dicomweb import DicomWeb, parse_query
from medgen.read.multipart import body_of, boundary_of, parts_of
from medgen.read.patience import AnswerError, CutShortError, Patience
from medgen.simulate.dicom import write_series

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    for seed in range(3):
        write_series(folder / str(seed), np.full((8, 8, 4), 10 * seed + 5), AFFINE, seed=seed)
    return folder


@pytest.fixture
def server() -> Iterator[pacs.Pacs]:
    with pacs.serve() as one:
        yield one


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TOKEN", "USER", "PASSWORD"):
        monkeypatch.delenv(f"MEDGEN_DICOMWEB_{name}", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


class Pauses(list[float]):
    """Instead of waiting: notes for how long."""

    def __call__(self, seconds: float) -> None:
        if seconds:
            self.append(seconds)


# Queries.


def test_a_query_is_read() -> None:
    assert parse_query(" Modality=MR, StudyDate=20250101- ,") == {"Modality": "MR", "StudyDate": "20250101-"}
    assert parse_query("") == {}


@pytest.mark.parametrize(
    "text", ["Modality", "Modality=", "Colour=red", "PatientName=Doe,Jane", "Jane=x", "=5", "a b=c"]
)
def test_a_query_of_another_form_is_refused_without_its_words(text: str) -> None:
    with pytest.raises(NoInputError, match="expected --query with keywords") as caught:
        parse_query(text)
    assert not {"red", "Doe", "Jane"} & set(str(caught.value).replace("=", " ").split())


# Bodies.


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_parts_come_out_as_they_went_in_whatever_the_pieces(size: int) -> None:
    parts = [b"", b"\r\n--", b"one\r\n\r\ntwo\r\n", bytes(range(256)), b"--", b"\r\n\r\n"]
    body, kind = body_of(parts)
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    assert list(parts_of(pieces, boundary_of(kind))) == parts
    assert list(parts_of([b"a preamble\r\n", *pieces], boundary_of(kind))) == parts


def test_a_body_that_ends_early_is_noticed_wherever_it_ends() -> None:
    body, kind = body_of([b"one", b"two"])
    for end in range(len(body) - 4):  # behind it only the last line's end is missing
        with pytest.raises(CutShortError):
            list(parts_of([body[:end]], boundary_of(kind)))


@pytest.mark.parametrize("kind", ["text/html", "application/dicom", "multipart/related", ""])
def test_an_answer_of_another_kind_is_refused(kind: str) -> None:
    with pytest.raises(AnswerError):
        boundary_of(kind)


# Patience.


def step_of(errors: list[Exception]) -> Callable[[], str]:
    def step() -> str:
        if errors:
            raise errors.pop(0)
        return "made"

    return step


def answered(status: int, **headers: str) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return requests.HTTPError("https://host/patient", response=response)


def test_a_server_that_does_not_answer_is_waited_for_with_growing_pauses() -> None:
    pauses = Pauses()
    assert Patience(300, pauses)(step_of([requests.ConnectionError()] * 8)) == "made"
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


def test_a_wait_is_told_of_when_it_begins() -> None:
    told: list[str] = []
    patience = Patience(300, Pauses())
    patience.tell = told.append
    patience(step_of([requests.ConnectionError()] * 3))
    assert told == ["the server does not answer: it cannot be reached; it is waited for, up to 300 s"]
    with pytest.raises(requests.ConnectionError):
        patience(step_of([requests.ConnectionError()] * 100))
    with pytest.raises(requests.ConnectionError):
        patience(step_of([requests.ConnectionError()] * 100))  # not waited for again
    assert len(told) == 2


def test_the_wait_ends_and_is_not_repeated_until_something_succeeds() -> None:
    pauses = Pauses()
    patience = Patience(300, pauses)
    gone = [requests.ConnectTimeout()] * 100
    with pytest.raises(requests.ConnectTimeout):
        patience(step_of(gone))
    assert 240 < sum(pauses) <= 300
    pauses.clear()
    left = len(gone)
    with pytest.raises(requests.ConnectTimeout):
        patience(step_of(gone))
    assert (pauses, len(gone)) == ([], left - 1)
    assert patience(step_of([])) == "made"
    assert patience(step_of([requests.ConnectionError()])) == "made"
    assert pauses == [1]


@pytest.mark.parametrize("error", [answered(500), answered(503), answered(429), CutShortError()])
def test_one_thing_that_a_living_server_cannot_give_is_asked_for_four_times(error: Exception) -> None:
    pauses, errors = Pauses(), [error] * 10
    with pytest.raises(type(error)):
        Patience(300, pauses)(step_of(errors))
    assert (len(errors), pauses) == (6, [1, 2, 4])


@pytest.mark.parametrize(("said", "waited"), [("7", 7), ("3600", 1), ("Wed, 21 Oct 2026 07:28:00 GMT", 1)])
def test_a_server_that_says_when_to_come_back_is_heard_if_that_is_soon(said: str, waited: float) -> None:
    pauses = Pauses()
    assert Patience(300, pauses)(step_of([answered(503, Retry_After=said)])) == "made"
    assert pauses == [waited]


@pytest.mark.parametrize("error", [answered(401), answered(404), requests.exceptions.SSLError(), AnswerError("no")])
def test_what_will_not_pass_is_not_waited_for(error: Exception) -> None:
    pauses = Pauses()
    with pytest.raises(type(error)):
        Patience(300, pauses)(step_of([error]))
    assert pauses == []


def test_who_is_asked_to_stop_stops_waiting() -> None:
    with pytest.raises(AnswerError, match="stopped"):
        Patience(300, lambda seconds: True)(step_of([requests.ConnectionError()] * 100))


# A server.


def test_what_is_found_is_retrieved_to_the_last_byte(server: pacs.Pacs, studies: Path, tmp_path: Path) -> None:
    server.push(studies)
    web = DicomWeb(server.address)
    found = web.find({"Modality": "MR"})
    assert [(one.modality, one.instances) for one in found] == [("MR", 4)] * 3
    assert web.find({"Modality": "CT"}) == []
    assert len(web.find({"PatientID": "PHANTOM-1"})) == 1
    for one in found:
        folder = web.retrieve(one, tmp_path)
        mine = {content for uids, content in server.files.items() if uids[1] == one.series}
        assert {file.read_bytes() for file in folder.glob("*.dcm")} == mine
        assert one.series not in str(folder)
    before = server.times("GET")
    for one in found:
        web.retrieve(one, tmp_path)
    assert server.times("GET") == before
    (next(tmp_path.glob("*/*.dcm"))).unlink()
    for one in found:
        web.retrieve(one, tmp_path)
    assert server.times("GET") == before + 1


@pytest.mark.parametrize("relational", [True, False])
def test_a_series_that_is_named_is_found_by_its_name(server: pacs.Pacs, studies: Path, relational: bool) -> None:
    server.push(studies)
    server.relational = relational
    every = DicomWeb(server.address).find({})
    before = server.times("GET")
    assert DicomWeb(server.address).find({"SeriesInstanceUID": every[1].series, "Modality": "MR"}) == [every[1]]
    asked = server.times("GET") - before
    assert asked == 1 if relational else asked > 3
    assert DicomWeb(server.address).find({"SeriesInstanceUID": "1.2.3"}) == []
    server.replies = [(400, {})]  # of such a question; it answers others
    assert DicomWeb(server.address).find({"SeriesInstanceUID": every[1].series}) == [every[1]]


@pytest.mark.parametrize("offsets", [True, False])
def test_long_listings_come_in_pages(
    server: pacs.Pacs, studies: Path, monkeypatch: pytest.MonkeyPatch, offsets: bool
) -> None:
    monkeypatch.setattr("medgen.read.dicomweb._PAGE", 2)
    server.push(studies)
    server.offsets = offsets
    assert len(DicomWeb(server.address).find({})) == 3


def test_a_server_that_counts_nothing_is_counted(server: pacs.Pacs, studies: Path) -> None:
    server.push(studies)
    server.counts = False
    assert [one.instances for one in DicomWeb(server.address).find({})] == [4, 4, 4]


def test_a_series_that_has_grown_is_retrieved_again(server: pacs.Pacs, studies: Path, tmp_path: Path) -> None:
    server.push(studies / "1")
    last = server.files.popitem()
    web = DicomWeb(server.address)
    folder = web.retrieve(web.find({})[0], tmp_path)
    assert len(list(folder.glob("*.dcm"))) == 3
    server.files[last[0]] = last[1]
    assert len(list(web.retrieve(web.find({})[0], tmp_path).glob("*.dcm"))) == 4


def test_an_answer_that_breaks_off_is_asked_for_again(server: pacs.Pacs, studies: Path, tmp_path: Path) -> None:
    server.push(studies)
    pauses = Pauses()
    web = DicomWeb(server.address, pause=pauses)
    first, second, _ = web.find({})
    server.cut = 2
    assert len(list(web.retrieve(first, tmp_path).glob("*.dcm"))) == 4
    assert pauses == [1, 2]
    server.cut = 99
    with pytest.raises(UnreadableError, match="could not be retrieved from the server: its answer was cut short"):
        web.retrieve(second, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name != first.folder]


def test_a_series_that_comes_incomplete_is_lost_and_not_half_there(
    server: pacs.Pacs, studies: Path, tmp_path: Path
) -> None:
    server.push(studies / "1")
    web = DicomWeb(server.address)
    (one,) = web.find({})
    server.files.popitem()
    with pytest.raises(UnreadableError, match="3 of 4 instances came"):
        web.retrieve(one, tmp_path)
    assert not list(tmp_path.rglob("*.dcm"))


def test_a_server_that_is_silent_is_no_longer_waited_for_than_was_said(server: pacs.Pacs, studies: Path) -> None:
    server.push(studies)
    server.hang_s = 1.0
    with pytest.raises(NoInputError, match="no answer in time"):
        DicomWeb(server.address, timeout_s=0.05, patience_s=0.1).find({})


def test_what_a_busy_server_has_it_gets_only_once(server: pacs.Pacs, studies: Path) -> None:
    pauses = Pauses()
    web = DicomWeb(server.address, pause=pauses)
    server.only = lambda method, path: method == "POST"
    server.replies = [(503, {"Retry-After": "2"}), (503, {})]
    files = sorted(studies.rglob("*.dcm"))
    assert web.store(files) == 12
    assert pauses == [2, 2]
    posts = server.times("POST")
    assert web.store(files) == 0
    assert server.times("POST") == posts
    assert sorted(server.files.values()) == sorted(file.read_bytes() for file in files)


def test_an_instance_that_is_refused_is_said(server: pacs.Pacs, studies: Path) -> None:
    files = sorted((studies / "1").glob("*.dcm"))
    web = DicomWeb(server.address, pause=Pauses())
    server.refused = {server.put(files[2].read_bytes())}
    server.files.clear()
    with pytest.raises(OutputError, match="could not be stored at the server: it did not take 1 instances"):
        web.store(files)
    server.refused = set()
    assert web.store(files) == 1


def test_a_server_that_does_not_say_what_it_took_is_not_believed(server: pacs.Pacs, studies: Path) -> None:
    server.forgetful = True
    files = sorted((studies / "1").glob("*.dcm"))
    web = DicomWeb(server.address, pause=Pauses())
    with pytest.raises(OutputError, match="did not take 4"):
        web.store(files)
    assert web.store(files) == 0  # but asked, it has them


def test_a_result_that_is_gone_is_said(server: pacs.Pacs, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="the result cannot be read"):
        DicomWeb(server.address).store([tmp_path / "0001.dcm"])


# Secrets.


def test_credentials_come_from_the_environment_or_netrc(
    server: pacs.Pacs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    DicomWeb(server.address).find({})
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login nina password of-netrc\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    DicomWeb(server.address).find({})
    monkeypatch.setenv("MEDGEN_DICOMWEB_USER", "ursula")
    monkeypatch.setenv("MEDGEN_DICOMWEB_PASSWORD", "größe")
    DicomWeb(server.address).find({})
    monkeypatch.setenv("MEDGEN_DICOMWEB_TOKEN", "abc\n")
    DicomWeb(server.address).find({})
    # `nina:of-netrc` and `ursula:größe` in base64
    seen = ["", "Basic bmluYTpvZi1uZXRyYw==", "Basic dXJzdWxhOmdyw7bDn2U=", "Bearer abc"]
    assert [credentials for *_, credentials in server.asked] == seen


@pytest.mark.parametrize(
    ("address", "token", "warned"),
    [
        ("http://pacs.example/dicom-web", "abc", True),
        ("http://pacs.example/dicom-web", "", False),
        ("https://pacs.example/dicom-web", "abc", False),
        ("http://127.0.0.1:8042/dicom-web", "abc", False),
    ],
)
def test_credentials_over_an_open_wire_are_told_of(
    address: str, token: str, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MEDGEN_DICOMWEB_TOKEN", token)
    DicomWeb(f"dicomweb+{address}")
    assert ("credentials go to the DICOMweb server" in caplog.text) is warned
    assert "abc" not in caplog.text


@pytest.mark.parametrize("tail", ["user:secret@host/dicom-web", "host/dicom-web?token=secret", "host/x#secret"])
def test_an_address_with_a_secret_is_refused_without_it(tail: str) -> None:
    with pytest.raises(NoInputError, match="without credentials") as caught:
        DicomWeb(f"dicomweb+https://{tail}")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("address", ["dicomweb+ftp://host", "dicomweb+http://", "dicomweb+http://host:no", "dicomweb+"])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(NoInputError, match="got another address"):
        DicomWeb(address)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
def test_no_message_and_no_log_says_where_and_who(
    server: pacs.Pacs, status: int, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    server.replies = [(status, {"Odd Header": "x"})] * 99
    with caplog.at_level(logging.WARNING), pytest.raises(NoInputError, match=f"it answers {status}") as caught:
        DicomWeb(server.address, pause=Pauses()).find({"PatientID": "4711", "PatientName": "Doe*"})
    captured = capfd.readouterr()
    for text in (str(caught.value), caplog.text, captured.out, captured.err):
        assert not any(secret in text for secret in ("4711", "Doe", "127.0.0.1", "studies"))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_nobody_at_the_address_is_said_after_the_wait() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"dicomweb+http://127.0.0.1:{free.getsockname()[1]}/dicom-web"
        pauses = Pauses()
        with pytest.raises(NoInputError, match="it cannot be reached"):
            DicomWeb(address, patience_s=20, pause=pauses).find({})
    assert pauses == [1, 2, 4, 8]


def test_a_page_instead_of_results_is_said(server: pacs.Pacs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "listed", lambda *_: {"not": "a list"})
    with pytest.raises(NoInputError, match="check the address"):
        DicomWeb(server.address).find({})


def test_a_certificate_of_nobody_known_is_refused_and_one_of_ones_own_authority_taken(
    tmp_path: Path, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = self_signed(tmp_path)
    with pacs.serve(certificate) as server:
        server.push(studies)
        pauses = Pauses()
        with pytest.raises(NoInputError, match=r"certificate cannot be verified; \$REQUESTS_CA_BUNDLE"):
            DicomWeb(server.address, pause=pauses).find({})
        assert pauses == []
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        assert len(DicomWeb(server.address).find({})) == 3


def self_signed(folder: Path) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, file = folder / "key.pem", folder / "server.pem"
    asked = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", *asked, *name, "-keyout", str(key), "-out", str(file)]
    subprocess.run(command, check=True, capture_output=True)
    file.write_bytes(key.read_bytes() + file.read_bytes())
    return file
