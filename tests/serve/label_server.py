"""A real MONAI Label server with our app, on a free port of this machine, and what asks it."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

INSTALLED = importlib.util.find_spec("monailabel") is not None
needs_server = pytest.mark.skipif(not INSTALLED, reason="MONAI Label is not installed: make label")


@dataclass
class Server:
    """A running one.

    Attributes:
        url: of its root.
        folder: given with `--folder`.
        studies: given with `--studies`.
        log: file of what it said.
        process: itself.
    """

    url: str
    folder: Path
    studies: str
    log: Path
    process: subprocess.Popen[bytes]

    def infer(self, model: str, image: str, output: str = "image", **params: object) -> requests.Response:
        """Asks for a result, as a script would."""
        return requests.post(
            f"{self.url}/infer/{model}",
            params={"image": image, "output": output},
            data={"params": json.dumps(params)},
            timeout=300,
        )

    def wait_for(self, task: str, timeout_s: float = 240) -> dict[str, Any]:
        """Waits for a background task (`train` or `batch/infer`) and returns its record."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            record: dict[str, Any] = requests.get(f"{self.url}/{task}/", timeout=60).json()
            if record["status"] not in {"SUBMITTED", "RUNNING"}:
                return record
            time.sleep(0.3)
        raise TimeoutError(f"{task}: {record}")


def free_port() -> int:
    """A port that nobody listens at, for the moment."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


@contextmanager
def serving(
    folder: Path, studies: str, bundles: Sequence[str], *words: str, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Starts `medgen serve`, waits until it answers, and stops it."""
    port, log = free_port(), folder.with_suffix(".log")
    command = [sys.executable, "-m", "medgen", "serve", *bundles, "--studies", studies, "--port", str(port)]
    with log.open("wb") as told:
        process = subprocess.Popen(
            [*command, "--folder", str(folder), *words],
            stdout=told,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_up(url, process, log)
            yield Server(url, folder, studies, log, process)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}: {log.read_text()[-2000:]}")
        try:
            requests.get(f"{url}/openapi.json", timeout=5)
        except requests.ConnectionError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError(log.read_text()[-2000:])
