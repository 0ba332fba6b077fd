"""Data manifests: where data come from, which files they are, their hashes, a split that keeps patients on one side."""

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import jsonschema

from medgen.errors import ManifestError
from medgen.provenance import file_sha256, files_sha256
from medgen.read.oct import is_picture
from medgen.read.volume import SPACING_MARK

SPLITS = ("train", "validation", "test")
DATA_ROOT_VARIABLE = "MEDGEN_DATA"
# Beside the package in a checkout, inside it in a wheel.
_PLACES = (Path(__file__).parents[2] / "data_manifests", Path(__file__).parents[1] / "data_manifests")
# As `Case.spacing_um` has them.
_SPACINGS = ("lateral", "axial", "between")


@dataclass(frozen=True)
class Listed:
    """An image as a manifest lists it.

    Attributes:
        paths: one, or the B-scans of a volume in order.
        spacing_um: of a picture's pixels, as `Case.spacing_um` has it.
    """

    paths: tuple[Path, ...]
    spacing_um: tuple[float, ...] = ()

    @classmethod
    def parse(cls, image: str | list[str]) -> "Listed":
        """Reads an image of a datalist back.

        Example:
            >>> Listed.parse("a.png#spacing_um:11.5,3.9").spacing_um
            (11.5, 3.9)
        """
        marked = [path.partition(SPACING_MARK) for path in ([image] if isinstance(image, str) else image)]
        spacing = tuple(float(um) for um in marked[0][2].split(",") if um)
        return cls(tuple(Path(path) for path, _, _ in marked), spacing)

    def marked(self) -> str | list[str]:
        """Returns it as datalists have it: a path or several, the spacing behind a mark where it is stated."""
        paths = [str(path) for path in self.paths]
        if self.spacing_um:
            paths[0] += SPACING_MARK + ",".join(f"{um:g}" for um in self.spacing_um)
        return paths[0] if len(paths) == 1 else paths


def find_manifest(path: Path) -> Path:
    """Returns the path, or for a bare name such as `ixi` the path of the manifest of that name that comes with medgen.

    Raises:
        ManifestError: there is neither such a file nor such a name.
    """
    if path.is_file():
        return path
    shipped = {p.stem: p for place in _PLACES for p in sorted(place.glob("*.json")) if p.stem != "schema"}
    if str(path) not in shipped:
        raise ManifestError(f"expected a manifest's path, got no file at {path}\nmedgen knows {', '.join(shipped)}")
    return shipped[str(path)]


def load_manifest(path: Path) -> dict[str, Any]:
    """Reads a manifest and checks its form, not the files that it names.

    Returns:
        the manifest; `cases` is empty where it only says where the data come from, `files` where a case has only
        B-scans.

    Raises:
        ManifestError: it is no JSON, or not of the form that `data_manifests/schema.json` describes.
    """
    manifest = _parse(path)
    require_form(manifest, path.name)
    return {**manifest, "cases": [{"files": {}, **case} for case in manifest.get("cases", [])]}


def require_form(manifest: dict[str, Any], name: str) -> None:
    """Refuses what has not the form that `data_manifests/schema.json` describes, or names a file outside the data root.

    Raises:
        ManifestError: with the first problem, and `name` for the manifest.
    """
    problems = _form_problems(manifest) or _path_problems(manifest)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ManifestError(f"{name}: {problems[0]}{more}")


def where_to_get(manifest: dict[str, Any]) -> str:
    """Says who may have the data, where, and how: `registration, https://www.synapse.org. Make an account.`."""
    place = f"{manifest.get('access', 'access not stated')}, {manifest.get('address', manifest['source'])}"
    return f"{place}. {manifest['how_to_get']}" if "how_to_get" in manifest else place


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
    return [
        *_path_problems(manifest),
        *_split_problems(manifest),
        *_duplicate_problems(manifest),
        *_file_problems(manifest, root),
    ]


def datalist_from_manifest(path: Path, split: str, dataset_dir: Path | None = None) -> list[dict[str, Any]]:
    """Returns the cases of one split as MONAI takes them: `{"image": path, "target": path, ..., "patient": code}`.

    An image of several B-scans is a list of their paths. Where the manifest states a spacing, every picture of the
    case (of a list the first) carries it behind `#spacing_um:`, which `BScanReader` understands. What the manifest says
    a case to show comes along as `"class"`.

    Args:
        path: the manifest.
        split: `"train"`, `"validation"` or `"test"`.
        dataset_dir: what its paths are relative to; see `check_manifest`.

    Raises:
        ManifestError: not a valid manifest, or a patient in two splits, or no such split, or no files at all.
    """
    if split not in SPLITS:
        raise ManifestError(f"expected a split of {', '.join(SPLITS)}, got {split}")
    manifest = _with_files(path)
    leaks = _split_problems(manifest)
    if leaks:
        raise ManifestError(f"{path.name}: {leaks[0]}")
    root = find_data_root(path, dataset_dir)
    return [
        {
            **{role: _file(case, root / f["path"]) for role, f in case["files"].items()},
            **({"image": image.marked()} if (image := _listed(case, root)) else {}),
            **{key: case[key] for key in ("patient", "class") if key in case},
        }
        for case in manifest["cases"]
        if case["split"] == split
    ]


def _file(case: dict[str, Any], path: Path) -> str | list[str]:
    """A file beside the image, such as a mask: a picture has the size of pixels of its image."""
    return Listed((path,), _spacing(case) if is_picture(path) else ()).marked()


