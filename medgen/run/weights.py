"""The weights of a bundle: found, checked by SHA-256 and loaded without running code from the file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medgen.errors import BundleError
from medgen.provenance import file_sha256

_USUAL = ("models/model.pt", "models/model.ts")
_NESTED_UNDER = ("model", "state_dict", "network")


def weights_problem(folder: Path) -> str:
    """Says that the bundle has no file of weights at all, and where to get it; "" when it has one."""
    if any(path.suffix in {".pt", ".pth", ".ts"} for path in (folder / "models").glob("*")):
        return ""
    fetched = bool(list(folder.glob("large_files.*")))
    hint = " (python -m monai.bundle download_large_files --bundle_path … fetches them)" if fetched else ""
    return f"weights at models/model.pt or models/model.ts{hint}"


def find_weights(folder: Path, load_path: str = "") -> Path:
    """Returns the weights that a run loads.

    Args:
        folder: of the bundle.
        load_path: where the config's own `CheckpointLoader` looks, absolute or relative to the folder; "" for the
            usual places: models/model.pt, else models/model.ts.

    Raises:
        BundleError: there are none.
    """
    usual = not load_path or folder / load_path == folder / _USUAL[0]
    places = _USUAL if usual else (load_path,)
    found = next((folder / place for place in places if (folder / place).is_file()), None)
    if found is None:
        raise BundleError(f"expected weights of {folder.name} at {' or '.join(places)}, found none")
    return found


def check_weights(folder: Path, path: Path, named: Mapping[str, str], *, required: bool) -> str:
    """Returns the SHA-256 of the weights, once it is the one that the metadata names.

    Args:
        folder: of the bundle.
        path: of the weights within it.
        named: SHA-256 by path, from `weights_sha256` of the metadata.
        required: whether the metadata must name it: so for bundles that come with medgen; the bundles of others have
            no such key.

    Raises:
        BundleError: the sum is another, or is not named although required.
    """
    found = file_sha256(path)
    where = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
    if where not in named:
        if required:
            raise BundleError(f"expected weights_sha256 to name {where} in {folder.name}/configs/metadata.json")
        return found
    if found != named[where]:
        raise BundleError(
            f"expected {folder.name}/{where} with SHA-256 {named[where][:12]}…, got {found[:12]}…; "
            "the file is damaged or another version: fetch the bundle again"
        )
    return found


def load_weights(network: nn.Module, path: Path) -> nn.Module:
    """Returns the network with the weights of `path`: a state dict, plain or under "model", or a TorchScript file.

    Raises:
        BundleError: the file holds more than weights, or they do not fit the network.
    """
    if path.suffix == ".ts":
        return _load_torchscript(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError… by the way the file is broken
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BundleError(f"expected a file of weights alone at models/{path.name}: {reason}") from error
    weights = _state_dict(content)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        missing, unexpected = _key_differences(network, weights)
        raise BundleError(
            f"expected models/{path.name} to fit network_def: {missing} tensors missing, {unexpected} unexpected, "
            f"of {len(network.state_dict())}, or of other shapes; first: {' '.join(str(error).split())[:160]}"
        ) from error
    return network


def _load_torchscript(path: Path) -> nn.Module:
    try:
        module: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise BundleError(f"expected TorchScript at models/{path.name}: {str(error).splitlines()[0]}") from error
    return module


def _state_dict(content: Any) -> Mapping[str, Any]:  # noqa: ANN401 - whatever the file holds
    """Returns the state dict in a checkpoint: itself, or what lies under the usual names."""
    for key in _NESTED_UNDER:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise BundleError(f"expected a state dict in models/model.pt, got a {type(content).__name__}")
    return content


def _key_differences(network: nn.Module, weights: Mapping[str, Any]) -> tuple[int, int]:
    wanted, found = set(network.state_dict()), set(weights)
    return len(wanted - found), len(found - wanted)
