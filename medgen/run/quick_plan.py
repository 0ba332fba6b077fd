"""What a bundle does to a case, as plain data: kept after its first run, so that later ones need no torch and no MONAI.

A plan is found again only by all that it was made from: the bundle's files, what was asked for, the machine, versions.
"""

import json
import logging
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import medgen
from medgen.case import OutputKind
from medgen.infer.conversions import find_kept, is_whole, kept
from medgen.infer.window_mean import Windows
from medgen.provenance import Provenance, file_sha256
from medgen.run.catalog import BundleFolder, find_bundle
from medgen.run.choice import Choice, Verdict
from medgen.run.request import RunRequest

logger = logging.getLogger(__name__)

_PLAN = "plan.json"
_PACKAGES = ("monai", "torch", "numpy", "openvino", "nibabel")
_FILES = (
    *("configs/inference.*", "configs/metadata.json", "scripts/**/*"),
    *("models/model.pt", "models/model.ts", "models/*.json"),
)
# What torch's number of threads, the choice of a back end, or what a bundle's config evaluates to may rest on.
_ENVIRONMENT = (
    *("OMP_", "MKL_", "GOMP_", "KMP_AFFINITY", "KMP_HW_SUBSET"),  # torch itself sets other ones of KMP_
    *("OV_", "ONEDNN_", "MEDGEN_", "MONAI_", "TORCH_", "PYTORCH_"),
)
_SIGNS_OF_A_GPU = ("/dev/nvidia0", "/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/kfd", "/dev/dxg")


@dataclass(frozen=True)
class QuickPlan:
    """All that a run does with a bundle, but for its network, which lies beside it in OpenVINO's form.

    Attributes:
        bundle: its name.
        bundle_version: its version.
        weights_sha256: of its weights.
        own: it comes with medgen.
        settings: of the bundle, for recipe and provenance.
        flags: of every result.
        output: what it makes.
        computed_by: what computes the network.
        network: the converted network.
        threads: of the CPU that it takes.
        windows: how it goes over a volume.
        before: preprocessing, from the volume as read; see `medgen.run.quick_steps`.
        after: postprocessing.
    """

    bundle: str
    bundle_version: str
    weights_sha256: str
    own: bool
    settings: Mapping[str, Any]
    flags: tuple[str, ...]
    output: OutputKind
    computed_by: Choice
    network: Path
    threads: int
    windows: Windows
    before: Sequence[Mapping[str, Any]]
    after: Sequence[Mapping[str, Any]]

    def provenance(self, input_sha256: str) -> Provenance:
        """Returns who makes a result from the input with this SHA-256."""
        settings = {**self.settings, "computed_by": self.computed_by.to_json()}
        return Provenance(self.bundle, self.bundle_version, self.weights_sha256, input_sha256, settings)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "QuickPlan":
        """Returns the plan of which this is what `asdict` gives, through JSON.

        Raises:
            TypeError, KeyError: it is of none.
        """
        choice = dict(plain["computed_by"])
        choice["verdicts"] = tuple(Verdict(**verdict) for verdict in choice["verdicts"])
        choice["only_sizes"] = {way: tuple(size) for way, size in choice["only_sizes"].items()}
        read = {
            "flags": tuple(plain["flags"]),
            "output": OutputKind(**plain["output"]),
            "computed_by": Choice(**choice),
            "network": Path(plain["network"]),
            "windows": Windows(**plain["windows"]),
        }
        return cls(**{**plain, **read})


def find_plan(request: RunRequest) -> QuickPlan | None:
    """Returns the plan that does what was asked for; None where there is none, or something else may be wanted."""
    entry = find_bundle(request.bundle)
    if not (entry.own or request.trust) or not on_cpu(request.device):
        return None
    try:
        folder = find_kept("plans", parts_of(request, entry))
        if folder is None:
            return None
        plan = QuickPlan.from_json(json.loads((folder / _PLAN).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        logger.debug("no plan of %s can be read: %s", entry.name, error)
        return None
    return plan if is_whole(plan.network.parent) else None


def keep(plan: QuickPlan, parts: Mapping[str, Any]) -> None:
    """Puts a plan into the cache, under what it was made from."""

    def write(folder: Path) -> None:
        (folder / _PLAN).write_text(json.dumps(asdict(plan), indent=1, default=str), encoding="utf-8")

    kept("plans", parts, write, about=f"how to run {plan.bundle} without torch")


def on_cpu(device: str) -> bool:
    """Says whether a device that was asked for can only be the CPU, as far as can be told without torch."""
    if device == "auto":
        return sys.platform != "win32" and not any(Path(sign).exists() for sign in _SIGNS_OF_A_GPU)
    return device == "cpu"


def parts_of(request: RunRequest, entry: BundleFolder) -> dict[str, Any]:
    """Returns all that a plan rests on, as JSON types, found out without torch."""
    folder = entry.folder
    found = {path for pattern in _FILES for path in folder.glob(pattern) if path.is_file()}
    files = sorted(path for path in found if "__pycache__" not in path.parts)
    return {
        "folder": str(folder),
        "own": entry.own,
        "files": {path.relative_to(folder).as_posix(): file_sha256(path) for path in files},
        "changes": list(request.changes),
        "asked": [request.backend, request.precision],
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_ENVIRONMENT)},
        "machine": [platform.machine(), _processor(), os.cpu_count(), _usable_cores()],
        "versions": {"medgen": medgen.__version__, "python": sys.version, **_versions()},
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
