"""Windows on a GPU: the CPU's numbers, a real out-of-memory survived, and sums kept on the host."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from medgen.infer.windows import WindowInferer
from medgen.nets.compand import Companded
from medgen.nets.slices import SliceDenoiser

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Turns TF32 off, so that fp32 means fp32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        matmul, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False
        yield
        torch.backends.cuda.matmul.allow_tf32 = matmul


def _network(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv3d(1, width, 3, padding=1), nn.InstanceNorm3d(width), nn.ReLU(), nn.Conv3d(width, 2, 3, padding=1)]
    return nn.Sequential(*layers).eval()


def _volume(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(5))


def test_a_network_of_slices_in_half_precision_is_near_the_cpu() -> None:
    torch.manual_seed(0)
    network, volume = (
        Companded(SliceDenoiser(channels=(8, 12), blocks=(1, 1)), gain=8.0).eval(),
        _volume(1, 1, 64, 64, 5),
    )
    torch.nn.init.normal_(network.network.noise.weight, std=0.05)
    expected = WindowInferer(64, precision="fp32")(volume, network)
    assert (WindowInferer(64, precision="bf16")(volume.cuda(), network.cuda()).cpu() - expected).abs().max() < 0.02


@pytest.mark.parametrize("on_device", [False, True])
def test_fp32_agrees_with_the_cpu(on_device: bool) -> None:
    volume, network = _volume(2, 1, 51, 40, 37), _network()
    expected = WindowInferer(32, precision="fp32")(volume, network)
    network.cuda()
    given = volume.cuda() if on_device else volume
    got = WindowInferer(32, precision="fp32")(given, network)
    assert got.device == given.device
    torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp16"])
def test_autocast_stays_near_fp32(precision: str) -> None:
    volume, network = _volume(1, 1, 48, 40, 36), _network().cuda()
    exact = WindowInferer(32, precision="fp32")(volume, network)
    lowered = WindowInferer(32, precision=precision)(volume, network)
    torch.testing.assert_close(lowered, exact, rtol=0, atol=0.05)


def test_sums_on_the_host_are_the_sums_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    volume, network = _volume(1, 1, 64, 50, 40), _network().cuda()
    on_device = WindowInferer(32, precision="fp32", sw_batch_size=2)(volume, network)
    monkeypatch.setattr("medgen.infer.windows.fits", lambda *_: False)
    on_host = WindowInferer(32, precision="fp32", sw_batch_size=2)(volume, network)
    torch.testing.assert_close(on_host, on_device, rtol=0, atol=1e-5)


def test_a_real_out_of_memory_is_survived_and_said() -> None:
    network = _network(width=64).cuda()
    volume = _volume(1, 1, 160, 160, 160)
    expected = WindowInferer(96, precision="fp32", sw_batch_size=1)(volume, network)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    one_window = 2 * 64 * 96**3 * 4  # what one layer and its normalisation hold
    torch.cuda.set_per_process_memory_fraction(min((torch.cuda.memory_reserved(0) + 5 * one_window) / total, 1.0))
    try:
        inferer = WindowInferer(96, precision="fp32", sw_batch_size=8)
        got = inferer(volume, network)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert inferer.flags == ("oom-backoff",)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_a_region_too_large_for_the_device_becomes_smaller() -> None:
    network = _network(width=64).cuda()
    volume = _volume(1, 1, 128, 128, 128)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    half_a_window = 64 * 128**3 * 4
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(0) + half_a_window) / total)
    try:
        inferer = WindowInferer(128, precision="fp32")
        got = inferer(volume, network)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert inferer.flags == ("oom-backoff",)
    assert bool(torch.isfinite(got).all())
