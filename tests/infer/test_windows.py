"""Windows: the same as MONAI's, the identity stays the identity, and memory that runs out is survived and said."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from torch import nn

from medgen.errors import BundleError, DeviceError, IntensityError
from medgen.infer.cut import cut_windows, fitting_side
from medgen.infer.memory import Load, batch_that_fits, fits, is_out_of_memory
from medgen.infer.passes import Forward
from medgen.infer.windows import WindowInferer
from medgen.nets.slices import SliceDenoiser


def _volume(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) + 0.1


def _network(channels: int = 1, out: int = 2, dims: int = 3) -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv3d if dims == 3 else nn.Conv2d
    return nn.Sequential(conv(channels, 4, 3, padding=1), nn.Tanh(), conv(4, out, 3, padding=1)).eval()


class Narrow(nn.Module):
    """Raises out of memory above a batch and a number of voxels, as a small GPU would; records what it was given."""

    def __init__(self, batch: int, voxels: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.batch, self.voxels, self.error = batch, voxels, error
        self.seen: list[tuple[int, ...]] = []

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(windows.shape))
        if len(windows) > self.batch or windows[0, 0].numel() > self.voxels:
            raise self.error("can't allocate memory")
        return windows * 2.0


@pytest.mark.parametrize("mode", ["gaussian", "constant"])
@pytest.mark.parametrize(
    ("shape", "roi", "overlap"),
    [
        ((1, 1, 33, 29, 17), (16, 16, 16), 0.5),
        ((2, 3, 21, 16, 23), (16, 12, 8), 0.25),
        ((1, 1, 9, 40, 5), (16, 16, 16), 0.5),  # smaller than the window on two axes, by odd numbers
        ((1, 2, 31, 30, 19), (16, 8, 12), (0.5, 0.0, 0.7)),
        ((2, 1, 37, 22), (16, 16), 0.6),
        ((1, 1, 20, 18, 22), (16, -1, 16), 0.5),
    ],
)
def test_agrees_with_monai(
    shape: tuple[int, ...], roi: tuple[int, ...], overlap: float | tuple[float, ...], mode: str
) -> None:
    volume, network = _volume(*shape), _network(shape[1], dims=len(roi))
    with torch.no_grad():
        expected = SlidingWindowInferer(roi, 3, overlap, mode=mode)(volume, network)
    got = WindowInferer(roi, overlap, mode)(volume, network)
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(*[st.integers(1, 25)] * 3),
    roi=st.tuples(*[st.integers(2, 12)] * 3),
    overlap=st.floats(0, 0.8),
    adapt=st.booleans(),
    batch=st.integers(1, 5),
)
def test_the_identity_stays_the_identity(
    size: tuple[int, ...], roi: tuple[int, ...], overlap: float | tuple[float, ...], adapt: bool, batch: int
) -> None:
    volume = _volume(1, 1, *size)
    inferer = WindowInferer(roi, overlap, sw_batch_size=batch, roi_multiple=4, adapt=adapt)
    got = inferer(volume, nn.Identity())
    torch.testing.assert_close(got, volume, rtol=1e-5, atol=1e-6)


def test_a_metatensor_keeps_its_affine_and_meta() -> None:
    affine = torch.tensor([[-0.9, 0.1, 0, 3], [0.1, 1.1, 0, 4], [0, 0, 3.0, 5], [0, 0, 0, 1]], dtype=torch.float64)
    volume = MetaTensor(_volume(1, 1, 12, 9, 7), affine=affine, meta={"filename_or_obj": "a.nii"})
    got = WindowInferer(8)(volume, _network())
    assert isinstance(got, MetaTensor)
    assert got.meta["filename_or_obj"] == "a.nii"
    torch.testing.assert_close(got.affine, affine)


def test_padding_fills_with_the_value_asked_for() -> None:
    seen = []
    WindowInferer(8, padding=-1.0)(_volume(1, 1, 5, 8, 8), lambda windows: seen.append(windows) or windows)
    assert torch.all(seen[0][0, 0, 0] == -1.0)
    assert torch.all(seen[0][0, 0, 1:6] > 0)


def test_the_cpu_computes_two_windows_at_a_time_unless_told() -> None:
    shapes = []
    for batch in (None, 3):
        network = Narrow(99, 10**9)
        WindowInferer(8, 0.5, sw_batch_size=batch)(_volume(1, 1, 20, 8, 8), network)
        shapes.append([shape[0] for shape in network.seen])
    assert shapes == [[2, 2], [3, 1]]


def test_a_network_of_planes_gets_its_layout_as_one_of_volumes_does() -> None:
    network = SliceDenoiser(channels=(8, 12), blocks=(1, 1)).eval()
    volume = _volume(1, 1, 16, 16, 3)
    expected = network(volume)
    forward = Forward(network, torch.device("cpu"), torch.float32)
    forward._channels_last = True  # as on CUDA in half precision
    torch.testing.assert_close(forward(volume), expected)
    assert network.stem.weight.is_contiguous(memory_format=torch.channels_last)


def test_weights_are_made_once_for_a_cohort() -> None:
    inferer = WindowInferer(8)
    for _ in range(2):
        inferer(_volume(1, 1, 12, 8, 8), nn.Identity())
    assert len(inferer._weights) == 1


def test_weights_of_windows_that_change_with_the_image_do_not_pile_up() -> None:
    inferer = WindowInferer(64, adapt=True, roi_multiple=1)
    for extent in range(4, 24):
        inferer(_volume(1, 1, extent, 4, 4), nn.Identity())
    assert len(inferer._weights) <= 4


@given(
    extent=st.integers(1, 700),
    largest=st.integers(1, 12).map(lambda k: 16 * k),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.7]),
)
def test_adapted_windows_are_few_equal_and_cover_the_axis(extent: int, largest: int, overlap: float) -> None:
    side = fitting_side(extent, largest, overlap, 16)
    adapted = cut_windows((1, 1, max(extent, side)), (side,), (overlap,))
    fixed = cut_windows((1, 1, max(extent, largest)), (largest,), (overlap,))
    assert side <= largest
    assert side % 16 == 0
    assert len(adapted) <= len(fixed)
    assert adapted[-1][2].stop == max(extent, side)
    assert len(adapted) * side <= len(fixed) * largest


def test_an_image_that_fits_one_adapted_window_is_computed_once_as_a_whole() -> None:
    volume, network = _volume(1, 1, 30, 18, 25), _network()
    seen: list[tuple[int, ...]] = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    got = WindowInferer(64, 0.25, roi_multiple=16, adapt=True)(volume, network)
    assert seen == [(1, 1, 32, 32, 32)]
    padded = nn.functional.pad(volume, (3, 4, 7, 7, 1, 1))
    with torch.no_grad():
        torch.testing.assert_close(got, network(padded)[:, :, 1:31, 7:25, 3:28], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_window_that_is_not_finite_ends_the_case(bad: float) -> None:
    def network(windows: torch.Tensor) -> torch.Tensor:
        return torch.where(windows > 5, bad, windows)

    volume = _volume(1, 1, 24, 10, 8)
    volume[0, 0, 20, 3, 3] = 9.0
    with pytest.raises(IntensityError, match="starts at voxel"):
        WindowInferer(8)(volume, network)


def test_out_of_memory_halves_the_batch_and_remembers_it(caplog: pytest.LogCaptureFixture) -> None:
    volume, network = _volume(1, 1, 40, 8, 8), Narrow(batch=2, voxels=10**9)
    inferer = WindowInferer(8, sw_batch_size=8)
    with caplog.at_level(logging.WARNING):
        got = inferer(volume, network)
    torch.testing.assert_close(got, volume * 2, rtol=1e-5, atol=1e-6)
    assert inferer.flags == ("oom-backoff",)
    assert "batch 8 of 8x8x8" in caplog.text
    assert "trying batch 2 of 8x8x8" in caplog.text
    network.seen.clear()
    inferer(volume, network)
    assert network.seen[0][0] == 2
    assert inferer.flags == ()


def test_out_of_memory_then_halves_the_longest_side_to_the_networks_multiple() -> None:
    volume, network = _volume(1, 1, 50, 40, 20), Narrow(batch=1, voxels=16 * 16 * 16)
    inferer = WindowInferer((48, 32, 16), sw_batch_size=2, roi_multiple=16)
    torch.testing.assert_close(inferer(volume, network), volume * 2, rtol=1e-5, atol=1e-6)
    assert network.seen[-1] == (1, 1, 16, 16, 16)
    assert all(side % 16 == 0 for shape in network.seen for side in shape[2:])
    assert inferer.flags == ("oom-backoff",)


def test_a_device_too_small_for_the_smallest_region_says_so() -> None:
    with pytest.raises(DeviceError, match="at least 8 voxels a side"):
        WindowInferer(32, roi_multiple=8)(_volume(1, 1, 32, 32, 32), Narrow(batch=1, voxels=100))


def test_the_hosts_own_allocation_failures_count_and_other_errors_do_not() -> None:
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(ValueError, match="allocate"):
        WindowInferer(8)(_volume(1, 1, 8, 8, 8), Narrow(0, 0, ValueError))


def test_a_lighter_load_first_gives_up_the_batch_then_the_devices_sum_then_the_region() -> None:
    loads = [Load((96, 96, 64), 2, on_host=False)]
    while max(loads[-1].roi) > 32:
        loads.append(loads[-1].lighter((32, 32, 32)))
    assert [(load.roi, load.batch, load.on_host) for load in loads[1:4]] == [
        ((96, 96, 64), 1, False),
        ((96, 96, 64), 1, True),
        ((32, 96, 64), 1, True),
    ]
    assert loads[-1].roi == (32, 32, 32)


def test_each_axis_has_its_own_divisibility() -> None:
    seen = []

    def network(windows: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(windows.shape[2:]))
        return windows

    image = _volume(1, 1, 20, 17, 3)
    result = WindowInferer((64, 64, 8), adapt=True, roi_multiple=(8, 8, 1), padding="replicate")(image, network)
    torch.testing.assert_close(result, image)
    assert set(seen) == {(24, 24, 3)}
    assert Load((24, 24, 3), 1, on_host=True).lighter((8, 8, 1)).roi == (8, 24, 3)


def test_the_batch_fills_four_fifths_of_the_memory_up_to_a_limit() -> None:
    assert [batch_that_fits(free, 10) for free in (5, 13, 30, 55, 10**6)] == [1, 1, 2, 4, 8]
    assert fits(50, 100)
    assert not fits(51, 100)


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (lambda windows: windows[:, :, ::3], r"expected outputs whose grid meets the windows' 8x8x8, got 3x8x8"),
        (lambda windows: windows.mean((2, 3, 4)), r"got \(2, 1\)"),
        (lambda windows: windows[:1], r"got \(1, 1, 8, 8, 8\)"),
        (lambda windows: {"logits": [windows]}, "got list"),
        (lambda windows: None, "got NoneType"),
        (lambda windows: (), "empty tuple"),
    ],
)
def test_an_output_that_is_no_image_on_a_grid_of_the_windows_is_named(network: Callable[..., Any], told: str) -> None:
    with pytest.raises(BundleError, match=told):
        WindowInferer(8)(_volume(1, 1, 16, 8, 8), network)


def test_an_image_without_voxels_is_named() -> None:
    with pytest.raises(BundleError, match="with voxels"):
        WindowInferer(8)(torch.zeros(0, 1, 8, 8, 8), nn.Identity())


@pytest.mark.parametrize("roi", [8, 32])
def test_each_output_of_several_is_stitched_on_its_own_grid(roi: int) -> None:
    volume = _volume(2, 1, 16, 24, 20)

    def network(windows: torch.Tensor) -> dict[str, torch.Tensor]:
        coarse = nn.functional.avg_pool3d(windows, 2)
        return {"same": windows * 2, "coarse": coarse, "fine": windows.repeat_interleave(2, dim=4)}

    got = WindowInferer(roi, 0.5, memory_budget_bytes=0)(volume, network)
    assert list(got) == ["same", "coarse", "fine"]
    torch.testing.assert_close(got["same"], volume * 2)
    torch.testing.assert_close(got["coarse"], nn.functional.avg_pool3d(volume, 2))
    torch.testing.assert_close(got["fine"], volume.repeat_interleave(2, dim=4))


def test_the_affine_of_a_coarser_output_is_that_of_its_voxels() -> None:
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    volume = MetaTensor(_volume(1, 1, 16, 16, 16), affine=affine, meta={"filename_or_obj": "a.nii"})
    whole, half = WindowInferer(8)(volume, lambda x: (x, nn.functional.avg_pool3d(x, 2)))
    torch.testing.assert_close(whole.affine, affine)
    torch.testing.assert_close(half.affine.diagonal()[:3], 2 * affine.diagonal()[:3])
    torch.testing.assert_close(half.affine[:3, 3], torch.tensor([1.0, 1.5, 2.0], dtype=torch.float64))
    assert half.meta["filename_or_obj"] == "a.nii"
    torch.testing.assert_close(volume.affine, affine)


def test_slices_that_fit_one_window_are_computed_whole_and_memory_that_runs_out_is_survived() -> None:
    volume, network = _volume(1, 1, 20, 18, 5), Narrow(batch=1, voxels=16 * 8)
    inferer = WindowInferer(64, 0.25, roi_multiple=8, adapt=True, spatial_dim=2)
    torch.testing.assert_close(inferer(volume, network), volume * 2, rtol=1e-5, atol=1e-6)
    assert network.seen[0] == (2, 1, 24, 24)
    assert network.seen[-1][2:] in {(8, 16), (16, 8), (8, 8)}
    assert inferer.flags == ("oom-backoff",)


def test_slices_that_are_not_finite_are_named() -> None:
    volume = _volume(1, 1, 8, 8, 6)
    volume[0, 0, 3, 3, 4] = float("nan")
    with pytest.raises(IntensityError, match=r"\(0, 0, 4\)"):
        WindowInferer(8, sw_batch_size=1, spatial_dim=2)(volume, nn.Identity())


def test_an_image_that_is_no_volume_cannot_be_sliced() -> None:
    with pytest.raises(BundleError, match="to slice"):
        WindowInferer(8, spatial_dim=0)(_volume(1, 1, 8, 8), nn.Identity())


def test_a_network_that_writes_into_its_input_does_not_change_the_volume() -> None:
    volume = _volume(1, 1, 20, 8, 8)
    before = volume.clone()
    for batch in (1, 2):
        WindowInferer(8, sw_batch_size=batch)(volume, lambda windows: windows.mul_(0))
    assert torch.equal(volume, before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"overlap": 1.0},
        {"overlap": (0.5, -0.1, 0)},
        {"mode": "nearest"},
        {"precision": "int8"},
        {"roi_multiple": 0},
        {"roi_multiple": (8, 8, 0)},
        {"sw_batch_size": 0},
        {"sigma_scale": 0.0},
        {"spatial_dim": 3},
        {"neighbours": 1},
        {"spatial_dim": 0, "neighbours": -1},
        {"memory_budget_bytes": -1},
    ],
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        WindowInferer(8, **wrong)


def test_an_image_of_other_dimensions_is_refused() -> None:
    with pytest.raises(BundleError, match="3 spatial axes"):
        WindowInferer((8, 8, 8))(_volume(1, 1, 8, 8), nn.Identity())


def test_bf16_on_the_cpu_stays_near_fp32() -> None:
    volume, network = _volume(1, 1, 20, 16, 12), _network()
    exact = WindowInferer(8, precision="fp32")(volume, network)
    lowered = WindowInferer(8, precision="bf16")(volume, network)
    assert lowered.dtype == torch.float32
    assert not torch.equal(exact, lowered)
    torch.testing.assert_close(lowered, exact, rtol=0, atol=0.02)


@pytest.mark.parametrize("axis", [0, 2])
def test_mirrored_it_is_the_mean_of_both_views_and_as_symmetric_as_its_input(axis: int) -> None:
    volume, network = _volume(1, 1, 20, 18, 22), _network()
    plain = WindowInferer(16, overlap=0.25)
    both = WindowInferer(16, overlap=0.25, mirror=axis)
    expected = (plain(volume, network) + plain(volume.flip(2 + axis), network).flip(2 + axis)) / 2
    torch.testing.assert_close(both(volume, network), expected)
    assert (plain(volume, network) - expected).abs().max() > 1e-3
    torch.testing.assert_close(both(volume.flip(2 + axis), network), both(volume, network).flip(2 + axis))


def test_memory_that_runs_out_in_the_mirrored_view_is_said_too() -> None:
    class SecondFails(Narrow):
        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            self.seen.append(tuple(windows.shape))
            if len(self.seen) == 2:
                raise torch.OutOfMemoryError("can't allocate memory")
            return windows * 2.0

    volume = _volume(1, 1, 32, 32, 32)
    inferer = WindowInferer(32, mirror=0)
    torch.testing.assert_close(inferer(volume, SecondFails(8, 10**6)), volume * 2.0)
    assert inferer.flags == ("oom-backoff",)


def test_a_mirror_axis_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="spatial axis"):
        WindowInferer(16, mirror=-1)
