"""`medgen manifest fetch` against a server on this machine: whole files under their names, or a reason and nothing."""

import hashlib
import io
import json
import random
import socket
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result
from web import Web, serve

from medgen.cli import app

CONTENT = random.Random(0).randbytes(300_000)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve() as served:
        served.files["/a.bin"] = CONTENT
        yield served


def fetch(folder: Path, **fields: Any) -> Result:
    about = {"name": "m", "description": "d", "license": "CC0", "source": "s", "address": "https://example.org/data"}
    manifest = {"schema": "medgen-manifest-1", **about, "access": "open", **fields}
    (folder / "m.json").write_text(json.dumps(manifest))
    ended = CliRunner().invoke(app, ["manifest", "fetch", str(folder / "m.json"), "-o", str(folder / "data")])
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    return ended


def item(web: Web, name: str = "a.bin", **fields: Any) -> dict[str, Any]:
    content = web.files[f"/{name}"]
    return {"address": f"{web.address}/{name}", "path": name, "sha256": hashlib.sha256(content).hexdigest()} | fields


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_files_are_fetched_once(tmp_path: Path, web: Web) -> None:
    web.files["/b.bin"] = b"b"
    downloads = [item(web), item(web, "b.bin", path="deeper/b.bin")]
    ended = fetch(tmp_path, downloads=downloads)
    assert (ended.exit_code, ended.stdout) == (0, "2 done\n")
    assert (tmp_path / "data/a.bin").read_bytes() == CONTENT
    assert names(tmp_path / "data") == ["a.bin", "deeper/b.bin"]
    assert fetch(tmp_path, downloads=downloads).stdout == "2 kept\n"
    assert len(web.asked["/a.bin"]) == 1


def test_a_transfer_that_breaks_off_goes_on_by_itself(tmp_path: Path, web: Web) -> None:
    web.breaks["/a.bin"] = [100_000, 50_000]
    assert fetch(tmp_path, downloads=[item(web)]).exit_code == 0
    assert web.asked["/a.bin"] == [None, "bytes=100000-", "bytes=150000-"]
    assert (tmp_path / "data/a.bin").read_bytes() == CONTENT


def test_what_arrived_before_a_failure_is_not_fetched_again(tmp_path: Path, web: Web) -> None:
    web.breaks["/a.bin"] = [100_000, 0]
    failed = fetch(tmp_path, downloads=[item(web)])
    assert failed.exit_code == 1
    assert "failed a.bin: no connection to 127.0.0.1" in failed.output
    assert names(tmp_path / "data") == ["a.bin.part"]
    assert fetch(tmp_path, downloads=[item(web)]).exit_code == 0
    assert web.asked["/a.bin"][-1] == "bytes=100000-"
    assert names(tmp_path / "data") == ["a.bin"]
    assert (tmp_path / "data/a.bin").read_bytes() == CONTENT


def test_a_server_without_ranges_is_asked_for_everything_again(tmp_path: Path, web: Web) -> None:
    web.ranges, web.breaks["/a.bin"] = False, [100_000, 200_000]
    assert fetch(tmp_path, downloads=[item(web)]).exit_code == 0
    assert (tmp_path / "data/a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [CONTENT, CONTENT + b"more"])
def test_a_part_that_is_whole_or_too_long(tmp_path: Path, web: Web, part: bytes) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.bin.part").write_bytes(part)
    assert fetch(tmp_path, downloads=[item(web)]).exit_code == 0
    assert (tmp_path / "data/a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(("known", "begun"), [({}, None), ({"size_bytes": 300_000}, "bytes=8-")])
def test_a_part_is_trusted_only_where_the_whole_is_checked(
    tmp_path: Path, web: Web, known: dict[str, int], begun: str | None
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.bin.part").write_bytes(CONTENT[:8])
    unchecked = {key: value for key, value in item(web).items() if key != "sha256"}
    assert fetch(tmp_path, downloads=[unchecked | known]).exit_code == 0
    assert web.asked["/a.bin"] == [begun]
    assert (tmp_path / "data/a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sha256": "0" * 64}, f"expected sha256:{'0' * 64} but got {hashlib.sha256(CONTENT).hexdigest()}"),
        ({"size_bytes": 299_999}, "expected 299999 bytes, got 300000"),
    ],
)
def test_a_wrong_file_leaves_nothing(tmp_path: Path, web: Web, wrong: dict[str, Any], message: str) -> None:
    ended = fetch(tmp_path, downloads=[item(web, **wrong)])
    assert ended.exit_code == 1
    assert message in ended.output
    assert names(tmp_path / "data") == []


def test_md5_where_there_is_no_sha256(tmp_path: Path, web: Web) -> None:
    right = {key: value for key, value in item(web).items() if key != "sha256"}
    assert fetch(tmp_path, downloads=[{**right, "md5": "0" * 32}]).exit_code == 1
    assert fetch(tmp_path, downloads=[{**right, "md5": hashlib.md5(CONTENT).hexdigest()}]).exit_code == 0