def image_paths(path: Path) -> tuple[Path, list[Path]]:
    """Returns the data root of a manifest and the paths of its images, of all splits.

    Raises:
        ManifestError: not a valid manifest, or one that lists no files.
    """
    root, listed = listed_images(path)
    return root, [file for image in listed for file in image.paths]


def listed_images(path: Path) -> tuple[Path, list[Listed]]:
    """Returns the data root of a manifest and its images, of all splits: an image of several B-scans is one.

    Raises:
        ManifestError: not a valid manifest, or one that lists no files.
    """
    manifest = _with_files(path)
    root = find_data_root(path)
    return root, [image for case in manifest["cases"] if (image := _listed(case, root))]


def _listed(case: dict[str, Any], root: Path) -> Listed | None:
    """The image of a case, if it has one."""
    files = case.get("bscans") or [f for role, f in case["files"].items() if role == "image"]
    return Listed(tuple(root / file["path"] for file in files), _spacing(case)) if files else None


def _spacing(case: dict[str, Any]) -> tuple[float, ...]:
    stated = case.get("spacing_um", {})
    return tuple(float(stated[name]) for name in _SPACINGS if name in stated)


def find_data_root(path: Path, data_root: Path | None = None) -> Path:
    """Returns what the paths are relative to: the argument, else MEDGEN_DATA, else the manifest's own folder."""
    return Path(data_root or os.environ.get(DATA_ROOT_VARIABLE) or path.absolute().parent).absolute()


def _with_files(path: Path) -> dict[str, Any]:
    manifest = load_manifest(path)
    if not manifest["cases"]:
        get = where_to_get(manifest)
        raise ManifestError(f"{path.name}: lists no files; get the data, then use `medgen manifest build`\n{get}")
    return manifest


def _parse(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ManifestError(f"{path.name}: expected a data manifest in JSON, got {error}") from error
    if not isinstance(manifest, dict):
        raise ManifestError(f"{path.name}: expected a JSON object, got {type(manifest).__name__}")
    return manifest


def _form_problems(manifest: dict[str, Any]) -> list[str]:
    schema = next(p for p in _PLACES if (p / "schema.json").is_file()) / "schema.json"
    validator = jsonschema.Draft202012Validator(json.loads(schema.read_text(encoding="utf-8")))
    errors = sorted(validator.iter_errors(manifest), key=lambda e: list(map(str, e.absolute_path)))
    return [f"{'/'.join(map(str, e.absolute_path)) or 'top level'}: {e.message[:200]}" for e in errors]


def _files(manifest: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, case in enumerate(manifest.get("cases", [])):
        for role, file in case.get("files", {}).items():
            yield f"cases/{number}/files/{role}", file
        for place, file in enumerate(case.get("bscans", [])):
            yield f"cases/{number}/bscans/{place}", file


def _split_problems(manifest: dict[str, Any]) -> list[str]:
    splits: dict[str, set[str]] = defaultdict(set)
    for case in manifest.get("cases", []):
        splits[case["patient"]].add(case["split"])
    return [
        f"patient {p} is in {' and '.join(sorted(s))}; a patient belongs to one split"
        for p, s in splits.items()
        if len(s) > 1
    ]


def _path_problems(manifest: dict[str, Any]) -> list[str]:
    paths = [(where, file["path"]) for where, file in _files(manifest)]
    for number, download in enumerate(manifest.get("downloads", [])):
        paths += [(f"downloads/{number}/{key}", download[key]) for key in ("path", "unpack") if key in download]
    return [
        f"{where}: expected a path below the data root, got {path}" for where, path in paths if not lies_below(path)
    ]


def lies_below(path: str) -> bool:
    """Whether a relative path, written with `/` for any operating system, stays below the folder it is relative to.

    Example:
        >>> lies_below("sub-01/t1.nii.gz"), lies_below("../t1.nii.gz"), lies_below("C:t1.nii.gz")
        (True, False, False)
    """
    pure = PurePosixPath(path)
    return bool(pure.parts) and not (pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path)


def _duplicate_problems(manifest: dict[str, Any]) -> list[str]:
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for where, file in _files(manifest):
        role = "bscan" if "/bscans/" in where else where.rsplit("/", 1)[1]
        places["path", f"{role} {PurePosixPath(file['path'])}"].append(where)
        places["content", f"{role} {file['sha256'][:12]}"].append(where)
    return [
        f"{' and '.join(found)} have the same {kind}: {what}"
        for (kind, what), found in places.items()
        if len(found) > 1
    ]


def _file_problems(manifest: dict[str, Any], root: Path) -> list[str]:
    files = [(where, file) for where, file in _files(manifest) if lies_below(file["path"])]
    found = [(f"{where}: {file['path']}", _difference(root / file["path"], file)) for where, file in files]
    return [f"{where} {difference}" for where, difference in found if difference]


def _difference(path: Path, file: dict[str, Any]) -> str:
    if not path.exists():
        return "is missing below the data root"
    if "size_bytes" in file and content_bytes(path) != file["size_bytes"]:
        return f"has {content_bytes(path)} bytes, the manifest states {file['size_bytes']}"
    return "" if content_sha256(path) == file["sha256"] else "is not the file whose sha256 the manifest states"


def content_sha256(path: Path) -> str:
    """Returns the hash of a file, or of the files of a folder (a DICOM series)."""
    return files_sha256(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else file_sha256(path)


def content_bytes(path: Path) -> int:
    """Returns the size of a file, or of all files of a folder [bytes]."""
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else path.stat().st_size
