"""What a bundle from elsewhere would import and evaluate, found by reading its files and running nothing.

A config names any importable callable as `_target_`, and MONAI passes every string that begins with `$` to Python's
`eval`: a bundle is a program. This list is for the person who decides whether it may run; it is no filter.
"""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from medgen.errors import BundleError
from medgen.provenance import file_sha256

CONFIG_SUFFIXES = (".json", ".yaml", ".yml")


class CodeItem(NamedTuple):
    """One piece of code that a bundle brings along.

    Attributes:
        kind: `"import"`, `"expression"`, `"target"`, `"macro"`, `"script"`, `"torchscript"` or `"logging"`.
        what: the code itself, or the file with its SHA-256 and what it imports.
        where: file and id, relative to the bundle.
    """

    kind: str
    what: str
    where: str


def list_code(folder: Path, config: Path) -> list[CodeItem]:
    """Lists what running the bundle in `folder` by its inference `config` can import and evaluate.

    Files that a macro (`%file::id`) pulls in are listed with their content.

    Raises:
        BundleError: a config cannot be read.
    """
    items: list[CodeItem] = []
    for path in _configs(folder, config):
        where = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
        items += _config_items(load_config(path), where)
    for path in sorted(folder.rglob("*.py")):
        items.append(CodeItem("script", _describe_script(path), path.relative_to(folder).as_posix()))
    for path in sorted(folder.rglob("*.ts")):
        items.append(CodeItem("torchscript", f"sha256 {file_sha256(path)}", path.relative_to(folder).as_posix()))
    for path in sorted(folder.rglob("logging.conf")):
        what = f"sha256 {file_sha256(path)}; evaluated by `monai.bundle run`, not by medgen"
        items.append(CodeItem("logging", what, path.relative_to(folder).as_posix()))
    return items


def load_config(path: Path) -> dict[str, Any]:
    """Reads a JSON or YAML config as plain data.

    Raises:
        BundleError: it cannot be read, or is not a mapping.
    """
    where = f"{path.parent.name}/{path.name}"
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BundleError(f"expected a readable config at {where}: {reason}") from error
    if not isinstance(content, dict):
        raise BundleError(f"expected a mapping of ids in {where}, got a {type(content).__name__}")
    return content


def _configs(folder: Path, config: Path) -> Iterator[Path]:
    """Yields the inference config, the metadata (expressions can refer to it) and the files behind macros."""
    waiting = [config, folder / "configs" / "metadata.json"]
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop(0)
        if path.resolve() in seen or not path.is_file():
            continue
        seen.add(path.resolve())
        yield path
        for _, value in _strings(load_config(path), ""):
            if value.startswith("%"):
                name = value[1:].split("::")[0].split("#")[0]
                waiting += [base / name for base in (Path.cwd(), folder, path.parent)]


def _config_items(config: dict[str, Any], where: str) -> Iterator[CodeItem]:
    for key, value in _strings(config, ""):
        place = f"{where}: {key}"
        if key.split("::")[-1] == "_target_":
            yield CodeItem("target", value, place)
        elif value.startswith("$"):
            yield CodeItem("import" if _is_import(value[1:]) else "expression", value[1:], place)
        elif value.startswith("%"):
            yield CodeItem("macro", value[1:], place)


def _strings(config: Any, key: str, seen: set[int] | None = None) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - JSON
    """Yields (id, text) of every string; each container once, since YAML aliases can nest without end."""
    seen = set() if seen is None else seen
    if isinstance(config, str):
        yield key, config
    elif isinstance(config, dict | list) and id(config) not in seen:
        seen.add(id(config))
        parts = config.items() if isinstance(config, dict) else enumerate(config)
        for name, part in parts:
            yield from _strings(part, f"{key}::{name}" if key else str(name), seen)


def _is_import(code: str) -> bool:
    try:
        body = ast.parse(code).body
    except SyntaxError:
        return False
    return bool(body) and isinstance(body[0], ast.Import | ast.ImportFrom)


def _describe_script(path: Path) -> str:
    """Returns the file's SHA-256 and the packages it imports by statement, `"sha256 ab12…; imports os, torch"`."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return f"sha256 {file_sha256(path)}; not valid Python"
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return f"sha256 {file_sha256(path)}; imports {', '.join(sorted(names)) or 'nothing'}"
