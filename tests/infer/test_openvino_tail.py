"""Mixed precision: what rounds last stays in fp32, at nearly the speed of bf16 and with less error."""

from pathlib import Path

import openvino as ov
import pytest
import torch
from torch import nn

from medgen.infer import openvino_network
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


def _error(network: nn.Module, file: Path, weights: Path, x: torch.Tensor, precision: str = "bf16") -> float:
    core = ov.Core()
    model = core.read_model(file, weights)
    model.reshape(list(x.shape))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
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


def test_weights_in_two_parts_round_less_and_change_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network, x = nn.Conv3d(16, 1, 1), torch.randint(128, (1, 16, 32, 32, 32)) / 128  # an input that bf16 has exactly
    split, whole = tmp_path / "split.xml", tmp_path / "whole.xml"
    convert(network, x, split)
    monkeypatch.setattr(openvino_network, "split_last_weights", lambda model: None)
    convert(network, x, whole)
    lowered = [_error(network, file, file.with_suffix(".bin"), x) for file in (split, whole)]
    exact = [_error(network, file, file.with_suffix(".bin"), x, "f32") for file in (split, whole)]
    assert lowered[0] < 0.01 * lowered[1]
    assert max(exact) < 1e-6


@pytest.mark.parametrize(
    ("last", "expected"),
    [(nn.Conv3d(2, 8, 1), 2), (nn.Conv3d(2, 9, 1), 1), (nn.Conv3d(2, 1, 3), 1), (nn.Conv3d(2, 1, 1, bias=False), 1)],
)
def test_only_small_last_convolutions_are_computed_twice(last: nn.Module, expected: int, tmp_path: Path) -> None:
    x = torch.rand(1, 2, 8, 8, 8)
    convert(last, x, tmp_path / "n.xml")
    nodes = ov.Core().read_model(tmp_path / "n.xml").get_ordered_ops()
    assert sum(node.get_type_name() == "Convolution" for node in nodes) == expected
    assert _error(last, tmp_path / "n.xml", tmp_path / "n.bin", x, "f32") < 1e-6


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
