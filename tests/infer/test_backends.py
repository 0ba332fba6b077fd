"""Converted networks: the same values as torch's, in every way of using them and for every size of window."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import BasicUNet, UNet
from torch import Tensor, nn

from medgen.errors import BundleError
from medgen.infer.backends import FORWARD, Candidate, Converted, Lowered, Original, available, build
from medgen.infer.conversions import entries
from medgen.infer.openvino_network import OpenVinoNetwork, convert
from medgen.infer.openvino_requests import native_precisions
from medgen.infer.windows import WindowInferer

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDGEN_CACHE", str(tmp_path / "cache"))


def _unet() -> nn.Module:
    torch.manual_seed(0)
    return UNet(3, 1, 1, (4, 8, 16), (2, 2), num_res_units=1).eval()


class _Coder(nn.Module):
    """Is used by name: a code with two tensors, and a volume of a code."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.down, self.up = nn.Conv3d(1, 4, 2, stride=2), nn.ConvTranspose3d(2, 1, 2, stride=2)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.down(image).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, code: Tensor) -> Tensor:
        return self.up(code)  # type: ignore[no-any-return]

    def forward(self, image: Tensor) -> Tensor:
        return self.decode(self.encode(image)[0])


def _original(network: nn.Module, **examples: Tensor) -> Original:
    shown = {FORWARD if name == "forward" else name: example for name, example in examples.items()}
    shapes = {name: tuple(example.shape) for name, example in shown.items()}
    return Original(network, shapes, lambda: shown, {"test": 1}, "a test's network")


def _cases() -> list[Candidate]:
    return [candidate for candidate in available(CPU) if candidate.backend != "compile"]


@pytest.mark.parametrize("candidate", _cases(), ids=str)
def test_gives_torchs_values_for_sizes_that_it_was_not_shown(candidate: Candidate) -> None:
    network = _unet()
    converted = build(candidate, _original(network, forward=torch.rand(1, 1, 16, 16, 16)))
    bound = 1e-4 if candidate.precision == "fp32" else 5e-2
    for shape in ((1, 1, 16, 16, 16), (2, 1, 24, 16, 32), (1, 1, 8, 40, 16)):
        x = torch.rand(shape)
        with torch.no_grad():
            expected, got = network(x), converted(x)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=0, atol=bound * float(expected.max() - expected.min()))


