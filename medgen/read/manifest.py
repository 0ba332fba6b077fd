"""Data manifests: which files belong to a data set, their hashes, and a split that keeps every patient on one side."""

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import jsonschema

from medgen.errors import ManifestError
from medgen.provenance import file_sha256, files_sha256

SPLITS = ("train", "validation", "test")
DATA_ROOT_VARIABLE = "MEDGEN_DATA"
# Beside the package in a checkout, inside it in a wheel.
_SCHEMA_PLACES = (Path(__file__).parents[2] / "data_manifests", Path(__file__).parents[1] / "data_manifests")


def load_manifest(path: Path) -> dict[str, Any]:
    """Reads a manifest and checks its form, not the files that it names.

    Raises:
        ManifestError: it is no JSON, or not of the form that `data_manifests/schema.json` describes.
    """
    manifest = _parse(path)
    problems = _form_problems(manifest)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ManifestError(f"{path.name}: {problems[0]}{more}")
    return manifest


def check_manifest(path: Path, data_root: Path | None = None) -> list[str]:
    """Checks a manifest in full: its form, its paths, its files and their hashes, and that no patient is in two splits.

    Args:
        path: the manifest.
        data_root: what its paths are relative to; without it the variable MEDGEN_DATA, else the manifest's own folder.

    Returns:
        what is wrong, one line each; nothing when it is valid.
    """
    try:
        manifest = _parse(path)
    except ManifestError as error:
        return [str(error)]
    problems = _form_problems(manifest)
    if problems:
        return problems
    root = find_data_root(path, data_root)
    return [*_split_problems(manifest), *_duplicate_problems(manifest), *_file_problems(manifest, root)]


def datalist_from_manifest(path: Path, split: str, dataset_dir: Path | None = None) -> list[dict[str, str]]:
    """Returns the cases of one split as MONAI takes them: `{"image": path, "target": path, ..., "patient": code}`.

    Args:
        path: the manifest.
        split: `"train"`, `"validation"` or `"test"`.
        dataset_dir: what its paths are relative to; see `check_manifest`.

    Raises:
        ManifestError: not a valid manifest, or a patient in two splits, or no such split.
    """
    if split not in SPLITS:
        raise ManifestError(f"expected a split of {', '.join(SPLITS)}, got {split}")
    manifest = load_manifest(path)
    leaks = _split_problems(manifest) + _path_problems(manifest)
    if leaks:
        raise ManifestError(f"{path.name}: {leaks[0]}")
    root = find_data_root(path, dataset_dir)
    return [
        {**{role: str(root / f["path"]) for role, f in case["files"].items()}, "patient": case["patient"]}
        for case in manifest["cases"]
        if case["split"] == split
    ]


def image_paths(path: Path) -> tuple[Path, list[Path]]:
    """Returns the data root of a manifest and the paths of its images, of all splits.

    Raises:
        ManifestError: not a valid manifest.
    """
    manifest = load_manifest(path)
    problems = _path_problems(manifest)
    if problems:
        raise ManifestError(f"{path.name}: {problems[0]}")
    root = find_data_root(path)
    return root, [root / c["files"]["image"]["path"] for c in manifest["cases"] if "image" in c["files"]]


def find_data_root(path: Path, data_root: Path | None = None) -> Path:
    """Returns what the paths are relative to: the argument, else MEDGEN_DATA, else the manifest's own folder."""
    return Path(data_root or os.environ.get(DATA_ROOT_VARIABLE) or path.absolute().parent).absolute()


def _parse(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ManifestError(f"{path.name}: expected a data manifest in JSON, got {error}") from error
    if not isinstance(manifest, dict):
        raise ManifestError(f"{path.name}: expected a JSON object, got {type(manifest).__name__}")
    return manifest


def _form_problems(manifest: dict[str, Any]) -> list[str]:
    schema = next(p for p in _SCHEMA_PLACES if (p / "schema.json").is_file()) / "schema.json"
    validator = jsonschema.Draft202012Validator(json.loads(schema.read_text(encoding="utf-8")))
    errors = sorted(validator.iter_errors(manifest), key=lambda e: list(map(str, e.absolute_path)))
    return [f"{'/'.join(map(str, e.absolute_path)) or 'top level'}: {e.message[:200]}" for e in errors]


def _files(manifest: dict[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    for number, case in enumerate(manifest["cases"]):
        for role, file in case["files"].items():
            yield f"cases/{number}/files/{role}", file


def _split_problems(manifest: dict[str, Any]) -> list[str]:
    splits: dict[str, set[str]] = defaultdict(set)
    for case in manifest["cases"]:
        splits[case["patient"]].add(case["split"])
    return [
        f"patient {p} is in {' and '.join(sorted(s))}; a patient belongs to one split"
        for p, s in splits.items()
        if len(s) > 1
    ]


def _path_problems(manifest: dict[str, Any]) -> list[str]:
    return [
        f"{where}: expected a path below the data root, got {file['path']}"
        for where, file in _files(manifest)
        if PurePosixPath(file["path"]).is_absolute()
        or ".." in PurePosixPath(file["path"]).parts
        or "\\" in file["path"]
        or ":" in file["path"]
    ]


def _duplicate_problems(manifest: dict[str, Any]) -> list[str]:
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for where, file in _files(manifest):
        role = where.rsplit("/", 1)[1]
        places["path", f"{role} {PurePosixPath(file['path'])}"].append(where)
        places["content", f"{role} {file['sha256'][:12]}"].append(where)
    return [
        f"{' and '.join(found)} have the same {kind}: {what}"
        for (kind, what), found in places.items()
        if len(found) > 1
    ]


def _file_problems(manifest: dict[str, Any], root: Path) -> list[str]:
    outside = _path_problems(manifest)
    if outside:
        return outside
    problems = []
    for where, file in _files(manifest):
        path = root / file["path"]
        if not path.exists():
            problems.append(f"{where}: {file['path']} is missing below the data root")
        elif content_sha256(path) != file["sha256"]:
            problems.append(f"{where}: {file['path']} is not the file whose sha256 the manifest states")
    return problems


def content_sha256(path: Path) -> str:
    """Returns the hash of a file, or of the files of a folder (a DICOM series)."""
    return files_sha256(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else file_sha256(path)
