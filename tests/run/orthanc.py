"""An Orthanc of one's own, on free ports of this machine, its storage in a folder; killed and started again."""

import json
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry

_PLUGINS = [Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so"), Path("/usr/lib/orthanc/libOrthancDicomWeb.so")]


class Orthanc:
    """The server.

    Args:
        folder: for its configuration, its log and its storage.
        users: who may ask, with their passwords; none for everyone.
    """

    def __init__(self, folder: Path, users: dict[str, str] | None = None) -> None:
        self.folder, self.storage = folder, folder / "storage"
        self.port, self.dicom_port = _free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}"
        self.address = f"dicomweb+{self.url}/dicom-web"
        self._process: subprocess.Popen[bytes] | None = None
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.auth = next(iter((users or {}).items()), None)
        # It hangs up on idle connections, and what it has already got it keeps once.
        self._session.mount("http://", HTTPAdapter(max_retries=Retry(3, allowed_methods=None)))
        self._session.headers["Connection"] = "close"  # it ends idle ones after a second
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "StorageDirectory": str(self.storage),
            "IndexDirectory": str(self.storage),
            "HttpPort": self.port,
            "DicomPort": self.dicom_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": bool(users),
            "RegisteredUsers": users or {},
            # Its DICOM port is open on every address of the machine, whatever it is told; it takes from this one alone.
            "DicomAlwaysAllowStore": False,
            "DicomAlwaysAllowEcho": False,
            "DicomCheckModalityHost": True,
            "DicomModalities": {"here": ["STORESCU", "127.0.0.1", 104]},
            "DicomCheckCalledAet": False,
            "MaximumStorageCacheSize": 0,
            "Plugins": [str(plugin) for plugin in _PLUGINS if plugin.exists()][:1],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))

    def start(self) -> None:
        """Returns when it answers."""
        with (self.folder / "orthanc.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["Orthanc", str(self.folder / "orthanc.json")], stdout=log, stderr=log, cwd=self.folder
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                self._session.get(f"{self.url}/system", timeout=5)
            except requests.RequestException:
                assert self._process.poll() is None, (self.folder / "orthanc.log").read_text()
                time.sleep(0.05)
            else:
                return
        pytest.fail("Orthanc did not start")

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends it."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(timeout=30)

    def get(self, path: str) -> Any:
        """What its own interface says, which is not DICOMweb's."""
        for _ in range(5):
            try:
                return self._session.get(f"{self.url}/{path}", timeout=30).json()
            except requests.ConnectionError:  # it hangs up now and then
                time.sleep(0.1)
        return pytest.fail("Orthanc does not answer")

    def lose(self, what: bytes) -> None:
        """Deletes what it stores of the instances that hold these bytes, behind its back."""
        for file in self.storage.glob("??/??/*"):
            if what in file.read_bytes():
                file.unlink()

    def post(self, *files: Path) -> None:
        """Puts files into it."""
        for file in files:
            self._session.post(f"{self.url}/instances", data=file.read_bytes(), timeout=30).raise_for_status()

    def push(self, folder: Path) -> None:
        """Sends what is below a folder, as a scanner would."""
        command = ["storescu", "+sd", "+r", "-aec", "ORTHANC", "127.0.0.1", str(self.dicom_port), str(folder)]
        subprocess.run(command, check=True, capture_output=True)

    def count(self, what: str = "CountInstances") -> int:
        """How much is in it."""
        return int(self.get("statistics")[what])

    def derived(self) -> list[dict[str, Any]]:
        """The series that medgen made."""
        series = [self.get(f"series/{uid}") for uid in self.get("series")]
        return [one for one in series if one["MainDicomTags"].get("SeriesDescription", "").startswith("Synthetic")]


def available() -> bool:
    """Says whether there is an Orthanc that speaks DICOMweb, and something to push with."""
    return all(map(shutil.which, ("Orthanc", "storescu"))) and any(plugin.exists() for plugin in _PLUGINS)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
