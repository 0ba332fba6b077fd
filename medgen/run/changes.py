"""What a command line changes in a bundle's config: `--set key=value`."""

import difflib
import inspect
import pydoc
import re
from typing import Any

import yaml
from monai.bundle import ConfigParser

from medgen.errors import BundleError

_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def apply_change(parser: ConfigParser, change: str) -> None:
    """Sets an id of a config, or an argument that a component of it has left to its default.

    Args:
        parser: of the config.
        change: `key=value`; parts of the key are joined by `.`, `#` or `::`, the value is YAML.

    Raises:
        BundleError: the config has nothing of that name.
    """
    name, equals, text = change.partition("=")
    if not equals:
        raise BundleError(f"expected --set key=value, got {change}")
    name = name.replace("#", "::").replace(".", "::")
    if name not in parser and not _is_argument(parser, name):
        near = difflib.get_close_matches(name, _ids(parser.get()), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}" if near else ""
        raise BundleError(f"expected --set to name something in the config, got {name}{hint}")
    value = yaml.safe_load(text)
    # YAML 1.1 takes 1e-3, which everybody writes, for a word.
    parser[name] = float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _is_argument(parser: ConfigParser, name: str) -> bool:
    """Says whether a name that the config does not have is an argument of a component that it has, left to its default.

    Within a component, in a mapping such as `options`, anything may be: the component knows what it takes.
    """
    parent, _, argument = name.rpartition("::")
    if not parent or not isinstance(found := parser.get(parent, None), dict):
        return False
    if "_target_" not in found:
        owner = parent.rpartition("::")[0]
        return owner in parser and isinstance(parser[owner], dict) and "_target_" in parser[owner]
    target = pydoc.locate(str(found["_target_"]))
    return callable(target) and argument in inspect.signature(target).parameters


def _ids(config: Any, prefix: str = "") -> list[str]:  # noqa: ANN401 - JSON
    if not isinstance(config, dict):
        return []
    found = []
    for key, value in config.items():
        found += [f"{prefix}{key}", *_ids(value, f"{prefix}{key}::")]
    return found
