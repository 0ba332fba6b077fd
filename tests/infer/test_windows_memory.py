"""What is held while windows are put together: a slab, whether the result lies in memory or in a file; and streams."""

import gc
import logging
import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import compute_importance_map, dense_patch_slices
from torch import nn

from medgen.errors import BundleError, IntensityError, TooLargeError
from medgen.infer.cut import Cut, cut_windows, window_starts
from medgen.infer.memory import zeros_in_a_file
from medgen.infer.mosaic import Mosaic
from medgen.infer.passes import Forward
from medgen.infer.windows import WindowInferer


def _volume(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) + 0.1


class Stream:
    """A back end with several requests in flight, whose outputs lie in memory that is used again."""

    def __init__(self, of: Callable[[torch.Tensor], Any], batch: int = 2, flying: int = 3, most: int = 99) -> None:
        self.of, self.batch, self.flying, self.most = of, batch, flying, most
        self.seen: list[int] = []
        self.ended = 0

    def stream(self, groups: Iterable[tuple[Any, torch.Tensor]]) -> Iterator[tuple[Any, Any]]:
        waiting: deque[tuple[Any, torch.Tensor]] = deque()
        try:
            for windows, voxels in groups:
                self.seen.append(len(voxels))
                if len(voxels) > self.most:
                    raise MemoryError
                waiting.append((windows, voxels))
                if len(waiting) == self.flying:
                    yield from self._land(waiting.popleft())
            while waiting:
                yield from self._land(waiting.popleft())
        finally:
            self.ended += 1

    def _land(self, waiting: tuple[Any, torch.Tensor]) -> Iterator[tuple[Any, Any]]:
        output = self.of(waiting[1])
        yield waiting[0], output
        if isinstance(output, torch.Tensor):
            output.fill_(float("nan"))  # as if another request had written there


def _double(windows: torch.Tensor) -> torch.Tensor:
    return windows * 2


@settings(max_examples=60, deadline=None)
@given(
    axes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 12), st.floats(0, 0.9)), min_size=1, max_size=3),
    items=st.integers(1, 2),
)
def test_windows_are_monais_in_its_order(axes: list[tuple[int, int, float]], items: int) -> None:
    size, roi, overlap = (tuple(part) for part in zip(*axes, strict=True))
    roi = tuple(min(side, extent) for side, extent in zip(roi, size, strict=True))
    steps = [
        side if side == extent else max(int(side * (1 - part)), 1)
        for side, extent, part in zip(roi, size, overlap, strict=True)
    ]
    expected = [place for _ in range(items) for place in dense_patch_slices(size, roi, steps)]
    got = cut_windows((items, 1, *size), roi, overlap)
    assert [window[2:] for window in got] == expected
    along = {window[0].start for window in got}
    assert along == set(range(items))


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(*[st.integers(1, 16)] * 3),
    roi=st.tuples(*[st.integers(1, 9)] * 3),
    overlap=st.tuples(*[st.floats(0, 0.8)] * 3),
    along=st.integers(0, 2),
    gaussian=st.booleans(),
)
def test_sums_in_a_slab_are_those_of_a_whole_weight_map(
    size: tuple[int, ...], roi: tuple[int, ...], overlap: tuple[float, ...], along: int, gaussian: bool
) -> None:
    cut = Cut.of((2, 3, *size), roi, overlap, along)
    weights = compute_importance_map(roi, mode="gaussian" if gaussian else "constant")
    windows = list(cut.windows())
    outputs = [torch.rand((3, *roi), generator=torch.Generator().manual_seed(k)) for k in range(len(windows))]
    total, weight = torch.zeros(2, 3, *size), torch.zeros(2, 1, *size)
    for window, output in zip(windows, outputs, strict=True):
        total[window] += (output * weights)[(slice(None), *cut.inner)]
        weight[window] += weights[cut.inner]
    results = []
    for slab in (False, True):
        mosaic = Mosaic(cut, weights, torch.zeros(2, 3, *size), slab)
        for k in range(0, len(outputs), 3):
            mosaic.add(torch.stack(outputs[k : k + 3]))
        results.append(mosaic.finish())
    torch.testing.assert_close(results[0], total / weight, rtol=1e-5, atol=1e-6)
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("shape", [(2, 2, 33, 20, 17), (1, 1, 9, 40), (1, 1, 8, 8, 8)])
def test_a_result_in_a_file_is_the_one_in_memory(shape: tuple[int, ...], caplog: pytest.LogCaptureFixture) -> None:
    volume, network = _volume(*shape), nn.Tanh()
    expected = WindowInferer(12, 0.5, mirror=1)(volume, network)
    with caplog.at_level(logging.WARNING):
        got = WindowInferer(12, 0.5, mirror=1, memory_budget_bytes=0)(volume, network)
    assert "in a file" in caplog.text
    assert torch.equal(got, expected)


