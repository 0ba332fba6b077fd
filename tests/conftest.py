"""Fixtures that every room's tests share."""

import os
from collections.abc import Iterator
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


@pytest.fixture(scope="session", autouse=True)
def _own_surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither find nor leave converted networks, nor see the user's folders; `auto` is torch unless one asks."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MEDGEN_DATA", "MEDGEN_BUNDLES"):
            patch.delenv(name, raising=False)
        patch.setenv("MEDGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("MEDGEN_BACKEND", "torch")
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY
