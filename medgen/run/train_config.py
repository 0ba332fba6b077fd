"""A bundle's training config with what the command line changes in it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from medgen.errors import BundleError, UntrustedError
from medgen.read.manifest import DATA_ROOT_VARIABLE, find_data_root, find_manifest
from medgen.run.catalog import BundleFolder, find_bundle
from medgen.run.changes import apply_change
from medgen.run.trust_code import CONFIG_SUFFIXES, list_code, load_config

REQUIRED_IDS = ("network", "checkpoint", "train::trainer", "train::dataset::data")
DATA_IDS = ("train::dataset::data", "validate::dataset::data")


@dataclass(frozen=True)
class TrainRequest:
    """What `medgen train` was asked for.

    Attributes:
        bundle: name of an installed bundle, or a bundle's folder.
        output: folder of the run; a run found in it is continued.
        data: a manifest that takes the place of those the config names; None keeps them.
        data_root: what the manifests' paths are relative to; None asks `MEDGEN_DATA`, else the manifest's folder.
        config: which config of the bundle: `"train"`, `"smoke"` or another.
        changes: `key=value` of ids in the config, the value as YAML.
        weights: a checkpoint whose weights the training begins with; `"bundle"` for the bundle's own.
        tracker: `"tensorboard"`, `"mlflow"` or `"none"`.
        trust: run the code of a bundle that did not come with medgen.
    """

    bundle: str
    output: Path
    data: Path | None = None
    data_root: Path | None = None
    config: str = "train"
    changes: Sequence[str] = ()
    weights: str = ""
    tracker: str = "tensorboard"
    trust: bool = False


def open_training(request: TrainRequest) -> tuple[BundleFolder, ConfigParser]:
    """Opens a bundle's training config and applies the request to it; builds nothing yet.

    Raises:
        BundleError: there is no such config, it lacks what `medgen train` needs, or a change names no id of it.
        UntrustedError: it is code from elsewhere and `trust` is not given.
        ManifestError: there is no such manifest.
    """
    entry = find_bundle(request.bundle)
    path = _config_path(entry, request.config)
    config = load_config(path)
    missing = [name for name in REQUIRED_IDS if _find(config, name) is None]
    if missing:
        raise BundleError(f"configs/{path.name} of {entry.name} cannot be trained from; it lacks {', '.join(missing)}")
    if not (entry.own or request.trust):
        raise UntrustedError(
            f"the bundle {entry.name} did not come with medgen, and training it runs its code; "
            "read what it imports and evaluates, then say --trust",
            list_code(entry.folder, path),
        )
    parser = ConfigParser()
    parser.read_config(path)
    settings = {"bundle_root": str(entry.folder), "output_dir": str(request.output.absolute())}
    if request.data_root is not None or request.data is not None or os.environ.get(DATA_ROOT_VARIABLE):
        settings["dataset_dir"] = str(_data_root(request).absolute())
    for name, value in settings.items():
        parser[name] = value
    _use_manifest(parser, request)
    for change in request.changes:
        apply_change(parser, change)
    return entry, parser


def _config_path(entry: BundleFolder, name: str) -> Path:
    paths = [entry.folder / "configs" / f"{name}{suffix}" for suffix in CONFIG_SUFFIXES]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise BundleError(f"expected configs/{name}.yaml or .json in the bundle {entry.name}, found neither")
    return found


def _data_root(request: TrainRequest) -> Path:
    if request.data is None:
        return request.data_root or Path(os.environ[DATA_ROOT_VARIABLE])
    return find_data_root(find_manifest(request.data), request.data_root)


def _use_manifest(parser: ConfigParser, request: TrainRequest) -> None:
    """Puts the manifest in the place of the config's own; patients, splits and roles come from it."""
    if request.data is None:
        return
    for name in DATA_IDS:
        if name not in parser:
            continue
        if "groups" not in parser[name]:
            raise BundleError(
                f"--data needs a config whose {name} reads manifests, this one makes its data itself; leave it out"
            )
        group: dict[str, Any] = {"manifest": str(find_manifest(request.data).absolute())}
        if name.startswith("validate"):  # nothing can be measured on what has no target
            parser[f"{name}::split"] = "validation"
            group |= {"roles": ["image", "target"], "also": ["mask"]}
        parser[f"{name}::groups"] = [group]


def _find(config: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401 - JSON
    found: Any = config
    for part in name.split("::"):
        found = found.get(part) if isinstance(found, dict) else None
    return found
