"""An inferer of MONAI's and the one made like it give the same; what cannot be honoured is left to MONAI."""

import warnings
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from monai.inferers import (
    SimpleInferer,
    SliceInferer,
    SlidingWindowInferer,
    SlidingWindowInfererAdapt,
)
from torch import nn

from medgen.infer.from_monai import window_inferer_like
from medgen.infer.windows import WindowInferer


def _volume(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) - 0.3


def _network(dims: int) -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Conv3d if dims == 3 else nn.Conv2d
    return nn.Sequential(conv(1, 4, 3, padding=1), nn.Tanh(), conv(4, 2, 3, padding=1)).eval()


_NETWORKS = {dims: _network(dims) for dims in (2, 3)}
_SIDE = st.one_of(st.integers(2, 14), st.sampled_from([-1, 0, None]))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dims=st.sampled_from([2, 3]), batch=st.integers(1, 3), windows=st.integers(1, 4))
def test_it_gives_what_monais_gives(data: st.DataObject, dims: int, batch: int, windows: int) -> None:
    size = data.draw(st.tuples(*[st.integers(3, 20)] * dims))
    roi = data.draw(st.one_of(st.tuples(*[_SIDE] * dims), st.integers(2, 14)))
    padding = data.draw(st.sampled_from(["constant", "reflect", "replicate", "circular"]))
    if padding in {"reflect", "circular"}:  # torch pads by less than the image's side only
        sides = roi if isinstance(roi, tuple) else (roi,) * dims
        assume(all((side or 0) < 2 * extent - 1 for side, extent in zip(sides, size, strict=True)))
    theirs = SlidingWindowInferer(
        roi,
        windows,
        overlap=data.draw(st.one_of(st.floats(0, 0.8), st.tuples(*[st.floats(0, 0.8)] * dims))),
        mode=data.draw(st.sampled_from(["constant", "gaussian"])),
        sigma_scale=data.draw(st.one_of(st.floats(0.05, 0.5), st.tuples(*[st.floats(0.05, 0.5)] * dims))),
        padding_mode=padding,
        cval=data.draw(st.floats(-2, 2)) if padding == "constant" else 0.0,
    )
    ours = window_inferer_like(theirs)
    assert ours is not None
    volume, network = _volume((batch, 1, *size)), _NETWORKS[dims]
    with torch.no_grad():
        expected = theirs(volume, network)
    torch.testing.assert_close(ours(volume, network), expected, rtol=0, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(*[st.integers(5, 12)] * 3).map(lambda halves: tuple(2 * half for half in halves)),
    roi=st.tuples(*[st.sampled_from([4, 8, 12])] * 3),
    mode=st.sampled_from(["constant", "gaussian"]),
    zoom=st.sampled_from([0.5, 2.0]),
)
def test_outputs_on_other_grids_are_as_monais(
    size: tuple[int, ...], roi: tuple[int, ...], mode: str, zoom: float
) -> None:
    def network(windows: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(windows, scale_factor=zoom, mode="nearest") + 0.01

    assume(all(side <= extent or (side - extent) % 4 == 0 for side, extent in zip(roi, size, strict=True)))
    theirs = SlidingWindowInferer(roi, 2, overlap=0.5, mode=mode)
    volume = _volume((2, 1, *size))
    ours = window_inferer_like(theirs)
    assert ours is not None
    torch.testing.assert_close(ours(volume, network), theirs(volume, network), rtol=0, atol=1e-5)


def test_a_dict_and_a_tuple_of_outputs_are_as_monais() -> None:
    volume = _volume((1, 1, 20, 12, 9))
    theirs = SlidingWindowInferer(8, 2, overlap=0.25, mode="gaussian")
    ours = window_inferer_like(theirs)
    assert ours is not None
    for network in (
        lambda x: {"b": x * 2, "a": torch.cat([x, -x], dim=1)},
        lambda x: (x, x + 1),
        lambda x: [x, x + 1],
        lambda x: [x * 3],
    ):
        got, expected = ours(volume, network), theirs(volume.clone(), network)
        assert type(got) is type(expected)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_the_place_of_the_result_is_kept() -> None:
    ours = window_inferer_like(SlidingWindowInferer(8, device="cpu", sw_device="cpu"))
    assert ours is not None
    assert (ours.device, ours.sw_device) == (torch.device("cpu"), torch.device("cpu"))


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(*[st.integers(2, 14)] * 3),
    roi=st.tuples(*[st.integers(2, 10)] * 2),
    axis=st.integers(0, 2),
    overlap=st.floats(0, 0.7),
    mode=st.sampled_from(["gaussian", "constant"]),
)
def test_slice_by_slice_agrees_with_monai(
    size: tuple[int, ...], roi: tuple[int, ...], axis: int, overlap: float, mode: str
) -> None:
    volume, network = _volume((2, 1, *size)), _NETWORKS[2]
    with torch.no_grad():
        expected = SliceInferer(axis, roi, 3, overlap, mode=mode)(volume, network)
    got = WindowInferer(roi, overlap, mode, spatial_dim=axis)(volume, network)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_neighbouring_slices_come_as_channels_and_the_edges_are_repeated(axis: int) -> None:
    volume = _volume((1, 2, 7, 9, 8))
    moved = volume.movedim(2 + axis, 2)
    padded = torch.cat([moved[:, :, :1]] * 2 + [moved] + [moved[:, :, -1:]] * 2, dim=2)
    for offset in range(5):
        got = WindowInferer(6, 0.5, spatial_dim=axis, neighbours=2)(
            volume, lambda planes, k=2 * offset: planes[:, k : k + 2]
        )
        expected = padded[:, :, offset : offset + moved.shape[2]].movedim(2, 2 + axis)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"cpu_thresh": 100},
        {"buffer_steps": 2},
        {"with_coord": True},
        {"padding_mode": "reflect", "cval": 1.0},
        {"overlap": 1.0},
    ],
)
def test_what_cannot_be_honoured_is_left_to_monai(options: dict[str, Any]) -> None:
    assert window_inferer_like(SlidingWindowInferer(**{"roi_size": 8, **options})) is None


def test_weights_made_ahead_are_honoured_as_far_as_they_are_those_of_the_mode() -> None:
    options: dict[str, Any] = {"roi_size": (8, 8, 8), "mode": "gaussian", "cache_roi_weight_map": True}
    inferer = SlidingWindowInferer(**options)
    ours = window_inferer_like(inferer)
    assert ours is not None
    volume = _volume((1, 1, 13, 9, 11))
    torch.testing.assert_close(
        ours(volume, lambda windows: windows.square()), inferer(volume, lambda windows: windows.square())
    )
    inferer.roi_weight_map = inferer.roi_weight_map.square()
    assert window_inferer_like(inferer) is None


def test_other_inferers_and_unknown_attributes_are_left_to_monai() -> None:
    class Own(SlidingWindowInferer):
        pass

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        others = [SimpleInferer(), SliceInferer(roi_size=(8, 8)), SlidingWindowInfererAdapt(8), Own(8), None]
    assert [window_inferer_like(other) for other in others] == [None] * 5
    later = SlidingWindowInferer(8)
    later.something_new = True
    assert window_inferer_like(later) is None
