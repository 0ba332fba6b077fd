"""A small bundle and short pauses, for all who ask."""

from pathlib import Path

import pytest
from zoo_like import write_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that doubles; a module that needs another one has a fixture of its own by this name."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "double")


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried soon."""
    monkeypatch.setattr("medgen.read.patience._FIRST_PAUSE_S", 0.01)