@pytest.mark.parametrize("options", [{"memory_budget_bytes": 0}, {"spatial_dim": 0, "neighbours": 1}])
def test_memory_that_runs_out_and_nan_are_met_with_slabs_and_with_slices(options: dict[str, Any]) -> None:
    volume, most = _volume(1, 1, 20, 24, 16), 2

    def network(windows: torch.Tensor) -> torch.Tensor:
        if len(windows) > most:
            raise torch.OutOfMemoryError
        middle = windows.shape[1] // 2
        return windows[:, middle : middle + 1] * 2

    inferer = WindowInferer(8, 0.5, sw_batch_size=8, **options)
    torch.testing.assert_close(inferer(volume, network), volume * 2, rtol=1e-5, atol=1e-6)
    assert inferer.flags == ("oom-backoff",)
    volume[0, 0, 17, 20, 3] = float("nan")
    with pytest.raises(IntensityError, match="starts at voxel"):
        inferer(volume, network)


def test_a_file_has_no_name_and_is_gone_with_its_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text(encoding="utf-8").count(str(tmp_path))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tensor = zeros_in_a_file((3, 5, 7))
    tensor[2] += 1
    assert (tensor.shape, tensor.dtype, float(tensor.sum())) == ((3, 5, 7), torch.float32, 35.0)
    assert not list(tmp_path.iterdir())
    if sys.platform.startswith("linux"):
        assert mapped() == 1
        view = tensor[1:]
        del tensor
        assert float(view.sum()) == 35.0
        del view
        gc.collect()
        assert mapped() == 0


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(TooLargeError, match="TMPDIR"):
        WindowInferer(8, memory_budget_bytes=0)(_volume(1, 1, 16, 8, 8), _double)