def test_another_file_of_that_name_is_not_replaced(tmp_path: Path, web: Web) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.bin").write_text("mine")
    ended = fetch(tmp_path, downloads=[item(web)])
    assert ended.exit_code == 1
    assert f"expected sha256 {hashlib.sha256(CONTENT).hexdigest()}, got {hashlib.sha256(b'mine').hexdigest()}" in (
        ended.output
    )
    sized = {key: value for key, value in item(web, size_bytes=300_000).items() if key != "sha256"}
    assert "expected size 300000, got 4 in the file that is there" in fetch(tmp_path, downloads=[sized]).output
    assert (tmp_path / "data/a.bin").read_text() == "mine"


def test_one_missing_file_costs_itself(tmp_path: Path, web: Web) -> None:
    gone = item(web, address=f"{web.address}/gone", path="gone.bin")
    web.files["/busy"], web.codes["/busy"] = b"", 503
    ended = fetch(tmp_path, downloads=[gone, item(web, "busy"), item(web)], how_to_get="Ask the author")
    assert (ended.exit_code, names(tmp_path / "data")) == (1, ["a.bin"])
    assert "failed gone.bin: 127.0.0.1" in ended.output
    assert "answers 404 Not Found" in ended.output
    assert "answers 503 Service Unavailable" in ended.output
    assert ended.stdout == "to be had by hand: open, https://example.org/data. Ask the author\n1 done, 2 failed\n"


def test_a_refused_connection(tmp_path: Path, web: Web) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/a.bin"
        ended = fetch(tmp_path, downloads=[item(web, address=address)])
    assert ended.exit_code == 1
    assert "no connection to 127.0.0.1" in ended.output
    assert names(tmp_path / "data") == []


def test_what_needs_registration_is_listed_and_nothing_is_fetched(tmp_path: Path) -> None:
    ended = fetch(tmp_path, access="registration", how_to_get="Make an account")
    assert ended.exit_code == 2
    assert ended.stdout == "to be had by hand: registration, https://example.org/data. Make an account\n1 skipped\n"


def archive(kind: str, members: dict[str, bytes], link: str = "") -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as packed:
            for name, content in members.items():
                packed.writestr(name, content)
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode="w:gz" if kind == "tar.gz" else "w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        if link:
            entry = tarfile.TarInfo("link")
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            tar.addfile(entry)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_is_unpacked_once_and_may_be_deleted_then(tmp_path: Path, web: Web, kind: str) -> None:
    web.files["/x"] = archive(kind, {"p1/t1.nii": b"1", "p1/t2.nii": b"2"})
    downloads = [item(web, "x", unpack="set")]
    assert fetch(tmp_path, downloads=downloads).stdout == "1 done\n"
    assert (tmp_path / "data/set/p1/t2.nii").read_bytes() == b"2"
    (tmp_path / "data/x").unlink()
    assert fetch(tmp_path, downloads=downloads).stdout == "1 kept\n"
    assert len(web.asked["/x"]) == 1


@pytest.mark.parametrize(
    "content",
    [
        archive("zip", {"ok": b"", "../outside": b"evil"}),
        archive("zip", {"/outside": b"evil"}),
        archive("tar", {"ok": b"", "../outside": b"evil"}),
        archive("tar", {"ok": b""}, link="../../outside"),
        archive("tar.gz", {"ok": CONTENT})[:100_000],
        archive("zip", {"ok": CONTENT}).replace(CONTENT[:8], b"damaged!"),
        b"no archive",
    ],
)
def test_an_archive_that_is_broken_or_leads_out_leaves_no_folder(tmp_path: Path, web: Web, content: bytes) -> None:
    web.files["/x"] = content
    ended = fetch(tmp_path, downloads=[item(web, "x", unpack="set")])
    assert ended.exit_code == 1
    assert "failed x: x" in ended.output
    assert names(tmp_path) == ["data/x", "m.json"]
    assert not (tmp_path / "data/set").exists()


def test_a_folder_that_is_not_the_archives_is_left_alone(tmp_path: Path, web: Web) -> None:
    web.files["/x"] = archive("zip", {"a": b"1"})
    (tmp_path / "data/set").mkdir(parents=True)
    (tmp_path / "data/set/mine").write_text("mine")
    ended = fetch(tmp_path, downloads=[item(web, "x", unpack="set")])
    assert "expected no folder set, got one that this archive did not make" in ended.output
    assert names(tmp_path / "data") == ["set/mine"]


@pytest.mark.parametrize("key", ["path", "unpack"])
def test_a_manifest_that_points_outside_is_refused(tmp_path: Path, web: Web, key: str) -> None:
    ended = fetch(tmp_path, downloads=[item(web, **{key: "../elsewhere"})])
    assert ended.exit_code == 2
    assert f"downloads/0/{key}: expected a path below the data root, got ../elsewhere" in ended.output
