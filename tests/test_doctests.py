"""The examples in the docstrings are true."""

import doctest
import importlib
import pkgutil

import pytest

import medgen

MODULES = [
    module.name
    for module in pkgutil.walk_packages(medgen.__path__, "medgen.")
    # The app of MONAI Label has no examples, and imports it; its tests talk to a running server.
    if not (module.ispkg or module.name.endswith("__main__") or module.name.startswith("medgen.serve."))
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
