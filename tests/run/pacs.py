"""A DICOMweb server in this process that can be told to misbehave in the ways a real one cannot be made to."""

import io
import json
import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom

_LEVELS = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID", "instances": "SOPInstanceUID"}
_MATCHED = {"Modality", "PatientID", "SeriesInstanceUID"}


class Pacs:
    """What is there, and what was asked for.

    Attributes:
        address: for medgen.
        files: content by (study, series, instance).
        asked: method, path and credentials of every request.
        replies: statuses and headers to answer with instead, one request each.
        only: to which paths these apply.
        hang_s: how long each answer lets one wait.
        cut: retrievals that break off.
        refused: instances that STOW does not take.
        forgetful: STOW names nothing in its answer.
        counts: whether series are counted.
        offsets: whether the server has heard of them.
    """

    def __init__(self) -> None:
        self.address = ""
        self.files: dict[tuple[str, str, str], bytes] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.replies: list[tuple[int, dict[str, str]]] = []
        self.only: Callable[[str, str], bool] = lambda method, path: True
        self.hang_s = 0.0
        self.cut = 0
        self.refused: set[str] = set()
        self.forgetful = False
        self.counts = True
        self.offsets = True
        self.relational = True

    def put(self, content: bytes) -> str:
        about = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
        uids = tuple(str(about[keyword].value) for keyword in _LEVELS.values())
        self.files[uids] = content
        return uids[2]

    def push(self, folder: Path) -> None:
        for file in sorted(folder.rglob("*.dcm")):
            self.put(file.read_bytes())

    def times(self, method: str, part: str = "") -> int:
        return sum(one == method and part in path for one, path, _ in self.asked)

    def listed(self, path: str, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        words = path.strip("/").split("/")
        level, fixed = len(words) // 2, words[1::2]
        if words == ["series"]:
            level = 1 if self.relational else 0
        found: dict[str, dict[str, Any]] = {}
        for uids, content in self.files.items():
            if list(uids[: len(fixed)]) != fixed:
                continue
            about = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
            if any(str(about.get(k, v[0])) != v[0] for k, v in query.items() if k in _MATCHED):
                continue
            item = found.setdefault(uids[level], {"n": 0, "modality": str(about.Modality), "uids": uids})
            item["n"] += 1
        tags = ("0020000D", "0020000E", "00080018")
        items = []
        for item in found.values():
            told = {
                tag: {"vr": "UI", "Value": [uid]} for tag, uid in zip(tags[: level + 1], item["uids"], strict=False)
            }
            if level == 1:
                told["00080060"] = {"vr": "CS", "Value": [item["modality"]]}
                if self.counts:
                    told["00201209"] = {"vr": "IS", "Value": [item["n"]]}
            items.append(told)
        first = int(query.get("offset", ["0"])[0]) if self.offsets else 0
        return items[first : first + int(query.get("limit", ["1000"])[0])]

    def stored(self, body: bytes, kind: str) -> dict[str, Any]:
        boundary = re.search(r"boundary=(\w+)", kind)[1].encode()
        taken, failed = [], []
        for part in body.split(b"--" + boundary)[1:-1]:
            content = part.partition(b"\r\n\r\n")[2][:-2]
            uid = str(pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True).SOPInstanceUID)
            item = {"00081155": {"vr": "UI", "Value": [uid]}}
            if uid in self.refused:
                failed.append(item)
                continue
            self.put(content)
            taken.append(item)
        if self.forgetful:
            return {}
        return {
            "00081199": {"vr": "SQ", "Value": taken},
            "00081198": {"vr": "SQ", **({"Value": failed} if failed else {})},
        }

    def retrieved(self, path: str) -> bytes:
        fixed = path.strip("/").split("/")[1::2]
        parts = [content for uids, content in self.files.items() if list(uids[: len(fixed)]) == fixed]
        body = b"".join(b"--xx\r\nContent-Type: application/dicom\r\n\r\n" + part + b"\r\n" for part in parts)
        if self.cut:
            self.cut -= 1
            return body[: len(body) // 2]
        return body + b"--xx--\r\n"


class _Handler(BaseHTTPRequestHandler):
    pacs: Pacs

    def do_GET(self) -> None:
        if not self._spoilt():
            parts = urlsplit(self.path)
            path = parts.path.removeprefix("/dicom-web")
            if "json" in self.headers["Accept"]:
                self._answer(json.dumps(self.pacs.listed(path, parse_qs(parts.query))).encode())
            else:
                self._answer(self.pacs.retrieved(path), 'multipart/related; type="application/dicom"; boundary="xx"')

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._spoilt():
            told = self.pacs.stored(body, self.headers["Content-Type"])
            self._answer(json.dumps(told).encode())

    def _spoilt(self) -> bool:
        self.pacs.asked.append((self.command, self.path, self.headers.get("Authorization", "")))
        time.sleep(self.pacs.hang_s)
        if not self.pacs.replies or not self.pacs.only(self.command, self.path):
            return False
        status, headers = self.pacs.replies.pop(0)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return True

    def _answer(self, body: bytes, kind: str = "application/dicom+json") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)  # and no length, as Orthanc does when it streams
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def serve(certificate: Path | None = None) -> Iterator[Pacs]:
    """Serves on a free port of this machine until the block ends; by TLS where there is a certificate."""
    pacs = Pacs()
    handler = type("Handler", (_Handler,), {"pacs": pacs})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # who hangs up is no error
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https" if certificate else "http"
        pacs.address = f"dicomweb+{scheme}://127.0.0.1:{server.server_port}/dicom-web"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield pacs
        server.shutdown()
        thread.join()
