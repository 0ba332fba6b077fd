"""Fixtures that every room's tests share."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans; the test skips where it is missing."""
    folder = Path(os.environ.get("MEDGEN_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "t1_t2").is_dir():
        pytest.skip(f"no real scans at {folder}; set MEDGEN_REAL_DATA to run this test")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY
