"""Which back end a run takes: the fastest that gives the same, the one asked for, or an error saying what is here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from zoo_like import METADATA, case_of, image_of, smooth_volume, write_bundle, zoo_config

from medgen.errors import BundleError
from medgen.infer import backends
from medgen.infer.backends import Candidate, Streamed
from medgen.infer.conversions import clear, entries
from medgen.run import backend as choosing
from medgen.run import predict
from medgen.run.backend import with_backend
from medgen.run.bundle import OpenBundle, open_bundle
from medgen.run.choice import Tolerance
from medgen.run.job import RunRequest, run_job

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*labels.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning"),
]
_FP32 = Candidate("openvino", "fp32")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MEDGEN_BACKEND")


def _open(folder: Path, **fields: object) -> OpenBundle:
    path = folder / "zoo"
    if not path.exists():
        write_bundle(path, metadata={**METADATA, **fields})
    return open_bundle(path, trust=True, device="cpu")


def _only(monkeypatch: pytest.MonkeyPatch, *candidates: Candidate) -> None:
    monkeypatch.setattr(choosing, "available", lambda device: candidates)


def _computed(bundle: OpenBundle) -> np.ndarray:
    image = image_of(smooth_volume((30, 26, 22)), np.diag([1.5, 1.5, 1.5, 1.0]))
    prepared = predict.prepare(bundle, case_of(Path("x.nii.gz")), image)
    return predict.finish(bundle, predict.compute(bundle, prepared)).image


def test_auto_takes_what_was_fastest_within_tolerance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = _open(tmp_path)
    said: list[str] = []
    slow = {"openvino bf16": 3.0, "openvino fp32": 1.0}

    def seconds(self: Any, network: object) -> float:
        return slow["openvino fp32"] if isinstance(network, Streamed) else 2.0

    monkeypatch.setattr(choosing._Trial, "_seconds", seconds)
    _only(monkeypatch, _FP32, Candidate("torch", "fp32"))
    taken = with_backend(bundle, tell=said.append)
    assert taken.computed_by is not None
    assert (taken.computed_by.backend, taken.computed_by.precision) == ("openvino", "fp32")
    assert taken.computed_by.psnr_db is not None
    assert taken.computed_by.psnr_db > 100
    assert "first time" in said[0]
    np.testing.assert_allclose(_computed(taken), _computed(bundle), rtol=1e-4, atol=1e-4)

    said.clear()
    again = with_backend(_open(tmp_path), tell=said.append)
    assert again.computed_by == taken.computed_by
    assert said == []  # found in the cache: nothing takes long
    assert {entry.folder.parent.name for entry in entries()} == {"choices", "openvino"}


class _Wrong(nn.Module):
    """A back end that is off by so much."""

    def __init__(self, network: nn.Module, share: float) -> None:
        super().__init__()
        self.network, self.share = network, share

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.network(x)
        return output + self.share


def _with_error(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    def build(candidate: Candidate, original: backends.Original) -> nn.Module:
        return original.network if candidate.backend == "torch" else _Wrong(original.network, share)

    monkeypatch.setattr(choosing, "build", build)
    monkeypatch.setattr(choosing._Trial, "_seconds", lambda self, network: 0.1 if isinstance(network, _Wrong) else 10.0)
    _only(monkeypatch, _FP32, Candidate("torch", "fp32"))


@pytest.mark.parametrize(("share", "backend"), [(0.0, "openvino"), (1e-4, "openvino"), (0.02, "torch")])
def test_auto_never_takes_what_is_further_off_than_the_bundle_allows(
    share: float, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_error(monkeypatch, share)
    computed_by = with_backend(_open(tmp_path)).computed_by
    assert computed_by is not None
    assert computed_by.backend == backend
    tried = {verdict.candidate: verdict for verdict in computed_by.verdicts}
    assert bool(tried["openvino fp32"].refused) == (backend == "torch")


@pytest.mark.parametrize(
    ("tolerance", "backend"),
    [
        ({"psnr_db": 20}, "openvino"),
        ({"psnr_db": 20, "absolute": 0.01}, "torch"),
        ({"absolute": 0.1}, "torch"),  # 60 dB by default
        ({"psnr_db": 20, "absolute": 0.1, "why": "a test"}, "openvino"),
    ],
)
def test_the_bundle_states_its_tolerance(
    tolerance: dict[str, Any], backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_error(monkeypatch, 0.02)
    computed_by = with_backend(_open(tmp_path, tolerance=tolerance)).computed_by
    assert computed_by is not None
    assert computed_by.backend == backend


@pytest.mark.parametrize("stated", [{"psnr_db": "high"}, ["psnr_db"], {"absolute": None}])
def test_a_tolerance_that_is_none_is_refused(stated: object) -> None:
    with pytest.raises(BundleError, match="expected tolerance of zoo"):
        Tolerance.of({"tolerance": stated}, "zoo")


def test_a_back_end_that_is_named_is_taken_but_not_one_that_computes_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_error(monkeypatch, 0.02)
    computed_by = with_backend(_open(tmp_path), "openvino", "fp32").computed_by
    assert computed_by is not None
    assert computed_by.backend == "openvino"
    _with_error(monkeypatch, 0.5)
    clear()
    with pytest.raises(BundleError, match="computes something else"):
        with_backend(_open(tmp_path), "openvino", "fp32")


def test_what_is_not_here_is_refused_with_what_is(tmp_path: Path) -> None:
    bundle = _open(tmp_path)
    with pytest.raises(BundleError, match=r"got tensorrt with auto; it has .*torch fp32"):
        with_backend(bundle, "tensorrt")
    with pytest.raises(BundleError, match="got torch with fp16"):
        with_backend(bundle, "torch", "fp16")
    with pytest.raises(BundleError, match="a back end of auto, torch"):
        with_backend(bundle, "caffe")


def test_torch_needs_neither_reference_nor_cache(tmp_path: Path) -> None:
    taken = with_backend(_open(tmp_path), "torch")
    assert taken.computed_by is not None
    assert taken.computed_by.to_json()["backend"] == "torch"
    assert entries() == []


def test_a_site_says_what_auto_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDGEN_BACKEND", "torch")
    computed_by = with_backend(_open(tmp_path)).computed_by
    assert computed_by is not None
    assert computed_by.backend == "torch"


def test_gradients_keep_a_network_on_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = _open(tmp_path)

    def searching(inputs: Tensor, network: nn.Module) -> Tensor:
        with torch.enable_grad():
            return network(inputs).detach()  # type: ignore[no-any-return]

    object.__setattr__(bundle, "inferer", searching)
    _only(monkeypatch, _FP32, Candidate("torch", "fp32"))
    computed_by = with_backend(bundle).computed_by
    assert computed_by is not None
    assert computed_by.backend == "torch"
    assert "gradients" in computed_by.verdicts[0].refused


def test_precision_of_torch_holds_for_any_inferer(tmp_path: Path) -> None:
    config = zoo_config()
    config["inferer"] = {"_target_": "SimpleInferer"}
    bundle = open_bundle(write_bundle(tmp_path / "simple", config), trust=True, device="cpu")
    exact, lowered = _computed(bundle), _computed(with_backend(bundle, "torch", "bf16"))
    assert 0 < float(np.abs(lowered - exact).max()) < 0.05 * float(np.ptp(exact))


def test_a_run_records_what_computed_it_and_keeps_its_cases_whatever_auto_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nibabel as nib  # noqa: PLC0415 - one test writes a file

    bundle = write_bundle(tmp_path / "zoo")
    scans, output = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    nib.save(nib.Nifti1Image(smooth_volume((24, 22, 20)), np.diag([1.5, 1.5, 1.5, 1.0])), scans / "a.nii.gz")
    request = RunRequest(str(bundle), scans, output, device="cpu", trust=True)
    _only(monkeypatch, _FP32)
    events: list[Any] = []
    assert run_job(request, events.append).done == 1
    assert events[0].kind == "note"
    run = json.loads((output / "run.json").read_text())
    assert run["settings"]["backend"] == "auto"
    (entry,) = run["runs"]
    assert entry["computed_by"]["backend"] == "openvino"
    assert entry["computed_by"]["tried"][0]["candidate"] == "openvino fp32"
    sidecar = json.loads(next(output.glob("a*.json")).read_text())
    assert "openvino" in json.dumps(sidecar)

    _only(monkeypatch, Candidate("torch", "fp32"))
    assert run_job(request).kept == 1
    assert run_job(RunRequest(**{**request.__dict__, "backend": "torch"})).done == 1  # another request: done again