@pytest.mark.parametrize("backend", ["openvino", "onnx", "torch"])
def test_every_way_of_using_it_is_converted(backend: str) -> None:
    network = _Coder().eval()
    image = torch.rand(1, 1, 8, 8, 8)
    code = network.encode(image)[0].detach()
    converted = build(Candidate(backend, "fp32"), _original(network, encode=image, decode=code))
    for got, expected in zip(converted.encode(image), network.encode(image), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(converted.decode(code), network.decode(code), rtol=0, atol=1e-5)
    if backend != "torch":
        assert not hasattr(converted, "features")
        with pytest.raises(BundleError, match="--backend torch"):
            converted(image)


def test_lowered_precision_holds_in_every_way_too() -> None:
    network = _Coder().eval()
    lowered = build(Candidate("torch", "bf16"), _original(network))
    assert isinstance(lowered, Lowered)
    image = torch.rand(1, 1, 8, 8, 8)
    for got, expected in ((lowered(image), network(image)), (lowered.encode(image)[0], network.encode(image)[0])):
        assert got.dtype == torch.float32
        assert 0 < float((got - expected).detach().abs().max()) < 0.05


def _require_in_order(converted: Any, network: nn.Module, groups: list[tuple[int, Tensor]]) -> None:
    seen = []
    for number, output in converted.stream(iter(groups)):
        with torch.no_grad():
            torch.testing.assert_close(output, network(groups[number][1]), rtol=0, atol=1e-4)
        seen.append(number)
    assert seen == list(range(7))


def test_a_stream_gives_every_group_in_order(tmp_path: Path) -> None:
    network = _unet()
    convert(network, torch.rand(1, 1, 16, 16, 16), tmp_path / "network.xml")
    converted = OpenVinoNetwork(tmp_path / "network.xml", "fp32", threads=2)
    groups = [(number, torch.rand(1, 1, 16, 16, 16 if number % 3 else 24)) for number in range(7)]
    _require_in_order(converted, network, groups)
    assert list(converted.stream(iter(groups[:0]))) == []
    assert [number for number, _ in converted.stream(iter(groups[:1]))] == [0]


def test_a_stream_left_half_way_can_be_begun_again(tmp_path: Path) -> None:
    convert(_unet(), torch.rand(1, 1, 16, 16, 16), tmp_path / "network.xml")
    converted = OpenVinoNetwork(tmp_path / "network.xml", "fp32", threads=2)
    groups = [(number, torch.rand(1, 1, 16, 16, 16)) for number in range(6)]
    whole = [output.clone() for _, output in converted.stream(iter(groups))]
    stream = converted.stream(iter(groups))
    next(stream)
    stream.close()
    again = [output.clone() for _, output in converted.stream(iter(groups))]
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_windows_through_a_converted_network_equal_monais_through_torch() -> None:
    network = _unet()
    converted = build(Candidate("openvino", "fp32"), _original(network, forward=torch.rand(1, 1, 16, 16, 16)))
    volume = torch.rand(1, 1, 37, 30, 25)
    with torch.no_grad():
        expected = SlidingWindowInferer(16, 4, 0.25, mode="gaussian")(volume, network)
    got = WindowInferer(16, 0.25)(volume, converted)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_converted_once_and_found_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    original = _original(_unet(), forward=torch.rand(1, 1, 16, 16, 16))
    build(Candidate("openvino", "fp32"), original)
    (entry,) = entries()
    assert "a test's network" in entry.about

    def never() -> dict[str, Tensor]:
        raise AssertionError("converted again")

    found = Original(original.network, original.ways, never, original.identity, original.name)
    for precision in native_precisions():
        build(Candidate("openvino", precision), found)
    assert len(entries()) == 1


class _Odd(nn.Module):
    """Does what no converter knows."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.sort(x.numpy(), axis=-1)) * torch.special.bessel_j0(x)


@pytest.mark.parametrize("backend", ["openvino", "onnx"])
def test_what_cannot_be_converted_is_said_in_a_line(backend: str) -> None:
    with pytest.raises(BundleError, match=f"{backend} cannot convert a test's network: .*take --backend torch"):
        build(Candidate(backend, "fp32"), _original(_Odd(), forward=torch.rand(1, 1, 4, 4, 4)))
    assert entries() == []


def test_more_than_windows_is_refused() -> None:
    converted = Converted({FORWARD: lambda windows: windows})
    assert torch.equal(converted(torch.ones(1)), torch.ones(1))
    with pytest.raises(BundleError, match="windows alone"):
        converted(torch.ones(1), torch.ones(1))


class _Looking(nn.Module):
    """Looks at the size of what it is given, as MONAI's BasicUNet does: a tracer sees one way through it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv = nn.Conv3d(1, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.shape[2] % 2 == 0 else -self.conv(x)


@pytest.mark.parametrize("backend", ["openvino", pytest.param("onnx", marks=pytest.mark.slow)])
@pytest.mark.parametrize("network", [_Looking(), BasicUNet(3, 1, 1, (4, 4, 8, 8, 8, 4))], ids=["branch", "padding"])
def test_other_sizes_are_left_to_torch_where_the_network_looks_at_them(backend: str, network: nn.Module) -> None:
    network = network.eval()
    converted = build(Candidate(backend, "fp32"), _original(network, forward=torch.rand(1, 1, 32, 32, 32)))
    assert converted.only_sizes == {FORWARD: (32, 32, 32)}
    for shape in ((1, 1, 32, 32, 32), (1, 1, 33, 35, 37), (2, 1, 32, 34, 49)):
        x = torch.rand(shape)
        with torch.no_grad():
            torch.testing.assert_close(converted(x), network(x), rtol=0, atol=1e-3)


def test_a_stream_of_several_sizes_keeps_its_order_where_some_are_left_to_torch() -> None:
    network = _Looking().eval()
    converted = build(Candidate("openvino", "fp32"), _original(network, forward=torch.rand(1, 1, 16, 16, 16)))
    groups = [(number, torch.rand(1, 1, side, 16, 16)) for number, side in enumerate((16, 16, 17, 16, 15, 15, 16))]
    _require_in_order(converted, network, groups)


def test_groups_and_norms_of_torch_do_not_bind_a_network_to_a_size() -> None:
    layers = [nn.GroupNorm(2, 4), nn.InstanceNorm3d(4), nn.Upsample(scale_factor=2)]
    for layer in layers:
        network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), layer).eval()
        original = replace(_original(network, forward=torch.rand(1, 1, 16, 16, 16)), identity={"of": repr(layer)})
        converted = build(Candidate("openvino", "fp32"), original)
        assert converted.only_sizes == {}
        x = torch.rand(1, 1, 24, 17, 20)
        with torch.no_grad():
            torch.testing.assert_close(converted(x), network(x), rtol=0, atol=1e-3)


@pytest.mark.slow
def test_compiled_by_torch_it_gives_torchs_values(tmp_path: Path) -> None:
    network = _unet()
    converted: Any = build(Candidate("compile", "fp32"), _original(network, forward=torch.rand(1, 1, 16, 16, 16)))
    x = torch.rand(1, 1, 24, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(converted(x), network(x), rtol=0, atol=1e-4)
    assert any((tmp_path / "cache" / "compile").iterdir())
