"""The examples in the docstrings are true."""

import doctest
import importlib
import pkgutil

import pytest

import medgen

MODULES = [
    module.name
    for module in pkgutil.walk_packages(medgen.__path__, "medgen.")
    if not (module.ispkg or module.name.endswith("__main__"))
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