def test_the_budget_is_shared_by_all_results(caplog: pytest.LogCaptureFixture) -> None:
    volume = _volume(1, 1, 32, 8, 8)
    one = 4 * (32 * 64 + 8 * 64)  # the result and the weights of one row of windows
    for budget, files in ((2 * one, 0), (2 * one - 1, 1), (one - 1, 2)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            WindowInferer(8, memory_budget_bytes=budget)(volume, lambda x: (x, -x))
        assert caplog.text.count("in a file") == files


_MEASURES = """
import sys
import torch
from medgen.infer.windows import WindowInferer

torch.set_num_threads(1)

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

most = 0

def network(windows):
    global most
    most = max(most, anonymous())
    return windows * 2

budget = int(sys.argv[1]) if len(sys.argv) > 1 else None
inferer = WindowInferer((48, 96, 96), 0.5, sw_batch_size=1, memory_budget_bytes=budget)
inferer(torch.rand(1, 1, 60, 100, 100), network)
volume = torch.rand(1, 1, 480, 200, 200)
before, most = anonymous(), 0
result = inferer(volume, network)
most = max(most, anonymous())
assert torch.allclose(result, volume * 2, atol=1e-5)
print(most - before, result.numel() * 4)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("budget", [pytest.param([], marks=pytest.mark.slow), ["0"]], ids=["as free", "none"])
def test_at_most_the_result_and_a_few_slabs_are_held(budget: list[str]) -> None:
    command = [sys.executable, "-c", _MEASURES, *budget]
    numbers = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    held, result = (int(number) for number in numbers)
    slab = result // 10
    # A slab of weights, with a file one of sums, and windows, each a quarter of a slab, with what malloc keeps of them.
    assert held < (0 if budget else result) + 5 * slab


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_stream_gives_what_calls_give(batch: int) -> None:
    volume = _volume(2, 1, 30, 17, 12)
    network = Stream(_double, batch)
    got = WindowInferer(8, 0.25)(volume, network)
    torch.testing.assert_close(got, WindowInferer(8, 0.25)(volume, _double), rtol=1e-6, atol=1e-6)
    assert network.seen[0] == batch
    assert network.ended == 1


def test_a_stream_is_fed_as_it_has_room() -> None:
    taken: list[int] = []

    class Slow(Stream):
        def stream(self, groups: Iterable[tuple[Any, torch.Tensor]]) -> Iterator[tuple[Any, Any]]:
            def counted() -> Iterator[tuple[Any, torch.Tensor]]:
                for group in groups:
                    taken.append(0)
                    yield group

            for landed in super().stream(counted()):
                taken.append(1)
                yield landed

    WindowInferer(8, 0.0)(_volume(1, 1, 64, 8, 8), Slow(_double, batch=1, flying=3))
    assert taken == [0, 0, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 1, 1]


def test_a_stream_may_have_several_outputs_and_slices_with_neighbours() -> None:
    volume = _volume(1, 1, 9, 8, 5)
    network = Stream(lambda planes: {"middle": planes[:, 1:2], "next": planes[:, 2:]})
    got = WindowInferer(8, spatial_dim=2, neighbours=1)(volume, network)
    torch.testing.assert_close(got["middle"], volume)
    torch.testing.assert_close(got["next"], volume[..., [1, 2, 3, 4, 4]])


def test_a_stream_that_runs_out_of_memory_gets_smaller_batches() -> None:
    volume, network = _volume(1, 1, 64, 8, 8), Stream(_double, batch=8, most=2)
    inferer = WindowInferer(8)
    torch.testing.assert_close(inferer(volume, network), volume * 2, rtol=1e-5, atol=1e-6)
    assert inferer.flags == ("oom-backoff",)
    assert network.seen[:3] == [8, 4, 2]
    assert network.ended == 3


def test_batches_of_one_network_are_not_anothers() -> None:
    inferer, volume = WindowInferer(8), _volume(1, 1, 64, 8, 8)
    seen = []
    for batch in (4, 3):
        network = Stream(_double, batch)
        inferer(volume, network)
        seen.append(network.seen[0])
    assert seen == [4, 3]


def test_a_stream_that_is_not_finite_ends_the_case_and_the_stream() -> None:
    volume = _volume(1, 1, 24, 8, 8)
    volume[0, 0, 20] = float("inf")
    network = Stream(_double, batch=1)
    with pytest.raises(IntensityError, match=r"starts at voxel \(16, 0, 0\)"):
        WindowInferer(8, 0.0)(volume, network)
    assert network.ended == 1


@pytest.mark.parametrize(
    ("order", "told"),
    [
        (lambda groups: reversed(list(groups)), "in the order"),
        (lambda groups: list(groups)[:-1], "for every group"),
        (lambda groups: [next(iter(groups))], "for every group"),
        (lambda groups: [], "for every group"),
        (lambda groups: [*list(groups), ([], torch.zeros(0))], "in the order"),
    ],
)
def test_a_stream_out_of_order_is_named(order: Callable[..., Any], told: str) -> None:
    class Wrong(Stream):
        def stream(self, groups: Iterable[tuple[Any, torch.Tensor]]) -> Iterator[tuple[Any, Any]]:
            return iter([(windows, voxels) for windows, voxels in order(groups)])

    with pytest.raises(BundleError, match=told):
        WindowInferer(8, 0.0)(_volume(1, 1, 64, 8, 8), Wrong(_double))


def test_a_stream_takes_nothing_but_windows() -> None:
    with pytest.raises(BundleError, match="nothing but windows"):
        Forward(Stream(_double), torch.device("cpu"), torch.float32, (1,))


def test_starts_are_along_the_thinnest_slab() -> None:
    assert Cut.of((1, 1, 512, 512, 64), (512, 512, 16), (0.5,) * 3).along == 2
    assert Cut.of((1, 1, 64, 64, 64), (16, 16, 16), (0.5,) * 3).along == 0
    assert window_starts(5, 16, 0.5) == (0,)
