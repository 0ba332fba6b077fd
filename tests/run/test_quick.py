"""A bundle that ran once runs again without torch and MONAI, and makes the same files; what has changed is noticed."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from incoming import rows
from zoo_like import METADATA, oblique_affine, smooth_volume, write_bundle, zoo_config

from medgen.errors import NotExactError
from medgen.infer.conversions import cache_folder, clear
from medgen.run import quick, quick_plan
from medgen.run.job import run_job
from medgen.run.quick import run_quick
from medgen.run.quick_plan import find_plan
from medgen.run.request import RunRequest
from medgen.simulate.dicom import write_series

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*labels.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning"),
]
_QUICKLY = """
import atexit, sys
atexit.register(lambda: print("heavy:", *sorted({"torch", "monai"} & set(sys.modules))))
from medgen.cli import main
main()
"""
_LABELS = [
    {"_target_": "Activationsd", "keys": "pred", "softmax": True},
    {
        "_target_": "Invertd",
        "keys": "pred",
        "transform": "@preprocessing",
        "orig_keys": "image",
        "nearest_interp": False,
    },
    {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
]


def config_of(kind: str) -> dict[str, Any]:
    """An image-to-image bundle, one that comes out on its own grid, and one that makes labels."""
    config = zoo_config()
    layer = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 1, "kernel_size": 3, "padding": 1}
    config["network_def"] = {**layer, "out_channels": 2 if kind == "labels" else 1}
    config["inferer"] = {"_target_": "SlidingWindowInferer", "roi_size": [24] * 3, "overlap": 0.25, "mode": "gaussian"}
    if kind == "labels":
        crop = {
            "_target_": "CropForegroundd",
            "keys": "image",
            "source_key": "image",
            "margin": 2,
            "allow_smaller": True,
        }
        config["preprocessing"]["transforms"][4:5] = [crop, {"_target_": "NormalizeIntensityd", "keys": "image"}]
        config["postprocessing"]["transforms"] = _LABELS
    if kind == "own grid":
        config["postprocessing"]["transforms"] = [{"_target_": "EnsureTyped", "keys": "pred"}]
    return config


def bundle_of(folder: Path, kind: str) -> Path:
    torch.manual_seed(4)
    channels = 2 if kind == "labels" else 1
    weights = {"weight": torch.randn(channels, 1, 3, 3, 3) / 5, "bias": torch.zeros(channels)}
    metadata = json.loads(json.dumps(METADATA))
    if kind == "labels":
        metadata["network_data_format"]["outputs"]["pred"].update(format="segmentation", num_channels=2)
    return write_bundle(folder / kind.replace(" ", "_"), config_of(kind), metadata, weights=weights)


def save(path: Path, voxels: np.ndarray, affine: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(voxels, affine), path)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Turned, anisotropic, small and oblique volumes, one as the network wants it, one in DICOM, one that is none."""
    folder = tmp_path_factory.mktemp("cohort")
    save(folder / "plain_T1w.nii.gz", smooth_volume((40, 33, 35)), np.diag([1.5, 1.5, 1.5, 1.0]))
    turned = np.array([[0, 0, 2.2, -20], [-0.8, 0, 0, 30], [0, 1.1, 0, 5], [0, 0, 0, 1.0]])
    save(folder / "turned_T1w.nii.gz", smooth_volume((61, 44, 19), 1), turned)
    save(folder / "small_T1w.nii", (smooth_volume((9, 30, 7), 2)).astype(np.int16), np.diag([-1.0, 2.0, 1.3, 1.0]))
    save(folder / "oblique_T1w.nii.gz", smooth_volume((29, 34, 17), 3), oblique_affine())
    affine = np.array([[-0.9, 0, 0, 20], [0, -1.3, 0, 30], [0, 0, 3.0, 5], [0, 0, 0, 1]])
    write_series(folder / "series", smooth_volume((40, 36, 14), 4), affine, "MR", seed=1)
    (folder / "broken.nii.gz").write_text("this is no image")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDGEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("MEDGEN_BACKEND")
        yield


def request_of(bundle: Path, source: Path, output: Path, **asked: Any) -> RunRequest:
    return RunRequest(
        str(bundle), source, output, **{"backend": "openvino", "precision": "fp32", "trust": True, **asked}
    )


def quickly(bundle: Path, source: Path, output: Path) -> str:
    """Runs the command in a process of its own; returns which of torch and MONAI it brought in."""
    words = ["run", bundle, "-i", source, "-o", output, "--trust", "--backend", "openvino", "--precision", "fp32"]
    command = [sys.executable, "-c", _QUICKLY, *map(str, words)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode in {0, 1}, ended.stderr
    return ended.stdout.rpartition("heavy:")[2].strip()


def untimed(output: Path) -> dict[str, dict[str, str]]:
    """The cases, but for how long they took."""
    return {name: {k: v for k, v in row.items() if not k.startswith("seconds")} for name, row in rows(output).items()}


def files(output: Path) -> dict[str, bytes]:
    """All results, by path."""
    found = {}
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output)
        if path.is_file() and ".medgen" not in name.parts and name.name not in {"cases.csv", "run.json", "report.html"}:
            found[str(name)] = path.read_bytes()
    return found


@pytest.mark.parametrize("kind", ["image", "own grid", "labels"])
def test_the_same_files_without_torch(kind: str, cohort: Path, tmp_path: Path) -> None:
    bundle, source = bundle_of(tmp_path, kind), tmp_path / "cohort"
    shutil.copytree(cohort, source)
    (tmp_path / "quick" / ".medgen").mkdir(parents=True)
    run_job(request_of(bundle, source, tmp_path / "usual"))
    shutil.copy(tmp_path / "usual" / ".medgen" / "salt", tmp_path / "quick" / ".medgen")  # names of DICOM cases
    assert find_plan(request_of(bundle, source, tmp_path / "quick")) is not None
    assert quickly(bundle, source, tmp_path / "quick") == ""

    usual, quick_ones = files(tmp_path / "usual"), files(tmp_path / "quick")
    assert usual.keys() == quick_ones.keys()
    assert len(usual) > 10
    images = [name for name in usual if name.endswith((".nii", ".nii.gz"))]
    for name in images:
        one, other = (np.asarray(nib.load(tmp_path / part / name).dataobj) for part in ("usual", "quick"))
        assert np.abs(one - other).max() <= (0 if kind == "labels" else 1e-6 * np.ptp(one))
    # Told apart before the packed bytes are, since a difference of voxels or header is another fault.
    for name in images:
        one, other = (nib.load(tmp_path / part / name) for part in ("usual", "quick"))
        assert one.header.binaryblock == other.header.binaryblock, name
    assert [name for name in usual if usual[name] != quick_ones[name]] == []
    assert untimed(tmp_path / "usual") == untimed(tmp_path / "quick")
    one, other = (json.loads((tmp_path / part / "run.json").read_text()) for part in ("usual", "quick"))
    for field in ("settings", "versions", "weights_sha256", "bundle_version", "device", "counts"):
        assert one[field] == other[field], field
    assert one["runs"][0]["computed_by"] == other["runs"][0]["computed_by"]
    # What the usual way has done stands: both are one recipe.
    assert quickly(bundle, source, tmp_path / "usual") == ""
    assert untimed(tmp_path / "usual") == untimed(tmp_path / "quick")
    assert files(tmp_path / "usual") == usual


@pytest.fixture
def known(cohort: Path, tmp_path: Path) -> RunRequest:
    """A request of which there is a plan."""
    (tmp_path / "one").mkdir()
    shutil.copy(cohort / "plain_T1w.nii.gz", tmp_path / "one")
    request = request_of(bundle_of(tmp_path, "image"), tmp_path / "one", tmp_path / "out", preview=False)
    assert run_quick(request) is None
    run_job(request)
    assert find_plan(request) is not None
    return request


