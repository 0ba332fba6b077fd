"""Mixed precision: what rounds last stays in fp32, at nearly the speed of bf16 and with less error."""

from pathlib import Path

import openvino as ov
import pytest
import torch
from torch import nn

from medgen.infer.openvino_network import convert
from medgen.infer.openvino_requests import native_precisions
from medgen.infer.openvino_tail import write_mixed

pytestmark = pytest.mark.skipif("bf16" not in native_precisions(), reason="this CPU computes no bf16")


def _network() -> nn.Module:
    """Ends in a 1x1x1 convolution of many channels, as U-Nets do."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(1, 16, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.Conv3d(16, 16, 3, padding=1),
        nn.Tanh(),
        nn.Conv3d(16, 1, 1),
    ).eval()


def _error(network: nn.Module, file: Path, weights: Path, x: torch.Tensor) -> float:
    core = ov.Core()
    model = core.read_model(file, weights)
    model.reshape(list(x.shape))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    with torch.no_grad():
        return float((torch.from_numpy(compiled(x.numpy())[0].copy()) - network(x)).square().mean().sqrt())


def test_the_last_layers_are_not_rounded(tmp_path: Path) -> None:
    network, x = _network(), torch.rand(1, 1, 32, 32, 32)
    file, mixed, weights = tmp_path / "n.xml", tmp_path / "mixed.xml", tmp_path / "n.bin"
    convert(network, x, file)
    model = ov.Core().read_model(file)
    write_mixed(model, file, mixed)
    lowered, kept = (_error(network, which, weights, x) for which in (file, mixed))
    assert 0 < kept < 0.9 * lowered


def test_only_the_tail_is_marked(tmp_path: Path) -> None:
    file, mixed = tmp_path / "n.xml", tmp_path / "mixed.xml"
    convert(_network(), torch.rand(1, 1, 16, 16, 16), file)
    model = ov.Core().read_model(file)
    write_mixed(model, file, mixed)
    marked = ov.Core().read_model(mixed, tmp_path / "n.bin")
    convolutions = [node for node in marked.get_ordered_ops() if node.get_type_name() == "Convolution"]
    assert ["precise" in str(node.get_rt_info().keys()) or False for node in convolutions[:2]] == [False, False]
    assert "precise" in mixed.read_text()
    assert "precise" not in file.read_text()
