"""Two processes of `torchrun` train as one with the doubled batch does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("two_ranks.py")
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def run(command: list[str], script: Path, *arguments: object) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    line = [sys.executable, *command, str(script), *map(str, arguments)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def weights(command: list[str], batch_size: int, output: Path) -> torch.Tensor:
    run(command, SCRIPT, batch_size, output)
    return torch.load(output, weights_only=True)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch was built without gloo")
def test_two_ranks_equal_one_process_with_the_doubled_batch(tmp_path: Path) -> None:
    one = weights([], 2, tmp_path / "one.pt")
    two = weights(TWO, 1, tmp_path / "two.pt")
    single = weights([], 1, tmp_path / "single.pt")
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(single, one, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch was built without gloo")
@pytest.mark.parametrize(("ill", "stopped"), [(0, 50), (1, 200)])
def test_both_ranks_act_on_what_the_first_one_finds(tmp_path: Path, ill: int, stopped: int) -> None:
    """Were each to stop on its own, the other would wait for it for ever."""
    run(TWO, SCRIPT.with_name("two_ranks_health.py"), ill, tmp_path)
    assert [(tmp_path / f"{ill}-{rank}.txt").read_text() for rank in (0, 1)] == [str(stopped)] * 2