def test_what_has_changed_is_noticed(known: RunRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(**changed: Any) -> RunRequest:
        kept = {"backend": "openvino", "precision": "fp32", "trust": True, **changed}
        return RunRequest(known.bundle, known.source, known.output, **kept)

    assert find_plan(asked()) is not None
    for other in ({"trust": False}, {"device": "cuda"}, {"precision": "auto"}, {"changes": ("inferer.overlap=0.5",)}):
        assert find_plan(asked(**other)) is None
    for path in ("configs/inference.json", "configs/metadata.json", "models/model.pt"):
        file = Path(known.bundle) / path
        before = file.read_bytes()
        file.write_bytes(before + b" ")
        assert find_plan(known) is None
        file.write_bytes(before)
        assert find_plan(known) is not None
    for name, value in (("OMP_NUM_THREADS", "7"), ("MEDGEN_BACKEND", "torch")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert find_plan(known) is None
    with monkeypatch.context() as patch:
        patch.setattr(quick_plan.medgen, "__version__", "99")
        assert find_plan(known) is None
    (Path(known.bundle) / "scripts").mkdir()
    (Path(known.bundle) / "scripts" / "__init__.py").write_text("")
    assert find_plan(known) is None


def test_a_network_of_the_bundles_own(cohort: Path, tmp_path: Path) -> None:
    config = config_of("image")
    config["network_def"] = {"_target_": "scripts.twice.Twice"}
    bundle = write_bundle(tmp_path / "own", config, weights={"by": torch.full((1,), 2.0)})
    (bundle / "scripts").mkdir()
    (bundle / "scripts" / "__init__.py").write_text("")
    twice = "import torch\n\n\nclass Twice(torch.nn.Module):\n"
    twice += (
        "    def __init__(self):\n        super().__init__()\n        self.by = torch.nn.Parameter(torch.ones(1))\n"
    )
    (bundle / "scripts" / "twice.py").write_text(twice + "\n    def forward(self, x):\n        return self.by * x\n")
    (tmp_path / "one").mkdir()
    shutil.copy(cohort / "turned_T1w.nii.gz", tmp_path / "one")
    request = request_of(bundle, tmp_path / "one", tmp_path / "usual")
    run_job(request)
    assert quickly(bundle, tmp_path / "one", tmp_path / "quick") == ""
    assert files(tmp_path / "usual") == files(tmp_path / "quick")
    (bundle / "scripts" / "twice.py").write_text(twice + "\n    def forward(self, x):\n        return self.by + x\n")
    assert find_plan(request) is None


@pytest.mark.parametrize("where", ["macro", "weights", "elsewhere"])
def test_what_lies_elsewhere_is_no_part_of_a_plan(where: str, cohort: Path, tmp_path: Path) -> None:
    config = config_of("image")
    if where == "macro":
        config["inferer"] = f"%{tmp_path}/more.json::inferer"
        (tmp_path / "more.json").write_text(json.dumps({"inferer": config_of("image")["inferer"]}))
    if where == "elsewhere":
        config["side"] = "$24 if os.path.exists('/') else 16"
        config["inferer"]["roi_size"] = ["@side"] * 3
    weights = {"weight": torch.ones(1, 1, 3, 3, 3), "bias": torch.zeros(1)}
    bundle = write_bundle(tmp_path / "bundle", config, weights=weights)
    if where == "weights":
        (bundle / "models" / "model.pt").rename(bundle / "models" / "best.pt")
        text = (bundle / "configs" / "inference.json").read_text()
        (bundle / "configs" / "inference.json").write_text(text.replace("model.pt", "best.pt"))
    (tmp_path / "one").mkdir()
    shutil.copy(cohort / "plain_T1w.nii.gz", tmp_path / "one")
    request = request_of(bundle, tmp_path / "one", tmp_path / "out", preview=False)
    assert run_job(request).done == 1
    assert run_quick(request) is None


def test_a_gpu_may_be_wanted(known: RunRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick_plan, "_SIGNS_OF_A_GPU", (str(tmp_path),))
    assert find_plan(known) is None


def test_what_is_damaged_or_cleared_is_not_used(known: RunRequest) -> None:
    plan = find_plan(known)
    assert plan is not None
    weights = plan.network.with_suffix(".bin")
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert find_plan(known) is None
    weights.write_bytes(before)
    listing = next((cache_folder() / "plans").glob("*/plan.json"))
    for file in (cache_folder() / "plans").glob("*/plan.json"):
        file.write_text(file.read_text().replace("space", "spice"))
    assert listing.is_file()
    assert run_quick(known) is None
    run_job(known)  # makes it again
    assert find_plan(known) is not None
    clear()
    assert run_quick(known) is None


def test_a_case_that_needs_it_goes_the_usual_way(known: RunRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(known.output)

    def cannot(*given: object) -> None:
        raise NotExactError("grids whose axes are not parallel")

    for name in ("take_steps", "weighted_mean"):
        shutil.rmtree(known.output)
        with monkeypatch.context() as patch:
            patch.setattr(quick, name, cannot)
            summary = run_quick(known)
        assert summary is not None
        assert summary.done == 1
        assert files(known.output) == before


def test_windows_of_another_size_than_was_converted_go_the_usual_way(
    known: RunRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = find_plan(known)
    assert plan is not None
    before, reason = files(known.output), []
    shutil.rmtree(known.output)
    bound = replace(plan, windows=replace(plan.windows, only_size=(8, 8, 8)))
    monkeypatch.setattr(quick, "find_plan", lambda request: bound)
    monkeypatch.setattr(quick.logger, "debug", lambda text, *given: reason.append(text % given))
    summary = run_quick(known)
    assert summary is not None
    assert summary.done == 1
    assert files(known.output) == before
    assert any("windows of another size" in text for text in reason)


NO_PLAN: list[dict[str, Any]] = [
    {"_target_": "GaussianSmoothd", "keys": "image", "sigma": 1.0},
    {"_target_": "CropForegroundd", "keys": "image", "source_key": "image", "k_divisible": 4},
    {"_target_": "NormalizeIntensityd", "keys": "image", "subtrahend": 3.0},
    {"_target_": "ScaleIntensityd", "keys": "image", "minv": None, "maxv": None, "factor": 0.5},
    {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": "$float(len(__import__('os').environ))", "a_max": 9},
]


@pytest.mark.parametrize("step", NO_PLAN, ids=lambda step: str(step["_target_"]))
def test_without_a_plan_all_is_as_it_was(step: dict[str, Any], cohort: Path, tmp_path: Path) -> None:
    config = config_of("own grid")
    config["preprocessing"]["transforms"].insert(2, step)
    config["postprocessing"]["transforms"] = []
    bundle = write_bundle(
        tmp_path / "other", config, weights={"weight": torch.ones(1, 1, 3, 3, 3), "bias": torch.zeros(1)}
    )
    (tmp_path / "one").mkdir()
    shutil.copy(cohort / "plain_T1w.nii.gz", tmp_path / "one")
    request = request_of(bundle, tmp_path / "one", tmp_path / "out", preview=False)
    run_job(request)
    assert run_quick(request) is None
